"""Simulated chest radiographs whose truth is known.

Every picture made here is computed: no pixel of a real patient is in it, and nothing measured on it says
anything about real patients. What it is good for: a course that runs without a download, and pictures whose
lungs, lesions, patient, hospital and severity are known exactly.

The simulation follows the physics of the real thing. A chest is a set of tissues; for every pixel the
centimetres of soft tissue, air, bone and metal along the ray are added up, and the Beer-Lambert law turns
them into the X-rays that arrive: ``I = I0 exp(-sum(mu * path))``. Scatter veils the picture, counting
photons makes it noisy (Poisson), and a hospital's tone curve turns it into grey values in which dense is
bright. A lesion is air replaced by fluid: where little air is replaced (ground glass) the vessels stay
visible, where all of it is (consolidation) they vanish, without a rule that says so.

The appearance of the diseases follows

* H. Y. F. Wong et al., "Frequency and Distribution of Chest Radiographic Findings in Patients Positive for
  COVID-19", Radiology 296 (2020) E72-E78: bilateral, peripheral, lower zones, ground glass and consolidation;
* D. M. Hansell et al., "Fleischner Society: Glossary of Terms for Thoracic Imaging", Radiology 246 (2008)
  697-722: what ground glass, consolidation, reticular pattern and air bronchogram mean.

Lengths are centimetres of an adult: x to the right of the picture (the patient's left), y downwards from
the top of the lungs, z from back to front. A child has a child's proportions, enlarged to fill the picture.
"""

import json
import math
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock

from utils.errors import CourseError

VERSION = 1  # raise it when pixels change: folders written by an older version are then refused
ENOUGH_FOR_PROCESSES = 300  # pictures; fewer are drawn sooner than processes have started
LABELS = ("Normal", "COVID-19", "Viral Pneumonia", "Lung Opacity")
HOSPITALS = ("A", "B", "C")

# Linear attenuation per centimetre at the mean energy of a chest exposure, about 60 keV.
SOFT, FAT, LUNG, BONE, METAL = 0.205, 0.185, 0.055, 0.55, 4.0
AIR_GAIN = SOFT - LUNG  # what a centimetre of lung lets through more than a centimetre of soft tissue

# Each purpose draws from a stream of its own: a lesion more or less never moves a rib or changes the noise.
WHO, BODY, POSE, LESION, COURSE, DETECTOR, VESSELS, GRAIN = range(1, 9)


class Patient(NamedTuple):
    """A simulated person. `severity` is that of the first image, 0 for Normal; `bedside` the chance of AP."""

    index: int
    seed: int
    id: str
    label: str
    hospital: str
    sex: str
    age: int
    n_images: int
    severity: float
    bedside: float


class Radiograph(NamedTuple):
    """One image: uint8 (size, size), two bool masks (size, size), and "PA" or "AP Supine"."""

    image: np.ndarray
    lung_mask: np.ndarray
    lesion_mask: np.ndarray
    view: str


class Hospital(NamedTuple):
    """What makes the pictures of one hospital recognisable."""

    contrast: float  # slope of the tone curve
    lung_grey: float  # where the tone curve puts a healthy lung, 0 black, 1 white
    sharpen: float  # strength of the unsharp mask
    photons: float  # per pixel in open air, for a picture of 224 pixels
    border: float  # chance that the collimator is seen
    marker: tuple  # letter, font, height and thickness (cm), place (x, y in 0..1), framed
    bedside_text: str


STYLES = {
    "A": Hospital(2.3, 0.34, 0.25, 120000, 0.35, ("R", cv2.FONT_HERSHEY_SIMPLEX, 1.3, 0.28, (0.07, 0.12), False), ""),
    "B": Hospital(2.8, 0.31, 0.6, 110000, 0.75, ("L", cv2.FONT_HERSHEY_DUPLEX, 1.0, 0.18, (0.90, 0.07), True), "AP"),
    "C": Hospital(
        1.8, 0.38, 0.0, 50000, 0.15, ("R", cv2.FONT_HERSHEY_COMPLEX, 1.8, 0.22, (0.05, 0.4), False), "PORTABLE"
    ),
}


def _rng(seed, index, number, purpose):
    # The purpose comes last and is never 0: numpy treats [1, 2] and [1, 2, 0] as the same seed.
    return np.random.default_rng([seed, index, number, purpose])


def make_patient(index, *, seed, label=None, hospital=None, shortcut=0.0, hospitals=HOSPITALS, images=None):
    """Draw the patient of this index: the same arguments give the same patient.

    Parameters
    ----------
    index, seed : int, 0 or more
    label : one of LABELS, optional. By default ``LABELS[index % 4]``, so that every prefix is balanced.
    hospital : one of HOSPITALS, optional. By default drawn from `hospitals`.
    shortcut : float in [0, 1]. The chance that the hospital follows from the label (Normal goes to the first
        of `hospitals`, COVID-19 to the second, ...) instead of being drawn: a planted shortcut.
    images : int, optional. Number of images; by default 1 to 4, drawn.

    Returns
    -------
    Patient. Body, pose and noise do not depend on `label` or `hospital`: ask for two labels, get twins.

    Raises
    ------
    CourseError for a label, hospital or number that does not exist.
    """
    _check(
        index=index, seed=seed, label=label, hospital=hospital, shortcut=shortcut, hospitals=hospitals, images=images
    )
    label = label or LABELS[index % len(LABELS)]
    u = _rng(seed, index, 0, WHO).random(8).tolist()
    if hospital is None:
        tied = min(LABELS.index(label), len(hospitals) - 1)
        hospital = hospitals[tied if u[0] < shortcut else int(u[1] * len(hospitals))]
    child = u[3] < 0.18
    return Patient(
        index=index,
        seed=seed,
        id=f"{seed}-{index:05d}",
        label=label,
        hospital=hospital,
        sex="F" if u[2] < 0.48 else "M",
        age=int(1 + 15 * u[4]) if child else int(18 + 74 * u[4] ** 0.8),
        n_images=images or 1 + int(4 * u[5] ** 1.7),
        severity=0.0 if label == "Normal" else 0.28 + 0.65 * u[6],
        bedside=0.85 if u[7] < 0.33 else 0.05,
    )


def _check(*, index, seed, label, hospital, shortcut, hospitals, images):
    known = ", ".join(LABELS)
    if label is not None and label not in LABELS:
        raise CourseError(f"Expected a label out of {known}; got {label!r}.")
    if hospital is not None:
        hospitals = (hospital,)
    if not hospitals or not set(hospitals) <= set(HOSPITALS):
        raise CourseError(f"Expected hospitals out of {', '.join(HOSPITALS)}; got {hospitals!r}.")
    if not 0 <= shortcut <= 1:
        raise CourseError(f"Expected a shortcut between 0 (none) and 1 (always); got {shortcut!r}.")
    for name, value, least in (("index", index, 0), ("seed", seed, 0), ("images", images, 1)):
        if value is not None and (int(value) != value or value < least):
            raise CourseError(f"Expected {name} to be a whole number, {least} or more; got {value!r}.")


# ---------------------------------------------------------------- the body: shapes in centimetres


class Body(NamedTuple):
    """Proportions of one patient, in adult centimetres; the same in all of the patient's images."""

    youth: float  # 1 for an infant, 0 from 18 years on
    half: float  # half the inner width of the chest
    length: float  # top of the lung to the costophrenic angle, full breath
    depth: float  # back to front
    fat: float  # thickness under the skin
    heart: float  # scale of the heart
    thymus: float  # widening of the upper mediastinum
    knob: float  # how far the aortic arch stands out
    slope: float  # how far a rib falls from back to front
    bend: float  # scoliosis
    breast: float  # thickness, 0 for none
    dome: float  # how far the right diaphragm stands above the left
    gas: np.ndarray  # (4, 3) bubbles of stomach and colon: x, y, radius
    wobble: np.ndarray  # (40,) standard normals that make outlines individual


