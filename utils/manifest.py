"""What notebook 01 leaves for 02 and 02 for the rest: the cleaned manifest and the split, with their hashes."""

import hashlib
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from utils import notebook
from utils.errors import CourseError
from utils.files import write_text

BINARY = ("Normal", "COVID-19")  # the task *binary*: the second is the positive class


def save(run, root, manifest):
    """Write the cleaned manifest of a run (notebook 01).

    Parameters
    ----------
    run : utils.config.Run
    root : path-like
        Folder that the manifest's paths start from.
    manifest : pandas.DataFrame
        With the columns of `utils.sources.COLUMNS` and complete `patient`. A split of the same manifest stays.
    """
    about = {"root": str(Path(root).absolute()), "content": content_hash(manifest), "raw": str(run.raw or "")}
    split = run.processed / "split.json"
    if split.exists() and json.loads(split.read_text(encoding="utf-8"))["content"] != about["content"]:
        split.unlink()
    write_text(run.processed / "manifest.csv", manifest.to_csv(index=False))
    write_text(run.processed / "manifest.json", json.dumps(about, indent=1) + "\n")


def open_saved(run):
    """Read the manifest that notebook 01 wrote.

    Returns
    -------
    root : pathlib.Path
        Folder that the paths start from.
    manifest : pandas.DataFrame

    Raises
    ------
    CourseError
        Notebook 01 has not run with these parameters, or the data has moved since.
    """
    about = _read_json(run, "manifest.json", notebook.first("01_data", "01", "02"))
    # Only an empty field is missing: a class or a folder may be called None or NA.
    options = {"keep_default_na": False, "na_values": [""], "encoding": "utf-8"}
    kinds = defaultdict(lambda: "str", age="float")
    manifest = pd.read_csv(run.processed / "manifest.csv", dtype=kinds, **options)
    root = Path(about["root"])
    if about["content"] != content_hash(manifest) or about["raw"] != str(run.raw or ""):
        raise CourseError(
            f"The manifest of run {run.name} is not whole, or of another RAW. Run notebook 01_data again."
        )
    if not root.is_dir():
        raise CourseError(f"The images of run {run.name} are no longer where they were. Run notebook 01_data again.")
    return root, manifest


def save_split(run, manifest, part, digest):
    """Write which image lies in which part (notebook 02), and the hash that identifies the split."""
    table = pd.DataFrame({"path": manifest["path"], "sha256": manifest["sha256"], "part": part})
    write_text(run.processed / "split.csv", table.to_csv(index=False))
    about = {"split": digest, "content": content_hash(manifest)}
    write_text(run.processed / "split.json", json.dumps(about, indent=1) + "\n")


def open_split(run, manifest):
    """Read the split that notebook 02 wrote.

    Parameters
    ----------
    run : utils.config.Run
    manifest : pandas.DataFrame
        From `open_saved`: the split must belong to it.

    Returns
    -------
    part : numpy.ndarray
        str, (rows,): "train", "validation" or "test".
    digest : str
        The split's hash, for the model's card.

    Raises
    ------
    CourseError
        Notebook 02 has not run with these parameters, or the manifest has changed since.
    """
    about = _read_json(run, "split.json", notebook.first("02_preprocessing", "02"))
    table = pd.read_csv(run.processed / "split.csv", dtype="string")
    if about["content"] != content_hash(manifest) or list(table["sha256"]) != list(manifest["sha256"]):
        raise CourseError("The split was made for other images than the manifest names. Run notebook 02 again.")
    return np.array(table["part"].tolist()), about["split"]


def binary_task(manifest):
    """Choose the images of the task *binary*, COVID-19 against Normal.

    Returns
    -------
    chosen : numpy.ndarray
        bool, (rows,): False for other labels.
    target : numpy.ndarray
        float32, (rows,): 1 for COVID-19.

    Raises
    ------
    CourseError
        One of the two labels is missing.
    """
    missing = [label for label in BINARY if not (manifest["label"] == label).any()]
    if missing:
        raise CourseError(
            f"The question here is COVID-19 against Normal, and this data set has no image labelled {missing[0]}. "
            f"Its labels: {', '.join(sorted(set(manifest['label'])))}. Choose another data set for this notebook."
        )
    target = (manifest["label"] == BINARY[1]).to_numpy()
    return manifest["label"].isin(BINARY).to_numpy(), target.astype("float32")


def abnormal(manifest):
    """Return the target of the task *abnormal*, bool (rows,): any label but Normal."""
    return (manifest["label"] != BINARY[0]).to_numpy()


def provenance(run, manifest, split):
    """Return what a model's card says of its data: set, whether simulated, hashes of manifest and split."""
    simulated = run.dataset == "phantom"
    return {"dataset": run.short_dataset, "simulated": simulated, "manifest": content_hash(manifest), "split": split}


def facts(manifest):
    """Turn what the table knows about each image, without any pixel, into features.

    Returns
    -------
    pandas.DataFrame
        One row an image: a bool column for each value of source, view and sex ("not recorded" is a value), and
        `age` in years, -1 where it is not known.
    """
    known = manifest[["source", "view", "sex"]].astype("object").fillna("not recorded")
    return pd.get_dummies(known).assign(age=manifest["age"].fillna(-1).to_numpy())


def content_hash(manifest):
    """Return 12 hex digits that stand for images, labels and patients, whatever the order of rows."""
    lines = sorted(manifest["sha256"] + " " + manifest["label"] + " " + manifest["patient"])
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _read_json(run, name, mend):
    file = run.processed / name
    if not file.is_file():
        raise CourseError(f"Run {run.name} has no {name} yet. {mend}")
    return json.loads(file.read_text(encoding="utf-8"))
