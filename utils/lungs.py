"""Where the lungs are: LungNet draws them on a radiograph, for the many sets that come without masks."""

import zlib

import cv2
import numpy as np

from utils import backbones, images, models
from utils.backend import keras
from utils.config import ROOT
from utils.errors import CourseError

WEIGHTS = ROOT / "utils" / "weights" / "lungnet.weights.h5"
SIDE = 128  # pixels: LungNet sees every image at this size
BLOCK = 1000  # images at once: their probabilities take 64 kB each
FIRST, WIDTHS = 12, (16, 24, 32, 48)  # feature maps of the first convolution, and of each level below it
layers = keras.layers


def lung_net(*, seed):
    """A small U-Net (Ronneberger et al. 2015, arXiv:1505.04597), not trained yet.

    On the way down maps get smaller and see more of the chest; on the way up they are enlarged again and joined with
    those of the same size from the way down, which know best where the edges are.

    Parameters
    ----------
    seed : int
        Of the starting weights.

    Returns
    -------
    keras.Model
        Called "LungNet". uint8 (images, 128, 128, 1), grey values as from `equalised`, to float32 of the same
        shape: the probability that a pixel is lung.
    """
    inputs = keras.Input((SIDE, SIDE, 1), dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    # Half the size from the start: a quarter of the work, and enough for so large and smooth a thing as a lung.
    x = _convolution(x, FIRST, 3, "first", seed, strides=2)
    kept, levels = [], list(enumerate(WIDTHS[:-1], start=1))
    for level, width in levels:
        x = _two_convolutions(x, width, f"down{level}", seed)
        kept.append(x)
        x = layers.MaxPooling2D(name=f"down{level}_pool")(x)
    x = _two_convolutions(x, WIDTHS[-1], "bottom", seed)
    for level, width in reversed(levels):
        x = layers.UpSampling2D(interpolation="bilinear", name=f"up{level}_larger")(x)
        x = layers.Concatenate(name=f"up{level}_join")([x, kept[level - 1]])
        x = _two_convolutions(x, width, f"up{level}", seed)
    x = _convolution(x, 1, 1, "lung", seed)
    x = layers.UpSampling2D(interpolation="bilinear", name="larger")(x)
    return keras.Model(inputs, layers.Activation("sigmoid", name="probability")(x), name="LungNet")


def _convolution(x, maps, window, name, seed, **options):
    # He et al. 2015; every kernel of the network draws its own numbers.
    start = keras.initializers.HeNormal(seed=zlib.crc32(f"{name} {seed}".encode()))
    return layers.Conv2D(maps, window, padding="same", kernel_initializer=start, name=name, **options)(x)


def _two_convolutions(x, width, name, seed):
    for number in (1, 2):
        x = _convolution(x, width, 3, f"{name}_conv{number}", seed, use_bias=False)
        # Keras' momentum of 0.99 averages over more batches than a short training has.
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn{number}")(x)
        x = layers.ReLU(name=f"{name}_relu{number}")(x)
    return x


def draw(pixels, *, network=None):
    """Draw the lungs on radiographs.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, (images, side, side, 1): plain grey, as `images.preprocess` gives it; any side.
    network : keras.Model, optional
        A trained `lung_net`; None: the one that is part of the course.

    Returns
    -------
    numpy.ndarray
        bool, same shape: True where lung is more likely than not, at most two connected areas an image. None at all
        is a possible answer.

    Raises
    ------
    CourseError
        Not plain grey bytes, or the weights are missing or damaged.

    Notes
    -----
    LungNet has learned from simulated radiographs alone (`utils/pretrain.py`). On others of them its mean Dice is 0.98
    (see its card, beside the weights). With the 188 lung masks of ieee8023, which are by another network (lungVAE,
    Selvan et al. 2020, arXiv:2005.10052), it is 0.91, and below 0.8 for 11. What it takes for lung now and then: a dark
    belly, and the air between trunk and arm.
    """
    pixels = np.asarray(pixels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1] != pixels.shape[2] or pixels.shape[3] != 1:
        raise CourseError(
            f"Lungs are drawn on uint8 images of (images, side, side, 1), got {pixels.dtype} of {pixels.shape}: "
            'prepare them with utils.images and channels=("plain",).'
        )
    if network is None:
        mend = "It is part of the course: download the course again."
        network = backbones.load_weights(lung_net(seed=0), WEIGHTS, "LungNet", mend=mend)
    drawn = np.zeros(pixels.shape, bool)
    for start in range(0, len(pixels), BLOCK):
        some = slice(start, start + BLOCK)
        small = [_resized(grey, SIDE) for grey in pixels[some, :, :, 0]]
        for mask, lung in zip(drawn[some, :, :, 0], models.predict(network, equalised(small))):
            mask[:] = _two_largest(_resized(lung, pixels.shape[1]) > 0.5)
    return drawn


def equalised(greys):
    """Turn grey images into what LungNet takes: uint8 (128, 128) each, to (images, 128, 128, 1), equalised."""
    return np.array([images.CHANNELS["equalised"](grey) for grey in greys], np.uint8).reshape(-1, SIDE, SIDE, 1)


def dice(drawn, truth):
    """Dice coefficient of masks: twice what both share, divided by the sum of both (Dice 1945).

    Parameters
    ----------
    drawn, truth : numpy.ndarray
        bool, (images, side, side, 1).

    Returns
    -------
    numpy.ndarray
        float64, (images,): 0, nothing in common, to 1, the same; 1 where both are empty.
    """
    both, one, other = (masks.sum(axis=(1, 2, 3)) for masks in (drawn & truth, drawn, truth))
    return np.where(one + other, 2 * both / np.maximum(one + other, 1), 1.0)


def _resized(values, side):
    return cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA if side < len(values) else cv2.INTER_LINEAR)


def _two_largest(mask):
    # A chest has two lungs; what else is dark, such as the stomach's air or a corner of the film, makes small areas.
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    largest = 1 + np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")[:2]  # number 0 is what is no lung
    return np.isin(labels, largest)
