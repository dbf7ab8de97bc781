"""Train what the course brings along, on simulated radiographs: two networks, and a bundle that can answer at once.

    python -m utils.pretrain PhantomNet
    python -m utils.pretrain LungNet
    python -m utils.pretrain bundle

take some seven, four and two minutes on two cores, and write `utils/weights/phantomnet.weights.h5` and `phantomnet.json`,
its card; the same of `lungnet`; and the bundle `utils/weights/phantom.shipped`. Nobody needs to run them: the files are part
of the course. PhantomNet is a backbone, LungNet draws lungs; the bundle, PhantomNet with a linear head, is what the command
line and the web app use when no other is named.

One label a picture is little to learn from. A simulator knows more, so PhantomNet has to answer more: the disease,
the view, sex and age of the patient, and from the second convolution on where the lungs and the lesions are. LungNet
answers for every pixel anyway. Real hospitals differ more than the simulator's, so training shows every radiograph in
many looks (*domain randomisation*, Tobin et al. 2017, arXiv:1703.06907): what all of them share is the anatomy and the
disease.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version

import numpy as np

from utils import backbones, calibration, images, lungs, manifest, metrics, models, phantom, pipeline, refusal, training
from utils.backend import keras, tf
from utils.config import SHIPPED
from utils.files import sha256, write_text, written

SEED = 99  # of the patients; the course's own have another (config.PHANTOM_SEED), so no patient is in both
TRAINED, TESTED = 12_000, 600  # patients; those tested come after those trained on
HOSPITAL = "A"
EPOCHS, SIZE, BATCH, RATE = 12, 128, 32, 3e-3
LUNG_TRAINED, LUNG_EPOCHS = 2_400, 6  # of LungNet: lungs are easier than diseases
OPTIONS = images.Options(size=SIZE)
HEAD_PATIENTS = range(TRAINED + TESTED, TRAINED + TESTED + 4_000)  # of the bundle: none of them was seen by PhantomNet
LOOKS = 4  # of each radiograph: as taken, and so many less one of `Looks`
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


def lung_lessons(pixels):
    """Endless batches of equalised radiographs and the masks of their lungs, 0 to 1, for a `lungs.lung_net`."""

    def answered(pixels, _):
        seen = tf.numpy_function(lungs.equalised, [pixels[..., 0]], tf.uint8)
        return tf.ensure_shape(seen, (BATCH, SIZE, SIZE, 1)), tf.cast(pixels[..., 1:2], tf.float32) / 255

    nothing = np.zeros(len(pixels))
    return pipeline.batches(pixels, nothing, seed=SEED, size=BATCH, augmentation=Looks()).map(answered).prefetch(2)


def lung_loss(masks, found):
    """1 less the Dice coefficient (Milletari et al. 2016, arXiv:1606.04797), plus cross-entropy, for each image.

    Dice counts a small lung as much as a large one; cross-entropy still pulls where a mask is wholly missed.

    Parameters
    ----------
    masks, found : tf.Tensor
        float32, (images, height, width, 1), 0 to 1: the truth, and the probabilities.

    Returns
    -------
    tf.Tensor
        float32, (images,), 0 or more.
    """
    both, truth, drawn = (tf.reduce_sum(values, axis=(1, 2, 3)) for values in (masks * found, masks, found))
    entropy = keras.losses.binary_crossentropy(masks, found)
    return 1 - (2 * both + 1) / (truth + drawn + 1) + tf.reduce_mean(entropy, axis=(1, 2))


def train_lungs(pixels):
    """Train a `lungs.lung_net` on images and masks as in `prepared`; return it."""
    network = lungs.lung_net(seed=SEED)
    steps = LUNG_EPOCHS * (len(pixels) // BATCH)
    # A second model around the same layers: what the optimiser remembers would be saved with the one it belongs to.
    model = keras.Model(network.input, network.output)
    model.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(RATE, steps)), loss=lung_loss)
    model.fit(lung_lessons(pixels), steps_per_epoch=steps, shuffle=False, verbose=0)
    return network


def scores(name, tested, judge):
    """Entries of a results file: the mean over patients never trained on of what `judge` says, by hospital."""
    indices = np.arange(TRAINED, TRAINED + TESTED)
    found = {}
    for hospital, (pixels, facts) in tested.items():
        score = metrics.mean(judge(pixels, facts), indices, seed=SEED, resamples=2000)
        found |= metrics.flat(f"hospital_{hospital}.{name}", score)
    return found


def phantom_net():
    """Make PhantomNet: return its trunk, trained, and what its card says of it."""
    # All pictures first: once TensorFlow has worked, this process must not be forked any more.
    trained, tested = prepared(range(TRAINED), HOSPITAL), other_patients()
    extractor = backbones.build("PhantomNet", (SIZE, SIZE, 1), weights="none", seed=SEED)
    model = train(extractor, *trained)

    def right(pixels, facts):
        return models.predict(model, pixels[..., :1]).argmax(axis=1) == facts[:, 0]

    return extractor.get_layer("trunk"), {
        "what": "PhantomNet, a trunk of five convolutions for one grey channel (utils.backbones.phantom_net)",
        "patients": named(TRAINED),
        "task": "classes: " + ", ".join(phantom.LABELS) + "; view, sex, age; where lungs and lesions are",
        "epochs": EPOCHS,
        "scores": scores("accuracy", tested, right),
    }


def lung_net():
    """Make LungNet: return it, trained, and what its card says of it."""
    trained, tested = prepared(range(LUNG_TRAINED), HOSPITAL), other_patients()  # first, as above
    network = train_lungs(trained[0][..., :2])

    def right(pixels, _):
        return lungs.dice(lungs.draw(pixels[..., :1], network=network), pixels[..., 1:2] > 127)

    return network, {
        "what": "LungNet, a small U-Net for one grey channel, equalised (utils.lungs.lung_net)",
        "patients": named(LUNG_TRAINED),
        "task": "where the lungs are",
        "epochs": LUNG_EPOCHS,
        "scores": scores("dice", tested, right),
    }


def other_patients():
    """Return what `prepared` gives for patients never trained on, by hospital."""
    return {name: prepared(range(TRAINED, TRAINED + TESTED), name) for name in phantom.HOSPITALS}


def named(count):
    """Return the first and the last of the first `count` patients."""
    return f"{SEED}-00000 to {SEED}-{count - 1:05d}"


def keep(network, path, card):
    """Write the weights of a network, and beside them its card: what is true of both networks, and `card`."""
    with written(path) as part:
        whole = part.with_suffix(".weights.h5")  # Keras insists on this ending
        network.save_weights(whole)
        os.replace(whole, part)
    card = {
        "what": card["what"],
        "data": "simulated radiographs (utils/phantom.py), one a patient; no real X-ray",
        "simulator": phantom.VERSION,
        "preprocessing": images.VERSION,
        "hospital": HOSPITAL,
        "seed": SEED,
        **card,
        "scored_on": f"{TESTED} other patients ({SEED}-{TRAINED:05d} on) of each hospital, plain images",
        "sha256": sha256(path),
        "versions": {name: version(name) for name in ("tensorflow", "keras")},
        "purpose": "For teaching, never for diagnosis.",
    }
    name = path.name.removesuffix(".weights.h5") + ".json"
    write_text(path.with_name(name), json.dumps(card, indent=1) + "\n")


def taken_at(patients, hospital):
    """Return radiographs of patients, uint8 (patients, 128, 128, 1), and whether they show COVID-19, bool."""
    pixels, facts = prepared(patients, hospital)
    return pixels[..., :1], facts[:, 0] == phantom.LABELS.index("COVID-19")


def in_looks(pixels):
    """Return radiographs as taken, and below them other `Looks` of the same: (`LOOKS` x images, ...)."""
    look, shown = Looks(), [pixels]
    for number in range(1, LOOKS):
        parts = [
            look(tf.constant(pixels[at : at + 256]), seed=(SEED + number, at)) for at in range(0, len(pixels), 256)
        ]
        shown.append(np.concatenate(parts))
    return np.concatenate(shown)


def bundle():
    """Make the bundle that is part of the course.

    Head and refusal are fitted on patients of hospitals A and B, in many looks; temperature and threshold come from other
    patients of both; it is tested on others again, there and as hospital C would have taken them.
    """
    # A patient's label follows from the number, so hospital and part of the split must not.
    asked = np.array([number for number in HEAD_PATIENTS if number % len(phantom.LABELS) < 2])
    where, part = asked // 4 % 2, asked // 8 % 10
    visits = {name: asked[where == place] for place, name in enumerate("AB")} | {"C": asked[part > 7]}
    (a, covid_a), (b, covid_b), other = (taken_at(patients, name) for name, patients in visits.items())
    pixels, covid, numbers = (
        np.concatenate([a, b]),
        np.concatenate([covid_a, covid_b]),
        np.concatenate([visits["A"], visits["B"]]),
    )
    part = numbers // 8 % 10
    fitted, tuned, tested = part < 6, (part == 6) | (part == 7), part > 7
    extractor = backbones.build("PhantomNet", (SIZE, SIZE, 1), weights="phantom")
    features = models.predict(extractor, in_looks(pixels[fitted]))
    model = backbones.with_head(extractor, training.linear_head(features, np.tile(covid[fitted], LOOKS)))
    card = {"task": "binary", "classes": list(manifest.BINARY), "seed": SEED, "simulated": True}
    card |= calibration.tuned(covid[tuned], models.predict(model, pixels[tuned]))
    card |= {"manifest": f"simulated patients {SEED}-{HEAD_PATIENTS[0]} to {SEED}-{HEAD_PATIENTS[-1]}", "split": "by patient",
             "backbones": ["PhantomNet"], "pretrained": "phantom", "metrics": {}}  # fmt: skip
    groups = {"shipped": (pixels[tested], covid[tested], numbers[tested]), "shipped_hospital_C": (*other, visits["C"])}
    for name, (seen, truth, patients) in groups.items():
        said = calibration.calibrated(calibration.columns(models.predict(model, seen)), card["temperature"])[:, 1]
        rules = {"threshold": card["threshold"], "seed": SEED, "resamples": 2000}
        card["metrics"] |= metrics.flat_all(f"binary.{name}", metrics.binary_scores(truth, said, patients, **rules))
    known = fitted | tuned
    # None of the phantoms may be refused: the real X-rays that it will be shown lie further away than most of them.
    watch = refusal.fit(model, in_looks(pixels[known]), np.tile(numbers[known], LOOKS), seed=SEED, accepted=1.0)
    models.save_bundle(SHIPPED, model, options=OPTIONS, card=card, refusal=watch)


NETWORKS = {"PhantomNet": phantom_net, "LungNet": lung_net}


def main(arguments=None):
    """Train what is named, score it, and write it with its card."""
    parser = argparse.ArgumentParser(prog="python -m utils.pretrain", description="Train what the course brings along.")
    parser.add_argument("what", choices=[*NETWORKS, "bundle"])
    name = parser.parse_args(arguments).what
    if name == "bundle":
        bundle()
        return
    began = time.perf_counter()
    network, card = NETWORKS[name]()
    minutes = round((time.perf_counter() - began) / 60, 1)
    path = {"PhantomNet": backbones.PHANTOM_WEIGHTS, "LungNet": lungs.WEIGHTS}[name]
    keep(network, path, card | {"command": f"python -m utils.pretrain {name}", "minutes": minutes})


if __name__ == "__main__":
    main()