def _body(patient):
    """Draw the proportions of a patient from the patient's own stream."""
    rng = _rng(patient.seed, patient.index, 0, BODY)
    # Lists of plain floats: a numpy float64 would turn every float32 picture that it meets into float64.
    u, n = rng.random(16).tolist(), rng.standard_normal(16).tolist()
    youth = max(0.0, (18 - patient.age) / 17)
    female = patient.sex == "F"
    half = (12.6 if female else 13.7) + 0.7 * n[0]
    return Body(
        youth=youth,
        half=half,
        length=(25.4 if female else 27.4) * (1 - 0.20 * youth) + 1.0 * n[1],
        depth=(22 + 2.2 * n[2]) * (1 - 0.1 * youth),
        fat=float(np.clip(1.2 + 0.8 * n[3] + 0.4 * female - 0.5 * youth, 0.4, 4)),
        heart=0.96 + 0.09 * n[4] + 0.16 * youth + 0.0022 * max(patient.age - 45, 0),
        thymus=youth**2 * (0.4 + 1.6 * u[0]),
        knob=(0.5 + 0.014 * patient.age + 0.3 * n[5]) * (1 - 0.8 * youth),
        slope=(12.5 + 1.0 * n[6]) * (1 - 0.55 * youth),
        bend=0.35 * n[7] + 0.5 * (u[1] < 0.1) * n[8],
        breast=1.6 + 3.2 * u[2] if female and patient.age >= 15 else 0.0,
        dome=1.5 + 0.6 * n[9],
        gas=np.array([(5.5 + 2.5 * n[10 + i], 1.9 + 3.0 * u[4 + i] ** 2, 0.4 + 1.5 * u[8 + i]) for i in range(4)]),
        wobble=rng.standard_normal(40),
    )


class Camera(NamedTuple):
    """Where source, patient and detector stand for one image."""

    size: int  # pixels
    scale: float  # pixels per centimetre in the middle of the chest
    centre: tuple  # pixel that the middle of the chest falls on
    middle: float  # its y in centimetres
    roll: float  # rotation in the picture, radians
    turn: float  # rotation about the long axis, radians
    tilt: float  # how far the beam climbs for each centimetre towards the front
    source: float  # centimetres from the source to the middle of the chest
    front: float  # +1 if the detector is at the chest (PA), -1 if at the back (AP)

    def project(self, points):
        """(..., 3) centimetres -> (..., 2) pixels: what is far from the detector is magnified."""
        points = np.asarray(points, float)
        x, y, z = points[..., 0], points[..., 1] - self.middle, points[..., 2]
        x, z = x * np.cos(self.turn) + z * np.sin(self.turn), z * np.cos(self.turn) - x * np.sin(self.turn)
        y = y - self.tilt * z
        zoom = self.scale * self.source / (self.source + self.front * z)
        c, s = np.cos(self.roll), np.sin(self.roll)
        return np.stack([self.centre[0] + zoom * (c * x - s * y), self.centre[1] + zoom * (s * x + c * y)], axis=-1)

    def flat(self, points, z=0.0):
        """(n, 2) centimetres in the plane at depth z -> (n, 2) pixels."""
        points = np.asarray(points, float)
        return self.project(np.concatenate([points, np.full((*points.shape[:-1], 1), z)], axis=-1))

    def matrix(self):
        """2 x 3 affine map from centimetres (plane z = 0) to pixels."""
        origin, right, down = self.flat([[0, 0], [1, 0], [0, 1]])
        return np.stack([right - origin, down - origin, origin], axis=1)

    def grid(self):
        """Two float32 arrays (size, size): x and y in centimetres of every pixel in the plane z = 0."""
        return _grid(self)


@lru_cache(maxsize=8)  # several tissues of one image ask for the same grid
def _grid(camera):
    inverse = cv2.invertAffineTransform(camera.matrix()).astype(np.float32)
    rows, columns = np.indices((camera.size, camera.size), np.float32, sparse=True)
    return tuple(a * columns + b * rows + c for a, b, c in inverse)


class Pose(NamedTuple):
    """What differs between two images of one patient, apart from the camera."""

    view: str
    breath: float  # 1 full inspiration, about 0.8 poor
    u: list  # 12 further draws in 0..1


def _pose(patient, body, number, size):
    """Draw view, inspiration and camera of one image."""
    rng = _rng(patient.seed, patient.index, number, POSE)
    u, n = rng.random(16).tolist(), rng.standard_normal(16).tolist()
    bedside = u[0] < patient.bedside
    breath = float(np.clip((0.87 if bedside else 0.97) + 0.045 * n[0], 0.74, 1.05))
    width = 2 * body.half + 4.5 + body.fat
    margin = 0.96 + 0.32 * u[1] + 0.16 * u[2] * bedside + 0.25 * (u[3] < 0.06) + 0.08 * body.youth
    scale = size / (width * margin)
    camera = Camera(
        size=size,
        scale=scale,
        centre=(size * (0.5 + 0.05 * n[1]), size * (0.5 + 0.055 * n[2])),
        middle=body.length * (0.49 * breath),
        roll=math.radians((3.2 if bedside else 1.8) * n[3]),
        turn=math.radians((5.0 if bedside else 2.5) * n[4]),
        tilt=(0.16 + 0.08 * n[5]) if bedside else 0.02 * n[5],
        source=100.0 if bedside else 170.0,
        front=-1.0 if bedside else 1.0,
    )
    return Pose("AP Supine" if bedside else "PA", breath, u[4:]), camera


# ---------------------------------------------------------------- drawing: points to path lengths


@cache
def _spline(knots, samples):
    """Matrix (samples, knots) of a Catmull-Rom curve through its knots: a curve is then one product."""
    t = np.linspace(0, knots - 1, samples)
    i = np.minimum(t.astype(int), knots - 2)
    f = t - i
    weights = np.stack([-f + 2 * f**2 - f**3, 2 - 5 * f**2 + 3 * f**3, f + 4 * f**2 - 3 * f**3, f**3 - f**2]) / 2
    matrix = np.zeros((samples, knots))
    for offset, weight in zip(range(-1, 3), weights):
        # The ends have no neighbour outside: the end point stands in for it.
        np.add.at(matrix, (np.arange(samples), np.clip(i + offset, 0, knots - 1)), weight)
    return matrix


def _curve(points, samples=40):
    points = np.asarray(points, float)
    return _spline(len(points), samples) @ points


def _band(centres, half_widths):
    """Outlines (..., 2n, 2), pixels, of bands along centres (..., n, 2); half_widths (..., n) or a number."""
    along = np.empty_like(centres)
    along[..., 1:-1, :] = centres[..., 2:, :] - centres[..., :-2, :]
    along[..., 0, :] = centres[..., 1, :] - centres[..., 0, :]
    along[..., -1, :] = centres[..., -1, :] - centres[..., -2, :]
    length = np.maximum(np.hypot(along[..., 0], along[..., 1]), 1e-6)
    normal = np.stack([-along[..., 1], along[..., 0]], axis=-1) * (half_widths / length)[..., None]
    return np.concatenate([centres + normal, (centres - normal)[..., ::-1, :]], axis=-2)


def _draw(canvas, outlines, values=255):
    """Fill the outlines (k, n, 2) one after the other with their values, edges smooth."""
    # OpenCV takes sub-pixel corners as whole numbers of sixteenths of a pixel.
    points = np.rint(np.asarray(outlines) * 16).astype(np.int32, order="C")
    values = [values] * len(points) if isinstance(values, int) else values
    for corners, value in zip(points, values):
        cv2.fillPoly(canvas, [corners], value, cv2.LINE_AA, 4)
    return canvas


def _lines(canvas, paths, value, thickness):
    """Draw open paths (k, n, 2), pixels, with one value."""
    points = np.rint(np.asarray(paths) * 16).astype(np.int32, order="C")
    cv2.polylines(canvas, list(points), False, value, max(1, round(thickness)), cv2.LINE_AA, 4)


