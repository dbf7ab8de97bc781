"""Data sets: where each comes from, and how its folder becomes a manifest.

`load` reads the data set of a run. One module a set says where it comes from (`SOURCE`), how its folder is
found (`find`) and how it is read (`read`); what they share is in `_files` and `_selection`.
"""

from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils.errors import CourseError
from utils.sources import cohen, darkcovidnet, folder, phantom, radiography
from utils.sources._selection import COLUMNS, FRONTAL, LABELS, Source

__all__ = ["COLUMNS", "FRONTAL", "LABELS", "Loaded", "Source", "check", "load", "require_labels"]

_MODULES = {"phantom": phantom, "darkcovidnet": darkcovidnet, "cohen": cohen, "radiography": radiography}


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
    """

    root: Path
    manifest: pd.DataFrame
    steps: pd.DataFrame
    skipped: pd.DataFrame
    sources: tuple


def load(run):
    """Read the data set of a run into a manifest.

    Parameters
    ----------
    run : utils.config.Run

    Returns
    -------
    Loaded
        In the fast profile of a real set only whole patients up to about `images_per_label` images a label.
        The files are looked at (kind, SHA-256) but not decoded.

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
    module = _module(run)
    selection = module.read(run)
    selection.require_any()
    if module is not phantom and run.settings.images_per_label is not None:
        special = [source.fast_images_per_label for source in selection.sources]
        selection.draw(min(filter(None, special), default=run.settings.images_per_label))
    steps, skipped = selection.records()
    return Loaded(selection.root, selection.manifest(), steps, skipped, selection.sources)


def check(run):
    """Find the data set of a run, without reading it.

    Raises
    ------
    CourseError
        The one that `load` would raise for a set that is missing or has another layout.
    """
    _module(run).find(run)


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


def _module(run):
    return _MODULES.get(run.dataset, folder)
