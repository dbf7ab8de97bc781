"""Train PhantomNet, the course's own backbone, on simulated radiographs of hospital A.

    python -m utils.pretrain

takes some seven minutes on two cores and writes `utils/weights/phantomnet.weights.h5` and `phantomnet.json`, its card.
Nobody needs to run it: both are part of the course.

One label a picture is little to learn from. A simulator knows more, so the network has to answer more: the disease,
the view, sex and age of the patient, and from the second convolution on where the lungs and the lesions are. Real
hospitals differ more than the simulator's, so training shows every radiograph in many looks (*domain randomisation*,
Tobin et al. 2017, arXiv:1703.06907): what all of them share is the anatomy and the disease.
"""

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np

from utils import backbones, images, metrics, models, phantom, pipeline
from utils.backend import keras, tf
from utils.files import sha256, write_text, written

SEED = 99  # of the patients; the course's own have another (config.PHANTOM_SEED), so no patient is in both
TRAINED, TESTED = 12_000, 600  # patients; those tested come after those trained on
HOSPITAL = "A"
EPOCHS, SIZE, BATCH, RATE = 12, 128, 32, 3e-3
OPTIONS = images.Options(size=SIZE)
layers = keras.layers


def prepared(indices, hospital):
    """Take the first radiographs of these patients, and what the simulator knows of them.

    Parameters
    ----------
    indices : sequence of int
    hospital : str
        One of `phantom.HOSPITALS`.

    Returns
    -------
    pixels : numpy.ndarray
        uint8, (patients, 128, 128, 3): the radiograph as the course prepares it; the masks of its lungs and of its
        lesions, 0 or 255, cut and sized alike.
    facts : numpy.ndarray
        float32, (patients, 4): number of the label; 1 for an AP view; 1 for a woman; age, 0 to 100 years as -1 to 1.
    """
    with ProcessPoolExecutor() as pool:
        pixels, facts = zip(*pool.map(partial(_one, hospital=hospital), indices, chunksize=100))
    return np.stack(pixels), np.array(facts, np.float32)


def _one(index, hospital):
    patient = phantom.make_patient(index, seed=SEED, hospital=hospital)
    taken = phantom.take_radiograph(patient, 0)
    inside = images.frame(taken.image)
    masks = [images.fit_square(mask[inside] * np.uint8(255), SIZE) for mask in (taken.lung_mask, taken.lesion_mask)]
    facts = phantom.LABELS.index(patient.label), taken.view != "PA", patient.sex == "F", patient.age / 50 - 1
    return np.dstack([images.preprocess(taken.image, OPTIONS), *masks]), facts


class Looks:
    """Another look of the same radiograph: pose, grey values, sharpness, noise. Its masks take the same pose."""

    moved = staticmethod(pipeline.Augmentation(degrees=10, zoom=0.15, shift=0.08, shear=4))

    def __call__(self, pixels, *, seed):
        """Take and return uint8 (images, height, width, 3); `seed` is two numbers, as for `pipeline.Augmentation`."""
        seed = tf.cast(seed, tf.int64)
        pixels = self.moved(pixels, seed=seed)
        x = tf.cast(pixels[..., :1], tf.float32) / 255
        draws = tf.random.stateless_uniform((5, tf.shape(x)[0], 1, 1, 1), seed + 7, -1.0, 1.0)
        gamma, contrast, brightness, sharpness, noise = tf.unstack(draws)
        x = (x + 1e-4) ** tf.exp(0.7 * gamma)
        x += sharpness * (x - tf.nn.avg_pool2d(x, 3, 1, "SAME"))
        mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
        x = (x - mean) * (1 + 0.45 * contrast) + mean + 0.225 * brightness
        x += 0.04 * tf.maximum(noise, 0) * tf.random.stateless_normal(tf.shape(x), seed + 9)
        return tf.concat([tf.cast(tf.clip_by_value(x, 0, 1) * 255, tf.uint8), pixels[..., 1:]], axis=-1)


