"""COVID-19 Image Data Collection (Cohen et al. 2020): `images/` and a `metadata.csv` that says what each is.

Both versions of the table are read: that of 28 columns with a trailing comma (June 2020), and today's of 29
in which findings read `Pneumonia/Viral/COVID-19`. A file that stands in two rows under different patients is
kept once, and all images of those patients get one patient id (`ieee8023/285+339`), so that no split can part
them.
"""

import csv
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from utils.errors import CourseError
from utils.sources import _files
from utils.sources._selection import FRONTAL, Selection, Source

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
    how_to_get="Download https://github.com/ieee8023/covid-chestxray-dataset (Code, Download ZIP) and unpack "
               "it.",
)
MASKS = "annotations/lungVAE-masks"
_NEEDED = {"patientid", "finding", "view", "modality", "filename"}
_VIEWS = {"APS": "AP Supine", "AP Erect": "AP", "Lateral": "L", "?": None}

# What the course calls each finding. Pneumocystis is a fungus; it, other fungi, oil and aspirated food are
# neither viral nor bacterial. ARDS alone can have causes outside the lungs (one here is a snake bite), and
# tuberculosis is no acute pneumonia: a few images that fit no label are left out rather than made a class
# nobody could test.
FINDINGS = {
    "Normal": ("No Finding",),
    "COVID-19": ("COVID-19",),
    "Viral Pneumonia": ("Viral", "SARS", "MERS", "MERS-CoV", "Influenza", "H1N1", "Varicella", "Herpes"),
    "Bacterial Pneumonia": (
        "Bacterial", "Streptococcus", "Klebsiella", "Legionella", "E.Coli", "Mycoplasma",
        "Mycoplasma Bacterial Pneumonia", "Chlamydophila", "Staphylococcus", "MRSA", "Nocardia"),
    "Pneumonia": ("Pneumonia", "Fungal", "Pneumocystis", "Aspergillosis", "Lipoid", "Aspiration"),
    None: ("ARDS", "Tuberculosis"),
}
_LABEL = {name.casefold(): label for label, names in FINDINGS.items() for name in names}


def is_root(folder):
    """True for a folder with `images/` and a metadata.csv with this set's columns."""
    try:
        with open(Path(folder, "metadata.csv"), encoding="utf-8-sig", errors="replace", newline="") as file:
            header = next(csv.reader(file), [])
    except (OSError, csv.Error):
        return False
    return _NEEDED <= set(header) and "images" in _files.folder_names(folder)


def find(run):
    """Return the folder that holds `images/` and metadata.csv, or raise a CourseError."""
    wanted = f"a folder with images/ and a metadata.csv that has the columns {', '.join(sorted(_NEEDED))}"
    return _files.locate(run, SOURCE, is_root, wanted)


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
    path = Path(root, "metadata.csv")
    try:
        raw = pd.read_csv(path, dtype="str", index_col=False, encoding="utf-8-sig", encoding_errors="replace")
    except pd.errors.ParserError as error:
        raise CourseError(f"{path} is damaged: expected a table parted by commas, got: {str(error).strip()}. "
                          f"Take it from {SOURCE.address} again.") from error
    raw = raw.apply(lambda column: column.str.strip()).replace("", None)
    raw = raw.reindex(columns=[*raw.columns, *({"sex", "age"} - set(raw.columns))])
    folder = raw.folder.fillna("images") if "folder" in raw else "images"
    nameless = "metadata.csv, row " + (raw.index + 1).astype("str")
    return pd.DataFrame({
        "path": (folder + "/" + raw.filename).fillna(pd.Series(nameless, index=raw.index)),
        "patient": raw.patientid.map(_patients(raw)),
        "finding": raw.finding,
        "modality": raw.modality,
        "view": raw["view"].map(lambda view: _VIEWS.get(view, view)),
        "sex": raw.sex.where(raw.sex.isin(["M", "F"])),
        "age": pd.to_numeric(raw.age, errors="coerce"),
        "label": raw.finding.map(label_of, na_action="ignore"),
    })


def _patients(raw):
    """Return {patientid: patient}, with one patient for all who share a file."""
    joined = {patient: {patient} for patient in raw.patientid.dropna()}
    for _, together in raw.dropna(subset=["patientid", "filename"]).groupby("filename").patientid:
        group = set().union(*(joined[patient] for patient in together))
        joined.update(dict.fromkeys(group, group))
    return {patient: "ieee8023/" + "+".join(sorted(group, key=_number)) for patient, group in joined.items()}


def _number(patient):
    # Most patients are numbers; those of one publication are told apart by a letter (311a, 311b).
    return int(re.match(r"\d*", patient)[0] or 0), patient


def select(root, *, views=FRONTAL):
    """Return the Selection of the set: frontal X-rays with a finding that fits a label.

    Parameters
    ----------
    root : pathlib.Path
    views : tuple of str
        Views to keep; `("PA",)` for upright images only.
    """
    table = read_table(root)
    masks = {re.sub(r"_mask(\.png)+$", "", PurePosixPath(path).name): path
             for path in _files.below(Path(root, MASKS), root=root) if "_mask.png" in path}
    paths = _files.below(Path(root, "images"), root=root)
    without_row = pd.DataFrame({"path": sorted(set(paths) - set(table.path))})
    rows = pd.concat([table, without_row], ignore_index=True).assign(source="ieee8023")
    rows["in_table"], rows["in_folder"] = rows.path.isin(table.path), rows.path.isin(paths)
    rows["lung_mask"] = rows.path.map(lambda path: masks.get(PurePosixPath(path).stem))
    selection = Selection(root, rows, sources=(SOURCE,),
                          why="rows of metadata.csv, and files in images/ that have no row")
    _filter(selection, views)
    return selection


def _filter(selection, views):
    def drop(step, why, bad, reasons):
        reasons = reasons if isinstance(reasons, str) else reasons(selection.rows).astype("str")
        gone = pd.Series(reasons, index=selection.rows.index, dtype="str").where(bad(selection.rows))
        selection.drop(step, why, gone)

    drop("files without a row", "nothing is known about them", lambda rows: ~rows.in_table,
         "no row in metadata.csv")
    drop("no X-ray", "CT is another kind of picture", lambda rows: rows.modality.str.casefold() != "x-ray",
         lambda rows: "modality " + rows.modality.fillna("unknown"))
    drop("rows without a file", "nothing to look at", lambda rows: ~rows.in_folder,
         "in metadata.csv, but no such file")
    selection.drop_what_is_no_image()
    drop("view unknown", "it may be a lateral view", lambda rows: rows.view.isna(), "view unknown")
    selection.drop_views(views)
    blank = ("todo", "unknown")
    drop("finding not filled in", "an image without a diagnosis teaches nothing",
         lambda rows: rows.finding.isna() | rows.finding.str.casefold().isin(blank),
         lambda rows: "finding " + rows.finding.fillna("blank"))
    drop("no label fits", "findings that are no pneumonia, or that the course does not know",
         lambda rows: rows.label.isna(), lambda rows: "finding " + rows.finding)
    drop("rows that contradict each other", "the same file under two labels",
         lambda rows: rows.groupby("path").label.transform("nunique") > 1, "two labels for one file")
    drop("second rows of a file", "each image counts once; its patients are joined",
         lambda rows: rows.path.duplicated(), "second row of the same file")
