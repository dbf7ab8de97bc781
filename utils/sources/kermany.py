"""Chest X-rays of children (Kermany et al. 2018): `chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/`.

The file names tell the rest. `person90_bacteria_443.jpeg`: bacterial, patient 90 of the bacterial ones, who
is another child than patient 90 of the viral ones: `kermany/person90-bacteria`. `IM-0640-0001.jpeg` and
`NORMAL2-IM-0640-0001.jpeg`: normal, patient 640. Whether the two normal series number the same children is
not published; they are taken for the same, because that parts nobody: `kermany/normal-0640`. The set's own
folders train, val and test are joined: the course makes its own split. All views are anterior-posterior, says
the set's description; the children are one to five years old, but no image's age is known.
"""

import re
from pathlib import Path, PurePosixPath

from utils.sources import _files
from utils.sources._selection import Selection, Source, class_rows

SOURCE = Source(
    name="kermany",
    title="The chest X-rays of Kermany et al.",
    address="https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia",
    licence="CC BY 4.0 (Mendeley Data, doi:10.17632/rscbjbr9sj)",
    citation="D. S. Kermany et al., Cell 172 (2018) 1122",
    problems=(
        "All patients are children of one to five years from one hospital: beside adults with COVID-19 a "
        "network can learn the age instead of the disease.",
        "All views are anterior-posterior, which other sets use for patients too ill to stand.",
        "A patient has several images; bacterial and viral patients are numbered separately.",
        "The set's own val folder holds 16 images: too few to choose anything by.",
    ),
    how_to_get="Download it from https://www.kaggle.com/datasets/paultimothymooney/chest-xray-pneumonia "
    "(free account; about 2.5 GB, as the set is in it twice) and unpack it.",
    kaggle="paultimothymooney/chest-xray-pneumonia/versions/2",
    megabytes=2460,
)
_CLASSES = ("NORMAL", "PNEUMONIA")
_KIND = {"bacteria": "Bacterial Pneumonia", "virus": "Viral Pneumonia"}


def is_root(folder):
    """True for the folder of train/ and test/ (and val/), each with NORMAL/ and PNEUMONIA/ alone."""
    return all(_files.folder_names(Path(folder, part)) == set(_CLASSES) for part in ("train", "test"))


def find(run, *, required=True):
    """Return the folder that holds train/ and test/, see `_files.locate`."""
    wanted = "a folder with train/ and test/, each with NORMAL/ and PNEUMONIA/ alone"
    return _files.locate(run, SOURCE, is_root, wanted, required=required)


def select(root):
    """Return the Selection of the set."""
    folders = {
        f"{part}/{name}": None
        for part in ("train", "val", "test")
        for name in _CLASSES
        if Path(root, part, name).is_dir()
    }
    selection = Selection(root, class_rows(root, folders, _describe), sources=(SOURCE,))
    selection.drop_what_is_no_image()
    selection.require(folders)
    selection.drop(
        "file names that do not tell the kind",
        "bacterial or viral stands in the file name alone",
        [
            "file name unlike personN_bacteria_M or personN_virus_M" if missing else None
            for missing in selection.rows.label.isna()
        ],
    )
    return selection


def _describe(path):
    path = PurePosixPath(path)
    known = {"source": "kermany", "view": "AP"}
    if path.parts[1] == "NORMAL":
        number = re.match(r"(?:NORMAL2-)?IM-(\d+)-", path.name)
        return {**known, "label": "Normal", "patient": f"kermany/normal-{number[1]}" if number else None}
    person = re.match(r"person(\d+)_(bacteria|virus)_", path.name)
    if not person:
        return known
    return {**known, "label": _KIND[person[2]], "patient": f"kermany/person{person[1]}-{person[2]}"}