def questioned(extractor):
    """Put the questions to a PhantomNet.

    Parameters
    ----------
    extractor : keras.Model
        From `backbones.build`. Its trunk is shared, not copied: training changes it.

    Returns
    -------
    keras.Model
        uint8 (images, 128, 128, 1) to a dict of float32: "label" (images, 4), probabilities; "patient" (images, 3),
        view, sex and age as in `prepared`; and for each convolution from the second on "where2", ... (images, height,
        width, 2): the share of lung and of lesion in every cell of its maps.
    """
    trunk = extractor.get_layer("trunk")
    depths = range(2, len(backbones.PHANTOM_WIDTHS) + 1)
    inner = keras.Model(trunk.input, [trunk.get_layer(f"conv{depth}_relu").output for depth in depths])
    maps = inner(extractor.get_layer("scale")(extractor.input))
    # The last maps alone answer for the patient: so they have to learn it, whatever shows at other depths.
    features = layers.Dropout(0.2, seed=SEED)(layers.GlobalAveragePooling2D()(maps[-1]))
    answers = {
        "label": layers.Dense(len(phantom.LABELS), activation="softmax", name="label")(features),
        "patient": layers.Dense(3, name="patient")(features),
    }
    for depth, seen in zip(depths, maps):
        answers[f"where{depth}"] = layers.Conv2D(2, 1, activation="sigmoid", name=f"where{depth}")(seen)
    return keras.Model(extractor.input, answers)


def lessons(model, pixels, facts):
    """Endless batches of radiographs and right answers for a `questioned` model."""
    sides = {name: answer.shape[1] for name, answer in model.output.items() if name.startswith("where")}

    def answered(pixels, facts):
        masks = tf.cast(pixels[..., 1:], tf.float32) / 255
        answers = {"label": facts[:, 0], "patient": facts[:, 1:]}
        for name, side in sides.items():
            cell = SIZE // side
            answers[name] = tf.nn.avg_pool2d(masks, cell, cell, "SAME")
        return pixels[..., :1], answers

    return pipeline.batches(pixels, facts, seed=SEED, size=BATCH, augmentation=Looks()).map(answered).prefetch(2)


def train(extractor, pixels, facts):
    """Train an extractor on all questions; return the model that answers the first, the label."""
    model = questioned(extractor)
    kinds = {"label": "sparse_categorical_crossentropy", "patient": "mse"}
    steps = EPOCHS * (len(pixels) // BATCH)
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)),
        loss={name: kinds.get(name, "binary_crossentropy") for name in model.output},
        loss_weights={name: 0.5 if name == "patient" else 1.0 for name in model.output},
    )
    model.fit(lessons(model, pixels, facts), steps_per_epoch=steps, shuffle=False, verbose=0)
    return keras.Model(model.input, model.output["label"], name="label")


def scores(model, tested):
    """Accuracy on patients never trained on, hospital by hospital, as entries of a results file."""
    indices = np.arange(TRAINED, TRAINED + TESTED)
    found = {}
    for hospital, (pixels, facts) in tested.items():
        guess = models.predict(model, pixels[..., :1]).argmax(axis=1)
        score = metrics.accuracy(facts[:, 0], guess, indices, seed=SEED, resamples=2000)
        found |= metrics.flat(f"hospital_{hospital}.accuracy", score)
    return found


def main():
    """Train, score, and write weights and card."""
    began = time.perf_counter()
    # All pictures first: once TensorFlow has worked, this process must not be forked any more.
    trained = prepared(range(TRAINED), HOSPITAL)
    tested = {hospital: prepared(range(TRAINED, TRAINED + TESTED), hospital) for hospital in phantom.HOSPITALS}
    extractor = backbones.build("PhantomNet", (SIZE, SIZE, 1), weights="none", seed=SEED)
    model = train(extractor, *trained)
    path = backbones.PHANTOM_WEIGHTS
    with written(path) as part:
        whole = part.with_suffix(".weights.h5")  # Keras insists on this ending
        extractor.get_layer("trunk").save_weights(whole)
        os.replace(whole, part)
    card = {
        "what": "PhantomNet, a trunk of five convolutions for one grey channel (utils.backbones.phantom_net)",
        "data": "simulated radiographs (utils/phantom.py), one a patient; no real X-ray",
        "simulator": phantom.VERSION,
        "preprocessing": images.VERSION,
        "hospital": HOSPITAL,
        "patients": f"{SEED}-00000 to {SEED}-{TRAINED - 1:05d}",
        "seed": SEED,
        "task": "classes: " + ", ".join(phantom.LABELS) + "; view, sex, age; where lungs and lesions are",
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
