"""Paths, profiles and seeds: one table, and the `Run` that every notebook starts with."""

import difflib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from utils import notebook
from utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "utils" / "weights" / "phantom.shipped"  # the bundle that is part of the course
PARAMETERS = ("DATASET", "PROFILE", "RAW", "SEED")
# A file of utils/sources is a data set, and whoever adds one has added a data set. Not so what these files hold: parts
# of `cohen`, sets that are only ever tested on, how `all` and a user's folder are read.
_OTHER = ("ieee8023", "kermany", "actualmed", "figure1", "every", "folder")
_OURS = ("phantom", "darkcovidnet", "cohen", "radiography")
_FILES = {path.stem for path in (ROOT / "utils" / "sources").glob("[!_]*.py")}
ADDED = tuple(sorted(_FILES.difference(_OURS, _OTHER)))
DATASETS = (*_OURS, *ADDED, "all")
DEFAULTS = {"DATASET": "phantom", "PROFILE": "fast", "RAW": "", "SEED": 7}

# The phantoms are a data set like any other: the same radiographs whatever the seed of a run.
PHANTOM_SEED = 2020


class Profile(NamedTuple):
    """How much of everything a run uses."""

    phantom_patients: int  # simulated patients, in four classes
    images_per_label: int | None  # real sets: at most about so many images a label (None: all)
    image_size: int  # pixels a side that the small CNN sees
    transfer_size: int  # and that backbones see
    epochs: int  # at most
    steps: int  # batches of training in a comparison of pretrained networks with those from scratch
    folds: int  # a finished recipe is judged on: 1 the test patients, more: all patients in turn (cross-validation)
    resamples: int  # bootstrap draws behind each interval


PROFILES = {
    "fast": Profile(
        phantom_patients=800,
        images_per_label=400,
        image_size=128,
        transfer_size=128,
        epochs=16,
        steps=60,
        folds=1,
        resamples=1000,
    ),
    "full": Profile(
        phantom_patients=2400,
        images_per_label=None,
        image_size=128,
        transfer_size=224,
        epochs=40,
        steps=500,
        folds=5,
        resamples=2000,
    ),
}


def data_root():
    """Return the folder for everything that the course makes: `$CXR_WORK_DIR`, or `data/` here."""
    return Path(os.environ.get("CXR_WORK_DIR") or ROOT / "data").absolute()


@dataclass(frozen=True)
class Run:
    """One choice of the four parameters, and where its files are.

    Attributes
    ----------
    dataset : str
        The name of a data set, or the absolute path of a folder with one sub-folder a class.
    profile : str
        A key of `PROFILES`.
    raw : pathlib.Path or None
        The folder that holds the download of a real set; None: the default place.
    seed : int
        Seed of splits and training.
    """

    dataset: str
    profile: str
    raw: Path | None
    seed: int

    @property
    def is_folder(self):
        """True when the data set is a user's own folder."""
        return self.dataset not in DATASETS

    @property
    def short_dataset(self):
        """The data set's name; for a folder its name and six hex digits of its path."""
        if not self.is_folder:
            return self.dataset
        digest = hashlib.sha256(self.dataset.encode()).hexdigest()[:6]
        name = re.sub(r"[^A-Za-z0-9_]+", "_", Path(self.dataset).name).strip("_")
        return f"{name or 'folder'}-{digest}"

    @property
    def name(self):
        """RUN: `<dataset>-<profile>`, with `-s<seed>` unless the seed is the default."""
        tail = "" if self.seed == DEFAULTS["SEED"] else f"-s{self.seed}"
        return f"{self.short_dataset}-{self.profile}{tail}"

    @property
    def settings(self):
        """The `Profile` of this run."""
        return PROFILES[self.profile]

    @property
    def seeds(self):
        """Three seeds for whatever is trained more than once: one training is an anecdote."""
        return (self.seed, self.seed + 100, self.seed + 200)

    @property
    def processed(self):
        """Folder of this run's manifest and split."""
        return data_root() / "processed" / self.name

    @property
    def pixels(self):
        """Folder of cached pixel arrays, which all runs share."""
        return data_root() / "processed" / "pixels"

    @property
    def features(self):
        """Folder of cached features, which all runs share."""
        return data_root() / "processed" / "features"

    @property
    def results(self):
        """Folder of this run's results, one JSON file a notebook."""
        return data_root() / "results" / self.name

    @property
    def executed(self):
        """Folder of this run's executed notebooks and report."""
        return data_root() / "runs" / self.name

    def bundle(self, name):
        """Return the folder of this run's model bundle called `name`."""
        return data_root() / "models" / f"{self.name}.{name}"


def start(dataset="phantom", profile="fast", raw="", seed=7):
    """Check the four parameters and return the `Run` they name.

    In a notebook, cells are refused from then on while its four parameters are others, see `utils.notebook`.

    Parameters
    ----------
    dataset : str
        A name of `DATASETS`, or the path of a folder with one sub-folder a class.
    profile : str
        A key of `PROFILES`.
    raw : str
        Folder that holds the download of a real set, or "" for the default place.
    seed : int or str of digits
        0 or more.

    Returns
    -------
    Run

    Raises
    ------
    CourseError
        A value that is not known, or a folder that is not there.
    """
    given = dict(zip(PARAMETERS, (dataset, profile, raw, seed)))
    if profile not in PROFILES:
        raise CourseError(unknown("PROFILE", profile, PROFILES))
    if not re.fullmatch(r"\d{1,9}", str(seed)):
        raise CourseError(f"SEED: expected a whole number from 0 to 999999999, got {seed!r}.")
    dataset = _dataset(str(dataset))
    raw = _folder("RAW", raw) if raw else None
    if raw and dataset not in DATASETS:
        raise CourseError("DATASET is a folder of its own here, so RAW has nothing to say: leave RAW out.")
    if raw and dataset == "phantom":
        raise CourseError("DATASET=phantom is built in and reads nothing from RAW: name a DATASET, or leave RAW out.")
    notebook.hold(given)
    return Run(dataset, profile, raw, int(seed))


def _dataset(dataset):
    if dataset in DATASETS:
        return dataset
    if not dataset or os.sep not in dataset and not Path(dataset).is_dir():
        raise CourseError(unknown("DATASET", dataset, DATASETS) + " Or give the path of a folder that exists.")
    return str(_folder("DATASET", dataset))


def _folder(name, value):
    try:
        path = Path(value).expanduser().absolute()
        if not path.is_dir():
            raise CourseError(f"{name}: there is no folder {path}. Check the spelling, or give its full path.")
        return path.resolve()
    except (OSError, RuntimeError) as error:  # a name too long, no permission, no such user behind ~
        raise CourseError(f"{name}: {value} cannot be opened ({error}).") from None


def unknown(name, value, known):
    """Say that a value is not known, what it can be, and which is nearest."""
    near = difflib.get_close_matches(str(value), list(known), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"{name}={value} is not known; it can be: {', '.join(known)}.{hint}"
