"""Feature extractors for transfer learning, by name: bytes in, one row of features an image out."""

import contextlib
import hashlib
import io
import json
import os
import random
import re
import socket
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.backend import keras
from utils.config import ROOT, unknown
from utils.errors import CourseError
from utils.files import written
from utils.models import convolutions, predict, probabilities, weights_hash

layers = keras.layers
applications = keras.applications

PHANTOM_WIDTHS = (16, 32, 64, 96, 128)  # feature maps of PhantomNet's convolutions
LAPTOP = ("MobileNet", "MobileNetV2")  # quick enough without a GPU
PHANTOM_WEIGHTS = ROOT / "utils" / "weights" / "phantomnet.weights.h5"
TIMEOUT = 20  # seconds: a classroom's firewall may swallow a download instead of refusing it

# Scale and offset of 0..255 grey values, as each network saw them in its training: -1..1; or mean and deviation of
# ImageNet's red, green and blue; or untouched, where the network scales by itself.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALINGS = {
    "signed": (1 / 127.5, -1.0),
    "imagenet": ([1 / (255 * one) for one in DEVIATION], [-mean / one for mean, one in zip(MEAN, DEVIATION)]),
    "bytes": (1.0, 0.0),
}


class Choice(NamedTuple):
    """The backbones of a run."""

    names: tuple  # keys of `BACKBONES`
    weights: str  # "imagenet" or "phantom"
    why: str


class Backbone(NamedTuple):
    """A convolutional network without its classifier."""

    make: Callable | None  # the constructor in keras.applications; None: ours, `phantom_net`
    file: str  # its ImageNet weights, as Keras calls them in KERAS_HOME/models
    scaling: str  # a key of `SCALINGS`
    smallest: int  # pixels: the shortest side that it accepts
    native: int  # pixels: the side that it was made for
    paper: str
    channels: int = 3  # that its trunk takes


_TF = "weights_tf_dim_ordering_tf_kernels"
BACKBONES = {
    "MobileNet": Backbone(
        partial(applications.MobileNet, alpha=0.25), "mobilenet_2_5_224_tf_no_top.h5", "signed", 32, 224,
        "Howard et al. 2017, arXiv:1704.04861",
    ),
    "MobileNetV2": Backbone(
        partial(applications.MobileNetV2, alpha=0.35), f"mobilenet_v2_{_TF}_0.35_224_no_top.h5", "signed", 32, 224,
        "Sandler et al. 2018, arXiv:1801.04381",
    ),
    "EfficientNetV2B0": Backbone(
        applications.EfficientNetV2B0, "efficientnetv2-b0_notop.h5", "bytes", 32, 224,
        "Tan & Le 2021, arXiv:2104.00298",
    ),
    "ResNet50V2": Backbone(
        applications.ResNet50V2, f"resnet50v2_{_TF}_notop.h5", "signed", 32, 224,
        "He et al. 2016, arXiv:1603.05027",
    ),
    "DenseNet121": Backbone(
        applications.DenseNet121, f"densenet121_{_TF}_notop.h5", "imagenet", 32, 224,
        "Huang et al. 2017, arXiv:1608.06993",
    ),
    "Xception": Backbone(
        applications.Xception, f"xception_{_TF}_notop.h5", "signed", 71, 299,
        "Chollet 2017, arXiv:1610.02357",
    ),
    "InceptionResNetV2": Backbone(
        applications.InceptionResNetV2, f"inception_resnet_v2_{_TF}_notop.h5", "signed", 75, 299,
        "Szegedy et al. 2017, arXiv:1602.07261",
    ),
    "PhantomNet": Backbone(None, "", "signed", 16, 128, "ours: trained on simulated radiographs", channels=1),
}  # fmt: skip


