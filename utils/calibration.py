"""From what a network says to a probability, and from a probability to a decision.

Both are chosen on validation images when a bundle is made, stand on its card, and are only applied afterwards.
Probabilities are (images, classes) here, whatever the model's number of outputs: `columns` makes them so.
"""

import numpy as np
from scipy.optimize import minimize_scalar

from utils import metrics
from utils.errors import CourseError

SMALLEST = 1e-7  # a probability of 0 has no logarithm
BINS = 5  # few, since test sets are small
SPREAD = 0.5  # of log temperatures, expected beforehand: most networks lie between 0.6 and 1.6


def columns(probability):
    """Return probabilities as float64 (images, classes): a single output, (images,), is that of the second class."""
    probability = np.asarray(probability, float)
    return np.stack([1 - probability, probability], axis=1) if probability.ndim == 1 else probability


def calibrated(probability, temperature):
    """Soften (temperature above 1) or sharpen (below 1) probabilities; which class is most probable never changes.

    Temperature scaling divides what goes into the softmax by one number (Guo et al. 2017, arXiv:1706.04599). Of two classes
    it keeps the order of images, too; of more, a class's probability may change places between two images.

    Parameters
    ----------
    probability : array-like
        float (images, classes), rows adding up to 1.
    temperature : float
        Above 0; 1 changes nothing.

    Returns
    -------
    numpy.ndarray
        float64, (images, classes).
    """
    scores = np.log(np.maximum(probability, SMALLEST)) / temperature
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def fit_temperature(truth, probability):
    """Find the temperature at which probabilities fit the answers best (the lowest cross-entropy).

    Parameters
    ----------
    truth : array-like
        Class numbers, (images,), of images that the model was not trained on.
    probability : array-like
        float (images, classes).

    Returns
    -------
    float
        Between 0.05 and 20.

    Notes
    -----
    Where all images are right, sharper answers would fit better without end. So temperatures near 1 are taken for likelier
    beforehand (log temperature normal around 0, spread 0.5); a hundred images that speak otherwise outweigh it.
    """
    probability, truth = np.asarray(probability, float), np.asarray(truth, int)

    def cost(log_temperature):
        of_truth = calibrated(probability, np.exp(log_temperature))[np.arange(len(truth)), truth]
        return -np.log(np.maximum(of_truth, 1e-300)).sum() + (log_temperature / SPREAD) ** 2 / 2

    return float(np.exp(minimize_scalar(cost, bounds=(np.log(0.05), np.log(20)), method="bounded").x))


def threshold_for(truth, probability, *, sensitivity):
    """Return the threshold that calls this share of the diseased with the fewest false alarms.

    Of all that do, it lies in the middle of the gap between the highest healthy image below and the next one that is called.

    Parameters
    ----------
    truth : array-like
        bool or 0/1, (images,).
    probability : array-like
        float (images,): of the disease. It is called at the threshold and above.
    sensitivity : float
        Above 0, at most 1.

    Raises
    ------
    CourseError
        No diseased image, or a sensitivity that cannot be.
    """
    truth, probability = np.asarray(truth, bool), np.asarray(probability, float)
    of_sick, of_healthy = np.sort(probability[truth])[::-1], probability[~truth]
    if not len(of_sick) or not 0 < sensitivity <= 1:
        raise CourseError(
            "A threshold needs images with the disease, and a sensitivity above 0 and at most 1; "
            f"got {len(of_sick)} images and {sensitivity}."
        )
    highest = of_sick[int(np.ceil(round(sensitivity * len(of_sick), 9))) - 1]
    below = of_healthy[of_healthy < highest].max(initial=0.0)
    return float((below + probability[probability > below].min(initial=highest)) / 2)


def tuned(truth, probability, *, sensitivity=0.95):
    """Choose what a card says about decisions, on validation images.

    Parameters
    ----------
    truth : array-like
        Class numbers, (images,).
    probability : array-like
        float, (images,) or (images, classes): what the model says.
    sensitivity : float
        Of two classes the threshold should reach it on these images.

    Returns
    -------
    dict
        `temperature`; `threshold`, to be compared with the *calibrated* probability of the second class (None for more
        than two classes); `decision`, how it came about.
    """
    probability = columns(probability)
    temperature = fit_temperature(truth, probability)
    card = {"temperature": temperature, "threshold": None, "decision": "the most probable class"}
    if probability.shape[1] == 2:
        threshold = threshold_for(truth, calibrated(probability, temperature)[:, 1], sensitivity=sensitivity)
        card |= {"threshold": threshold, "decision": f"sensitivity {sensitivity} on the validation images"}
    return card


def squared_errors(truth, probability):
    """Return each image's part of the Brier score, float (images,), 0 to 1; arguments as for `scores`."""
    probability = np.asarray(probability, float)
    return ((probability - np.eye(probability.shape[1])[np.asarray(truth, int)]) ** 2).sum(axis=1) / 2


def scores(truth, probability, patients, *, seed, resamples):
    """Say how far probabilities can be believed.

    Parameters
    ----------
    truth : array-like
        Class numbers, (images,).
    probability : array-like
        float (images, classes).
    patients : array-like
        (images,).
    seed, resamples : int

    Returns
    -------
    dict of utils.metrics.Score
        `brier`: mean squared distance from the truth, 0 to 1 (Brier 1950; half of his sum over the classes, as is usual
        for two). `ece`: expected calibration error, the mean distance between what was said and what came, in five bins
        (Naeini et al. 2015): for two classes between the probability of the second and its share, for more between the
        probability of the called class and the share that is right. Without an interval: chance alone moves bins apart, so
        even a perfect model has an ECE above 0 on few images, and every draw of a bootstrap adds to it.
    """
    truth, probability = np.asarray(truth, int), np.asarray(probability, float)
    squared = squared_errors(truth, probability)
    said, came = probability.max(axis=1), probability.argmax(axis=1) == truth
    if probability.shape[1] == 2:
        said, came = probability[:, 1], truth == 1
    bins = np.eye(BINS)[np.minimum((said * BINS).astype(int), BINS - 1)]
    ece = float(np.abs((bins * (came - said)[:, None]).mean(axis=0)).sum())
    options = {"share": False, "seed": seed, "resamples": resamples}
    brier = metrics.patient_bootstrap(lambda w: (w @ squared) / w.sum(axis=1), patients, **options)
    return {"brier": brier, "ece": metrics.Score(ece, np.nan, np.nan, len(truth))}
