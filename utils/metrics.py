"""Scores with intervals, and the results file that each notebook leaves."""

import json
import re
from typing import NamedTuple

import numpy as np
import pandas as pd

from utils.files import write_text


class Score(NamedTuple):
    """A score (0 to 1; a difference of two: -1 to 1), its 95 % interval, and the number of images behind it."""

    value: float
    lo: float
    hi: float
    n: int


def patient_bootstrap(score, patients, *, seed, resamples):
    """Score with a 95 % percentile interval from drawing whole patients with replacement.

    Images of one patient are alike, so drawing single images would give an interval that is too narrow
    (Efron & Tibshirani, An Introduction to the Bootstrap, 1993).

    Parameters
    ----------
    score : callable
        Takes weights, float (draws, images): how often each image was drawn. Returns float (draws,); NaN where a
        draw has no score, for instance when one class is missing: such draws are left out.
    patients : array-like
        The patient of each image.
    seed, resamples : int

    Returns
    -------
    Score
        `lo` and `hi` are NaN when there are fewer than two patients or no draw has a score.
    """
    codes, names = pd.factorize(np.asarray(patients))
    value = float(score(np.ones((1, len(codes))))[0])
    if len(names) < 2:
        return Score(value, np.nan, np.nan, len(codes))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    some = np.array_split(draws.astype(float), -(-resamples // 200))  # at a time, so that memory stays small
    values = np.concatenate([score(draw[:, codes]) for draw in some])
    values = values[~np.isnan(values)]
    lo, hi = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    if value == lo == 1:  # no draw can show a mistake where there is none: the exact bound (Clopper & Pearson 1934)
        lo = 0.025 ** (1 / len(names))
    return Score(value, float(lo), float(hi), len(codes))


def accuracy(truth, predicted, patients, *, seed, resamples):
    """Share of images with the right label, as a `Score`.

    `predicted` is (images,), or (seeds, images) from a recipe that was trained several times: then the mean over them.
    """
    right = _right(truth, predicted)
    return patient_bootstrap(lambda w: _mean(right, w), patients, seed=seed, resamples=resamples)


def balanced_accuracy(truth, predicted, patients, *, seed, resamples):
    """Mean over the classes of the share of right images: as `accuracy`, but guessing gets 1 / classes."""
    right, truth = _right(truth, predicted), np.asarray(truth)
    return patient_bootstrap(lambda w: _by_class(right, truth, w), patients, seed=seed, resamples=resamples)


def binary_scores(truth, probability, patients, *, threshold, seed, resamples):
    """Score a binary model, or a recipe that was trained several times.

    Parameters
    ----------
    truth : array-like
        bool or 0/1, (images,): 1 is the disease.
    probability : array-like
        float, (images,) or (seeds, images), in [0, 1]: of the disease. Several: scores are the mean over the seeds.
    patients : array-like
        (images,).
    threshold : float
        The disease is called at this probability and above.
    seed, resamples : int

    Returns
    -------
    dict of Score
        `accuracy`; `sensitivity` (share of diseased images that are called), `specificity` (share of healthy images
        that are not), each with its own n; `auroc` (area under the receiver operating characteristic).
    """
    truth, probability = np.asarray(truth, bool), np.atleast_2d(np.asarray(probability, float))
    right = _right(truth, probability >= threshold)
    options = {"seed": seed, "resamples": resamples}

    def among(rows):
        return patient_bootstrap(lambda w: _mean(right[rows], w), np.asarray(patients)[rows], **options)

    def auroc(weights):
        return np.mean([_auroc(truth, one, weights) for one in probability], axis=0)

    return {
        "accuracy": patient_bootstrap(lambda w: _mean(right, w), patients, **options),
        "sensitivity": among(truth),
        "specificity": among(~truth),
        "auroc": patient_bootstrap(auroc, patients, **options),
    }


def _right(truth, predicted):
    return (np.atleast_2d(predicted) == np.asarray(truth)).mean(axis=0)


def _by_class(right, truth, weights):
    return np.mean([_mean(right, weights * (truth == name)) for name in np.unique(truth)], axis=0)


def _mean(right, weights):
    total = weights.sum(axis=1)
    return np.divide(weights @ np.asarray(right, float), total, out=np.full(len(total), np.nan), where=total > 0)


def weighted_auroc(truth, output, weights):
    """AUROC for many draws of weights at once.

    Parameters
    ----------
    truth : numpy.ndarray
        bool, (images,).
    output : numpy.ndarray
        float, (images,): any numbers, the higher the more likely positive.
    weights : numpy.ndarray
        float, (draws, images).

    Returns
    -------
    numpy.ndarray
        float, (draws,); NaN where a class has no weight.
    """
    return _auroc(np.asarray(truth, bool), np.asarray(output, float), weights)


def _auroc(truth, probability, weights):
    # The share of pairs (diseased, healthy) in the right order, ties one half: for all draws at once, which
    # scikit-learn's roc_auc_score, one draw at a time, takes two hundred times as long for.
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
    positive = np.add.reduceat((weights * truth)[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * ~truth)[:, order], starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.divide((positive * below).sum(axis=1), pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def difference(right, right_other, patients, *, truth=None, seed, resamples):
    """Difference of two accuracies on the same images, as a paired `Score` in [-1, 1].

    `right` and `right_other` are bool or float (the mean over seeds), (images,); with `truth`, the class of each
    image, the accuracies are balanced.
    """
    gain = np.asarray(right, float) - np.asarray(right_other, float)
    classes = np.zeros(len(gain)) if truth is None else np.asarray(truth)
    return patient_bootstrap(lambda w: _by_class(gain, classes, w), patients, seed=seed, resamples=resamples)


def as_name(text):
    """Turn words into what stands between the dots of a metric's name: `small CNN` into `small_cnn`."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower())


def flat(name, score):
    """Write a `Score` as the four entries of a results file: `name`, `name.lo`, `name.hi`, `name.n`; NaN as None."""
    entries = {name: score.value, f"{name}.lo": score.lo, f"{name}.hi": score.hi, f"{name}.n": score.n}
    return {key: _plain(number) for key, number in entries.items()}


def flat_all(prefix, scores):
    """Write a dict of `Score` as `flat` does, each name behind `prefix` and a dot."""
    return {key: number for name, score in scores.items() for key, number in flat(f"{prefix}.{name}", score).items()}


def table(scores):
    """Show scores as a table.

    Parameters
    ----------
    scores : dict
        `Score` by model name.

    Returns
    -------
    pandas.DataFrame
        One row a model: value, 95 % interval, n.
    """
    rows = {name: (f"{s.value:.3f}", f"[{s.lo:.3f}, {s.hi:.3f}]", s.n) for name, s in scores.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "95 % interval", "n (images)"])


def save_results(run, notebook, numbers):
    """Write `data/results/RUN/<notebook>.json`, which report and contracts read.

    Parameters
    ----------
    run : utils.config.Run
    notebook : str
        Its name without ending, as `03_binary_cnn`.
    numbers : dict
        Plain numbers by name: `<task>.<model>.<metric>`, with `.lo`, `.hi` and `.n` beside each score.
    """
    content = {
        "notebook": notebook,
        "dataset": run.short_dataset,
        "profile": run.profile,
        "seed": run.seed,
        "metrics": {name: _plain(number) for name, number in numbers.items()},
    }
    write_text(run.results / f"{notebook}.json", json.dumps(content, indent=1) + "\n")


def _plain(number):
    number = number.item() if hasattr(number, "item") else number
    return None if number != number else number  # JSON has no NaN