def build(name, shape, *, weights="imagenet", seed=0, seen=None, mirrored=False):
    """A feature extractor: one shared trunk over every grey channel, averaged over the image.

    Pixels are scaled inside the model, each network in its own way, so whoever uses it cannot forget to. Images
    smaller than the network accepts are enlarged inside, too.

    Parameters
    ----------
    name : str
        A key of `BACKBONES`; its entry names the paper.
    shape : tuple of int
        (height, width, channels) of the uint8 images. Each channel is a grey image of its own (plain, CLAHE).
    weights : str or path-like
        "imagenet": as Keras provides them, from KERAS_HOME/models or the network. "phantom": ours, of PhantomNet
        alone. "none": random. Otherwise a file of the trunk's weights: `trunk.save_weights`, or keras.applications'.
    seed : int
        Of the random weights.
    seen : sequence of int, optional
        Numbers of the channels that it looks at; None: all.
    mirrored : bool
        Features are the mean of those of the image and of its mirror image. For a linear classifier this is the same
        as averaging its two answers before the sigmoid or softmax.

    Returns
    -------
    keras.Model
        Called `name`. uint8 (images, height, width, channels) to float32 (images, channels x features). The nested
        model `get_layer("trunk")` ends in the last feature maps.

    Raises
    ------
    CourseError
        A name that is not known; weights that are not there, damaged, or of another network.
    """
    if name not in BACKBONES:
        raise CourseError(unknown("backbone", name, BACKBONES))
    kind, seen = BACKBONES[name], range(shape[-1]) if seen is None else seen
    scale, offset = SCALINGS[kind.scaling]
    steps = [layers.Rescaling(scale, offset=offset, name="scale"), *_enlarged(shape, kind.smallest)]
    steps += [_trunk(name, weights, seed), layers.GlobalAveragePooling2D(name="average")]
    inputs = keras.Input(shape, dtype="uint8", name="pixels")
    greys = keras.ops.split(inputs, shape[-1], axis=-1) if shape[-1] > 1 else [inputs]
    features = []
    for channel in seen:
        grey = greys[channel]
        grey = layers.Concatenate(name=f"repeat{channel + 1}")([grey] * kind.channels) if kind.channels > 1 else grey
        views = [grey, keras.ops.flip(grey, axis=2)] if mirrored else [grey]
        found = [_through(steps, view) for view in views]
        features.append(layers.Average(name=f"both{channel + 1}")(found) if mirrored else found[0])
    outputs = layers.Concatenate(name="features")(features) if len(features) > 1 else features[0]
    return keras.Model(inputs, outputs, name=name)


def _through(steps, x):
    for step in steps:
        x = step(x)
    return x


def choose(run):
    """Choose the backbones of a run: our own for phantoms; for real sets those of ImageNet, or ours in need.

    Parameters
    ----------
    run : utils.config.Run

    Returns
    -------
    Choice
        `LAPTOP` with ImageNet's weights where they all load, otherwise PhantomNet; `why` is a sentence for people.
    """
    ours = ("PhantomNet",), "phantom"
    if run.dataset == "phantom":
        return Choice(*ours, "Phantoms always take our own backbone: the same answer with and without a network.")
    missing = []
    for name in LAPTOP:
        try:
            _from_imagenet(name, seed=0)
        except CourseError as error:
            missing.append(str(error))
    if missing:
        return Choice(*ours, " ".join(["ImageNet's weights did not load, so our own backbone stands in.", *missing]))
    return Choice(LAPTOP, "imagenet", "ImageNet's weights are here.")


def _enlarged(shape, smallest):
    height, width, _ = shape
    factor = smallest / min(height, width)
    if factor <= 1:
        return []
    return [layers.Resizing(round(height * factor), round(width * factor), interpolation="bilinear", name="enlarge")]


def phantom_net(*, seed):
    """Our own trunk: the small CNN's convolutions, wider, for one grey channel; pretrained on simulated radiographs.

    A disease shows in fine texture as well as in large shapes. So the maps of all depths from the second convolution
    on go on side by side, averaged down to the size of the last (*hypercolumns*, Hariharan et al. 2015,
    arXiv:1411.5752).

    Parameters
    ----------
    seed : int
        Of the starting weights.

    Returns
    -------
    keras.Model
        Called "trunk". float32 (images, height, width, 1), from -1 to 1, to float32 (images, height / 32,
        width / 32, 320), 0 or more; sides of any length, rounded up.
    """
    inputs = keras.Input((None, None, 1), name="grey")
    depth = len(PHANTOM_WIDTHS)
    last = convolutions(inputs, PHANTOM_WIDTHS, seed=seed, pooled=depth - 1)
    chain, maps = keras.Model(inputs, last), []
    for number in range(2, depth + 1):
        seen = chain.get_layer(f"conv{number}_relu").output
        cell = 2 ** max(0, depth - 1 - number)  # the last two are of one size
        maps.append(layers.AveragePooling2D(cell, padding="same", name=f"average{number}")(seen) if cell > 1 else seen)
    return keras.Model(inputs, layers.Concatenate(name="maps")(maps), name="trunk")


def _trunk(name, weights, seed):
    if weights == "imagenet":
        return _from_imagenet(name, seed)
    trunk = _random(name, seed)
    if weights == "none":
        return trunk
    if weights == "phantom":
        if name != "PhantomNet":
            raise CourseError(f'weights="phantom" are those of PhantomNet: {name} takes "imagenet", "none" or a file.')
        return load_weights(trunk, PHANTOM_WEIGHTS, name, mend="It is part of the course: download the course again.")
    mend = 'weights can be "imagenet", "phantom", "none", or a file that fits: check the path, and where it is from.'
    return load_weights(trunk, Path(weights), name, mend=mend)


