"""A user's own folder with one sub-folder a class: `normal/`, `covid/`, ...

Images may lie at any depth below their class folder. The folder may be divided into train/, val/ and test/
first; they are joined, because the course makes its own split. The negative class must be called normal,
healthy, no finding or no findings (upper or lower case, blanks, - and _ do not matter). Other names become
the label that they recognisably mean (`covid`, `COVID19` -> COVID-19); a name that means none is a label of
its own, as it is written, and counts as abnormal. Folders called mask or masks hold no images. Patients,
views, sex and age are unknown.
"""

import re
from pathlib import Path, PurePosixPath

from utils.errors import CourseError
from utils.sources import _files
from utils.sources._selection import LABELS, Selection, Source

SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
_NEGATIVE = ("normal", "healthy", "nofinding", "nofindings")
_MEANING = {
    **dict.fromkeys(_NEGATIVE, "Normal"),
    **{re.sub(r"[\W_]", "", label).casefold(): label for label in LABELS},
    "covid": "COVID-19",
    "covid19pneumonia": "COVID-19",
    "covidpneumonia": "COVID-19",
    "viral": "Viral Pneumonia",
    "pneumoniaviral": "Viral Pneumonia",
    "bacterial": "Bacterial Pneumonia",
    "pneumoniabacterial": "Bacterial Pneumonia",
    "opacity": "Lung Opacity",
}


def label_of(name):
    """Return the label that a sub-folder's name means, or the name itself.

    Examples
    --------
    >>> label_of("No_Findings"), label_of("COVID19"), label_of("Edema")
    ('Normal', 'COVID-19', 'Edema')
    """
    return _MEANING.get(re.sub(r"[\W_]", "", name).casefold(), name)


def find(run):
    """Return {class folder relative to the set's folder: label}, or raise a CourseError."""
    root = Path(run.dataset)
    top = _class_folders(root)
    splits = [path for path in top if path.name.casefold() in SPLITS]
    if splits and len(splits) < len(top):
        others = ", ".join(f"{path.name}/" for path in top if path not in splits)
        raise CourseError(
            f"{root}: found {others} beside {splits[0].name}/. Expected one sub-folder a "
            "class, or only train/, val/ and test/ with one sub-folder a class in each. "
            "Move the rest away."
        )
    folders = [path for split in splits for path in _class_folders(split)] if splits else top
    classes = {path.relative_to(root).as_posix(): label_of(path.name) for path in folders}
    if "Normal" not in classes.values():
        raise CourseError(
            f"{root} has no negative class: expected a sub-folder called normal, healthy, no "
            f"finding or no findings; it holds {_files.contents(root)}. Rename the sub-folder "
            "with the images without a finding, or name the folder directly above the classes."
        )
    if len(set(classes.values())) < 2:
        raise CourseError(
            f"{root} has one class only ({', '.join(classes)}); expected at least two "
            "sub-folders: one of normal images, and one a finding."
        )
    return classes


def _class_folders(folder):
    return [path for path in _files.entries(folder)[0] if not _is_masks(path.name)]


def _is_masks(name):
    return name.casefold() in ("mask", "masks")


def read(run):
    """Return the Selection of the folder."""
    root, classes = Path(run.dataset), find(run)
    depth = 2 if any("/" in name for name in classes) else 1
    rows, no_image = [], {}
    for path in _files.below(root, root=root):
        folders = PurePosixPath(path).parts[:-1]
        label = classes.get("/".join(folders[:depth]))
        rows.append({"path": path, "label": label, "source": root.name})
        if any(map(_is_masks, folders)):
            no_image[path] = "lies in a folder of masks"
        elif label is None:
            no_image[path] = "lies beside the class folders"
    joined = ", ".join(sorted({name.split("/")[0] for name in classes})) if depth == 2 else ""
    selection = Selection(
        root, rows, sources=(source(root),), why=f"every file; {joined} joined" if joined else "every file"
    )
    selection.drop_what_is_no_image(no_image)
    selection.require(classes)
    return selection


def source(root):
    """Return the Source of a user's folder: nothing is known about it."""
    return Source(
        name=root.name,
        title=f"Your folder {root.name}",
        address=str(root),
        licence="unknown: ask whoever made it",
        citation="unknown",
        problems=(
            "Where the images of each class come from is not known: if the classes differ in it, that may be "
            "all that a network learns.",
            "No patient is known: which images belong together has to be guessed from how alike they are.",
        ),
        how_to_get="It is on this computer.",
    )
