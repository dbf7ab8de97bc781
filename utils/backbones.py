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

from utils.backend import keras, tf
from utils.config import ROOT, unknown
from utils.errors import CourseError
from utils.files import written
from utils.models import weights_hash

layers = keras.layers
applications = keras.applications

PHANTOM_WEIGHTS = ROOT / "utils" / "weights" / "phantomnet.weights.h5"
PHANTOM_WIDTHS = (48, 96, 160)  # feature maps of PhantomNet's three pairs of convolutions
MERGED = 10_000_000  # weights: `extract` treats smaller models as constants
TIMEOUT = 20  # seconds: a classroom's firewall may swallow a download instead of refusing it

# Scale and offset of 0..255 grey values, as each network saw them in its training: -1..1; or mean and deviation of
# ImageNet's red, green and blue; or untouched, where the network scales by itself.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALINGS = {
    "signed": (1 / 127.5, -1.0),
    "imagenet": ([1 / (255 * one) for one in DEVIATION], [-mean / one for mean, one in zip(MEAN, DEVIATION)]),
    "bytes": (1.0, 0.0),
}


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


def build(name, shape, *, weights="imagenet", seed=0):
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
    kind, channels = BACKBONES[name], shape[-1]
    scale, offset = SCALINGS[kind.scaling]
    steps = [layers.Rescaling(scale, offset=offset, name="scale"), *_enlarged(shape, kind.smallest)]
    steps += [_trunk(name, weights, seed), layers.GlobalAveragePooling2D(name="average")]
    inputs = keras.Input(shape, dtype="uint8", name="pixels")
    features = []
    for index, grey in enumerate(keras.ops.split(inputs, channels, axis=-1) if channels > 1 else [inputs]):
        x = layers.Concatenate(name=f"repeat{index + 1}")([grey] * kind.channels) if kind.channels > 1 else grey
        for step in steps:
            x = step(x)
        features.append(x)
    outputs = layers.Concatenate(name="features")(features) if channels > 1 else features[0]
    return keras.Model(inputs, outputs, name=name)


def _enlarged(shape, smallest):
    height, width, _ = shape
    factor = smallest / min(height, width)
    if factor <= 1:
        return []
    return [layers.Resizing(round(height * factor), round(width * factor), interpolation="bilinear", name="enlarge")]


def phantom_net(*, seed):
    """Our own small trunk: 0.5 million weights, for one grey channel, trained on simulated radiographs.

    Parameters
    ----------
    seed : int
        Of the starting weights.

    Returns
    -------
    keras.Model
        Called "trunk". float32 (images, height, width, 1), from -1 to 1, to float32 (images, height / 16,
        width / 16, 160), 0 or more; sides of any length, rounded up.
    """
    inputs = keras.Input((None, None, 1), name="grey")
    x = _convolution(inputs, 32, "conv1", seed * 100, kernel_size=5, strides=2)
    for block, width in enumerate(PHANTOM_WIDTHS, start=2):
        x = layers.MaxPooling2D(padding="same", name=f"pool{block - 1}")(x)
        for letter in "ab":
            x = _convolution(x, width, f"conv{block}{letter}", seed * 100 + 2 * block + (letter == "b"), kernel_size=3)
    return keras.Model(inputs, x, name="trunk")


def _convolution(x, width, name, seed, **steps):
    start = keras.initializers.HeNormal(seed=seed)  # He et al. 2015
    x = layers.Conv2D(width, padding="same", use_bias=False, kernel_initializer=start, name=name, **steps)(x)
    x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)  # 0.9 as in `models.small_cnn`
    return layers.ReLU(name=f"{name}_relu")(x)


def _trunk(name, weights, seed):
    if weights == "imagenet":
        return _from_imagenet(name, seed)
    trunk = _random(name, seed)
    if weights == "none":
        return trunk
    if weights == "phantom":
        if name != "PhantomNet":
            raise CourseError(f'weights="phantom" are those of PhantomNet: {name} takes "imagenet", "none" or a file.')
        return _load(trunk, PHANTOM_WEIGHTS, name, mend="It is part of the course: download the course again.")
    mend = 'weights can be "imagenet", "phantom", "none", or a file that fits: check the path, and where it is from.'
    return _load(trunk, Path(weights), name, mend=mend)


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
        return _load(_random(name, seed), path, name, mend="Delete it, and Keras downloads it again.")
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


def _load(trunk, path, name, *, mend):
    if not path.is_file():
        raise CourseError(f"There is no file {path} with weights of {name}. {mend}")
    # Keras is content with a file that fills some layers only: what no weight of the file replaces stays NaN.
    trunk.set_weights([np.full_like(values, np.nan) for values in trunk.get_weights()])
    try:
        with warnings.catch_warnings(action="ignore"):  # Keras warns of what it skips; the check below refuses it
            trunk.load_weights(path)
    except Exception as error:  # a damaged file makes HDF5 raise nearly anything
        raise CourseError(f"{path} is damaged, or not of {name} ({_reason(error)}). {mend}") from None
    if not all(np.isfinite(values).all() for values in trunk.get_weights()):
        raise CourseError(f"{path} is damaged, or not of {name} (some weights are missing or not numbers). {mend}")
    return trunk


def _reason(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


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


def extract(model, pixels, *, batch_size=64):
    """Compute features in inference mode.

    Parameters
    ----------
    model : keras.Model
        uint8 images in, one row of numbers an image out.
    pixels : numpy.ndarray
        uint8, (images, height, width, channels).
    batch_size : int
        Images at once.

    Returns
    -------
    numpy.ndarray
        float32, (images, features).

    Raises
    ------
    CourseError
        Not bytes, or of another shape than the model takes.
    """
    expected = model.input_shape[1:]
    if pixels.dtype != np.uint8 or pixels.shape[1:] != expected:
        raise CourseError(
            f"{model.name} takes uint8 images of {expected}, got {pixels.dtype} of {pixels.shape[1:]}: "
            "prepare them with utils.images, and leave the scaling to the model."
        )
    step = _compiled(model)
    features = np.empty((len(pixels), *model.output_shape[1:]), np.float32)
    for start in range(0, len(pixels), batch_size):
        features[start : start + batch_size] = step(tf.constant(pixels[start : start + batch_size]))
    return features


def _compiled(model):
    # With weights as constants TensorFlow merges batch normalisation into the convolutions: small networks become a
    # quarter faster, while large ones wait longer for the merging than they gain.
    step = partial(model, training=False)
    if model.count_params() < MERGED:
        trained = [weight.numpy() for weight in model.trainable_variables]
        others = [weight.numpy() for weight in model.non_trainable_variables]

        def step(batch):
            return model.stateless_call(trained, others, batch, training=False)[0]

    # The number of images stays open, or a last, smaller batch would be traced anew.
    batch = tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8)
    return tf.function(step).get_concrete_function(batch)


def cached_features(model, pixels, content, folder):
    """Compute features once, and read them from disk from then on.

    Parameters
    ----------
    model : keras.Model
        As for `extract`.
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
    features = extract(model, pixels)
    with written(path) as part:
        np.save(part, features)
    return features


def _structure(model):
    # Without what changes no feature: seeds, what may be trained, and the running numbers that Keras gives to names.
    text = json.dumps(model.get_config(), sort_keys=True)
    return re.sub(r'_\d+"', '"', re.sub(r'"(seed|trainable)": \w+', "", text))
