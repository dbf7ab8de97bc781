"""The bad-input table's frame: a small set whose undisturbed run is known, and what may be done to it.

A row says what is disturbed, and what a user then meets: an error in words, a file that is skipped and counted, or an
image that is read all the same. `test_bad_input.py` collects the rows and runs them.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils import config, images, manifest, sources, splits

CLASSES = {"Covid-19": 0, "No_findings": 60, "Pneumonia": 120}
PATIENTS = 6  # of each class: a split needs five


class Row(NamedTuple):
    """One way in which input is bad.

    Attributes
    ----------
    name : str
        Said in the test's name.
    disturb : callable
        Takes the case; breaks something.
    outcome : str
        "error": loading stops with `words`. "skipped": one more file is listed with `words` as its reason. "read": the
        disturbed image gives the same pixels as the plain one.
    words : str
        Regular expression.
    mend : callable, optional
        Takes the case; takes the disturbance away. None: the next run must be right without it.
    """

    name: str
    disturb: Callable
    outcome: str
    words: str
    mend: Callable | None = None


class Fingerprint(NamedTuple):
    """What an undisturbed run leaves, as hashes."""

    content: str
    pixels: str
    split: str
    skipped: dict


def picture(number, *, tone=0, size=(48, 40)):
    """A grey picture with some structure: uint8, (height, width), another one for each number."""
    rng = np.random.default_rng([number, tone])
    coarse = Image.fromarray(rng.integers(0, 120, (6, 5), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(coarse, np.uint8) + np.uint8(tone)


def make_set(root):
    """Write a small darkcovidnet in its published layout; return {path: pixels}."""
    written = {}
    for name, tone in CLASSES.items():
        for number in range(PATIENTS):
            path = f"X-Ray Image DataSet/{name}/{number:08d}_000.png"
            written[path] = picture(number, tone=tone)
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(written[path]).save(root / path)
    return written


def whole_way(dataset, raw):
    """Load, cache and split as the notebooks 01 and 02 do; return the fingerprint."""
    run = config.start(dataset, "fast", str(raw or ""))
    data = sources.load(run)
    options = images.Options(size=32)
    cache = images.cached(data.root, data.manifest, options, run.pixels)
    table = data.manifest[cache.readable].reset_index(drop=True)
    sources.require_labels(table, data.manifest, cache.skipped)
    table = splits.join_patients(table, splits.find_twins(cache.thumbnails))
    part = splits.split_by_patient(table, seed=run.seed)
    digest = splits.split_hash(table, part)
    manifest.save(run, data.root, table)
    manifest.save_split(run, table, part, digest)
    skipped = {Path(row.path).name: row.reason for frame in (data.skipped, cache.skipped) for row in frame.itertuples()}
    pixels = hashlib.sha256(np.ascontiguousarray(cache.pixels).tobytes()).hexdigest()
    return Fingerprint(manifest.content_hash(table), pixels, digest, skipped)
