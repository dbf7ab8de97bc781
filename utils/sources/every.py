"""DATASET=all: every known set that is there, each recognised by what it holds; twins across sets count once.

Public sets copy from each other, so joining them brings the same picture in twice, perhaps with two labels, perhaps on
both sides of a split. Twins are searched among *all* files found, before any filter, by their pixels
(`utils.splits.find_twins`) and by their names: DarkCovidNet kept the file names of ieee8023's collection, and half of
its copies are cropped, which comparing pixels does not see. Of twins the image of the set nearer to the origin stays. An
image that was left out there for its view or because it is no X-ray takes its copies along; one without a usable label
leaves them.

The external sets (Actualmed, Figure 1) are found and read as well, but kept apart: they are never trained on.
"""

from importlib import import_module

import pandas as pd

from utils import config, images, splits
from utils.errors import CourseError
from utils.sources import (
    _fetch,
    _files,
    _selection,
    actualmed,
    darkcovidnet,
    figure1,
    ieee8023,
    kermany,
    radiography,
)

# The origins before what was copied from them; the external sets last, so that they lose every twin.
ADDED = tuple(import_module(f"utils.sources.{name}") for name in config.ADDED)
TRAINING = (ieee8023, kermany, darkcovidnet, radiography, *ADDED)
EXTERNAL = (actualmed, figure1)
_ORDER = [module.SOURCE.name for module in TRAINING + EXTERNAL]


def find(run):
    """Return {module: folder} of the sets that are there; with none to train on raise a CourseError."""
    there = [(module, module.find(run, required=False)) for module in TRAINING + EXTERNAL]
    roots = {module: root for module, root in there if root}
    if not any(module in TRAINING for module in roots):
        looked = " and ".join(str(place) for place in _files.places(run))
        names = ", ".join(module.SOURCE.name for module in TRAINING)
        raise CourseError(
            f"DATASET=all: none of the known sets ({names}) lies in {looked}, at any depth. Name the "
            "folder that holds them with RAW, or run the course with one of them first: it downloads."
        )
    for module, root in roots.items():
        _fetch.require_whole(run, module, root)
    return roots


def read(run, *, say):
    """Return the Selection of all sets, with `twins` and `external`, see `utils.sources.Loaded`."""
    whole = _selection.join([module.select(root) for module, root in find(run).items()])
    say(
        f"{len(whole.sources)} sets found. Comparing all their {len(whole.found)} images; the first time every file must "
        "be decoded, which takes a minute for ten to thirty thousand."
    )
    whole.twins = _twins(whole, run.pixels)
    _drop_twins(whole)
    outside = whole.rows["set"].isin([module.SOURCE.name for module in EXTERNAL])
    whole.external = whole.rows[outside]
    if outside.any():
        reasons = ("external set " + whole.rows["set"]).where(outside)
        whole.drop("external sets", "kept apart: never trained on, only tested on", reasons)
    return whole


def _twins(whole, folder):
    """Return all pairs of twins among the files found, one row a pair, the image nearer to the origin first."""
    found = whole.found.drop_duplicates("path")
    found = found[[_files.not_an_image(whole.root / path) is None for path in found.path]]
    found = whole.with_hashes(found.reset_index(drop=True))
    cache = images.cached(whole.root, found, None, folder)
    whole.drop(
        "files that cannot be read",
        "cut off or damaged: nothing to look at",
        whole.rows.path.map(dict(zip(cache.skipped.path, cache.skipped.reason))),
    )
    found = found[cache.readable].reset_index(drop=True)
    pixels = splits.find_twins(cache.thumbnails)
    names = _namesakes(found)
    pairs = pd.concat([pixels.assign(by="pixels"), names.assign(by="file name")])
    pairs = pairs.drop_duplicates(["first", "second"])
    rank = found["set"].map(_ORDER.index).to_numpy()
    swap = rank[pairs["first"]] > rank[pairs["second"]]
    pairs.loc[swap, ["first", "second"]] = pairs.loc[swap, ["second", "first"]].to_numpy()
    columns = {
        f"{column}_{side}": found[column].to_numpy()[pairs[side]]
        for column in ("path", "set", "label")
        for side in ("first", "second")
    }
    return pd.DataFrame({**columns, "correlation": pairs["correlation"].to_numpy(), "by": pairs["by"].to_numpy()})


def _namesakes(found):
    """Return the pairs of images of one source that carry one file name in two sets."""
    named = found.assign(row=range(len(found)), name=found.path.str.rsplit("/", n=1).str[-1])
    pairs = named.merge(named, on=["source", "name"])
    pairs = pairs[(pairs["row_x"] < pairs["row_y"]) & (pairs["set_x"] != pairs["set_y"])]
    return pd.DataFrame({"first": pairs["row_x"], "second": pairs["row_y"]})


def _drop_twins(whole):
    """Leave out each image that has a twin in a set nearer to the origin, unless that one was left out for its label."""
    across = whole.twins[whole.twins["set_first"] != whole.twins["set_second"]]
    skipped = pd.concat(whole.skipped)
    no_chest = skipped[skipped.reason.str.startswith(("view", "modality"))]
    stands, reasons = set(whole.rows.path) | set(no_chest.path), {}
    for name in _ORDER[1:]:  # a twin that was dropped as another's twin stands for that one
        for pair in across[across["set_second"] == name].itertuples():
            if pair.path_first in stands:
                reasons.setdefault(pair.path_second, f"the same picture as {pair.path_first} ({pair.by})")
    whole.drop(
        "twins across sets",
        "one picture counts once: the copy in the set nearer to the origin stays",
        whole.rows.path.map(reasons),
    )