def _blank(camera):
    return np.zeros((camera.size, camera.size), np.uint8)


def _blur(image, pixels):
    return cv2.GaussianBlur(image, (0, 0), max(float(pixels), 0.3))


def _layer(canvas, centimetres, camera, soft):
    """uint8 layer -> float32 path lengths, 255 standing for `centimetres`, edges blurred by `soft` cm."""
    return _blur(canvas * np.float32(centimetres / 255), soft * camera.scale)


def _dome(mask, reach):
    """Share 0..1 of the full thickness of a rounded thing: an ellipse's chord, full `reach` pixels inside."""
    # Half the resolution is a quarter of the work, and what is rounded has no detail to lose.
    half = cv2.resize(mask, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    distance = cv2.distanceTransform((half > 127).astype(np.uint8), cv2.DIST_L2, 5)
    inward = 1 - np.minimum(distance * np.float32(2 / reach), 1)
    return cv2.resize(np.sqrt(1 - inward * inward), mask.shape[::-1], interpolation=cv2.INTER_LINEAR)


def _ovals(centres, radii, corners=20):
    """Ellipses (k, corners, 2) from centres (k, 2) and radii (k, 2)."""
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(centres, float)[:, None] + np.asarray(radii, float)[:, None] * circle


def _step(x, low, high):
    """Smooth step from 0 at `low` to 1 at `high`."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _field(rng, camera, cell):
    """Smooth random field (size, size) of mean 0 and deviation about 1, fixed to the body."""
    n = int(56 / cell)
    lattice = rng.standard_normal((n, n), np.float32)
    to_body = np.array([[cell, 0, -28], [0, cell, -14], [0, 0, 1]], float)
    matrix = camera.matrix() @ to_body
    smooth = cv2.warpAffine(
        lattice, matrix, (camera.size, camera.size), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return 1.25 * smooth


# ---------------------------------------------------------------- anatomy: who stands where


def _torso(body, pose, camera):
    """Centimetres of muscle (and all that is as dense) and of fat along each ray, arms and neck included."""
    w, fat, bedside = body.half + 1.9, body.fat, pose.view != "PA"
    arm = 4.4 - 1.0 * body.youth
    reach = w + (3.0 + 2 * pose.u[0] if bedside else 6.0 + 7 * pose.u[0])
    neck = 5.4 - 0.4 * body.youth
    head = neck + 4 * (body.youth > 0.6)
    side = np.array(
        [
            (head, -15),
            (neck, -7.5),
            (neck + 1.2, -4.9),
            (w - 5.2, -3.3),
            (w + 1.0, -2.2),
            (w + 3.6, 1.0),
            (w + 2.8, 5.0),
            (w + 0.9, 8.5),
            (w + 0.2, 12),
            (w + 0.3, 17),
            (w + 0.6, 23),
            (w + 1.2, 32),
            (w + 2, 45),
        ]
    )
    side = side + 0.15 * body.wobble[:13, None]
    limb = np.array([(w + 0.8, 1.2), (w + 0.5 * (reach - w) + 2.0, 8), (reach + 2.5, 20), (reach + 4.5, 34)])
    maps = []
    for rim in (0.0, fat):
        outline = [_curve((side + [rim, 0]) * [s, 1], 50)[::-s] for s in (-1, 1)]
        trunk = _draw(_blank(camera), [camera.flat(np.concatenate(outline))])
        thick = (arm + rim) * camera.scale
        arms = _draw(_blank(camera), [_band(camera.flat(_curve(limb * [s, 1], 20)), thick) for s in (-1, 1)])
        maps.append((_dome(trunk, 5.8 * camera.scale), _dome(arms, thick)))
    # Neck, shoulders and sides are thinner than the chest, the belly is thicker; all this varies slowly.
    x, y = (axis[::4, ::4] for axis in camera.grid())
    depth = 17.5 + (body.depth - 17.5) * _step(y, -2, 6) + 1.5 * _step(y, 15, 30)
    depth = cv2.resize(depth * (1 - 0.38 * _step(np.abs(x) / w, 0.75, 1.35)), arms.shape[::-1])
    muscle, whole = (np.maximum(depth * trunk, 14.5 * arms) for trunk, arms in maps)
    soft = 0.35 * camera.scale  # hides that the outlines were rounded at half the resolution
    return _blur(muscle, soft), _blur(np.maximum(whole - muscle, 0), soft)


def _lungs(body, pose, camera):
    """Masks (uint8) of right and left lung down to the diaphragm, and centimetres of lung along each ray."""
    width, length = body.half, body.length * pose.breath
    wall = np.array(
        [
            (0.09, 0.30),
            (0.14, 0.13),
            (0.23, 0.04),
            (0.37, 0),
            (0.55, 0.04),
            (0.72, 0.13),
            (0.86, 0.28),
            (0.95, 0.48),
            (1, 0.72),
            (1, 0.9),
            (0.972, 1),
        ]
    )
    floor = np.array([(0.972, 1), (0.90, 0.945), (0.72, 0.885), (0.50, 0.862), (0.28, 0.875), (0.05, 0.93)])
    masks, spaces = [], []
    for side, k in ((-1, 1), (1, 12)):
        wobble = body.wobble[k : k + 11]
        scale = np.array([side * width, length])
        rim = _curve((wall + np.stack([0.010 * wobble, 0.003 * wobble[::-1]], axis=1)) * scale, 60)
        floor_ = floor * scale
        floor_[1:-1, 1] += 0.10 * wobble[1:5] + 0.5 * wobble[0] * np.array([0.3, 0.9, 1, 0.6])
        floor_[1:, 1] += body.dome * (side > 0) * np.array([0.35, 0.9, 1.05, 1, 1])
        floor_[0] = rim[-1]
        masks.append(_draw(_blank(camera), [camera.flat(np.concatenate([rim, _curve(floor_, 40)]))]))
        spaces.append(camera.flat(np.concatenate([rim, np.array([(0.95, 1.25), (0.05, 1.25)]) * scale])))
    inside = _dome(_draw(_blank(camera), spaces), 0.46 * width * camera.scale)
    y = camera.grid()[1]
    # Behind the dome of the diaphragm the lung goes on downwards: the belly is a little darker there.
    above = np.maximum(*masks).astype(np.float32) / 255
    share = above + (1 - above) * 0.16 * _step(y, 1.07 * length, 0.86 * length)
    depth = (0.78 * body.depth) * (0.66 + 0.34 * _step(y, -1, 9))
    return masks[0], masks[1], _blur(inside * share * depth, 0.10 * camera.scale)


def _heart_borders(body, pose):
    """Right and left border of heart and great vessels, from the neck to the belly: two lists of (x, y)."""
    length, h = body.length * pose.breath, body.heart * (1.06 if pose.view != "PA" else 1.0)
    low = 0.88 * length / 21.0  # a low diaphragm stretches the heart, a high one lifts and widens it
    h, t, n, knob = h / low**0.5, body.thymus, 0.25 * body.wobble[24:36], body.knob
    right = [
        (-2.4, -9),
        (-2.3 - t / 3, -1),
        (-2.6 - t + n[0], 3.0),
        (-3.0 - t + n[1], 7),
        (-3.1 + n[2], 10 * low),
        (-3.5 * h, 13.2 * low),
        (-4.3 * h + n[3], 16 * low),
        (-4.0 * h, 18.8 * low),
        (-3.2, 21.5 * low),
        (-3, 28),
    ]
    left = [
        (2.4, -9),
        (2.3 + t / 3, -1),
        (2.3 + t, 2.2),
        (2.8 + t + knob, 4.9),
        (3.0 + t + knob, 6.4),
        (2.9 + 0.5 * t, 8.1 * low),
        (3.5 + n[4] + 0.4 * t, 9.8 * low),
        (4.4 * h + n[5], 12 * low),
        (5.9 * h, 14.8 * low),
        (7.3 * h + n[6], 17.4 * low),
        (8.1 * h + n[6], 19.8 * low),
        (7.4 * h, 21.6 * low),
        (5.6, 24 * low),
        (4.5, 28),
    ]
    return right, left


def _mediastinum(body, pose, camera):
    """Outline mask (uint8), and the share 0..1 of the chest's depth that heart and great vessels fill."""
    right, left = _heart_borders(body, pose)
    outline = np.concatenate([_curve(right, 50), _curve(left, 60)[::-1]])
    solid = _draw(_blank(camera), [camera.flat(outline, z=2.5)])
    # Deep where the heart is, but even the narrow great vessels are several centimetres thick.
    share = np.maximum(_dome(solid, 6.0 * camera.scale), 0.88 * _dome(solid, 2.0 * camera.scale))
    aorta = np.array([(1.0, 5.5), (2.2, 8.0), (2.0, 12), (1.5, 17), (1.0, 26)]) + [0.3 * body.knob, 0]
    aorta = _draw(_blank(camera), [_band(camera.flat(_curve(aorta, 30), z=-4), 1.2 * camera.scale)])
    return solid, _blur(np.maximum(0.88 * share, 0.30 * (aorta / np.float32(255))), 0.16 * camera.scale)


def _rib_arcs(body, pose):
    """Ten pairs of ribs: arcs (side, 10, 40, 3) from the spine to the front, and half their widths (10, 40)."""
    length, deep = body.length * pose.breath, 0.5 * body.depth - 2.0
    pitch = 0.092 * body.length * (0.45 + 0.55 * pose.breath)
    slope = body.slope * (0.75 + 0.25 * pose.breath)
    i = np.arange(10.0)
    top = -0.5 + i * pitch + 0.12 * body.wobble[:10]
    lateral = (top + 0.5 * slope * (0.55 + 0.05 * i) + 1.3) / length
    wide = body.half * np.interp(
        lateral, (0, 0.05, 0.14, 0.29, 0.5, 0.72, 1.1), (0.45, 0.60, 0.75, 0.89, 0.975, 1.025, 1.0)
    )
    end = np.deg2rad(np.interp(i, (0, 1, 5, 7, 9), (118, 136, 138, 124, 92)))
    start = np.arcsin(np.minimum(1.3 / wide, 0.9))
    angle = start[:, None] + (end - start)[:, None] * np.linspace(0, 1, 40)
    # A rib falls along its whole way round, a little faster at the side than its tilted plane would.
    way = 0.45 * (1 - np.cos(angle)) / 2 + 0.55 * angle / np.pi
    fall = (slope * (0.55 + 0.05 * i))[:, None] * way + 1.3 * np.sin(angle)
    half = 0.60 + 0.12 * body.youth + 0.04 * body.wobble[11:21, None]
    arcs = []
    for side in (-1, 1):
        sway = 1 + 0.006 * body.wobble[22:32, None] * side
        arcs.append(
            np.stack([side * sway * wide[:, None] * np.sin(angle), top[:, None] + fall, -deep * np.cos(angle)], axis=2)
        )
    return np.stack(arcs), half + 0.14 * _step(angle, 1.6, end[:, None])


def _ribs(body, pose, camera):
    """Centimetres of bone of ten pairs of ribs, back and front arcs crossing."""
    arcs, half = _rib_arcs(body, pose)
    half = camera.scale * half
    layers = _blank(camera), _blank(camera)
    for pixels in map(camera.project, arcs):
        for layer, part in zip(layers, (slice(0, 26), slice(22, 40))):
            _draw(layer, _band(pixels[:, part], half[:, part]), 225)
            # Marrow lets more through than the cortex; it lies high, so the lower edge is the sharper one.
            marrow = np.maximum(half - 0.19 * camera.scale, 0.4)[:, part]
            _draw(layer, _band(pixels[:, part] - [0, 0.06 * camera.scale], marrow), 135)
    x = camera.grid()[0]
    # At the side the ray runs along the rib and meets more of it.
    steep = 1 + 0.35 * _step(np.abs(x) / body.half, 0.72, 1.0)
    bone = layers[0] * np.float32(1.05 / 255) + layers[1] * np.float32(0.75 / 255)
    return _blur(bone, 0.07 * camera.scale) * steep


def _spine_bend(body, y):
    """How far the spine lies beside the middle at heights y."""
    return body.bend * np.sin(y / 9 + body.wobble[36])


def _spine(body, pose, camera):
    """Centimetres of bone of the vertebrae, with disc spaces, pedicles and spinous processes."""
    pitch = 0.095 * body.length * (0.45 + 0.55 * pose.breath)
    y = np.arange(-7, 16) * pitch + 0.2
    x = _spine_bend(body, y)
    half = np.interp(y, (-12, 0, 30), (1.2, 1.5, 2.1))
    middle = np.stack([x, y], axis=1)
    block = np.array(
        [
            (-1, -0.42),
            (-0.88, -0.1),
            (-0.88, 0.1),
            (-1, 0.42),
            (0, 0.40),
            (1, 0.42),
            (0.88, 0.1),
            (0.88, -0.1),
            (1, -0.42),
            (0, -0.40),
        ]
    )
    box = block * np.stack([half, np.full(23, pitch)], axis=1)[:, None]
    layer = _draw(_blank(camera), camera.flat(box + middle[:, None], z=-5), 140)
    _draw(layer, camera.flat(box * [0.86, 0.74] + middle[:, None], z=-5), 108)
    for side in (-1, 1):
        pedicle = middle + np.stack([side * 0.64 * half, np.full(23, -0.12 * pitch)], axis=1)
        for radius, value in (((0.34, 0.52), 165), ((0.18, 0.30), 112)):
            _draw(layer, camera.flat(_ovals(pedicle, np.tile(radius, (23, 1)), 12), z=-6), value)
    thorn = np.array([(-0.15, -0.1), (0.15, -0.1), (0.24, 0.5), (0, 0.62), (-0.24, 0.5)]) * [1, pitch]
    _draw(layer, camera.flat(thorn + middle[:, None], z=-8), 160)
    return _layer(layer, 1.1, camera, 0.12)


def _girdle(body, pose, camera):
    """Centimetres of bone of clavicles, shoulder blades and upper arms, and of a small child's chin."""
    long, flat = _blank(camera), _blank(camera)
    w, bedside = body.half, pose.view != "PA"
    out = (-0.6 if bedside else 2.2) + 2.0 * (pose.u[1] - 0.5)  # PA: shoulders rolled forwards, blades clear
    swing = 2.0 if bedside else 4.5 + 5 * pose.u[0]
    for side in (-1, 1):
        flip = np.array([side, 1, 1])
        rise = 0.8 * (pose.u[2] - 0.5) - 1.6 * bedside + 0.25 * body.wobble[37 + (side > 0)]
        a = w - 1.6 + out
        collar = np.array(
            [
                (1.7, 3.0 + rise / 2, 7),
                (4.5, 2.2 + rise, 7.5),
                (8.5, 0.9 + rise, 5),
                (12, -0.7 + rise, 2),
                (a + 3.4, -1.4 + rise, -1),
            ]
        )
        arm = np.array(
            [(a + 4.6, 1.6, -2), (a + 5.1, 3.8, -2), (a + 5.4 + swing * 0.2, 8, -2), (a + 5.4 + swing, 26, -2)]
        )
        blade = np.array(
            [
                (a + 2.8, 1.0),
                (a - 2.6, 0.2),
                (a - 4.6, 2.4),
                (a - 4.2, 7),
                (a - 2.6, 12.3),
                (a - 1.8, 13.0),
                (a - 1.0, 11.5),
                (a + 0.7, 7),
                (a + 2.2, 4.2),
                (a + 2.8, 1.0),
            ]
        )
        blade = _curve(blade * flip[:2], 50)
        ridge = _curve(np.array([(a - 4.4, 3.6), (a - 1, 1.6), (a + 3.6, -0.9)]) * flip[:2], 20)
        plate = (blade - blade.mean(0)) * [0.84, 0.95] + blade.mean(0)
        _draw(flat, camera.flat([blade, plate], z=-7), (150, 70))
        _draw(flat, [_band(camera.flat(ridge, z=-8), 0.4 * camera.scale)], 140)
        head = [(a + 4.5, 2.2) * flip[:2]] * 2
        _draw(long, camera.flat(_ovals(head, [(2.4, 2.4), (2.0, 2.0)]), z=-2), (200, 140))
        for bone, widths, cortex in ((collar, (0.95, 0.62, 0.52, 0.68), 0.20), (arm, (2.1, 2.1, 1.5, 1.05), 0.32)):
            line = camera.project(_curve(bone * flip, 40))
            half = camera.scale * np.interp(np.arange(40), (0, 6, 14, 39), widths)
            _draw(long, [_band(line, half)], 215)
            _draw(long, [_band(line, np.maximum(half - cortex * camera.scale, 0.3))], 145)
    if body.youth > 0.6:  # a small child's chin is nearly always in the picture
        jaw = _ovals([(4 * body.bend, -11.5 - 2 * pose.u[3])] * 2, [(6.6, 5.6), (5.7, 4.5)], 40)
        _draw(long, camera.flat(jaw, z=2), (230, 150))
    return _layer(long, 2.1, camera, 0.08) + _layer(flat, 1.8, camera, 0.12)


def _tubes(body, pose):
    """Windpipe, right and left main bronchus: points (x, y) of each, and half its width."""
    x, fork = 0.4 * body.wobble[39], 8.2 * (0.5 + 0.5 * pose.breath)
    return [
        ([(0, -14), (0.1, -6), (x, 0), (x + 0.1, 4), (x - 0.2, fork)], 0.85),
        ([(x - 0.2, fork - 0.3), (-1.6, fork + 1.3), (-3.4, fork + 2.8)], 0.62),
        ([(x - 0.2, fork - 0.3), (1.9, fork + 1.5), (4.4, fork + 2.6)], 0.52),
    ]


def _airways(body, pose, camera):
    """Centimetres of air in windpipe and main bronchi."""
    layer = _blank(camera)
    for points, half in _tubes(body, pose):
        _draw(layer, [_band(camera.flat(_curve(points, 24), z=1), half * camera.scale)])
    return _layer(layer, 1.5, camera, 0.22)


def _belly(body, pose, camera):
    """Centimetres of gas in stomach and colon, under the left diaphragm."""
    under = 0.868 * body.length * pose.breath + body.dome
    angle = np.linspace(0, 2 * np.pi, 24)
    x, y, radius = body.gas.T[:, :, None]
    rough = radius * (1 + 0.12 * np.sin(3 * angle + x) + 0.06 * np.sin(5 * angle + y))
    bubbles = np.stack([x + 1.2 * rough * np.cos(angle), under + y + radius + rough * np.sin(angle)], axis=2)
    return _layer(_draw(_blank(camera), camera.flat(bubbles)), 2.6, camera, 0.3)


def _breasts(body, pose, camera):
    """Centimetres of breast tissue: the lower edge is crisp, the upper one fades."""
    if not body.breast:
        return np.float32(0)
    w, low = body.half, 14.5 + body.breast + (1 if pose.view == "PA" else -1) * 1.2
    centres = [(s * 0.60 * w, low + 0.3 * body.wobble[5 + s]) for s in (-1, 1)]
    layer = _draw(_blank(camera), camera.flat(_ovals(centres, [(0.55 * w, 6.4)] * 2, 40), z=8))
    shade = _dome(layer, 5.5 * camera.scale)
    return _blur(shade, 0.12 * camera.scale) * body.breast * _step(camera.grid()[1], low - 8, low + 4)


@lru_cache(maxsize=16)  # the images of one patient follow each other
def _tree(seed, index, half):
    """Vessels of both lungs: per generation the points (n, 6, 3) and the widths (n, 6), in centimetres.

    Every branch leaves its parent at an acute angle, thinner and shorter than it.
    """
    rng = _rng(seed, index, 0, VESSELS)
    s = np.linspace(0, 1, 6)
    sides = np.repeat([-1.0, 1.0], 11)
    start = np.stack(
        [
            sides * (2.7 + 0.7 * rng.random(22)),
            9.4 - 0.6 * sides + 2.4 * (rng.random(22) - 0.5),
            5 * rng.standard_normal(22),
        ],
        axis=1,
    )
    fan = np.tile(np.linspace(-1.35, 1.40, 11), 2) + 0.13 * rng.standard_normal(22)
    long = (9.0 + 3.0 * np.sin(np.clip(fan, 0, 2)) + 1.2 * rng.standard_normal(22)) * half / 13.5
    width = 0.62 + 0.25 * rng.random(22) + 0.12 * (fan > 0.3)
    levels = []
    for children in (5, 4, 2, 0):
        n = len(fan)
        bend = 0.30 * rng.standard_normal((n, 1))
        angle = fan[:, None] + bend * (s - 0.3) + 0.07 * rng.standard_normal((n, 6))
        moves = (long[:, None] / 5) * np.stack([sides[:, None] * np.cos(angle), np.sin(angle), 0 * angle])
        path = start[:, None] + np.moveaxis(np.cumsum(moves, axis=2) - moves[..., :1], 0, 2)
        thick = width[:, None] * (1 - 0.62 * s)
        levels.append((path, thick))
        if children:
            at = (np.arange(children) + 0.9 + 0.6 * rng.random((n, children))) / (children + 0.6) * 5
            low, rows = np.minimum(at.astype(int), 4), np.arange(n)[:, None]
            part = (at - low)[..., None]
            start = (path[rows, low] * (1 - part) + path[rows, low + 1] * part).reshape(-1, 3)
            turn = np.where((np.arange(children) + rng.integers(0, 2, (n, 1))) % 2, 1, -1)
            fan = (angle[rows, low] + turn * (0.40 + 0.40 * rng.random((n, children)))).ravel()
            long = (long[:, None] * (0.32 + 0.26 * rng.random((n, children)))).ravel()
            width = (thick[rows, low] * (0.62 + 0.15 * rng.random((n, children)))).ravel()
            sides = np.repeat(sides, children)
    return levels


def _hila(pose):
    """Where the vessels enter the right and the left lung: (x, y)."""
    return [(-3.6, 10.2 * pose.breath), (3.6, 9.2 * pose.breath)]


def _vessels(patient, body, pose, camera):
    """Centimetres of blood in the large and in the small vessels of the lungs, two maps."""
    coarse, fine, tips = _blank(camera), _blank(camera), _blank(camera)
    levels = [
        (camera.project(path * [1, pose.breath, 1]), thick * camera.scale)
        for path, thick in _tree(patient.seed, patient.index, body.half)
    ]
    # The edge of a filled outline is half a pixel wide itself.
    for pixels, thick in levels[1::-1]:
        _draw(
            coarse,
            _band(pixels, np.maximum(thick / 2 - 0.4, 0.1)),
            np.minimum(60 + 190 * thick[:, 1] / camera.scale, 255).astype(int).tolist(),
        )
    for canvas, (pixels, thick) in zip((fine, tips), levels[2:]):
        _lines(canvas, pixels[:, (0, 1, 3, 5)], int(255 * min(thick.mean(), 1)), thick.mean())
    hila = _spots(camera, _hila(pose), [(1.3, 2.6), (1.2, 2.2)], 0.8)
    large = _layer(coarse, 1.35, camera, 0.05) + 1.1 * hila
    small = fine * np.float32(0.42 / 255) + tips * np.float32(0.24 / 255)
    return large, _blur(small, 0.03 * camera.scale)


# ---------------------------------------------------------------- disease: air replaced by fluid


def _lesion(patient, severity, body, pose, camera, bronchi):
    """Share 0..1 of air that is replaced, for every pixel; what lies outside the lungs is cut off later.

    `bronchi` is the map of the large arteries: the bronchi run beside them.
    """
    if patient.label == "Normal" or severity <= 0:
        return np.zeros((camera.size, camera.size), np.float32)
    rng = _rng(patient.seed, patient.index, 0, LESION)
    draw = {"COVID-19": _covid, "Viral Pneumonia": _viral, "Lung Opacity": _lobar}[patient.label]
    return draw(rng, severity, body, pose, camera, bronchi)


def _spots(camera, centres, radii, soft):
    """Ellipses at (n, 2) centimetres with (n, 2) radii and soft edges: 0 outside, 1 inside, float32."""
    return _layer(_draw(_blank(camera), camera.flat(_ovals(centres, radii))), 1, camera, soft)


def _covid(rng, severity, body, pose, camera, bronchi):
    """Ground glass on both sides, along the wall and mostly low: hazy patches that leave vessels visible."""
    length, n = body.length * pose.breath, 12
    side = np.where(np.arange(n) % 2, 1, -1) * rng.choice([-1, 1])
    v = 0.18 + 0.68 * rng.beta(2.6, 1.5, n)
    u = np.interp(v, (0, 0.14, 0.3, 0.5, 1), (0.5, 0.74, 0.86, 0.92, 0.95)) * (0.78 + 0.22 * rng.random(n))
    size = np.stack([1.3 + 1.2 * rng.random(n), 1.8 + 2.0 * rng.random(n)], axis=1)
    count = 3 + round(9 * severity)  # more and larger patches as the disease goes on
    grow = 0.75 + 0.7 * severity
    centres = np.stack([side * u * body.half, v * length], axis=1)[:count]
    patch = _spots(camera, centres, size[:count] * grow, 1.1)
    cloud, mottle = _field(rng, camera, 1.7), _field(rng, camera, 0.5)
    edge = _step(patch * (1 + 0.28 * cloud + 0.08 * mottle), 0.10, 1.15)
    return edge * np.clip((0.19 + 0.35 * severity) * (1 + 0.10 * mottle), 0, 0.8)


def _viral(rng, severity, body, pose, camera, bronchi):
    """Interstitial: thick walls around the bronchi and a net of fine lines, spreading from the hila."""
    length = body.length * pose.breath
    x, y = camera.grid()
    strength = 0.75 + 0.5 * rng.random(2)
    reach = 4.2 + 3.6 * severity + 0.8 * rng.random(2)
    near = np.zeros_like(x)
    for side, k, r in zip((-1, 1), strength.tolist(), reach.tolist()):
        d2 = ((x - side * 0.33 * body.half) / r) ** 2 + ((y - 0.50 * length) / (1.35 * r)) ** 2
        near += k * np.exp(-d2 * d2)
    near *= np.clip(1 + 0.25 * _field(rng, camera, 2.2), 0.2, 1.8)
    # A smooth field is near 0 along winding lines: together they make a net.
    net = sum(
        k * np.exp(-((_field(rng, camera, cell) / width) ** 2))
        for k, cell, width in ((1.0, 0.7, 0.5), (0.6, 1.2, 0.35))
    )
    cuff = np.minimum(_blur(bronchi, 0.22 * camera.scale) * 1.2, 0.6)
    places = np.stack(
        [rng.choice([-1, 1], 10) * (2.8 + 3.2 * rng.random(10)), length * (0.36 + 0.3 * rng.random(10))], axis=1
    )
    rings = camera.flat(_ovals(places, 0.30 + 0.2 * rng.random((10, 1)), 14))
    walls = _blank(camera)
    _lines(walls, rings, 255, 0.16 * camera.scale)
    cuff += _layer(walls, 0.25, camera, 0.08)
    return near * (0.03 + severity * (0.07 + 0.10 * net + 0.35 * cuff))


# Lobes: side (-1 is the patient's right, image-left), centre (u, v) in shares of half width and length,
# radii, and the fissure that bounds it: angle of its normal (degrees, 90 = bounded below) and offset.
LOBES = (
    (-1, 0.52, 0.22, 0.42, 0.20, 80, 0.17),
    (-1, 0.54, 0.62, 0.38, 0.15, -80, 0.14),
    (-1, 0.62, 0.76, 0.42, 0.16, -60, 0.20),
    (1, 0.55, 0.25, 0.40, 0.22, 75, 0.20),
    (1, 0.68, 0.54, 0.36, 0.19, -100, 0.20),
    (1, 0.74, 0.72, 0.40, 0.17, -110, 0.20),
)


def _lobar(rng, severity, body, pose, camera, bronchi):
    """Consolidation in a lobe: dense, straight where a fissure stops it, at times with dark bronchi."""
    length = body.length * pose.breath
    x, y = camera.grid()
    total = np.zeros_like(x)
    for place in rng.choice(len(LOBES), 1 + (rng.random() < 0.15), replace=False):
        side, u, v, ru, rv, normal, offset = LOBES[place]
        u, v = u + rng.uniform(-0.12, 0.15), v + rng.uniform(-0.08, 0.06)
        grow = 0.75 + 0.45 * severity + 0.2 * rng.random()
        blob = _spots(camera, [(side * u * body.half, v * length)], [(ru * body.half * grow, rv * length * grow)], 1.9)
        rough = blob * (1 + 0.20 * _field(rng, camera, 2.2) + 0.04 * _field(rng, camera, 0.5))
        angle = math.radians(normal + 6 * rng.standard_normal())
        past = (side * x - u * body.half) * math.cos(angle) + (y - v * length) * math.sin(angle)
        past = past - offset * length
        total = np.maximum(total, _step(rough, 0.12, 1.05) * (1 - _step(past, -0.3, 0.4)))
    airy = 1 - np.minimum(_blur(bronchi, 0.12 * camera.scale) * 0.5, 0.4) * (rng.random() < 0.6)
    return total * (0.60 + 0.38 * severity) * airy


# ---------------------------------------------------------------- the room: lines, detector, film


def _devices(rng, body, pose, camera):
    """Centimetres of metal of electrodes, leads and tubes; only at the bedside."""
    layer = _blank(camera)
    if pose.view == "PA" or rng.random() < 0.2:
        return layer
    w, thin = body.half, max(1, round(0.10 * camera.scale))

    def line(points, value, thick=thin):
        _lines(layer, [camera.flat(_curve(points, 40), z=9)], value, thick)

    for _ in range(int(rng.integers(1, 5))):
        x, y = rng.uniform(-0.85, 0.85) * w, rng.uniform(1, 20)
        away = np.array([rng.choice([-1, 1]) * rng.uniform(0.4, 1.6) * w, rng.choice([-12, 34])])
        bends = np.linspace(0, 1, 6)[:, None] * (away - (x, y)) + (x, y) + 1.4 * rng.standard_normal((6, 2))
        line(np.concatenate([[(x, y)], bends[1:]]), 60)
        _draw(layer, camera.flat(_ovals([(x, y)] * 2, [(0.75, 0.75), (0.32, 0.32)]), z=9), (26, 130))
    if rng.random() < 0.45:  # breathing tube
        for dx, value in ((-0.35, 22), (0.4, 40)):
            line([(dx, -14), (dx + 0.1, -4), (dx, 2), (dx, 5.5)], value)
    if rng.random() < 0.4:  # stomach tube
        line([(0.3, -14), (0.5, 0), (0.9, 12), (1.2, 22), (4.0, 26), (6, 25)], 38)
    if rng.random() < 0.4:  # central venous line
        line([(-6, -9), (-4.5, -3), (-2.9, 2), (-2.6, 8), (-2.7, 11)], 45)
    return layer


def _expose(path, rng, hospital, camera):
    """Attenuation (size, size) -> attenuation as the detector sees it, with scatter and photon noise."""
    beam = _scatter(np.exp(-path))
    photons = hospital.photons * (camera.size / 224) ** -2 * rng.uniform(0.6, 1.6)
    # With hundreds of photons a pixel a Poisson count is a normal one, ten times faster to draw.
    noise = rng.standard_normal(beam.shape, np.float32) * np.sqrt(beam / np.float32(photons))
    return -np.log(np.maximum(beam + _blur(noise, 0.45), 3e-4))


def _scatter(beam):
    """Much of what arrives behind a patient has been scattered, even behind a grid: a blurred veil.

    The veil is cut off at a tenth of the open beam: the air beside the patient scatters nothing.
    """
    small = cv2.resize(beam, (56, 56), interpolation=cv2.INTER_AREA)
    veil = cv2.GaussianBlur(small, (0, 0), 5)
    veil = cv2.resize(veil, beam.shape[::-1], interpolation=cv2.INTER_LINEAR)
    return 0.70 * beam + 0.38 * np.minimum(veil, 0.10)


def _window(path, lungs, pose, rng, hospital):
    """Attenuation of lung and width of the display, and the greys that they get, 0..1.

    It looks at the healthy chest (every fourth pixel will do): no lesion changes the overall brightness.
    """
    seen = -np.log(_scatter(np.exp(-path[::4, ::4])))
    lung = float(np.median(seen[lungs[::4, ::4]]))
    dense = float(np.quantile(seen, 0.95))
    # At the bedside exposures are less certain.
    spread = 0.07 if pose.view == "PA" else 0.09
    low = hospital.lung_grey + spread * rng.standard_normal()
    high = 0.86 + 0.7 * spread * rng.standard_normal()
    return lung, max(dense - lung, 0.3), low, high


def _film(seen, window, hospital, camera, rng):
    """Attenuation -> grey 0..1 through window, unsharp mask and an S-shaped tone curve."""
    lung, span, low, high = window
    grey = low + (seen - lung) / span * (high - low)
    if hospital.sharpen:
        grey += hospital.sharpen * (grey - _blur(grey, 0.26 * camera.scale))
    slope = hospital.contrast * rng.uniform(0.9, 1.1)
    s = 1 / (1 + np.exp(-slope * (grey - 0.5)))
    ends = 1 / (1 + math.exp(slope * 0.5)), 1 / (1 + math.exp(-slope * 0.5))
    return np.clip((s - ends[0]) / (ends[1] - ends[0]), 0, 1)


def _annotate(grey, pose, hospital, camera, rng):
    """Collimator border, side marker and bedside text, in the style of the hospital."""
    u, size = rng.random(8), camera.size
    if u[0] < hospital.border:
        a, b, c, d = size * (0.005 + 0.05 * u[1:5] ** 2)
        field = np.array([(a, b), (size - c, b), (size - c, size - d), (a, size - d)])
        grey *= _blur(_draw(_blank(camera), [field]) * np.float32(1 / 255), 0.004 * size)
    letter, font, height, thick, (x, y), framed = hospital.marker
    stamps = [
        (
            _stamp(letter, font, height * size / 42, thick * size / 42, framed),
            (x + 0.03 * (u[5] - 0.5), y + 0.12 * (u[6] - 0.5)),
        )
    ]
    if pose.view != "PA" and hospital.bedside_text:
        text = _stamp(hospital.bedside_text, cv2.FONT_HERSHEY_SIMPLEX, 0.026 * size, size / 224, False)
        stamps.append((text, (0.03 + text.shape[1] / size / 2, 0.05)))
    for ink, (x, y) in stamps:
        top = int(np.clip(size * y - ink.shape[0] / 2, 0, size - ink.shape[0]))
        left = int(np.clip(size * x - ink.shape[1] / 2, 0, size - ink.shape[1]))
        place = grey[top : top + ink.shape[0], left : left + ink.shape[1]]
        np.maximum(place, ink, out=place)
    return grey


@lru_cache(maxsize=32)  # OpenCV needs a millisecond for a word
def _stamp(text, font, height, thickness, framed):
    """White letters `height` pixels high on black, float32 0..0.95."""
    thickness = max(1, round(thickness))
    (width, tall), _ = cv2.getTextSize(text, font, height / 21, thickness)
    margin = int(0.7 * tall) + 2 if framed else 2
    ink = np.zeros((tall + 2 * margin, width + 2 * margin), np.uint8)
    cv2.putText(ink, text, (margin, margin + tall), font, height / 21, 255, thickness, cv2.LINE_AA)
    if framed:
        middle = (ink.shape[1] // 2, ink.shape[0] // 2)
        cv2.circle(ink, middle, min(middle) - 1, 255, thickness, cv2.LINE_AA)
    return ink * np.float32(0.95 / 255)


def marker_place(hospital, size):
    """Where a hospital puts its side marker.

    Parameters
    ----------
    hospital : one of HOSPITALS
    size : int, pixels

    Returns
    -------
    numpy.ndarray. bool (size, size), True in the rectangle that holds every place the marker can have.
    """
    letter, font, height, thick, (x, y), framed = STYLES[hospital].marker
    tall, wide = _stamp(letter, font, height * size / 42, thick * size / 42, framed).shape
    place = np.zeros((size, size), bool)
    rows, columns = (
        [int(np.clip(size * (middle + way * reach) - side / 2, 0, size - side)) for way in (-0.5, 0.5)]
        for middle, reach, side in ((y, 0.12, tall), (x, 0.03, wide))
    )
    place[rows[0] : rows[1] + tall, columns[0] : columns[1] + wide] = True
    return place


def take_radiograph(patient, number, *, size=224, severity=None):
    """Take image `number` (0, 1, ...) of a patient.

    Parameters
    ----------
    patient : Patient, as `make_patient` returns it
    number : int, 0 or more. Pose, breath, exposure and noise are drawn for each number.
    size : int, 64 or more, pixels. Another size shows the same scene, with other noise.
    severity : float in [0, 1], optional. By default the patient's own, which moves a little from image to
        image; 0 leaves the lesions out and every other pixel as it was.

    Returns
    -------
    Radiograph

    Raises
    ------
    CourseError for a size, number or severity out of range.
    """
    _check_shot(number, size, severity)
    body = _body(patient)
    pose, camera = _pose(patient, body, number, size)
    style = STYLES[patient.hospital]
    right, left, air = _lungs(body, pose, camera)
    solid, share = _mediastinum(body, pose, camera)
    air = air * (1 - 0.93 * share)
    lungs = _two_largest((np.maximum(right, left) > 127) & (solid < 128))
    coarse, fine = _vessels(patient, body, pose, camera)
    lesion = _lesion(patient, _severity(patient, number, severity), body, pose, camera, coarse)
    lesion *= _layer(np.maximum(right, left), 1, camera, 0.1)
    healthy, bare = _healthy(patient, body, pose, camera, air, coarse, fine)
    path = healthy + lesion * (air * AIR_GAIN - bare)
    rng = _rng(patient.seed, patient.index, number, DETECTOR)
    window = _window(healthy, lungs, pose, rng, style)
    path += _devices(rng, body, pose, camera) * np.float32(METAL * 0.4 / 255)
    grey = _film(_expose(path, rng, style, camera), window, style, camera, rng)
    grey = _annotate(grey, pose, style, camera, rng)
    image = np.round(grey * 255).astype(np.uint8)
    return Radiograph(image, lungs, lungs & (lesion > 0.08), pose.view)


def landmarks(patient, number, *, size=224):
    """Where the parts of the chest lie in image `number` of a patient.

    Parameters
    ----------
    patient, number, size : see `take_radiograph`

    Returns
    -------
    dict of (x, y), pixels from the upper left corner, by name; left and right are the patient's. What the picture
        cuts off lies outside of it, but for apex, diaphragm and costophrenic angle: they lie on the lungs that are seen.

    Raises
    ------
    CourseError for a size or number out of range.
    """
    _check_shot(number, size, None)
    body = _body(patient)
    pose, camera = _pose(patient, body, number, size)
    right, left = _heart_borders(body, pose)
    borders = np.array([min(right), max(left)])
    windpipe = _curve(_tubes(body, pose)[0][0], 24)
    arcs = camera.project(_rib_arcs(body, pose)[0][0])
    places = {
        "trachea": camera.flat(windpipe[14], z=1),
        "aortic arch": camera.flat(np.mean(left[3:5], axis=0) - [1, 0], z=2.5),
        "heart": camera.flat(0.4 * borders[0] + 0.6 * borders[1], z=2.5),
        "right heart border": camera.flat(borders[0], z=2.5),
        "left heart border": camera.flat(borders[1], z=2.5),
        "spine": camera.flat((_spine_bend(body, 11), 11), z=-5),
        "rib, back part": arcs[4, 10],
        "rib, front part": arcs[3, 33],
    }
    for side, lung, hilum in zip((-1, 1), _lungs(body, pose, camera)[:2], _hila(pose)):
        name = "left" if side > 0 else "right"
        places[f"{name} hilum"] = camera.flat(hilum)
        places |= {f"{name} {part}": place for part, place in _lung_ends(lung > 127, side).items()}
    return {name: tuple(np.round(place, 1).tolist()) for name, place in places.items()}


def _lung_ends(lung, side):
    """Top, middle of the lower edge, and lower outer corner of a lung's mask: (x, y) by name."""
    y, x = np.nonzero(lung)
    middle = int(x.mean())
    corner = np.argmax(y + 0.5 * side * x)
    return {
        "apex": np.array([x[y == y.min()].mean(), y.min()]),
        "diaphragm": np.array([middle, y[x == middle].max()]),
        "costophrenic angle": np.array([x[corner], y[corner]]),
    }


def _two_largest(mask):
    """Drop the slivers that heart and diaphragm cut off: a radiologist draws two lungs."""
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    kept = np.zeros(count, bool)
    kept[1 + np.argsort(stats[1:, cv2.CC_STAT_AREA])[-2:]] = True
    return kept[pieces]


def _check_shot(number, size, severity):
    if number < 0 or size < 64 or not (severity is None or 0 <= severity <= 1):
        raise CourseError(
            "Expected number >= 0, size >= 64 and severity between 0 and 1; got "
            f"number {number}, size {size}, severity {severity}."
        )


def _severity(patient, number, severity):
    """Severity of this image: a patient gets worse or better from one image to the next, never well."""
    if severity is not None or patient.label == "Normal":
        return severity or 0.0
    rng = _rng(patient.seed, patient.index, 0, COURSE)
    drift = 0.12 * rng.standard_normal()
    return float(np.clip(patient.severity + drift * number, 0.2, 1.0))


def _healthy(patient, body, pose, camera, air, coarse, fine):
    """Attenuation of the body without lesions, and the part of it that vessels in air add."""
    muscle, fat = _torso(body, pose, camera)
    inflated = air / (0.7 * body.depth)
    rng = _rng(patient.seed, patient.index, 0, GRAIN)
    grain = 0.025 * _field(rng, camera, 0.35) + 0.03 * _field(rng, camera, 0.9)
    bare = np.minimum(coarse + fine, 2.2) * np.sqrt(inflated) * (1.4 * AIR_GAIN) + grain * inflated
    bone = _ribs(body, pose, camera) + _spine(body, pose, camera) + _girdle(body, pose, camera)
    gas = _airways(body, pose, camera) + _belly(body, pose, camera)
    soft = muscle + _breasts(body, pose, camera)
    path = SOFT * soft + FAT * fat - AIR_GAIN * air - SOFT * gas + (BONE - SOFT) * bone + bare
    return np.maximum(path, 0), bare


# ---------------------------------------------------------------- a folder of files


def write(folder, *, patients, seed, size=224, shortcut=0.0, hospitals=HOSPITALS, images=None, workers=None):
    """Write the images and masks of `patients` patients as PNG files, once.

    A folder that already holds the same set is read, not written. The set is built beside its place and
    moved there when it is whole, so a killed run leaves nothing that looks finished.

    Parameters
    ----------
    folder : path of the set; created
    patients, seed : int. The set of fewer patients is a prefix of the set of more.
    size, shortcut, hospitals, images : see `take_radiograph` and `make_patient`
    workers : int, optional. Threads, for large sets processes; by default one a core. The bytes do not depend on it.

    Returns
    -------
    pandas.DataFrame, what metadata.csv holds: one row an image, its paths relative to `folder`.

    Raises
    ------
    CourseError if the folder holds anything else, or for arguments out of range.
    """
    if int(patients) != patients or patients < 1:
        raise CourseError(f"Expected patients to be a whole number, 1 or more; got {patients!r}.")
    _check_shot(0, size, None)
    drawn = [make_patient(i, seed=seed, shortcut=shortcut, hospitals=hospitals, images=images) for i in range(patients)]
    recipe = {
        "version": VERSION,
        "seed": int(seed),
        "patients": int(patients),
        "size": int(size),
        "shortcut": float(shortcut),
        "hospitals": list(hospitals),
        "images": None if images is None else int(images),
    }
    folder = Path(folder).absolute()
    if not _is_written(folder, recipe):
        _build(folder, drawn, recipe, workers)
    return pd.read_csv(folder / "metadata.csv", encoding="utf-8", dtype={"patient": str})


def _is_written(folder, recipe):
    """True if the folder holds this set, False if there is none; anything else is refused."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "files that are not a set of phantoms"
    if found == recipe and (folder / "metadata.csv").is_file():
        return True
    raise CourseError(
        f"Expected {folder} to be free, or to hold the phantoms of {recipe}; found {found}. "
        "Nothing was changed. Name another folder, or delete this one."
    )


def _build(folder, patients, recipe, workers):
    """Write the set beside its place and move it there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if _is_written(folder, recipe):
            return  # by another process, while this one waited
        # Only the holder of the lock builds, so whatever lies here was left behind by a killed run.
        unfinished = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(unfinished, ignore_errors=True)
        _write_files(unfinished, patients, recipe, workers)
        if folder.exists():
            folder.rmdir()  # it is empty: _is_written refuses anything else
        os.replace(unfinished, folder)


def _write_files(folder, patients, recipe, workers):
    """Write recipe.json, every image with its masks, and metadata.csv last."""
    for part in ("images", "masks/lung", "masks/lesion"):
        (folder / part).mkdir(parents=True)
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    jobs = [(patient, k) for patient in patients for k in range(patient.n_images)]
    with _pool(len(jobs), workers or os.cpu_count()) as pool:
        rows = list(pool.map(partial(_write_one, folder, recipe["size"]), jobs, chunksize=10))
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False, encoding="utf-8", lineterminator="\n")


def _pool(jobs, workers):
    # Threads wait for each other while Python draws. Processes do not, but take a second to start; and they are
    # spawned, because a process in which TensorFlow has worked must not be forked.
    if workers == 1 or jobs < ENOUGH_FOR_PROCESSES:
        return ThreadPoolExecutor(workers)
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent)


def _end_with_parent():
    # Whoever kills the course kills its helpers, too: otherwise they would wait for work for ever.
    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _write_one(folder, size, job):
    patient, number = job
    shot = take_radiograph(patient, number, size=size)
    name = f"{patient.id}_{number}.png"
    files = {"path": f"images/{name}", "lung_mask": f"masks/lung/{name}", "lesion_mask": f"masks/lesion/{name}"}
    pixels = shot.image, shot.lung_mask.astype(np.uint8) * 255, shot.lesion_mask.astype(np.uint8) * 255
    for path, picture in zip(files.values(), pixels):
        png = cv2.imencode(".png", picture)[1]
        # OpenCV's own writer fails in silence, and on Windows stumbles over names that are not ASCII.
        (folder / path).write_bytes(png.tobytes())
    return {
        "path": files["path"],
        "label": patient.label,
        "patient": patient.id,
        "source": f"hospital {patient.hospital}",
        "view": shot.view,
        "sex": patient.sex,
        "age": patient.age,
        "lung_mask": files["lung_mask"],
        "lesion_mask": files["lesion_mask"],
    }
