"""A model may refuse: statistics that tell frontal chest X-rays like those of its training from anything else.

A classifier answers for a holiday photograph as firmly as for an X-ray: its classes add up to 1. So a second question comes
first: does the image lie where the training images lie? Features of frontal chest X-rays fill only a small part of their
space, near a subspace of few dimensions, and an image is refused that lies too far from it (the residual of a principal
component analysis; Jackson & Mudholkar 1979, doi:10.2307/1267757). This finds what no radiologist would be asked about: CT
slices, laterals, photographs, documents. It does not find wrong answers.
"""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.decomposition import PCA
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from utils import backbones
from utils.backend import keras
from utils.errors import CourseError
from utils.files import sha256
from utils.models import compiled

layers = keras.layers
SIDE = 128  # pixels: PhantomNet sees every image at this size
COMPONENTS = 64
FOLDS = 5
MOST = 2000  # images to fit on: more are slower, and no better
ACCEPTED = 0.985  # of frontal X-rays that the statistics were not fitted on
GENERAL = 5 * sum(backbones.PHANTOM_WIDTHS[1:])  # features of PhantomNet: four quarters, and the variation
OWN = 0.25  # weight of the model's own features; the rest is that of PhantomNet, whichever are more
FLOOR = 0.02  # of a feature: small ones count by their ratios, as a silent feature that speaks up is what is odd


class Refusal(NamedTuple):
    """What is kept of the training images, in `refusal.npz` of a bundle.

    Attributes
    ----------
    mean, scale : numpy.ndarray
        float32, (features,): of the logarithms of features; a larger scale makes a feature count less.
    components : numpy.ndarray
        float32, (components, features): the subspace near which they lie.
    limit : numpy.ndarray
        float64, (): the distance above which an image is refused.
    fitted_on : numpy.ndarray
        int64, (): so many images.
    phantom_net : numpy.ndarray
        str, (): SHA-256 of the weights of PhantomNet, whose features these are in part.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    limit: np.ndarray
    fitted_on: np.ndarray
    phantom_net: np.ndarray


def watched(model):
    """Let a model tell the features that refusal is decided by, beside its answer, in one pass.

    These are what PhantomNet says of each quarter of the image, how much its maps vary over the image, and what the model's
    own last layer sees. Its own features know best how its training images look, but not where things are.

    Parameters
    ----------
    model : keras.Model
        Of a bundle: uint8 (images, height, width, channels) to probabilities.

    Returns
    -------
    keras.Model
        The same pixels to a list: the model's probabilities; features, float32 (images, n), 0 or more.
    """
    net = backbones.build("PhantomNet", (SIDE, SIDE, 1), weights="phantom")
    pixels = keras.Input(model.input_shape[1:], dtype="uint8", name="pixels")
    grey = keras.ops.cast(pixels[..., :1], "float32")
    if grey.shape[1:3] != (SIDE, SIDE):
        grey = keras.ops.image.resize(grey, (SIDE, SIDE))
    maps = net.get_layer("trunk")(net.get_layer("scale")(grey))
    quarters = layers.Flatten()(layers.AveragePooling2D(maps.shape[1] // 2)(maps))
    general = [quarters, keras.ops.std(maps, axis=(1, 2))]
    answer, *own = keras.Model(model.input, [model.output, *_last_features(model)])(pixels)
    return keras.Model(pixels, [answer, layers.Concatenate()([*general, *own])])


def _last_features(model):
    """Return what the last layer of a model sees; of an ensemble, of every member."""
    names = {layer.name: layer for layer in model.layers}
    if "probability" in names:
        return [names["probability"].input]
    members = [layer for layer in model.layers if isinstance(layer, keras.Model)]
    found = [(member, features) for member in members for features in _last_features(member)]
    return [keras.Model(member.input, features)(model.input) for member, features in found]


def fit(model, pixels, patients, *, seed, accepted=ACCEPTED):
    """Fit the statistics on frontal X-rays that the model was trained and tuned on.

    Parameters
    ----------
    model : keras.Model
    pixels : numpy.ndarray
        uint8, (images, height, width, channels): of training and validation patients, never of those tested on.
    patients : array-like
        (images,): the limit is set by patients that the subspace was not fitted on, in `FOLDS` rounds.
    seed : int
        Of the choice among more than `MOST` images, and of the analysis.
    accepted : float
        Share of them that the limit lets pass.

    Returns
    -------
    Refusal

    Raises
    ------
    CourseError
        Fewer than two patients: nothing says how far others lie.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(pixels))[:MOST])
    patients = np.asarray(patients)[rows]
    folds = min(FOLDS, len(set(patients)))
    if folds < 2:
        raise CourseError(f"Refusal needs X-rays of several patients; got {len(rows)} images of {folds}.")
    features = features_of(model, pixels, rows)
    held_out = np.empty(len(rows))
    with threadpool_limits(1):  # small products: several threads make them slower where others work, too
        for known, others in GroupKFold(folds).split(rows, groups=patients):
            held_out[others] = distances(_fitted(features[known], seed), features[others])
        return _fitted(features, seed)._replace(limit=np.array(np.quantile(held_out, accepted)))


