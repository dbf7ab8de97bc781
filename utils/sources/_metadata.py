"""Sets that are a folder `images/` with a `metadata.csv` beside it, one row an image: ieee8023, Actualmed, Figure 1.

The tables have grown by hand in spreadsheets: UTF-8 with or without its mark (BOM) or latin-1, line ends of any system,
a comma too many at the end of each line. `read` copes with all that; `table` gives every set the same columns.
"""

import csv
import io
import re
from pathlib import Path, PurePosixPath

import pandas as pd

from utils.errors import CourseError
from utils.sources import _files
from utils.sources._selection import FRONTAL, Selection

_VIEWS = {
    "pa": "PA",
    "ap": "AP",
    "ap supine": "AP Supine",
    "aps": "AP Supine",
    "ap erect": "AP",
    "l": "L",
    "lateral": "L",
    "?": None,
}


def is_root(folder, *, has, lacks=()):
    """True for a folder with `images/` and a metadata.csv that has some columns and lacks others."""
    try:
        header = next(csv.reader(io.StringIO(_text(folder), newline="")), [])
    except (OSError, csv.Error):
        return False
    right = set(has) <= set(header) and set(lacks).isdisjoint(header)
    return right and "images" in _files.folder_names(folder)


def _text(root):
    data = Path(root, "metadata.csv").read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:  # latin-1 has a character for every byte: only decided by what UTF-8 refuses
        return data.decode("latin-1")


def read(root, source, needed):
    """Return metadata.csv as it stands: text, without blanks at the ends; empty = missing.

    Parameters
    ----------
    root : pathlib.Path
    source : Source
        Says where the table can be had again.
    needed : collection of str
        Columns without which the set cannot be read; `sex` and `age` are added where they are not there.

    Raises
    ------
    CourseError
        The table is damaged, or lacks a needed column.
    """
    path = Path(root, "metadata.csv")
    again = f"Take it from {source.address} again."
    try:
        raw = pd.read_csv(io.StringIO(_text(root), newline=""), dtype="str", index_col=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise CourseError(
            f"{path} is damaged: expected a table parted by commas, got: {str(error).strip()}. {again}"
        ) from error
    missing = sorted(set(needed) - set(raw.columns))
    if missing:
        raise CourseError(
            f"{path} lacks {', '.join(missing)}: expected the columns {', '.join(sorted(needed))}; "
            f"it has {', '.join(raw.columns)}. {again}"
        )
    raw = raw.apply(lambda column: column.str.strip()).replace("", None)
    return raw.reindex(columns=[*raw.columns, *({"sex", "age"} - set(raw.columns))])


def table(raw, source, *, paths, patients, label_of):
    """Return a table as path, patient, finding, modality, view, sex, age, label; unknown = missing.

    Parameters
    ----------
    raw : pandas.DataFrame
        From `read`.
    source : Source
        Its name goes before each patient.
    paths, patients : pandas.Series
        One a row of `raw`: the image, relative to the root; who it shows.
    label_of : callable
        Finding -> label, or None where none fits.
    """
    paths = paths.fillna("metadata.csv, row " + (raw.index + 1).astype("str").to_series(index=raw.index))
    return pd.DataFrame(
        {
            "path": paths,
            "patient": patients.map(_joined(patients, paths, source.name)),
            "finding": raw.finding,
            "modality": raw.modality,
            "view": raw["view"].map(lambda view: _VIEWS.get(view.casefold(), view), na_action="ignore"),
            "sex": raw.sex.where(raw.sex.isin(["M", "F"])),
            "age": pd.to_numeric(raw.age, errors="coerce"),
            "label": raw.finding.map(label_of, na_action="ignore"),
        }
    )


def _joined(patients, paths, name):
    """Return {patient of the table: patient}, with one patient for all who share a file."""
    joined = {patient: {patient} for patient in patients.dropna()}
    for _, together in patients.dropna().groupby(paths):
        group = set().union(*(joined[patient] for patient in together))
        joined.update(dict.fromkeys(group, group))
    return {patient: f"{name}/" + "+".join(sorted(group, key=_number)) for patient, group in joined.items()}


def _number(patient):
    # Most patients of ieee8023 are numbers; those of one publication are told apart by a letter (311a, 311b).
    return int(re.match(r"\d*", patient)[0] or 0), patient


def select(root, rows, source, *, views=FRONTAL, laterals=True, masks=None):
    """Return the Selection of the set: frontal X-rays with a finding that fits a label.

    Parameters
    ----------
    root : pathlib.Path
    rows : pandas.DataFrame
        From `table`.
    source : Source
    views : tuple of str
        Views to keep.
    laterals : bool
        Lateral views are mixed in, so an image without a view in the table may be one, and is left out.
    masks : dict, optional
        Name of an image without its ending -> its lung mask, relative to the root.
    """
    masks, paths = masks or {}, _files.below(Path(root, "images"), root=root)
    without_row = pd.DataFrame({"path": sorted(set(paths) - set(rows.path))})
    rows = pd.concat([rows.assign(in_table=True), without_row.assign(in_table=False)], ignore_index=True)
    rows = rows.assign(
        source=source.name,
        in_folder=rows.path.isin(paths),
        lung_mask=[masks.get(PurePosixPath(path).stem) for path in rows.path],
    )
    selection = Selection(
        root, rows, sources=(source,), why="rows of metadata.csv, and files in images/ that have no row"
    )
    _filter(selection, views, laterals)
    return selection


def _filter(selection, views, laterals):
    def drop(step, why, bad, reasons):
        reasons = reasons if isinstance(reasons, str) else reasons(selection.rows).astype("str")
        gone = pd.Series(reasons, index=selection.rows.index, dtype="str").where(bad(selection.rows))
        selection.drop(step, why, gone)

    drop("files without a row", "nothing is known about them", lambda rows: ~rows.in_table, "no row in metadata.csv")
    drop(
        "no X-ray",
        "CT is another kind of picture",
        lambda rows: rows.modality.str.casefold() != "x-ray",
        lambda rows: "modality " + rows.modality.fillna("unknown"),
    )
    drop("rows without a file", "nothing to look at", lambda rows: ~rows.in_folder, "in metadata.csv, but no such file")
    selection.drop_what_is_no_image()
    if laterals:
        drop("view unknown", "it may be a lateral view", lambda rows: rows.view.isna(), "view unknown")
    selection.drop_views(views)
    blank = ("todo", "unknown")
    drop(
        "finding not filled in",
        "an image without a diagnosis teaches nothing",
        lambda rows: rows.finding.isna() | rows.finding.str.casefold().isin(blank),
        lambda rows: "finding " + rows.finding.fillna("blank"),
    )
    drop(
        "no label fits",
        "findings that are no pneumonia, or that the course does not know",
        lambda rows: rows.label.isna(),
        lambda rows: "finding " + rows.finding,
    )
    drop(
        "rows that contradict each other",
        "the same file under two labels",
        lambda rows: rows.groupby("path").label.transform("nunique") > 1,
        "two labels for one file",
    )
    drop(
        "second rows of a file",
        "each image counts once; its patients are joined",
        lambda rows: rows.path.duplicated(),
        "second row of the same file",
    )
