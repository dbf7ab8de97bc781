"""COVID-19 Image Data Collection (Cohen et al. 2020): `images/` and a `metadata.csv` that says what each is.

Both versions of the table are read: that of 28 columns with a trailing comma (June 2020), and today's of 29
in which findings read `Pneumonia/Viral/COVID-19`. A file that stands in two rows under different patients is
kept once, and all images of those patients get one patient id (`ieee8023/285+339`), so that no split can part
them.
"""

import re
from pathlib import Path, PurePosixPath

from utils.sources import _files, _metadata
from utils.sources._selection import FRONTAL, Source

SOURCE = Source(
    name="ieee8023",
    title="The COVID-19 Image Data Collection",
    address="https://github.com/ieee8023/covid-chestxray-dataset",
    licence="stated image by image in metadata.csv (mostly CC BY-NC-SA, many blank); lung masks CC BY-SA",
    citation="J. P. Cohen et al., COVID-19 Image Data Collection, arXiv:2006.11988 (2020)",
    problems=(
        "Collected from publications and web pages: striking cases, many hospitals, arrows and text on some.",
        "Hardly any normal image, and those few are mostly of patients who fell ill.",
        "CT slices, lateral views and unlabelled images are mixed in; the table tells most of them.",
        "A patient has up to 8 images, and some have more than one finding as the illness goes on.",
    ),
    how_to_get="Download https://github.com/ieee8023/covid-chestxray-dataset (Code, Download ZIP) and unpack it.",
    pins=True,
)
MASKS = "annotations/lungVAE-masks"
_NEEDED = {"patientid", "finding", "view", "modality", "filename"}

# What the course calls each finding. Pneumocystis is a fungus; it, other fungi, oil and aspirated food are
# neither viral nor bacterial. ARDS alone can have causes outside the lungs (one here is a snake bite), and
# tuberculosis is no acute pneumonia: a few images that fit no label are left out rather than made a class
# nobody could test.
FINDINGS = {
    "Normal": ("No Finding",),
    "COVID-19": ("COVID-19",),
    "Viral Pneumonia": ("Viral", "SARS", "MERS", "MERS-CoV", "Influenza", "H1N1", "Varicella", "Herpes"),
    "Bacterial Pneumonia": (
        "Bacterial",
        "Streptococcus",
        "Klebsiella",
        "Legionella",
        "E.Coli",
        "Mycoplasma",
        "Mycoplasma Bacterial Pneumonia",
        "Chlamydophila",
        "Staphylococcus",
        "MRSA",
        "Nocardia",
    ),
    "Pneumonia": ("Pneumonia", "Fungal", "Pneumocystis", "Aspergillosis", "Lipoid", "Aspiration"),
    None: ("ARDS", "Tuberculosis"),
}
_LABEL = {name.casefold(): label for label, names in FINDINGS.items() for name in names}


def is_root(folder):
    """True for a folder with `images/` and a metadata.csv with this set's columns."""
    return _metadata.is_root(folder, has=_NEEDED)


def find(run, *, required=True):
    """Return the folder that holds `images/` and metadata.csv, see `_files.locate`."""
    wanted = f"a folder with images/ and a metadata.csv that has the columns {', '.join(sorted(_NEEDED))}"
    return _files.locate(run, SOURCE, is_root, wanted, required=required)


def label_of(finding):
    """Return the label of a finding of the table, or None where no label of the course fits.

    Examples
    --------
    >>> label_of("Pneumonia/Viral/SARS"), label_of("COVID-19, ARDS"), label_of("todo")
    ('Viral Pneumonia', 'COVID-19', None)
    """
    labels = set()
    for item in finding.split(","):
        known = {part for part in (part.strip().casefold() for part in item.split("/")) if part in _LABEL}
        if not known:
            return None  # a name that the table above does not have: better no label than a guess
        labels |= {_LABEL[part] for part in known}
    labels -= {None}
    if "Normal" in labels:
        return "Normal" if labels == {"Normal"} else None
    if "COVID-19" in labels:
        return "COVID-19"
    kinds = labels - {"Pneumonia"}
    return kinds.pop() if len(kinds) == 1 else "Pneumonia" if labels else None


def read_table(root):
    """Return metadata.csv as path, patient, finding, modality, view, sex, age, label; unknown = missing."""
    raw = _metadata.read(root, SOURCE, _NEEDED)
    folder = raw.folder.fillna("images") if "folder" in raw else "images"
    paths = folder + "/" + raw.filename
    return _metadata.table(raw, SOURCE, paths=paths, patients=raw.patientid, label_of=label_of)


def select(root, *, views=FRONTAL):
    """Return the Selection of the set: frontal X-rays with a finding that fits a label.

    Parameters
    ----------
    root : pathlib.Path
    views : tuple of str
        Views to keep; `("PA",)` for upright images only.
    """
    masks = {
        re.sub(r"_mask(\.png)+$", "", PurePosixPath(path).name): path
        for path in _files.below(Path(root, MASKS), root=root)
        if "_mask.png" in path
    }
    return _metadata.select(root, read_table(root), SOURCE, views=views, masks=masks)
