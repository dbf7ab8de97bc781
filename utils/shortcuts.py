"""Shortcuts and other hospitals: phantoms with a planted shortcut, sources left out, heads that weigh sources alike."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from sklearn.linear_model import LogisticRegression

from utils import backbones, images, manifest, metrics, phantom, training
from utils.backend import keras

LEAST = 10  # images of a class: fewer are no measurement


class Phantoms(NamedTuple):
    """Simulated radiographs, one a patient, with their truth; all in one order."""

    pixels: np.ndarray  # uint8, (images, size, size, 1)
    lungs: np.ndarray  # bool, (images, size, size, 1)
    abnormal: np.ndarray  # bool, (images,): any label but Normal
    hospital: np.ndarray  # str, (images,)
    patient: np.ndarray  # str, (images,)


def planted(folder, *, patients, seed, shortcut, hospitals, size=128):
    """Make phantoms whose hospital follows from the label, or not; read them where they are there already.

    Parameters
    ----------
    folder : path-like
        The set gets a folder of its own in it, called by the numbers below.
    patients, seed, size : int
        See `phantom.write`.
    shortcut : float
        From 0 (hospitals are drawn) to 1: Normal comes from the first of `hospitals`, all other labels from the last.
    hospitals : tuple of str
        Two of `phantom.HOSPITALS`.

    Returns
    -------
    Phantoms
    """
    name = f"phantom-planted-{''.join(hospitals)}-{shortcut}-{patients}-{size}-s{seed}-v{phantom.VERSION}"
    root = Path(folder) / name
    options = {"shortcut": shortcut, "hospitals": hospitals, "images": 1}
    table = phantom.write(root, patients=patients, seed=seed, size=size, **options)
    with ThreadPoolExecutor() as pool:
        pixels, lungs = (np.stack(list(pool.map(images.read_grey, root / table[column])))[..., None]
                         for column in ("path", "lung_mask"))  # fmt: skip
    told = (table[column].to_numpy(str) for column in ("source", "patient"))
    return Phantoms(pixels, lungs > 127, manifest.abnormal(table), *told)


def central(pixels, share):
    """Cut half of `share` off each end of both sides.

    Parameters
    ----------
    pixels : array-like
        (images, side, side, channels).
    share : float
        From 0 to below 1: 0.3 leaves the middle 70 % of each side.

    Returns
    -------
    array-like
        A view: (images, smaller, smaller, channels).
    """
    edge = margin(pixels.shape[1], share)
    return pixels[:, edge : pixels.shape[1] - edge, edge : pixels.shape[2] - edge]


def margin(side, share):
    """Return how many pixels `central` cuts off at each end of a side."""
    if not 0 <= share < 1:
        raise ValueError(f"Expected a share from 0 to below 1; got {share!r}. 0.3 leaves the middle 70 %.")
    return round(side * share / 2)


def foreign_looks(pixels, share, *, rng):
    """Give every image the tone of another one, drawn at random, and the border of a third.

    What brightness, contrast and border tell of the label is then wrong as often as chance has it. The tone is the
    mean and the deviation of the middle's grey values (as Reinhard et al. 2001 carry over colours).

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, (images, side, side, channels).
    share : float
        The middle that `central` leaves stays in its place.
    rng : numpy.random.Generator

    Returns
    -------
    numpy.ndarray
        A copy, same shape and dtype.
    """
    middle = central(pixels, share).astype(np.float32)
    mean, deviation = (getattr(middle, name)((1, 2, 3), keepdims=True) for name in ("mean", "std"))
    other = rng.permutation(len(pixels))
    toned = (middle - mean) / np.maximum(deviation, 1) * deviation[other] + mean[other]
    mixed = pixels[rng.permutation(len(pixels))].copy()
    central(mixed, share)[:] = np.clip(np.round(toned), 0, 255)
    return mixed


def extractor(names, size, *, weights, crop=0.0):
    """A feature extractor that looks at the middle of one grey channel.

    Parameters
    ----------
    names : sequence of str
        Keys of `backbones.BACKBONES`; their features stand side by side.
    size : int
        Side of the uint8 images in pixels.
    weights : str
        See `backbones.build`.
    crop : float
        The share that is cut away inside the model, as `central` does: nobody who uses it can forget to.

    Returns
    -------
    keras.Model
        uint8 (images, size, size, 1) to float32 (images, features).
    """
    edge = margin(size, crop)
    inner = (size - 2 * edge, size - 2 * edge, 1)
    found = backbones.join([backbones.build(name, inner, weights=weights) for name in names])
    if not edge:
        return found
    inputs = keras.Input((size, size, 1), dtype="uint8", name="pixels")
    middle = keras.layers.Cropping2D(edge, dtype="uint8", name="middle")(inputs)
    return keras.Model(inputs, found(middle), name=f"{found.name}_middle")


def masks(root, table, size, *, column="lung_mask"):
    """Read masks, cut and squared as `images.preprocess` treats their radiographs.

    Parameters
    ----------
    root : path-like
        Folder that the paths start from.
    table : pandas.DataFrame
        With `path` and `column`, none missing.
    size : int
        Side of the result in pixels.
    column : str
        "lung_mask" or "lesion_mask".

    Returns
    -------
    numpy.ndarray
        bool, (images, size, size, 1).
    """

    def one(paths):
        grey, mask = (images.read_grey(Path(root, path)) for path in paths)
        mask = cv2.resize(mask, grey.shape[::-1], interpolation=cv2.INTER_NEAREST)
        return images.fit_square(mask[images.frame(grey)], size) > mask.max() / 2

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(one, zip(table["path"], table[column]))))[..., None]


def image_sizes(root, paths):
    """Return width and height in pixels of each file as it lies on disk, int (images, 2), from its header alone."""

    def one(path):
        with Image.open(Path(root, path)) as image:
            return image.size

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(one, paths))).reshape(-1, 2)


class Pair(NamedTuple):
    """Two sources left out together, perhaps the same twice."""

    positive: str  # the source whose images of the positive class are tested on
    negative: str  # the source whose images of the other class are tested on
    fit: np.ndarray  # row numbers of all other sources
    test: np.ndarray  # row numbers of these two classes


def left_out(target, source, rows, *, together=True, least=LEAST):
    """List what to fit on and what to test on when sources are left out.

    Parameters
    ----------
    target : array-like
        bool, one a row of the manifest: the positive class.
    source : array-like
        str, one a row.
    rows : numpy.ndarray
        Row numbers that take part.
    together : bool
        Every source of positive images with every source of other ones; False: one source at a time.
    least : int
        A class needs so many images, to be fitted on and to be tested on.

    Returns
    -------
    pairs : list of Pair
        Nothing of either source is fitted on.
    skipped : list of str
        Pairs that cannot be judged, and why.
    """
    target, source = np.asarray(target, bool), np.asarray(source)
    positives, negatives = (_sources(source[rows[target[rows] == answer]], least) for answer in (True, False))
    pairs, skipped = [], []
    for one in positives:
        for other in negatives if together else [one] * (one in negatives):
            fit = rows[~np.isin(source[rows], (one, other))]
            test = rows[np.where(target[rows], source[rows] == one, source[rows] == other)]
            if min(np.sum(target[fit]), np.sum(~target[fit])) < least:
                why = "the other sources do not show both classes" if len(fit) else "there is no other source"
                skipped.append(f"{one} with {other}: {why}")
            else:
                pairs.append(Pair(str(one), str(other), fit, test))
    return pairs, skipped


def _sources(names, least):
    counts = pd.Series(names).value_counts()
    return sorted(counts.index[counts >= least])


def one_source_each(target, source, fit, *, least=LEAST):
    """List the ways to learn from one source a class, as most projects do: from two different ones where there are two.

    Parameters
    ----------
    target, source : array-like
        As for `left_out`.
    fit : numpy.ndarray
        Row numbers to choose from.
    least : int
        A source counts for a class from so many images on.

    Returns
    -------
    list of numpy.ndarray
        Row numbers: the positive images of one source and the others of another; all of `fit` where no source has enough.
    """
    target, source = np.asarray(target, bool), np.asarray(source)
    positives, negatives = (_sources(source[fit[target[fit] == answer]], least) for answer in (True, False))
    ways = [(one, other) for one in positives for other in negatives]
    ways = [way for way in ways if way[0] != way[1]] or ways
    return [fit[np.where(target[fit], source[fit] == one, source[fit] == other)] for one, other in ways] or [fit]


def equal_weights(target, source):
    """Weights with which both classes count the same, and within a class every source.

    Parameters
    ----------
    target, source : array-like
        One an image.

    Returns
    -------
    numpy.ndarray
        float64, (images,), mean 1.
    """
    group = pd.DataFrame({"target": np.asarray(target, bool), "source": np.asarray(source)})
    images_of = group.groupby(["target", "source"])["source"].transform("size")
    sources_of = group.groupby("target")["source"].transform("nunique")
    weights = 1 / (images_of * sources_of).to_numpy(float)
    return weights / weights.mean()


def head(features, target, *, C=0.01, weights=None, sharpness=1.0):
    """A linear head whose outputs keep one scale, however strongly it is restrained and whatever it was fitted on.

    Parameters
    ----------
    features, target, C, weights
        See `training.linear_head`; weights as from `equal_weights`.
    sharpness : float
        The log-odds of the images that it was fitted on get this standard deviation, and mean 0: 1 over a temperature.
        Without weights both classes count the same here.

    Returns
    -------
    sklearn.pipeline.Pipeline
    """
    target = np.asarray(target, bool)
    fitted = training.linear_head(features, target, C=C, weights=weights)
    odds = fitted.decision_function(features)
    balanced = equal_weights(target, target) if weights is None else weights
    mean = np.average(odds, weights=balanced)
    factor = sharpness / max(np.sqrt(np.average((odds - mean) ** 2, weights=balanced)), 1e-12)
    fitted[-1].coef_ = fitted[-1].coef_ * factor
    fitted[-1].intercept_ = (fitted[-1].intercept_ - mean) * factor
    return fitted


def remembered(recipe):
    """Fit once for every choice of rows, however often they are asked for: different pairs leave the same sources.

    Parameters
    ----------
    recipe : callable
        Takes row numbers to fit on; returns a function of row numbers to outputs, float (rows,) or (models, rows).

    Returns
    -------
    callable
        The same, with a memory.
    """
    fitted = {}

    def once(rows):
        key = rows.tobytes()
        if key not in fitted:
            fitted[key] = recipe(rows)
        return fitted[key]

    return once


def ask(pairs, recipe):
    """Fit a recipe without the sources of each pair; return a list of its outputs on each pair's `test`."""
    return [np.asarray(recipe(pair.fit)(pair.test)) for pair in pairs]


