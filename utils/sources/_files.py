"""Finding the folder of a data set on a disk, and telling which of its files are images."""

import os
from collections import deque
from pathlib import Path

from utils import config, kinds
from utils.errors import CourseError

_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")


def is_hidden(name):
    """True for what a system leaves behind: `.DS_Store`, `._x.png`, `__MACOSX`, `Thumbs.db`, ..."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def entries(folder):
    """Return the visible sub-folders of a folder and all its other entries: two sorted lists of paths.

    A folder that cannot be opened is its own only entry: it is then reported with the files that cannot be
    read.
    """
    try:
        with os.scandir(folder) as found:
            items = sorted((entry.name, entry.is_dir()) for entry in found)
    except OSError:
        return [], [Path(folder)]
    folders = [Path(folder, name) for name, is_folder in items if is_folder and not is_hidden(name)]
    return folders, [Path(folder, name) for name, is_folder in items if not is_folder]


def folder_names(folder):
    """Return the names of the visible sub-folders, as a set."""
    return {path.name for path in entries(folder)[0]}


def below(folder, *, root):
    """Return every file below a folder, as sorted paths relative to `root`, with "/" on every system.

    Symbolic links are followed, each real folder once. Hidden folders are left out, hidden files are not.
    """
    return sorted(path.relative_to(root).as_posix() for inner in _tree(folder) for path in entries(inner)[1])


def _tree(top, stop_at=lambda folder: False):
    """Yield a folder and its visible sub-folders, nearest first; nothing below where `stop_at` is true."""
    queue, known = deque([Path(top)]), set()
    while queue:
        folder = queue.popleft()
        real = os.path.realpath(folder)
        if real in known:  # a link to a folder seen before, perhaps to one above: endless otherwise
            continue
        known.add(real)
        yield folder
        if not stop_at(folder):
            queue.extend(entries(folder)[0])


def _is_text(name):
    try:
        name.encode()
    except UnicodeEncodeError:  # umlauts of an old archive, for instance
        return False
    return True


def not_an_image(path):
    """Return why a file is evidently not an image, or None; only its first bytes are read."""
    if is_hidden(path.name):
        return "hidden file of the operating system"
    if not _is_text(path.name):
        return "its name is not UTF-8 text: rename it"
    if path.exists() and not path.is_file():
        return "not a file that can be opened"
    try:
        with open(path, "rb") as file:
            head = file.read(kinds.HEAD)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return kinds.not_an_image(head)


def locate(run, source, is_root, wanted, *, required=True):
    """Return the folder of a data set, wherever it lies below the places where it may be.

    Parameters
    ----------
    run : utils.config.Run
        With `raw`, only that folder is searched; else those of `places`.
    source : Source
        Says where the set can be had.
    is_root : callable
        Path -> bool: is this folder the set? Decided by what it holds, never by its name.
    wanted : str
        What `is_root` looks for, in words.
    required : bool
        A set that is not there is an error.

    Returns
    -------
    pathlib.Path or None
        A copy inside the set's own folder does not count (Kaggle's chest_xray.zip holds one). None only where
        not `required`.

    Raises
    ------
    CourseError
        The set is not there, lies there in another layout, or lies there twice.
    """
    there = [place for place in places(run) if place.is_dir()]
    for place in there:
        found = [folder for folder in _tree(place, stop_at=is_root) if is_root(folder)]
        if len(found) > 1:
            raise CourseError(_twice(run, source, found))
        if found:
            return found[0]
    if not required:
        return None
    raise CourseError(_elsewhere(run, source, there, wanted) if there else _missing(run, source, places(run)))


def places(run):
    """Return the folders in which the data set of a run may lie, the first being where it is downloaded to.

    `RAW` alone where it is given; else `$CXR_DATA_DIR/<dataset>` (a class shares one) before the course's own
    `data/raw/<dataset>`. For DATASET=all the folders of all data sets: `$CXR_DATA_DIR` and `data/raw`.
    """
    if run.raw:
        return [run.raw]
    bases = [Path(os.environ["CXR_DATA_DIR"]).absolute()] if os.environ.get("CXR_DATA_DIR") else []
    bases.append(config.data_root() / "raw")
    return bases if run.dataset == "all" else [base / run.dataset for base in bases]


def _missing(run, source, places):
    looked = " and ".join(str(place) for place in places)
    return (
        f"DATASET={run.dataset}: not on this computer: {source.title}. Looked in {looked}. "
        f"{source.how_to_get} Then run again with RAW=<the folder that you unpacked it into>."
    )


def _elsewhere(run, source, there, wanted):
    found = "; ".join(f"{place} holds {contents(place)}" for place in there)
    return (
        f"DATASET={run.dataset}: not found: {source.title}. Looked for {wanted}, at any depth; "
        f"but {found}. Point RAW at a folder that holds the download as {source.address} publishes it: "
        f"names of folders unchanged, archives unpacked. {source.how_to_get}"
    )


def _twice(run, source, found):
    copies = ", ".join(str(path) for path in found)
    return (
        f"DATASET={run.dataset}: found {len(found)} times, expected once: {source.title}, in {copies}. "
        f"{'Move' if run.dataset == 'all' else 'Point RAW at one of these folders, or move'} the others away."
    )


def contents(folder, most=8):
    """Say in a few words what a folder holds: for messages about a layout that was not expected."""
    folders = [path.relative_to(folder).as_posix() + "/" for path in _tree(folder)][1:]
    files = [path.name for path in entries(folder)[1]]
    return f"{_some(folders, 'folder', most)} and, directly in it, {_some(files, 'file', most)}"


def _some(names, kind, most):
    if not names:
        return f"no {kind}"
    more = ", …" if len(names) > most else ""
    return f"{len(names)} {kind}{'s' if len(names) > 1 else ''} ({', '.join(names[:most])}{more})"