def _random(name, seed):
    if name == "PhantomNet":
        return phantom_net(seed=seed)
    # keras.applications takes no seed: its layers draw theirs from Python's generator, which is put back afterwards.
    state = random.getstate()
    random.seed(seed)
    try:
        return _application(name, weights=None)
    finally:
        random.setstate(state)


def _application(name, *, weights):
    with warnings.catch_warnings():
        # MobileNets remark that they take the weights for 224 pixels; convolutions fit any size.
        warnings.filterwarnings("ignore", message=".*`input_shape` is undefined")
        # Sides left open: the trunk is the same for every size of image.
        trunk = BACKBONES[name].make(weights=weights, include_top=False, input_shape=(None, None, 3))
    trunk.name = "trunk"  # not as an option above: EfficientNetV2 looks its own structure up by its name
    return trunk


def _from_imagenet(name, seed):
    if name == "PhantomNet":
        raise CourseError('PhantomNet has never seen ImageNet: it takes weights="phantom", "none" or a file.')
    home = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser()
    path = home / "models" / BACKBONES[name].file
    # Keras passes over a cache that it may not write in, such as the one that a class shares; so we look first.
    if path.is_file():
        return load_weights(_random(name, seed), path, name, mend="Delete it, and Keras downloads it again.")
    try:
        with _silence():
            return _application(name, weights="imagenet")
    except Exception as error:  # Keras raises a plain Exception when a download fails
        raise CourseError(
            f"The ImageNet weights of {name} are not at {path}, and could not be downloaded ({_reason(error)}). "
            "Connect to the internet; or set KERAS_HOME, before Python starts, to a folder whose models/ holds that "
            'file; or use ours: PhantomNet with weights="phantom".'
        ) from None


@contextlib.contextmanager
def _silence():
    # Keras reports downloads on standard output, and waits for ever on a network that does not answer.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(before)


def load_weights(network, path, name, *, mend):
    """Fill a network with the weights of a file, every one of them.

    Parameters
    ----------
    network : keras.Model
        It is changed.
    path : pathlib.Path
        From `save_weights`, or of keras.applications.
    name, mend : str
        For messages: what the weights are of, and what to do when they do not fit.

    Returns
    -------
    keras.Model
        `network`.

    Raises
    ------
    CourseError
        No such file; damaged, or of another network.
    """
    if not path.is_file():
        raise CourseError(f"There is no file {path} with weights of {name}. {mend}")
    # Keras is content with a file that fills some layers only: what no weight of the file replaces stays NaN.
    network.set_weights([np.full_like(values, np.nan) for values in network.get_weights()])
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns of what it skips; the check below refuses it
            network.load_weights(path)
    except Exception as error:  # a damaged file makes HDF5 raise nearly anything
        raise CourseError(f"{path} is damaged, or not of {name} ({_reason(error)}). {mend}") from None
    if not all(np.isfinite(values).all() for values in network.get_weights()):
        raise CourseError(f"{path} is damaged, or not of {name} (some weights are missing or not numbers). {mend}")
    return network


