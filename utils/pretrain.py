"""Train PhantomNet, the course's own backbone, on simulated radiographs of hospital A.

    python -m utils.pretrain

takes some five minutes on two cores and writes `utils/weights/phantomnet.weights.h5` and `phantomnet.json`, its card.
Nobody needs to run it: both are part of the course. Real hospitals differ more than the simulator's, so training shows
every radiograph in many looks (*domain randomisation*, Tobin et al. 2017, arXiv:1703.06907): what all of them share is
the anatomy and the disease.
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
EPOCHS, SIZE = 12, 128
OPTIONS = images.Options(size=SIZE)


def prepared(indices, hospital):
    """First radiographs of these patients, as the course prepares them: uint8 (patients, 128, 128, 1)."""
    with ProcessPoolExecutor() as pool:
        return np.stack(list(pool.map(partial(_one, hospital=hospital), indices, chunksize=100)))


def _one(index, hospital):
    patient = phantom.make_patient(index, seed=SEED, hospital=hospital)
    return images.preprocess(phantom.take_radiograph(patient, 0).image, OPTIONS)


class Looks:
    """Another look of the same radiograph: pose, grey values, sharpness, noise."""

    moved = staticmethod(pipeline.Augmentation(degrees=10, zoom=0.15, shift=0.08, shear=4))

    def __call__(self, pixels, *, seed):
        """Take and return uint8 (images, height, width, 1); `seed` is two numbers, as for `pipeline.Augmentation`."""
        seed = tf.cast(seed, tf.int64)
        x = tf.cast(self.moved(pixels, seed=seed), tf.float32) / 255
        draws = tf.random.stateless_uniform((5, tf.shape(x)[0], 1, 1, 1), seed + 7, -1.0, 1.0)
        gamma, contrast, brightness, sharpness, noise = tf.unstack(draws)
        x = (x + 1e-4) ** tf.exp(0.7 * gamma)
        x += sharpness * (x - tf.nn.avg_pool2d(x, 3, 1, "SAME"))
        mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
        x = (x - mean) * (1 + 0.45 * contrast) + mean + 0.225 * brightness
        x += 0.04 * tf.maximum(noise, 0) * tf.random.stateless_normal(tf.shape(x), seed + 9)
        return tf.cast(tf.clip_by_value(x, 0, 1) * 255, tf.uint8)


def scores(model, tested):
    """Accuracy on patients never trained on, hospital by hospital, as entries of a results file."""
    indices = np.arange(TRAINED, TRAINED + TESTED)
    found = {}
    for hospital, pixels in tested.items():
        guess = models.predict(model, pixels).argmax(axis=1)
        score = metrics.accuracy(indices % len(phantom.LABELS), guess, indices, seed=SEED, resamples=2000)
        found |= metrics.flat(f"hospital_{hospital}.accuracy", score)
    return found


def main():
    """Train, score, and write weights and card."""
    began = time.perf_counter()
    indices = np.arange(TRAINED)
    # All pictures first: once TensorFlow has worked, this process must not be forked any more.
    pixels = prepared(indices, HOSPITAL)
    tested = {hospital: prepared(range(TRAINED, TRAINED + TESTED), hospital) for hospital in phantom.HOSPITALS}
    extractor = backbones.build("PhantomNet", (SIZE, SIZE, 1), weights="none", seed=SEED)
    model = backbones.classifier(extractor, classes=len(phantom.LABELS), seed=SEED, dropout=0.2)
    data = pixels, (indices % len(phantom.LABELS)).astype("float32")
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
        "scores": scores(model, tested),
        "scored_on": f"{TESTED} other patients ({SEED}-{TRAINED:05d} on) of each hospital, plain images",
        "sha256": sha256(path),
        "versions": {name: version(name) for name in ("tensorflow", "keras")},
        "purpose": "For teaching, never for diagnosis.",
    }
    write_text(Path(path).with_name("phantomnet.json"), json.dumps(card, indent=1) + "\n")


if __name__ == "__main__":
    main()
