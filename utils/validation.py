"""Test a model bundle on another hospital: a folder of X-rays that it was never trained on."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils import calibration, config, images, manifest, metrics, models, sources, splits
from utils.errors import CourseError

RESAMPLES = 2000


class Validation(NamedTuple):
    """What came of it: `scores`, a dict of `utils.metrics.Score`, and `notes`, lines on what was tested and left out."""

    scores: dict
    notes: list


def validate(bundle, folder):
    """Score a bundle of two classes at its own threshold.

    Parameters
    ----------
    bundle : path-like
        Folder of a model bundle.
    folder : path-like
        The X-rays: Actualmed, Figure 1 or another known set as its authors publish it, or one sub-folder a class.

    Returns
    -------
    Validation
        Sensitivity, specificity, AUROC and accuracy, and the accuracy of always saying the more frequent class. Images
        that are twins of one the model's run was made from are left out, as far as that run still lies in `data/`.

    Raises
    ------
    CourseError
        No bundle, or one of more than two classes; a folder that holds no set, or none of the classes.
    """
    bundle = Path(bundle)
    model, options, card = models.open_bundle(bundle)
    if len(card["classes"]) != 2 or card["classes"][0] != manifest.BINARY[0]:
        raise CourseError(
            f"validate needs a bundle of two classes, Normal and another; that of {bundle}: {', '.join(card['classes'])}."
        )
    loaded = sources.load_folder(folder)
    table, notes = _asked(loaded.manifest, card)
    cache = images.cached(loaded.root, table, options, config.data_root() / "processed" / "pixels")
    reasons = [f"{row.path}: {row.reason}" for row in (*loaded.skipped.itertuples(), *cache.skipped.itertuples())]
    table = table[cache.readable].reset_index(drop=True)
    seen, note = _seen(bundle, card, table, cache.thumbnails)
    table = splits.join_patients(table, splits.find_twins(cache.thumbnails))[~seen]
    if table.empty:
        raise CourseError(f"{folder}: no image is left to test on. " + " ".join([*notes, note, *reasons[:3]]))
    truth = manifest.abnormal(table)
    output = calibration.columns(models.predict(model, cache.pixels[~seen]))
    probability = calibration.calibrated(output, card["temperature"])[:, 1]
    rules = {"seed": card["seed"], "resamples": RESAMPLES}
    scores = metrics.binary_scores(truth, probability, table["patient"], threshold=card["threshold"], **rules)
    majority = np.full(len(truth), truth.mean() >= 0.5)
    scores["accuracy, majority"] = metrics.accuracy(truth, majority, table["patient"], **rules)
    about = [
        f"{bundle.name}: {card['task']}, {' against '.join(card['classes'][::-1])}"
        + (", trained on simulated radiographs only" if card["simulated"] else ""),
        f"Threshold {card['threshold']:.3f}: {card['decision']}.",
        f"{folder}: {len(table)} images of {table['patient'].nunique()} patients, {truth.sum()} of them positive.",
    ]
    if truth.all() or not truth.any():
        notes.append("Only one of the two classes is here: what needs both has no value.")
    unusable = f"{len(reasons)} files could not be used" + (f", the first: {reasons[0]}" if reasons else "") + "."
    return Validation(scores, [*about, *notes, note, unusable])


def _asked(table, card):
    """Keep the images that the question is about."""
    known = set(table["label"]) if card["task"] == "abnormal" else set(card["classes"])
    kept = table["label"].isin(known).to_numpy()
    others = table.loc[~kept, "label"].value_counts()
    left = [f"Left out, the question is not about them: {', '.join(f'{n} {label}' for label, n in others.items())}."]
    if not kept.any():
        raise CourseError(
            f"None of these images is about {' or '.join(card['classes'])}; labels: {', '.join(others.index)}."
        )
    return table[kept].reset_index(drop=True), left if len(others) else []


def _seen(bundle, card, table, thumbnails):
    """Say which images show the same picture as one of the run that the bundle was made in."""
    nothing = np.zeros(len(table), bool)
    if card["simulated"]:
        return nothing, "No twin of a training image: those are simulated."
    name = bundle.resolve().name.rpartition(".")[0]
    processed = config.data_root() / "processed"
    about = processed / name / "manifest.json"
    if not about.is_file():
        return nothing, f"Not checked: twins of training images (the run {name} is not on this computer)."
    root, trained = Path(pd.read_json(about, typ="series")["root"]), pd.read_csv(about.with_name("manifest.csv"))
    if not root.is_dir():
        return nothing, f"Not checked: twins of training images (the images of {name} are no longer in {root})."
    other = images.cached(root, trained, None, processed / "pixels")
    pairs = splits.find_twins(np.concatenate([other.thumbnails, thumbnails]))
    count = len(other.thumbnails)
    across = pairs[(pairs["first"] < count) & (pairs["second"] >= count)]
    nothing[across["second"] - count] = True
    return nothing, f"Left out as twins of images of the run {name}: {nothing.sum()}."
