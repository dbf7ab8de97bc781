"""Data sets: where each comes from, and how its folder becomes a manifest.

`load` reads the data set of a run, and downloads it first where nobody has put it there. One module a set says where it
comes from (`SOURCE`), how its folder is found (`find`) and how it is read (`select`); what they share is in `_files`,
`_selection`, `_metadata` and `_fetch`.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils import config
from utils.errors import CourseError
from utils.sources import (
    _fetch,
    _selection,
    actualmed,
    darkcovidnet,
    every,
    figure1,
    folder,
    ieee8023,
    kermany,
    phantom,
    radiography,
)
from utils.sources._selection import COLUMNS, FRONTAL, LABELS, Source

__all__ = [
    "COLUMNS",
    "FRONTAL",
    "LABELS",
    "DOWNLOADS",
    "Loaded",
    "Source",
    "fetch",
    "load",
    "load_folder",
    "require_labels",
]

# The sets of each DATASET. `cohen` is the combination of many papers of 2020, and of their mistakes: nearly all its
# normal images show children (Kermany), every COVID-19 image an adult or an image from a publication (ieee8023).
_SETS = {
    "darkcovidnet": (darkcovidnet,),
    "cohen": (ieee8023, kermany),
    "radiography": (radiography,),
    **{name: (module,) for name, module in zip(config.ADDED, every.ADDED)},
    "actualmed": (actualmed,),  # the external sets: DATASET=all tests on them, nothing trains on them
    "figure1": (figure1,),
}
DOWNLOADS = tuple(_SETS)
_MODULES = {"phantom": phantom, "all": every}
_log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A data set, read.

    Attributes
    ----------
    root : pathlib.Path
        The set's folder.
    manifest : pandas.DataFrame
        COLUMNS, one row an image, sorted by path. All columns are pandas' `str` type (missing: NaN) but age:
        float, years. Masks are paths, relative to root like `path`.
    steps : pandas.DataFrame
        step, why, dropped, left: the filter, step by step. The first row is everything found.
    skipped : pandas.DataFrame
        path, reason: every file or table row left out, as many as `steps.dropped` adds up to.
    sources : tuple of Source
        One for `darkcovidnet`, two for `cohen`, ...
    twins : pandas.DataFrame
        DATASET=all: pairs that show the same picture, among all files found, the one nearer to its origin first.
        path_first, path_second, set_first, set_second, label_first, label_second, correlation (of thumbnails; NaN
        where only the names agree), by ("pixels" or "file name"). Else empty.
    external : pandas.DataFrame
        DATASET=all: the manifest of the external sets, which are never trained on. Else empty.
    """

    root: Path
    manifest: pd.DataFrame
    steps: pd.DataFrame
    skipped: pd.DataFrame
    sources: tuple
    twins: pd.DataFrame
    external: pd.DataFrame


def load(run, *, say=_log.info):
    """Read the data set of a run into a manifest, after `fetch`.

    Parameters
    ----------
    run : utils.config.Run
    say : callable
        As in `fetch`.

    Returns
    -------
    Loaded
        In the fast profile of a real set only whole patients up to about `images_per_label` images a label.
        The files are looked at (kind, SHA-256) but, except for DATASET=all, which compares them, not decoded.

    Raises
    ------
    CourseError
        The set is missing, has another layout, or a class without images.

    Examples
    --------
    >>> from utils import config, sources
    >>> loaded = sources.load(config.start("darkcovidnet", raw="~/Downloads"))  # doctest: +SKIP
    >>> loaded.manifest.label.value_counts()  # doctest: +SKIP
    """
    fetch(run, say=say)
    selection = _read(run, say)
    selection.require_any()
    if run.dataset != "phantom" and run.settings.images_per_label is not None:
        special = selection.sources[0].fast_images_per_label if len(selection.sources) == 1 else None
        selection.draw(special or run.settings.images_per_label)
    return _loaded(selection)


def load_folder(path):
    """Read whatever set a folder holds, whole: a known one by its layout, else one sub-folder a class.

    Nothing is downloaded. The external sets, Actualmed and Figure 1, are read like any other.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    Loaded

    Raises
    ------
    CourseError
        No such folder; none of these layouts, or several sets in one folder; no image that can be used.
    """
    run = config.start(str(path), "full")
    there = config.Run("all", "full", Path(run.dataset), run.seed)
    roots = {module: module.find(there, required=False) for module in every.EXTERNAL + every.TRAINING}
    found = {module: root for module, root in roots.items() if root}
    if len(found) > 1:
        names = ", ".join(str(root) for root in found.values())
        raise CourseError(f"{path} holds {len(found)} data sets; name the folder of one: {names}.")
    selection = next((module.select(root) for module, root in found.items()), None) or folder.read(run)
    selection.require_any()
    return _loaded(selection)


def _loaded(selection):
    steps, skipped = selection.records()
    return Loaded(
        selection.root,
        selection.manifest(),
        steps,
        skipped,
        selection.sources,
        selection.twins,
        selection.with_hashes(selection.external)[list(COLUMNS)],
    )


def fetch(run, *, say=_log.info):
    """Find the data set of a run, without reading it; download what is missing where nobody has put it there.

    Parameters
    ----------
    run : utils.config.Run
        With `raw` nothing is ever downloaded.
    say : callable
        Takes a line on what is going to be downloaded: how much, from where, what it needs.

    Raises
    ------
    CourseError
        The set is missing and cannot be downloaded, or has another layout.
    """
    sets = _SETS.get(run.dataset, ())
    plans = [plan for plan in (_fetch.plan(run, module) for module in sets) if plan] if not run.raw else []
    for plan in plans:
        say(plan.text)
    for plan in sorted(plans, key=lambda plan: plan.module.SOURCE.pins):  # Kaggle first: it may want a login
        _fetch.carry_out(plan)
    for module in sets:
        _fetch.require_whole(run, module, module.find(run))
    if not sets:
        _MODULES.get(run.dataset, folder).find(run)


def _read(run, say):
    sets = _SETS.get(run.dataset)
    if run.dataset == "all":
        return every.read(run, say=say)
    if not sets:
        return _MODULES.get(run.dataset, folder).read(run)
    parts = [module.select(module.find(run)) for module in sets]
    return parts[0] if len(parts) == 1 else _selection.join(parts)


def require_labels(readable, manifest, skipped):
    """Refuse to go on when every image of a label has turned out to be unreadable.

    Parameters
    ----------
    readable, manifest : pandas.DataFrame
        The manifest after and before the images were opened.
    skipped : pandas.DataFrame
        `path` and `reason` of the images that could not be used.

    Raises
    ------
    CourseError
        Names the labels and the first reasons.
    """
    lost = sorted(set(manifest["label"]) - set(readable["label"]))
    if lost:
        some = "; ".join(f"{row.path}: {row.reason}" for row in skipped.head(3).itertuples())
        raise CourseError(
            f"No image labelled {' or '.join(lost)} can be used ({some}). Take the files from their origin again."
        )