def _reason(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def join(extractors):
    """Several feature extractors as one: their features side by side.

    Parameters
    ----------
    extractors : sequence of keras.Model
        From `build`, for images of the same shape.

    Returns
    -------
    keras.Model
        The only one given, or one called by all their names.
    """
    extractors = list(extractors)
    if len(extractors) == 1:
        return extractors[0]
    inputs = keras.Input(extractors[0].input_shape[1:], dtype="uint8", name="pixels")
    features = layers.Concatenate(name="features")([extractor(inputs) for extractor in extractors])
    return keras.Model(inputs, features, name="_".join(extractor.name for extractor in extractors))


def short_sighted(shape, *, weights, seed):
    """A classifier whose every feature sees only a small part of the image, so that a heat map can say which.

    Features of a deep network see nearly the whole image: a map of where they are large need not show where the
    lesion is. Here PhantomNet ends after its third convolution: each feature sees 59 x 59 pixels. Maps of the second
    and the third stand side by side, are mixed place by place, and averaged over the image (as in bags of local
    features, Brendel & Bethge 2019, arXiv:1904.00760).

    Parameters
    ----------
    shape : tuple of int
        (height, width, 1) of the uint8 images.
    weights : str or path-like
        Those of PhantomNet that it starts from, see `build`.
    seed : int
        Of the random weights and of dropout.

    Returns
    -------
    keras.Model
        uint8 pixels in, the probability of the second of two classes out. Its last layer with maps is "look_relu":
        (images, height / 8, width / 8, 64).
    """
    inputs = keras.Input(shape, dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    trunk = _trunk("PhantomNet", weights, seed)
    fine, coarse = keras.Model(trunk.input, [trunk.get_layer(f"conv{n}_relu").output for n in (2, 3)], name="trunk")(x)
    coarse = layers.Resizing(*fine.shape[1:3], interpolation="bilinear", name="larger")(coarse)
    x = layers.Concatenate(name="side_by_side")([fine, coarse])
    start = keras.initializers.HeNormal(seed=seed * 100 + 50)
    x = layers.Conv2D(64, 1, use_bias=False, kernel_initializer=start, name="look")(x)
    x = layers.BatchNormalization(momentum=0.9, name="look_bn")(x)
    x = layers.ReLU(name="look_relu")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, probabilities(x, 2, seed=seed, dropout=0.3), name="short_sighted")


def classifier(extractor, *, classes, seed, dropout=0.3):
    """A feature extractor and an untrained last layer, for fine-tuning or for training from scratch.

    Parameters
    ----------
    extractor : keras.Model
        From `build`. Its trunk is shared, not copied: training changes it.
    classes, seed, dropout
        As for `models.small_cnn`.

    Returns
    -------
    keras.Model
        uint8 pixels in, probabilities out.
    """
    outputs = probabilities(extractor.output, classes, seed=seed, dropout=dropout)
    return keras.Model(extractor.input, outputs, name=f"{extractor.name}_classifier")


def with_head(extractor, head):
    """Put a fitted linear classifier behind a feature extractor: pixels in, probabilities out, in one model.

    Parameters
    ----------
    extractor : keras.Model
        From `build` or `join`.
    head : sklearn.pipeline.Pipeline
        A `StandardScaler` and a `LogisticRegression`, fitted on features of the extractor.

    Returns
    -------
    keras.Model
        Its answers are `head.predict_proba` of the features: the probability of the second of two classes, otherwise
        one a class.
    """
    scaler, linear = head[0], head[-1]
    slope = linear.coef_.T / scaler.scale_[:, None]  # standardising is linear as well: one layer does both
    offset = linear.intercept_ - scaler.mean_ @ slope
    activation = "sigmoid" if slope.shape[1] == 1 else "softmax"
    dense = layers.Dense(slope.shape[1], activation=activation, name="probability")
    model = keras.Model(extractor.input, dense(extractor.output), name=f"{extractor.name}_head")
    dense.set_weights([slope, offset])
    return model


def freeze(model, *, frozen):
    """Freeze the trunk, or free it for fine-tuning; compile the model afterwards, or nothing changes.

    Batch normalisation stays frozen, and so in inference mode, either way: the statistics of a few small batches
    would spoil what the trunk has learned (https://keras.io/guides/transfer_learning).

    Parameters
    ----------
    model : keras.Model
        With a layer called "trunk": that of `build`, or one that goes on from its output.
    frozen : bool
    """
    trunk = model.get_layer("trunk")
    trunk.trainable = not frozen
    for layer in trunk.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = False


def cached_features(model, pixels, content, folder):
    """Compute features once, and read them from disk from then on.

    Parameters
    ----------
    model : keras.Model
        uint8 images in, one row of features an image out.
    pixels : numpy.ndarray
        uint8, (images, height, width, channels).
    content : str
        Stands for `pixels`: a hash of the images and their preprocessing.
    folder : path-like
        Where the arrays are kept. The file is named by a hash of `content`, of the model's structure and of its
        weights, so a change of any makes a new file, and an interrupted run leaves none.

    Returns
    -------
    numpy.ndarray
        float32, (images, features).
    """
    key = json.dumps([content, _structure(model), weights_hash(model)])
    path = Path(folder) / f"{model.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    with contextlib.suppress(OSError, ValueError, EOFError):  # not there, or damaged: computed below
        features = np.load(path)
        if features.shape == (len(pixels), *model.output_shape[1:]):
            return features
    features = predict(model, pixels)
    with written(path) as part:
        np.save(part, features)
    return features


def _structure(model):
    # Without what changes no feature: seeds, what may be trained, and the running numbers that Keras gives to names.
    text = json.dumps(model.get_config(), sort_keys=True)
    return re.sub(r'_\d+"', '"', re.sub(r'"(seed|trainable)": \w+', "", text))
