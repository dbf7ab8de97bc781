"""What of a data set is missing on this computer, and bringing it here from where its authors publish it.

Only sets that nobody has put there by hand are downloaded: a folder that RAW names, or one that was unpacked where the
course looks, is taken as it is. A GitHub set that the course has downloaded itself holds `download.json`.
"""

import json
import os
from pathlib import Path
from typing import NamedTuple

from utils import download, kaggle
from utils.errors import CourseError
from utils.files import write_text
from utils.sources import _files
from utils.sources._selection import Source

PINS = Path(__file__).with_name("pins")
MARK = "download.json"


class Plan(NamedTuple):
    """One set that is to be downloaded.

    Attributes
    ----------
    source : Source
    folder : pathlib.Path
        Where it goes.
    paths : list of str
        A GitHub set: the files of its repository that the run uses, those already there among them.
    text : str
        What will happen, in a line: how much, from where, what it needs.
    """

    source: Source
    folder: Path
    paths: list
    text: str


def plan(run, module):
    """Return the Plan for a set of a run, or None where nothing is to be downloaded.

    Parameters
    ----------
    run : utils.config.Run
    module : module
        Of a set, with `SOURCE` and `find`.
    """
    if run.raw:
        return None
    source, homes = module.SOURCE, [_home(place, run, module.SOURCE) for place in _files.places(run)]
    ours = next((home for home in homes if (home / (MARK if source.pins else kaggle.RECORD)).is_file()), None)
    root = module.find(run, required=False)
    if root and (ours is None or source.pins and root != ours / getattr(module, "TOP", "")):
        return None  # put there by hand, perhaps after a download had failed
    return (_github if source.pins else _kaggle)(run, module, ours or homes[0])


def _home(place, run, source):
    return place if place.name == source.name else place / source.name


def _github(run, module, home):
    pins = download.read_pins(PINS / f"{module.SOURCE.name}.csv")
    paths = module.wanted(run, pins.files) if hasattr(module, "wanted") else list(pins.files)
    missing = download.missing(pins, paths, home)
    if not missing and _is_complete(home):
        return None
    megabytes = download.total_size(missing) / 1e6
    text = (f"{module.SOURCE.title}: downloading {len(missing)} files, about {megabytes:.0f} MB, from "
            f"github.com/{pins.repository} (no login) into {home}.")
    return Plan(module.SOURCE, home, paths, text)


def _kaggle(run, module, home):
    source = module.SOURCE
    if (home / kaggle.RECORD).is_file():
        kaggle.check_record(home)
        return None
    text = (f"{source.title}: downloading about {source.megabytes / 1000:.1f} GB, and as much again unpacked, from "
            f"{source.address} (Kaggle may ask for a free account) into {home}.")
    return Plan(source, home, [], text)


def carry_out(planned):
    """Download what a plan says.

    Raises
    ------
    CourseError
        It cannot be had: the reason, and how to get the set by hand.
    """
    source, home = planned.source, planned.folder
    by_hand = f"\nBy hand: {source.how_to_get} Then run again with RAW=<the folder that you unpacked it into>."
    try:
        if source.pins:
            pins = download.read_pins(PINS / f"{source.name}.csv")
            _mark(home, pins, complete=False)
            download.fetch(pins, planned.paths, home)
            _mark(home, pins, complete=True)
        else:
            size = 1_000_000 * source.megabytes
            kaggle.fetch(source.kaggle, home, most=4 * size, room=2 * size)
    except CourseError as error:
        raise CourseError(f"{source.title} cannot be downloaded.\n{error}{by_hand if source.pins else ''}") from None


def _mark(home, pins, *, complete):
    about = {"repository": pins.repository, "commit": pins.commit, "complete": complete}
    with download.writing(home):
        write_text(home / MARK, json.dumps(about, indent=1) + "\n")


def _is_complete(home):
    return json.loads((home / MARK).read_text(encoding="utf-8"))["complete"] if (home / MARK).is_file() else False


def unfinished(run):
    """Return the folders below the places of a run whose download has not ended."""
    found = []
    for place in _files.places(run):
        for folder, _, names in os.walk(place):
            if MARK in names and not _is_complete(Path(folder)):
                found.append(Path(folder))
    return found
