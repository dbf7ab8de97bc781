"""COVID-19 Radiography Database (Chowdhury et al. 2020, Rahman et al. 2021): three classes, or four.

Layout of 2021: `{COVID,Normal,Viral Pneumonia,Lung_Opacity}/images/`, lung masks of the same names in
`masks/` beside each `images/`. Layout of 2020: images directly in the class folders (`COVID/` or `COVID-19/`,
`NORMAL/`, `Viral Pneumonia/`). `Lung_Opacity` may be missing.

The `.metadata.xlsx` sheets beside the class folders are not opened: they hold file name, format, size and
address of each image, no patient, view, sex or age, so all these stay unknown.
"""

from pathlib import Path, PurePosixPath

from utils.sources import _files
from utils.sources._selection import Selection, Source, class_rows

SOURCE = Source(
    name="radiography",
    title="The COVID-19 Radiography Database",
    address="https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database",
    licence="none stated in its README: for teaching and research, cite both papers",
    citation="M. E. H. Chowdhury et al., IEEE Access 8 (2020) 132665; T. Rahman et al., Comput Biol Med 132 "
    "(2021) 104319",
    problems=(
        "No patient is known: which images belong together has to be guessed from how alike they are.",
        "Put together from other sets, differently for each class: a network can learn the set instead of the disease.",
        "Viral Pneumonia, and part of Normal, are children (from Kermany et al.).",
        "It repeats images of ieee8023's collection and of Kermany's set: no independent test for a model "
        "that saw those.",
    ),
    how_to_get="Download it from https://www.kaggle.com/datasets/tawsifurrahman/covid19-radiography-database "
    "(free account) and unpack it.",
    kaggle="tawsifurrahman/covid19-radiography-database/versions/5",
    megabytes=820,
)
FOLDERS = {
    "COVID": "COVID-19",
    "COVID-19": "COVID-19",
    "Normal": "Normal",
    "NORMAL": "Normal",
    "Viral Pneumonia": "Viral Pneumonia",
    "Lung_Opacity": "Lung Opacity",
}


def _classes(folder):
    names = _files.folder_names(folder)
    return {name: label for name, label in FOLDERS.items() if name in names}


def is_root(folder):
    """True for the folder that holds the class folders."""
    return {"COVID-19", "Normal", "Viral Pneumonia"} <= set(_classes(folder).values())


def find(run, *, required=True):
    """Return the folder that holds the class folders, see `_files.locate`."""
    wanted = "a folder with the sub-folders COVID, Normal and Viral Pneumonia"
    return _files.locate(run, SOURCE, is_root, wanted, required=required)


def select(root):
    """Return the Selection of the set."""
    folders = _classes(root)
    rows = [
        row
        for row in class_rows(root, folders, lambda path: _describe(path, root))
        if PurePosixPath(row["path"]).parts[1] != "masks"
    ]
    selection = Selection(root, rows, sources=(SOURCE,), why="every file in the class folders but the masks")
    selection.drop_what_is_no_image()
    selection.require(folders)
    return selection


def _describe(path, root):
    path = PurePosixPath(path)
    mask = path.parents[1] / "masks" / path.name
    return {"source": "radiography", "lung_mask": mask.as_posix() if Path(root, mask).is_file() else None}
