"""Actualmed COVID-19 Chest X-ray Dataset (COVID-Net team 2020): `images/` and a metadata.csv that says what each is.

An external set: the course never trains on it, it only tests on it what was trained elsewhere.
"""

from utils.sources import _files, _metadata
from utils.sources._selection import FRONTAL, Source
from utils.sources.ieee8023 import label_of

SOURCE = Source(
    name="actualmed",
    title="The Actualmed COVID-19 Chest X-ray Dataset",
    address="https://github.com/agchung/Actualmed-COVID-chestxray-dataset",
    licence="for research purposes only, says its README; see the repository",
    citation="L. Wang, Z. Q. Lin, A. Wong, COVID-Net, Sci Rep 10 (2020) 19549",
    problems=(
        "238 images, with or without COVID-19; no other illness, no sex and no age is given.",
        "Where the reading was inconclusive the finding is blank: those images are left out.",
        "76 files are computed radiographs (CR), 162 digital ones (DX), and most AP views show COVID-19: the machine "
        "and the view tell of the disease.",
        "Some patients have images with and without COVID-19, of different days.",
        "It is part of COVIDx: no external set for a model that was trained on that.",
    ),
    how_to_get="Download https://github.com/agchung/Actualmed-COVID-chestxray-dataset (Code, Download ZIP) and unpack "
    "it.",
    pins=True,
)
_NEEDED = {"patientid", "finding", "view", "modality", "imagename"}


def is_root(folder):
    """True for a folder with `images/` and a metadata.csv that calls the files `imagename`."""
    return _metadata.is_root(folder, has={"imagename"}, lacks={"filename"})


def find(run, *, required=True):
    """Return the folder that holds `images/` and metadata.csv, see `_files.locate`."""
    wanted = "a folder with images/ and a metadata.csv that has the column imagename"
    return _files.locate(run, SOURCE, is_root, wanted, required=required)


def select(root, *, views=FRONTAL):
    """Return the Selection of the set: frontal X-rays with a finding, see `_metadata.select`."""
    raw = _metadata.read(root, SOURCE, _NEEDED)
    table = _metadata.table(raw, SOURCE, paths="images/" + raw.imagename, patients=raw.patientid, label_of=label_of)
    return _metadata.select(root, table, SOURCE, views=views)
