"""Figure 1 COVID-19 Chest X-ray Dataset (COVID-Net team 2020): `images/` and a metadata.csv that says what each is.

An external set: the course never trains on it, it only tests on it what was trained elsewhere.

The table has no column of file names: an image is called by its patient, COVID-00001.jpg or COVID-00045.png. Several
images of one patient carry a letter, in the table too: COVID-00003a and COVID-00003b are both `figure1/COVID-00003`.
"""

from pathlib import Path, PurePosixPath

from utils.sources import _files, _metadata
from utils.sources._selection import FRONTAL, Source
from utils.sources.ieee8023 import label_of

SOURCE = Source(
    name="figure1",
    title="The Figure 1 COVID-19 Chest X-ray Dataset",
    address="https://github.com/agchung/Figure1-COVID-chestxray-dataset",
    licence="for research purposes only, says its README; see the repository",
    citation="L. Wang, Z. Q. Lin, A. Wong, COVID-Net, Sci Rep 10 (2020) 19549",
    problems=(
        "55 images, nearly all of COVID-19: three are without a finding, two show another pneumonia, and where the "
        "finding is blank they are left out.",
        "The view is given for 18 images only; the others are kept, because the table names no lateral view.",
        "Some carry marks of the monitor that they were copied from, as the table says.",
        "Ages are often words (50+, early 40s), which count as unknown.",
        "It is part of COVIDx: no external set for a model that was trained on that.",
    ),
    how_to_get="Download https://github.com/agchung/Figure1-COVID-chestxray-dataset (Code, Download ZIP) and unpack "
    "it.",
    pins=True,
)
_NEEDED = {"patientid", "finding", "view", "modality"}
_ENDINGS = (".jpg", ".jpeg", ".png")


def is_root(folder):
    """True for a folder with `images/` and a metadata.csv with this set's columns, and no column of file names."""
    return _metadata.is_root(folder, has={"patientid", "finding", "temperature"}, lacks={"filename", "imagename"})


def find(run, *, required=True):
    """Return the folder that holds `images/` and metadata.csv, see `_files.locate`."""
    wanted = (
        "a folder with images/ and a metadata.csv that has the columns finding, patientid and temperature, and "
        "none of file names"
    )
    return _files.locate(run, SOURCE, is_root, wanted, required=required)


def select(root, *, views=FRONTAL):
    """Return the Selection of the set: X-rays with a finding that are not known to be lateral."""
    raw = _metadata.read(root, SOURCE, _NEEDED)
    found = [PurePosixPath(path) for path in _files.below(Path(root, "images"), root=root)]
    files = {path.stem: path.as_posix() for path in reversed(found) if path.suffix.casefold() in _ENDINGS}
    paths = raw.patientid.map(files).fillna("images/" + raw.patientid + ".jpg or .png")
    patients = raw.patientid.str.replace(r"(?<=\d)[A-Za-z]$", "", regex=True)
    table = _metadata.table(raw, SOURCE, paths=paths, patients=patients, label_of=label_of)
    return _metadata.select(root, table, SOURCE, views=views, laterals=False)