def mean_over(pairs, outputs, target, patients, *, score="auroc", minus=None, seed, resamples):
    """A score of each pair, averaged over all pairs; the interval is over patients.

    Parameters
    ----------
    pairs : list of Pair
    outputs : list of numpy.ndarray
        From `ask`; of several models a pair the mean of their scores counts. For all scores but "auroc": whether an
        image is called, bool.
    target, patients : array-like
        One a row of the manifest.
    score : str
        A key of `SCORES`.
    minus : list of numpy.ndarray, optional
        Outputs of another recipe, whose score is taken away: the paired gain.
    seed, resamples : int
        As in `metrics`.

    Returns
    -------
    metrics.Score
        `n` counts images, each once.
    """
    target, rows = np.asarray(target, bool), np.concatenate([pair.test for pair in pairs])
    ends = np.cumsum([len(pair.test) for pair in pairs])[:-1]

    def mean(weights, answers):
        parts = zip(pairs, answers, np.split(weights, ends, axis=1))
        each = [[SCORES[score](target[pair.test], one, w) for one in np.atleast_2d(many)] for pair, many, w in parts]
        return np.mean([np.mean(models, axis=0) for models in each], axis=0)

    def gain(weights):
        return mean(weights, outputs) - (mean(weights, minus) if minus else 0)

    whose = np.asarray(patients)[rows]
    options = {
        "share": minus is None,
        "behind": metrics.rarest(target[rows], whose),
        "seed": seed,
        "resamples": resamples,
    }
    whole = metrics.patient_bootstrap(gain, whose, **options)
    return whole._replace(n=len(np.unique(rows)))


