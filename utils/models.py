"""Models, and the bundle that a trained one is kept in."""

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from utils import images
from utils.backend import keras
from utils.errors import CourseError

layers = keras.layers


def small_cnn(shape, *, seed, classes=2, widths=(16, 32, 48, 64, 64), dropout=0.3):
    """A small convolutional network.

    The first layer already moves in steps of two: a quarter of the work, and nothing is lost at this size. Pixels
    are scaled inside the model, so whoever uses it cannot forget to.

    Parameters
    ----------
    shape : tuple of int
        (height, width, channels) of the uint8 images.
    seed : int
        Of the starting weights and of dropout.
    classes : int
        2: one output, the probability of the second class. More: one output a class, adding up to 1.
    widths : tuple of int
        Feature maps of each block.
    dropout : float
        Share of features dropped before the last layer, in training.

    Returns
    -------
    keras.Model
        uint8 (images, height, width, channels) to float32 (images, 1) or (images, classes), probabilities; not
        compiled.
    """
    inputs = keras.Input(shape, dtype="uint8")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
    for block, width in enumerate(widths):
        start = keras.initializers.HeNormal(seed=seed * 100 + block)
        steps = {"kernel_size": 5, "strides": 2} if block == 0 else {"kernel_size": 3}
        x = layers.Conv2D(
            width, padding="same", use_bias=False, kernel_initializer=start, name=f"conv{block + 1}", **steps
        )(x)
        # Keras' momentum of 0.99 averages over more batches than a small set has in several epochs.
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
        x = layers.MaxPooling2D(padding="same")(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(dropout, seed=seed)(x)
    start = keras.initializers.GlorotUniform(seed=seed * 100 + 99)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    outputs = layers.Dense(units, activation=activation, kernel_initializer=start, name="probability")(x)
    return keras.Model(inputs, outputs, name="small_cnn")


def save_bundle(folder, model, *, options, card):
    """Write a trained model and its card as one folder, whole or not at all.

    Parameters
    ----------
    folder : path-like
        `data/models/RUN.<name>`; an older bundle there is replaced.
    model : keras.Model
        uint8 pixels in.
    options : utils.images.Options
        The preprocessing that the model was trained on.
    card : dict
        What is known about the model: task, classes, manifest, split, seed, threshold, metrics.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        model.save(part / "model.keras")
        full = {
            **card,
            "preprocessing": {"version": images.VERSION, **asdict(options)},
            "weights": weights_hash(model),
            "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy", "opencv-python-headless")},
            "purpose": "For teaching, never for diagnosis.",
        }
        (part / "card.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
        part.chmod(0o755)
        _replace(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace(folder, part):
    # A folder cannot be replaced in one step: the older one steps aside, and back should anything fail.
    older = folder.with_name(f".older-{folder.name}")
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        shutil.rmtree(older, ignore_errors=True)
        if folder.exists():
            folder.rename(older)
        try:
            part.rename(folder)
        except OSError:
            if older.exists():
                older.rename(folder)
            raise
        shutil.rmtree(older, ignore_errors=True)


def open_bundle(folder):
    """Open a model bundle.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    model : keras.Model
    options : utils.images.Options
    card : dict

    Raises
    ------
    CourseError
        Not a bundle, made by another version of the preprocessing, or with weights that the card does not describe.
    """
    folder = Path(folder)
    if not ((folder / "card.json").is_file() and (folder / "model.keras").is_file()):
        raise CourseError(
            f"{folder} is not a model bundle (model.keras and card.json). Run the notebook that trains it."
        )
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        preprocessing, weights = dict(card["preprocessing"]), card["weights"]
    except (ValueError, KeyError, TypeError):
        raise CourseError(f"{folder}/card.json is damaged. Run the notebook that trains the model again.") from None
    if preprocessing.pop("version", None) != images.VERSION:
        raise CourseError(f"{folder} was trained on another version of the preprocessing: train it again.")
    model = keras.models.load_model(folder / "model.keras", compile=False)
    if weights_hash(model) != weights:
        raise CourseError(f"{folder}: the weights are not those that card.json describes. Train it again.")
    options = images.Options(**{**preprocessing, "channels": tuple(preprocessing["channels"])})
    return model, options, card


def weights_hash(model):
    """Return 16 hex digits that stand for the model's weights."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(weights.tobytes())
    return digest.hexdigest()[:16]