def features_of(model, pixels, rows=None, *, batch_size=64):
    """Return the features of `watched`, float32 (images, n), of images or of some rows of them."""
    step, rows = compiled(watched(model)), np.arange(len(pixels)) if rows is None else rows
    parts = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return np.concatenate([step(pixels[part])[1].numpy() for part in parts])


def _fitted(features, seed):
    values = _logarithms(features)
    mean, scale = values.mean(axis=0), values.std(axis=0)
    scale = scale + 1e-3 * max(scale.max(), 1e-6)  # a feature that never varies
    own = len(scale) - GENERAL
    if own:
        scale[GENERAL:] *= np.sqrt((1 - OWN) / OWN * own / GENERAL)
    count = max(1, min(COMPONENTS, len(values) // 4))
    analysis = PCA(count, svd_solver="randomized", random_state=seed).fit((values - mean) / scale)
    return Refusal(mean, scale, analysis.components_.astype(np.float32), np.array(np.inf), np.array(len(values)),
                   np.array(sha256(backbones.PHANTOM_WEIGHTS)))  # fmt: skip


def _logarithms(features):
    return np.log(np.maximum(features, 0) + np.float32(FLOOR))


def distances(refusal, features):
    """Say how far images lie from the training images.

    Parameters
    ----------
    refusal : Refusal
    features : numpy.ndarray
        float32, (images, n), from `watched`.

    Returns
    -------
    numpy.ndarray
        float64, (images,): mean absolute value of what the subspace leaves of the standardised features. Compare it with
        `refusal.limit`. Not squares: one feature far off, as an arrow or a letter makes it, should not decide alone.
    """
    values = (_logarithms(features) - refusal.mean) / refusal.scale
    left = values - (values @ refusal.components.T) @ refusal.components
    return np.abs(left).mean(axis=1, dtype=np.float64)


def load(folder):
    """Open the statistics of a bundle.

    Raises
    ------
    CourseError
        None there, damaged, or made with other weights of PhantomNet.
    """
    path, again = Path(folder) / "refusal.npz", "Run the notebook that trains the model again."
    if not path.is_file():
        raise CourseError(f"{folder} has no refusal.npz: its model could not refuse what is no chest X-ray. {again}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            refusal = Refusal(**{name: arrays[name] for name in Refusal._fields})
        whole = refusal.components.shape[1:] == refusal.mean.shape == refusal.scale.shape and refusal.limit > 0
    except Exception:  # a damaged archive makes NumPy raise nearly anything
        whole = False
    if not whole:
        raise CourseError(f"{path} is damaged. {again}")
    if str(refusal.phantom_net) != sha256(backbones.PHANTOM_WEIGHTS):
        raise CourseError(f"{path} was made with other weights of PhantomNet than this course has. {again}")
    return refusal
