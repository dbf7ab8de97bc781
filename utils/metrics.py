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


def patient_bootstrap(score, patients, *, seed, resamples, among=None, behind=None, share=True):
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
    among : array-like of bool, optional
        The images that the score is a share of: they are its n. Default: all.
    behind : array-like of bool, optional
        The images that a perfect score rests on. Default: those of `among`.
    share : bool
        False for what is no share of anything, for instance a difference: it gets no exact bound (see Notes).

    Returns
    -------
    Score
        `lo` and `hi` are NaN when there are fewer than two patients (`among` these images) or no draw has a score.

    Notes
    -----
    Where there is no mistake, no draw can show one. A score of exactly 0 or 1 gets the exact bound for a share of as many
    patients as stand behind it (Clopper & Pearson 1934), which is on the safe side where a patient has several images.
    With few patients percentile intervals are a little short: with 60, two like images each, they held the true score in
    90 to 97 % of 300 simulations, depending on the score (tests/test_evaluation.py).
    """
    codes, names = pd.factorize(np.asarray(patients))
    among = np.ones(len(codes), bool) if among is None else np.asarray(among, bool)
    behind = among if behind is None else np.asarray(behind, bool)
    value = float(score(np.ones((1, len(codes))))[0])
    if len(np.unique(codes[among])) < 2:
        return Score(value, np.nan, np.nan, int(among.sum()))
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    some = np.array_split(draws.astype(float), -(-resamples // 200))  # at a time, so that memory stays small
    values = np.concatenate([score(draw[:, codes]) for draw in some])
    values = values[~np.isnan(values)]
    lo, hi = np.percentile(values, [2.5, 97.5]) if len(values) else (np.nan, np.nan)
    exact = 0.025 ** (1 / max(1, len(np.unique(codes[behind]))))
    if share and min(value, lo) > 1 - 1e-9:
        value, lo, hi = 1.0, exact, 1.0
    elif share and max(value, hi) < 1e-9:
        value, lo, hi = 0.0, 0.0, 1 - exact
    return Score(value, float(lo), float(hi), int(among.sum()))


def accuracy(truth, predicted, patients, *, seed, resamples):
    """Share of images with the right label, as a `Score`.

    `predicted` is (images,), or (seeds, images) from a recipe that was trained several times: then the mean over them.
    """
    return mean(_right(truth, predicted), patients, seed=seed, resamples=resamples)


def mean(values, patients, *, seed, resamples):
    """Mean over images of a share, 0 to 1, that each image has, as a `Score`."""
    return patient_bootstrap(lambda w: weighted_share(values, w), patients, seed=seed, resamples=resamples)


def balanced_accuracy(truth, predicted, patients, *, seed, resamples):
    """Mean over the classes of the share of right images: as `accuracy`, but guessing gets 1 / classes."""
    right, truth = _right(truth, predicted), np.asarray(truth)
    options = {"seed": seed, "resamples": resamples, "behind": rarest(truth, patients)}
    return patient_bootstrap(lambda w: _by_class(right, truth, w), patients, **options)


def rarest(truth, patients):
    """Mark the images of the class with the fewest patients: what a ranking, or a mean over classes, is weakest in."""
    truth, patients = np.asarray(truth), np.asarray(patients)
    count = {name: len(set(patients[truth == name])) for name in np.unique(truth)}
    return truth == min(count, key=count.get) if count else np.ones(len(truth), bool)


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

    def area(weights):
        return np.mean([weighted_auroc(truth, one, weights) for one in probability], axis=0)

    return {
        "accuracy": mean(right, patients, **options),
        "sensitivity": patient_bootstrap(lambda w: weighted_share(right, w * truth), patients, among=truth, **options),
        "specificity": patient_bootstrap(
            lambda w: weighted_share(right, w * ~truth), patients, among=~truth, **options
        ),
        "auroc": patient_bootstrap(area, patients, behind=rarest(truth, patients), **options),
    }


def _right(truth, predicted):
    return (np.atleast_2d(predicted) == np.asarray(truth)).mean(axis=0)


def class_scores(truth, predicted, patients, *, classes, seed, resamples):
    """Score calls class by class: whatever a confusion matrix holds.

    Parameters
    ----------
    truth, predicted : array-like
        Class numbers, int (images,).
    patients : array-like
        (images,).
    classes : sequence of str
        Their names, by number.
    seed, resamples : int

    Returns
    -------
    dict of dict of Score
        Under "all": `accuracy`, `balanced_accuracy` (mean sensitivity), `macro_f1` (mean F1) and `weighted_f1` (mean F1,
        each class by its number of images); means are over the classes that the images show. Under the name of each
        class: `precision` (share of its calls that are right), `sensitivity`, `specificity` (share of the other images
        that are not called it) and `f1` (harmonic mean of the first two). NaN where nothing can be counted: a class that
        is never called has no precision, one without an image no sensitivity and no F1.
    """
    truth, predicted, count = np.asarray(truth, int), np.asarray(predicted, int), len(classes)
    cell = np.eye(count * count)[truth * count + predicted]

    weakest = rarest(truth, patients)

    def scored(formula, among=None):
        def score(weights):
            return formula((weights @ cell).reshape(-1, count, count))  # draws, truth, called

        behind = weakest if among is None else among
        return patient_bootstrap(score, patients, seed=seed, resamples=resamples, among=among, behind=behind)

    shown = np.unique(truth)
    found = {"all": {
        "accuracy": scored(lambda m: _share(np.trace(m, axis1=1, axis2=2), m.sum(axis=(1, 2))), np.ones(len(truth), bool)),
        "balanced_accuracy": scored(lambda m: _sensitivities(m)[:, shown].mean(axis=1)),
        "macro_f1": scored(lambda m: _f1(m)[:, shown].mean(axis=1)),
        "weighted_f1": scored(_weighted_f1),
    }}  # fmt: skip
    for number, name in enumerate(classes):
        found[name] = {
            "precision": scored(lambda m: _share(m[:, number, number], m[:, :, number].sum(1)), predicted == number),
            "sensitivity": scored(lambda m: _sensitivities(m)[:, number], truth == number),
            "specificity": scored(lambda m: _specificity(m, number), truth != number),
            "f1": scored(lambda m: _f1(m)[:, number]),
        }
    return found


def _share(part, whole):
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _sensitivities(matrices):
    return _share(np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2))


def _specificity(matrices, number):
    others = np.arange(matrices.shape[1]) != number
    return 1 - _share(matrices[:, others, number].sum(axis=1), matrices[:, others].sum(axis=(1, 2)))


def _f1(matrices):
    right, images = np.diagonal(matrices, axis1=1, axis2=2), matrices.sum(axis=2)
    return np.where(images > 0, _share(2 * right, matrices.sum(axis=1) + images), np.nan)


def _weighted_f1(matrices):
    share = matrices.sum(axis=2) / matrices.sum(axis=(1, 2))[:, None]
    return np.where(share > 0, _f1(matrices) * share, 0).sum(axis=1)  # a class without an image weighs nothing


def auroc(truth, output, patients, *, seed, resamples):
    """Area under the receiver operating characteristic, as a `Score`; NaN where a class is missing.

    `output` is any number, float (images,): the higher, the likelier positive. Else as `curve_scores`.
    """
    options = {"seed": seed, "resamples": resamples, "behind": rarest(truth, patients)}
    return patient_bootstrap(lambda w: weighted_auroc(truth, output, w), patients, **options)


def curve_scores(truth, probability, patients, *, seed, resamples):
    """Score a ranking, whatever the threshold.

    Parameters
    ----------
    truth : array-like
        bool or 0/1, (images,).
    probability : array-like
        float, (images,): of what `truth` says.
    patients : array-like
        (images,).
    seed, resamples : int

    Returns
    -------
    dict of Score
        `auroc` (area under the receiver operating characteristic; guessing: 0.5) and `average_precision` (area under
        the precision-recall curve, in steps; guessing: the share of the positive class). NaN where a class is missing.
    """
    truth, probability = np.asarray(truth, bool), np.asarray(probability, float)
    options = {"seed": seed, "resamples": resamples}
    area, behind = lambda w: _average_precision(truth, probability, w), rarest(truth, patients)
    return {
        "auroc": auroc(truth, probability, patients, **options),
        "average_precision": patient_bootstrap(area, patients, behind=behind, **options),
    }


def auroc_difference(truth, probability, other, patients, *, seed, resamples):
    """Difference of the AUROC of two models on the same images, `probability` minus `other`, as a paired `Score`."""
    truth = np.asarray(truth, bool)
    one, two = np.asarray(probability, float), np.asarray(other, float)
    return patient_bootstrap(
        lambda w: weighted_auroc(truth, one, w) - weighted_auroc(truth, two, w),
        patients,
        share=False,
        seed=seed,
        resamples=resamples,
    )


def predictive_values(sensitivity, specificity, *, prevalence):
    """Say what a call would be worth where the disease is more or less frequent than in the test set.

    Sensitivity and specificity are taken from the test, the frequency from outside (Bayes' theorem): that holds only
    as far as patients there look like those here.

    Parameters
    ----------
    sensitivity, specificity : Score
    prevalence : float
        Share of diseased people, between 0 and 1.

    Returns
    -------
    dict of Score
        `ppv` (share of the called who are diseased), `npv` (share of the others who are healthy). Both rise with both
        arguments, so the ends of their intervals are taken together: wider than 95 %, on the safe side.
    """

    def ppv(true, false):
        return float(_share(np.array(true * prevalence), np.array(true * prevalence + false * (1 - prevalence))))

    def npv(true, false):
        return float(_share(np.array(true * (1 - prevalence)), np.array(true * (1 - prevalence) + false * prevalence)))

    ends = [(getattr(sensitivity, end), getattr(specificity, end)) for end in ("value", "lo", "hi")]
    count = sensitivity.n + specificity.n
    return {
        "ppv": Score(*(ppv(sick, 1 - healthy) for sick, healthy in ends), count),
        "npv": Score(*(npv(healthy, 1 - sick) for sick, healthy in ends), count),
    }


def by_group(right, patients, groups, *, seed, resamples, least=10):
    """Compare each group with everybody else.

    Parameters
    ----------
    right : array-like
        bool, (images,): of the diseased (then rates are sensitivities) or of the healthy (specificities).
    patients : array-like
        (images,).
    groups : dict
        bool (images,) by name.
    seed, resamples : int
    least : int
        Patients that a group and the rest must have.

    Returns
    -------
    rates, gaps : dict of Score
        The share that is right in each group, and the difference from that of all others.
    few : list of str
        Groups left out because they, or the rest, have fewer patients.
    """
    right, patients, options = np.asarray(right, float), np.asarray(patients), {"seed": seed, "resamples": resamples}
    rates, gaps, few = {}, {}, []
    for name, rows in groups.items():
        if min(len(set(patients[rows])), len(set(patients[~rows]))) < least:
            few.append(name)
            continue
        rates[name] = patient_bootstrap(lambda w: weighted_share(right, w * rows), patients, among=rows, **options)
        gaps[name] = patient_bootstrap(
            lambda w: weighted_share(right, w * rows) - weighted_share(right, w * ~rows),
            patients,
            among=rows,
            share=False,
            **options,
        )
    return rates, gaps, few


def _by_class(right, truth, weights):
    return np.mean([weighted_share(right, weights * (truth == name)) for name in np.unique(truth)], axis=0)


def weighted_share(right, weights):
    """Share of right images in many draws: bool or float (images,) and float (draws, images) to float (draws,)."""
    return _share(weights @ np.asarray(right, float), weights.sum(axis=1))


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
    # The share of pairs (diseased, healthy) in the right order, ties one half: for all draws at once, which
    # scikit-learn's roc_auc_score, one draw at a time, takes two hundred times as long for.
    positive, negative = _by_output(np.asarray(truth, bool), np.asarray(output, float), weights)
    below = np.cumsum(negative, axis=1) - negative / 2
    return _share((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _average_precision(truth, probability, weights):
    positive, negative = _by_output(truth, -probability, weights)
    called = np.cumsum(positive, axis=1)
    precision = np.nan_to_num(_share(called, called + np.cumsum(negative, axis=1)))
    found = _share((positive * precision).sum(axis=1), positive.sum(axis=1))
    return np.where(negative.sum(axis=1) > 0, found, np.nan)


def _by_output(truth, probability, weights):
    # Drawn images of each class at every different output, from the lowest up: float (draws, outputs), twice.
    order = np.argsort(probability, kind="stable")
    starts = np.flatnonzero(np.diff(probability[order], prepend=-np.inf))
    return [np.add.reduceat((weights * one)[:, order], starts, axis=1) for one in (truth, ~truth)]


def difference(right, right_other, patients, *, truth=None, seed, resamples):
    """Difference of two accuracies on the same images, as a paired `Score` in [-1, 1].

    `right` and `right_other` are bool or float (the mean over seeds), (images,); with `truth`, the class of each
    image, the accuracies are balanced.
    """
    gain = np.asarray(right, float) - np.asarray(right_other, float)
    classes = np.zeros(len(gain)) if truth is None else np.asarray(truth)
    options = {"share": False, "seed": seed, "resamples": resamples}
    return patient_bootstrap(lambda w: _by_class(gain, classes, w), patients, **options)


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
    rows = {name: (_written(s.value), interval(s), s.n) for name, s in scores.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "95 % interval", "n (images)"])


def grid(scores):
    """Show scores of scores: a row each, a column a score, as "0.850 [0.743, 0.942] n = 78".

    Parameters
    ----------
    scores : dict of dict of Score

    Returns
    -------
    pandas.DataFrame
    """
    rows = {name: {key: _in_one_cell(score) for key, score in one.items()} for name, one in scores.items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _in_one_cell(score):
    ends = "" if np.isnan(score.lo) else f" {interval(score)}"
    return f"{_written(score.value)}{ends} n = {score.n}"


def _written(number):
    return "–" if np.isnan(number) else f"{number:.3f}"


def interval(score):
    """Write the ends of a score's 95 % interval: "[0.912, 0.968]", or "not known"."""
    return "not known" if np.isnan(score.lo) else f"[{score.lo:.3f}, {score.hi:.3f}]"


def save_results(run, notebook, numbers):
    """Write `data/results/RUN/<notebook>.json`, which report and contracts read.

    Parameters
    ----------
    run : utils.config.Run
    notebook : str
        Its name without ending, as `03_binary_cnn`.
    numbers : dict
        Plain numbers by name: `<task>.<model>.<metric>`, with `.lo`, `.hi` and `.n` beside each score.

    Raises
    ------
    ValueError
        A name that is no such name: others look results up by it.
    """
    for name in numbers:
        if not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)+", name):
            raise ValueError(f"Expected a name such as binary.small_cnn.accuracy; got {name[:80]!r}.")
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
