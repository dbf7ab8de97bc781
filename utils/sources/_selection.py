"""From the files of a data set to its manifest, with every file that is left out written down."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from utils import files
from utils.errors import CourseError
from utils.sources import _files

COLUMNS = ("path", "label", "patient", "source", "view", "sex", "age", "lung_mask", "lesion_mask", "sha256")
LABELS = ("Normal", "COVID-19", "Viral Pneumonia", "Bacterial Pneumonia", "Pneumonia", "Lung Opacity", "Abnormal")
FRONTAL = ("PA", "AP", "AP Supine")
TWINS = ("path_first", "path_second", "set_first", "set_second", "label_first", "label_second", "correlation", "by")
_TEXT = [name for name in COLUMNS if name not in ("age", "sha256")]


class Source(NamedTuple):
    """Where a data set comes from, and what is known to be wrong with it."""

    name: str
    title: str
    address: str
    licence: str
    citation: str
    problems: tuple  # short sentences
    how_to_get: str  # a sentence or two
    fast_images_per_label: int | None = None  # the cap in the fast profile where it is not the profile's
    pins: bool = False  # a GitHub set: pins/<name>.csv lists its files at one commit
    top: str = ""  # the set's folder inside that repository
    kaggle: str = ""  # a Kaggle set: owner/name/versions/N
    megabytes: int = 0  # of the Kaggle archive, about


class Selection:
    """The rows of a data set on their way into the manifest.

    Parameters
    ----------
    root : pathlib.Path
        The set's folder: paths are relative to it.
    rows : list of dict, or pandas.DataFrame
        One an image (or table row without an image), with any of COLUMNS but sha256, and `path` always.
    sources : tuple of Source
    why : str
        What was counted, for the first line of the record.
    """

    def __init__(self, root, rows, *, sources, why="every file in the folders of the set"):
        rows = pd.DataFrame(rows)
        rows = rows.reindex(columns=list(dict.fromkeys((*COLUMNS[:-1], *rows.columns))))
        # pandas' text type also where nothing is known: there a column of nothing would pass for numbers.
        self.rows = rows.astype(dict.fromkeys(_TEXT, "str")).astype({"age": float})
        # What is drawn as one: the patient, else the file, called by its place in the set's own folder.
        self.rows["unit"] = self.rows.patient.fillna(self.rows.path)
        self.rows["set"] = sources[0].name
        self.found = self.rows
        self.twins, self.external = pd.DataFrame(columns=TWINS), self.rows[:0]
        self.root, self.sources = Path(root), sources
        self.steps = [("everything found", why, 0, len(rows))]
        self.skipped, self.hashes = [], {}

    def drop(self, step, why, reasons):
        """Leave out the rows that have a reason, and write down the step, the files and the reasons.

        Parameters
        ----------
        step, why : str
            For the record: what is left out, and why the course does so.
        reasons : list or pandas.Series
            One a row: text where the row goes, missing where it stays.
        """
        reasons = pd.Series(list(reasons), index=self.rows.index, dtype="str")
        gone = reasons.notna()
        self.skipped.append(pd.DataFrame({"path": self.rows.path[gone], "reason": reasons[gone]}))
        self.rows = self.rows[~gone]
        self.steps.append((step, why, int(gone.sum()), len(self.rows)))

    def drop_what_is_no_image(self, reasons=()):
        """Leave out empty files, texts, tables, hidden files, and those of `reasons` {path: text}."""
        known = dict(reasons)
        paths = [path for path in self.rows.path if path not in known]
        known.update(zip(paths, _in_threads(lambda path: _files.not_an_image(self.root / path), paths)))
        self.drop(
            "files that hold no image",
            "empty files, texts, tables, hidden files: nothing to look at",
            self.rows.path.map(known),
        )

    def drop_views(self, views):
        """Leave out images whose view is known and is none of `views`."""
        other = self.rows.view.notna() & ~self.rows.view.isin(views)
        self.drop(
            "other views",
            f"only {', '.join(views)}: another view is another picture of the chest",
            ("view " + self.rows.view).where(other),
        )

    def require(self, folders):
        """Raise a CourseError where a class folder, relative to the root, has no image left."""
        skipped = pd.concat(self.skipped)
        for folder in folders:
            if not self.rows.path.str.startswith(f"{folder}/").any():
                lost = skipped[skipped.path.str.startswith(f"{folder}/")]
                held = ", ".join(f"{Path(row.path).name}: {row.reason}" for row in lost.head(3).itertuples())
                raise CourseError(
                    f"The class folder {self.root / folder} holds no image; expected at least "
                    f"one. It has {len(lost)} other files{f' ({held})' if held else ''}. "
                    "Unpack the data set again, or move the folder away if it is no class."
                )

    def require_any(self):
        """Raise a CourseError where no image is left."""
        if self.rows.empty:
            lost = "; ".join(f"{step}: {dropped}" for step, _, dropped, _ in self.steps if dropped)
            raise CourseError(
                f"No image of {self.root} is left; left out: {lost or 'none, it has no file'}. "
                "Unpack the data set again, whole, or move it away."
            )

    def draw(self, cap):
        """Keep whole patients until every label has about `cap` images, or all that it has.

        The order is that of a hash of the patient (of the file's place in the set where there is no patient):
        the same on every machine and for every SEED, and no matter where the folder lies. A patient is taken
        with all images when any of the patient's labels still lacks some, so a label may end a few images
        over the cap.
        """
        labels = self.rows.groupby("unit", sort=False).label.agg(Counter)
        taken, kept = Counter(), set()
        for unit in sorted(labels.index, key=lambda unit: hashlib.sha256(unit.encode()).digest()):
            if any(taken[label] < cap for label in labels[unit]):
                taken.update(labels[unit])
                kept.add(unit)
        self.drop(
            "whole patients drawn for the fast profile",
            f"about {cap} images a label: enough to learn with in minutes; PROFILE=full uses all",
            [None if unit in kept else "not drawn for the fast profile" for unit in self.rows.unit],
        )

    def manifest(self):
        """Return the rows left as a manifest: COLUMNS, sorted by path, text as `str`, age as float."""
        return self.with_hashes(self.rows.sort_values("path", ignore_index=True))[list(COLUMNS)]

    def with_hashes(self, rows):
        """Return rows with the column sha256, of the files' bytes."""
        new = [path for path in dict.fromkeys(rows.path) if path not in self.hashes]  # each file is read once
        self.hashes.update(zip(new, _in_threads(files.sha256, [self.root / path for path in new])))
        return rows.assign(sha256=rows.path.map(self.hashes).astype("str"))

    def records(self):
        """Return the record as two tables: steps (step, why, dropped, left) and skipped (path, reason)."""
        steps = pd.DataFrame(self.steps, columns=["step", "why", "dropped", "left"])
        skipped = pd.concat([pd.DataFrame({"path": [], "reason": []}, dtype="str"), *self.skipped])
        return steps, skipped.sort_values("path", kind="stable", ignore_index=True)


def class_rows(root, folders, describe):
    """Return one row a file below each class folder.

    Parameters
    ----------
    root : pathlib.Path
    folders : dict
        Class folder, relative to `root` -> label.
    describe : callable
        Path relative to `root` (str) -> dict with what its name tells: patient, source, view, a finer label,
        ...
    """
    return [
        {"path": path, "label": label, **describe(path)}
        for folder, label in folders.items()
        for path in _files.below(Path(root, folder), root=root)
    ]


def join(parts):
    """Join the selections of several sets into one, whose root is the folder that they have in common.

    Raises
    ------
    CourseError
        No image is left of one of them.
    """
    root = Path(os.path.commonpath([part.root for part in parts]))
    whole = Selection(root, [], sources=tuple(source for part in parts for source in part.sources))
    left = sum(part.steps[0][3] for part in parts)
    found = "; ".join(f"{part.sources[0].name}: {part.steps[0][1]}" for part in parts)
    whole.steps = [("everything found", found, 0, left)]
    for part in parts:
        part.require_any()  # or the other set would stand for both
        for step, why, dropped, _ in part.steps[1:]:
            left -= dropped
            whole.steps.append((f"{part.sources[0].name}: {step}", why, dropped, left))
    moved = [_moved(part, root) for part in parts]
    whole.rows, whole.found = (pd.concat(tables, ignore_index=True) for tables in list(zip(*moved))[:2])
    whole.skipped = [table for *_, tables in moved for table in tables]
    return whole


def _moved(part, root):
    """Return rows, found and skipped of a selection, their paths relative to a folder above its own."""
    prefix = "".join(f"{name}/" for name in part.root.relative_to(root).parts)

    def move(table):
        paths = [name for name in ("path", "lung_mask", "lesion_mask") if name in table]
        return table.assign(**{name: prefix + table[name] for name in paths})

    return move(part.rows), move(part.found), [move(table) for table in part.skipped]


def _in_threads(function, items):
    # Waiting for the disk, not computing: threads are enough, and more than cores.
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, items))
