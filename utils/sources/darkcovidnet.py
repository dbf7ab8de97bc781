"""DarkCovidNet (Ozturk et al. 2020): COVID-19 from ieee8023's collection, the other two classes from the NIH.

* `No_findings` and `Pneumonia` are images of ChestX-ray8. The file name up to the first `_` is the NIH's
  patient, who may have several images and be in both classes: `nih/00001697`.
* `Covid-19` names no patients. But 120 of its 125 files carry the name of a file of ieee8023's collection and
  show the same picture (about half of them cropped, so that comparing pixels finds only half of the pairs).
  What ieee8023's metadata.csv of 2020-06-22 says about them stands in `darkcovidnet_covid.csv` beside this
  module: file name, patient (written as `utils.sources.ieee8023` writes it), view, sex and age. That table
  comes from https://github.com/ieee8023/covid-chestxray-dataset (Cohen et al. 2020, metadata under CC
  BY-NC-SA 4.0). Of the other five files patient, view, sex and age stay unknown.

The views of the NIH's images are not in the file names, so they stay unknown; ChestX-ray8 holds frontal views
only.
"""

import re
from pathlib import Path, PurePosixPath

import pandas as pd

from utils.sources import _files
from utils.sources._selection import FRONTAL, Selection, Source

SOURCE = Source(
    name="darkcovidnet",
    title="The DarkCovidNet images",
    address="https://github.com/muhammedtalo/COVID-19",
    licence="none stated: for teaching and research, cite the papers; the NIH asks for credit to its Clinical Center",
    citation="T. Ozturk et al., Comput Biol Med 121 (2020) 103792; COVID-19: J. P. Cohen et al., "
    "arXiv:2006.11988 (2020); others: X. Wang et al., ChestX-ray8, CVPR 2017",
    problems=(
        "All COVID-19 images come from one collection and all others from one hospital: a network can learn "
        "the hospital instead of the disease (DeGrave et al., Nat Mach Intell 3 (2021) 610).",
        "The COVID-19 images were cut out of publications and web pages; about half are cropped copies.",
        "The NIH's labels were mined from reports by a program, not read off the images.",
        "21 of the NIH's patients are in both classes, and a patient has up to 12 images.",
        "Who the patients of five COVID-19 images are is not known.",
    ),
    how_to_get="Download https://github.com/muhammedtalo/COVID-19 (Code, Download ZIP; about 413 MB) and unpack it.",
    fast_images_per_label=80,
    pins=True,
    top="X-Ray Image DataSet",
)
FOLDERS = {"Covid-19": "COVID-19", "No_findings": "Normal", "Pneumonia": "Pneumonia"}
TABLE = Path(__file__).with_name("darkcovidnet_covid.csv")


def is_root(folder):
    """True for the folder that holds the three class folders."""
    return set(FOLDERS) <= _files.folder_names(folder)


def find(run, *, required=True):
    """Return the folder that holds the three class folders, see `_files.locate`."""
    wanted = f"a folder with the sub-folders {', '.join(FOLDERS)}"
    return _files.locate(run, SOURCE, is_root, wanted, required=required)


def select(root):
    """Return the Selection of the set."""
    paths = [path for folder in FOLDERS for path in _files.below(Path(root, folder), root=root)]
    selection = Selection(root, _rows(paths), sources=(SOURCE,))
    selection.drop_what_is_no_image()
    selection.require(FOLDERS)
    selection.drop_views(FRONTAL)
    return selection


def wanted(run, paths):
    """Choose the files of the original repository that a run uses: in the fast profile what `draw` keeps.

    Parameters
    ----------
    run : utils.config.Run
    paths : iterable of str
        All files of the repository.

    Returns
    -------
    list of str
        The same images as from a whole download.
    """
    in_set = {path.removeprefix(f"{SOURCE.top}/"): path for path in paths if path.startswith(f"{SOURCE.top}/")}
    selection = Selection(Path(SOURCE.top), _rows(in_set), sources=(SOURCE,))
    selection.drop_views(FRONTAL)
    if run.settings.images_per_label is not None:
        selection.draw(SOURCE.fast_images_per_label)
    return [in_set[path] for path in selection.rows.path]


def _rows(paths):
    table = pd.read_csv(TABLE, dtype={"sex": "str"}).set_index("filename").to_dict("index")
    return [{"path": path, "label": FOLDERS[path.split("/")[0]], **_describe(path, table)} for path in paths]


def _describe(path, table):
    name = PurePosixPath(path).name
    if path.startswith("Covid-19/"):
        return {"source": "ieee8023", **table.get(name, {})}
    number = re.match(r"(\d{8})_\d+", name)
    return {"source": "nih", "patient": f"nih/{number[1]}" if number else None}