def _found(truth, called, weights):
    return metrics.weighted_share(called, weights * truth)


def _spared(truth, called, weights):
    return metrics.weighted_share(~called, weights * ~truth)


SCORES = {
    "auroc": metrics.weighted_auroc,
    "sensitivity": _found,
    "specificity": _spared,
    "the weaker of both": lambda *three: np.minimum(_found(*three), _spared(*three)),
}


def compromise(pairs, outputs, target, *, sensitivity, specificity):
    """The threshold whose sensitivity and specificity, means over all pairs, come nearest to what is wanted of both.

    Parameters
    ----------
    pairs : list of Pair
    outputs : list of numpy.ndarray
        From `ask`, one model a pair.
    target : array-like
        One a row of the manifest.
    sensitivity, specificity : float
        What is wanted; the larger of the two shortfalls is made as small as it can be.

    Returns
    -------
    float
    """
    target = np.asarray(target, bool)
    tried = np.unique(np.quantile(np.concatenate(outputs), np.linspace(0, 1, 401)))
    of = [(target[pair.test], output[:, None] >= tried) for pair, output in zip(pairs, outputs)]
    found = np.mean([called[truth].mean(axis=0) for truth, called in of], axis=0)
    spared = np.mean([1 - called[~truth].mean(axis=0) for truth, called in of], axis=0)
    return float(tried[np.argmax(np.minimum(found - sensitivity, spared - specificity))])


