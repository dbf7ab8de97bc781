"""Train PhantomNet, the course's own backbone, on simulated radiographs of hospital A.

    python -m utils.pretrain

takes some ten minutes on two cores and writes `utils/weights/phantomnet.weights.h5` and `phantomnet.json`, its card.
Nobody needs to run it: both are part of the course. Real hospitals differ far more than the simulator's three, so
training shows every radiograph in a wild variety of looks (*domain randomisation*, Tobin et al. 2017,
arXiv:1703.06907): what all of them share is the anatomy and the disease.
"""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from utils import backbones, images, metrics, models, phantom, pipeline, training
from utils.backend import tf
from utils.files import sha256, write_text, written

SEED = 99  # of the patients; the course's own have another (config.PHANTOM_SEED), so no patient is in both
TRAINED, TESTED = 12_000, 600  # patients; those tested come after those trained on
HOSPITAL = "A"
EPOCHS, SIZE = 10, 128
OPTIONS = images.Options(size=SIZE, channels=("plain", "clahe"))


def prepared(indices, hospital):
    """First radiographs of these patients, as the course prepares them: uint8 (patients, 128, 128, 2)."""
    with ProcessPoolExecutor() as pool:
        return np.stack(list(pool.map(partial(_one, hospital=hospital), indices, chunksize=100)))


def _one(index, hospital):
    patient = phantom.make_patient(index, seed=SEED, hospital=hospital)
    return images.preprocess(phantom.take_radiograph(patient, 0).image, OPTIONS)


class Looks:
    """Another look of the same radiograph: pose, grey values, sharpness, shading, noise, frames, patches."""

    moved = staticmethod(pipeline.Augmentation(degrees=12, zoom=0.25, shift=0.1, shear=6))

    def __call__(self, pixels, *, seed):
        """Take uint8 (images, height, width, 2), plain and CLAHE; return one of both, changed, as uint8 (..., 1)."""
        seed = tf.cast(seed, tf.int64)
        count = tf.shape(pixels)[0]

        def draw(purpose, *shape, low=-1.0, high=1.0):
            return tf.random.stateless_uniform(shape, seed + purpose, low, high)

        x = tf.cast(self.moved(pixels, seed=seed), tf.float32) / 255
        x = tf.where(draw(3, count, 1, 1, 1) < 0, x[..., :1], x[..., 1:])
        gamma, contrast, brightness, sharpness, noise, shading = tf.unstack(draw(7, 6, count, 1, 1, 1))
        x = (x + 1e-4) ** tf.exp(0.7 * gamma)
        x += (x - tf.nn.avg_pool2d(x, 5, 1, "SAME")) * sharpness * tf.where(sharpness > 0, 1.5, 0.9)
        mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
        x = (x - mean) * tf.exp(0.6 * contrast) + mean + 0.2 * brightness
        x += 0.12 * tf.abs(shading) * tf.image.resize(draw(11, count, 3, 3, 1), tf.shape(x)[1:3], method="bicubic")
        x += 0.06 * tf.maximum(noise, 0) * tf.random.stateless_normal(tf.shape(x), seed + 9)
        return tf.cast(tf.clip_by_value(self._covered(x, draw) * 255, 0, 255), tf.uint8)

    @staticmethod
    def _covered(x, draw):
        # Black bars at the sides, and a black or white patch on every second image.
        count, height, width = tf.unstack(tf.shape(x)[:3])
        row = tf.reshape(tf.linspace(0.0, 1.0, height), (1, -1, 1, 1))
        column = tf.reshape(tf.linspace(0.0, 1.0, width), (1, 1, -1, 1))
        top, bottom, left, right = tf.unstack(draw(13, 4, count, 1, 1, 1, low=-0.15, high=0.12))
        x *= tf.cast((row >= top) & (row <= 1 - bottom) & (column >= left) & (column <= 1 - right), tf.float32)
        y, z, tall, wide, kind = tf.unstack(draw(17, 5, count, 1, 1, 1, low=0.0))
        inside = (tf.abs(row - y) < 0.12 * tall) & (tf.abs(column - z) < 0.12 * wide) & (kind < 0.5)
        return tf.where(inside, tf.cast(kind < 0.25, tf.float32), x)


def scores(model):
    """Accuracy on patients never trained on, hospital by hospital, as entries of a results file."""
    indices = np.arange(TRAINED, TRAINED + TESTED)
    found = {}
    for hospital in phantom.HOSPITALS:
        guess = models.predict(model, prepared(indices, hospital)[..., :1]).argmax(axis=1)
        score = metrics.accuracy(indices % len(phantom.LABELS), guess, indices, seed=SEED, resamples=2000)
        found |= metrics.flat(f"hospital_{hospital}.accuracy", score)
    return found


def main():
    """Train, score, and write weights and card."""
    began = time.perf_counter()
    indices = np.arange(TRAINED)
    extractor = backbones.build("PhantomNet", (SIZE, SIZE, 1), weights="none", seed=SEED)
    model = backbones.classifier(extractor, classes=len(phantom.LABELS), seed=SEED, dropout=0.2)
    data = prepared(indices, HOSPITAL), (indices % len(phantom.LABELS)).astype("float32")
    training.fit(model, data, epochs=EPOCHS, seed=SEED, augmentation=Looks())
    path = backbones.PHANTOM_WEIGHTS
    with written(path) as part:
        whole = part.with_suffix(".weights.h5")  # Keras insists on this ending
        model.get_layer("trunk").save_weights(whole)
        os.replace(whole, part)
    card = {
        "what": "PhantomNet, the convolutions of utils.models.small_cnn, one grey channel",
        "data": "simulated radiographs (utils/phantom.py), one a patient; no real X-ray",
        "simulator": phantom.VERSION,
        "preprocessing": images.VERSION,
        "hospital": HOSPITAL,
        "patients": f"{SEED}-00000 to {SEED}-{TRAINED - 1:05d}",
        "seed": SEED,
        "task": "classes: " + ", ".join(phantom.LABELS),
        "command": "python -m utils.pretrain",
        "epochs": EPOCHS,
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "scores": scores(model),
        "scored_on": f"{TESTED} other patients ({SEED}-{TRAINED:05d} on) of each hospital, plain images",
        "sha256": sha256(path),
        "versions": {name: version(name) for name in ("tensorflow", "keras")},
        "purpose": "For teaching, never for diagnosis.",
    }
    write_text(Path(path).with_name("phantomnet.json"), json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
