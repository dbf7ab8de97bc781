"""Pictures for the page: prepared X-rays, heat, and simulated X-rays to try."""

import base64
import functools
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np

from utils import images, phantom

SHOWN = 512  # pixels a side: what a model sees may be a quarter of it, and looks poor on a screen
SAMPLE_SEED = 36  # of no data set and no training of the course
EACH = 2  # samples of a class
MOST = 6


class Sample(NamedTuple):
    """A simulated X-ray to try the page with."""

    name: str  # of the file
    label: str  # what was drawn
    png: bytes


def prepared(data, options):
    """Prepare an X-ray as for the model, but large enough to look at.

    Parameters
    ----------
    data : bytes
        A file that can be read.
    options : utils.images.Options
        Of the model: the same borders are cut, the same bars added, so that its heat map fits.

    Returns
    -------
    numpy.ndarray
        uint8, (`SHOWN`, `SHOWN`), grey.
    """
    return images.preprocess(images.decode(data), replace(options, size=SHOWN, channels=("plain",)))[..., 0]


def coloured(heat):
    """Colour a heat map, to lie over an X-ray.

    Parameters
    ----------
    heat : numpy.ndarray
        float32, (height, width), 0 to 1.

    Returns
    -------
    numpy.ndarray
        uint8, (height, width, 4): blue, green, red, opacity. Where nothing speaks for the class, it is transparent.
    """
    level = np.uint8(np.round(255 * heat))
    return np.dstack([cv2.applyColorMap(level, cv2.COLORMAP_INFERNO), level])


def png(pixels):
    """Return pixels as the bytes of a PNG file."""
    return cv2.imencode(".png", pixels)[1].tobytes()


def data_url(pixels):
    """Return pixels as a PNG in a data URL."""
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


@functools.cache
def samples(classes):
    """Draw simulated X-rays of nobody.

    Parameters
    ----------
    classes : tuple of str
        Of the model: those that can be drawn are; if that is none, every kind that can.

    Returns
    -------
    list of Sample
        At most `MOST`, of different patients, the classes in turn.
    """
    labels = [name for name in classes if name in phantom.LABELS] or list(phantom.LABELS)
    turns = [label for _ in range(EACH) for label in labels][:MOST]
    found = []
    for number, label in enumerate(turns):
        patient = phantom.make_patient(number, seed=SAMPLE_SEED, label=label)
        name = f"simulated-{label.lower().replace(' ', '-')}-{number // len(labels) + 1}.png"
        found.append(Sample(name, label, png(phantom.take_radiograph(patient, 0, size=SHOWN).image)))
    return found