def sharpness(pairs, outputs, target):
    """How far outputs (log-odds) must be stretched for probabilities that are honest on sources left out.

    One number, 1 over the temperature of Guo et al. 2017 (arXiv:1706.04599), fitted by logistic regression without an
    intercept; every pair counts the same, and in it both classes.

    Parameters
    ----------
    pairs, outputs, target
        As for `compromise`.

    Returns
    -------
    float
        At least 0.1: outputs that are of no use would get probabilities of one half.
    """
    truth = [np.asarray(target, bool)[pair.test] for pair in pairs]
    weights = np.concatenate([equal_weights(one, one) / len(one) for one in truth])
    weights *= len(weights) / weights.sum()
    fit = LogisticRegression(C=1e6, fit_intercept=False)
    fit.fit(np.concatenate(outputs)[:, None], np.concatenate(truth), sample_weight=weights)
    return float(max(fit.coef_[0, 0], 0.1))


def local_sample(target, patients, *, images_a_class, rng):
    """Draw a small sample of a new hospital to adapt on; nobody of it is tested on.

    Parameters
    ----------
    target, patients : array-like
        One an image.
    images_a_class : int
    rng : numpy.random.Generator

    Returns
    -------
    sample, rest : numpy.ndarray
        Row numbers: so many images a class (fewer where there are fewer), and all images of other patients.
    """
    target, patients = np.asarray(target, bool), np.asarray(patients)
    order = rng.permutation(len(target))
    sample = np.concatenate([order[target[order] == answer][:images_a_class] for answer in (False, True)])
    return sample, np.flatnonzero(~np.isin(patients, patients[sample]))
