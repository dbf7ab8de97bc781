"""What of a data set is missing on this computer, and bringing it here from where its authors publish it.

Only sets that nobody has put there by hand are downloaded: a folder that RAW names, or one that was unpacked where the
course looks, is taken as it is. What the course has fetched itself it knows by a file there, `download.json` (GitHub) or
`files.csv` (Kaggle), and never takes for more than it is: it is compared with what should be there whenever it is used.
"""

import json
from pathlib import Path
from typing import NamedTuple

from utils import download, kaggle
from utils.errors import CourseError
from utils.files import write_text
from utils.sources import _files

PINS = Path(__file__).with_name("pins")
MARK = "download.json"


class Plan(NamedTuple):
    """One set that is to be downloaded.

    Attributes
    ----------
    module : module
        Of the set.
    folder : pathlib.Path
        Where it goes.
    paths : list of str
        A GitHub set: the files of its repository that the run uses, those already there among them.
    text : str
        What will happen, in a line: how much, from where, what it needs.
    """

    module: object
    folder: Path
    paths: list
    text: str


def plan(run, module):
    """Return the Plan for a set of a run, or None where nothing is to be downloaded.

    Parameters
    ----------
    run : utils.config.Run
        Without `raw`.
    module : module
        Of a set, with `SOURCE`, `find`, `is_root`, and perhaps `wanted`.

    Raises
    ------
    CourseError
        A set that cannot be downloaded is not there.
    """
    root = module.find(run, required=_by_hand_alone(module))
    homes = [_home(place, module) for place in _files.places(run)]
    if not root:
        home = next((home for home in homes if (home / _note(module)).is_file()), homes[0])
        return (_github if module.SOURCE.pins else _kaggle)(run, module, home)
    home = _fetched(module, root)
    if home and module.SOURCE.pins and _missing(run, module, home):
        return _github(run, module, home)
    require_whole(run, module, root)
    return None


def require_whole(run, module, root):
    """Check a set that lies on this computer: what the course has fetched there must hold all that the run uses.

    Raises
    ------
    CourseError
        Files are missing: gone since, never finished, or fetched for the fast profile alone.
    """
    home = _fetched(module, root)
    if home is None:  # put there by hand
        return
    if not module.SOURCE.pins:
        kaggle.check_record(home)
        return
    missing = _missing(run, module, home)
    if missing:
        raise CourseError(
            f"{home}: {len(missing)} of the {len(_wanted(run, module))} files that PROFILE={run.profile} "
            f"uses are not there, {missing[0].path} among them: the course has fetched this folder for "
            "another profile, or not to the end, or they were deleted. "
            f"`make fetch DATASET={_dataset(module)} PROFILE={run.profile}` brings them."
        )


def _by_hand_alone(module):
    return not (module.SOURCE.pins or module.SOURCE.kaggle)


def _note(module):
    return MARK if module.SOURCE.pins else kaggle.RECORD


def _home(place, module):
    return place if place.name == module.SOURCE.name else place / module.SOURCE.name


def _fetched(module, root):
    """Return the folder that the course has fetched the set in `root` into, or None."""
    if _by_hand_alone(module):
        return None
    depth = len(Path(module.SOURCE.top).parts) if module.SOURCE.pins else 3  # archives have folders of their own
    above = [root, *root.parents][: depth + 1]
    return next((folder for folder in above if (folder / _note(module)).is_file()), None)


def _pins(module):
    return download.read_pins(PINS / f"{module.SOURCE.name}.csv")


def _wanted(run, module):
    paths = _pins(module).files
    return module.wanted(run, paths) if hasattr(module, "wanted") else list(paths)


def _missing(run, module, home):
    return download.missing(_pins(module), _wanted(run, module), home)


def _dataset(module):
    return "cohen" if module.SOURCE.name in ("ieee8023", "kermany") else module.SOURCE.name


def _github(run, module, home):
    missing = _missing(run, module, home)
    about = "at least" if any(pin.size is None for pin in missing) else "about"
    text = (
        f"{module.SOURCE.title}: downloading {len(missing)} files, {about} "
        f"{download.total_size(missing) / 1e6:.0f} MB, from github.com/{_pins(module).repository} (no login) into "
        f"{home}."
    )
    return Plan(module, home, _wanted(run, module), text)


def _kaggle(run, module, home):
    source, archives = module.SOURCE, kaggle.archives(home)
    if archives:
        return Plan(module, home, [], f"{source.title}: unpacking {archives[0].name} in {home}.")
    return Plan(
        module,
        home,
        [],
        f"{source.title}: downloading about {source.megabytes / 1000:.1f} GB, and as much again "
        f"unpacked, from {source.address} (Kaggle may ask for a free account) into {home}.",
    )


def carry_out(planned):
    """Download what a plan says.

    Raises
    ------
    CourseError
        It cannot be had: the reason, and how to get the set by hand.
    """
    module, home, source = planned.module, planned.folder, planned.module.SOURCE
    by_hand = f"\nBy hand: {source.how_to_get} Then run the course with RAW=<a folder that holds it>."
    try:
        if source.pins:
            pins = _pins(module)
            note = json.dumps({"repository": pins.repository, "commit": pins.commit}, indent=1) + "\n"
            with download.writing(home):
                write_text(home / MARK, note)
            download.fetch(pins, planned.paths, home)
        else:
            size = 1_000_000 * source.megabytes
            kaggle.fetch(source.kaggle, home, most=4 * size, room=2 * size, is_set=module.is_root)
    except CourseError as error:
        raise CourseError(f"{source.title} cannot be downloaded.\n{error}{by_hand if source.pins else ''}") from None
