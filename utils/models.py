"""Models, and the bundle that a trained one is kept in."""

import difflib
import hashlib
import json
import math
import shutil
import tempfile
import zlib
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from utils import images, notebook
from utils.backend import keras, tf
from utils.config import unknown
from utils.errors import CourseError
from utils.files import move_folder

layers = keras.layers


TASKS = ("binary", "multiclass", "abnormal")  # never mixed: a score for one says nothing about another
WIDTHS = (16, 32, 48, 64, 64)  # feature maps of the small CNN's convolutions
SHOWN = 12  # names of bundles in a message, at most
MERGED = 10_000_000  # weights: `predict` treats smaller models as constants
TRAINED_BY = {
    "small_cnn": "03_binary_cnn",
    "transfer": "04_transfer_learning",
    "multiclass": "04_transfer_learning",
    "ensemble": "04_transfer_learning",
    "short_sighted": "06_gradcam_feature_maps",
    "abnormal_best": "07_shortcuts",
}  # which notebook leaves a bundle
KINDS = {
    layers.InputLayer: "image",
    layers.Rescaling: "bytes to −1…1",
    layers.Conv2D: "convolution",
    layers.SeparableConv2D: "separable",
    layers.BatchNormalization: "batch normalisation",
    layers.MaxPooling2D: "max pooling",
    layers.GlobalAveragePooling2D: "average over the image",
    layers.Concatenate: "side by side",
    layers.Dense: "dense",
}  # fmt: skip


def small_cnn(shape, *, seed, classes=2, widths=WIDTHS, dropout=0.3):
    """A small convolutional network.

    Pixels are scaled inside the model, so whoever uses it cannot forget to.

    Parameters
    ----------
    shape : tuple of int
        (height, width, channels) of the uint8 images.
    seed : int
        Of the starting weights and of dropout.
    classes : int
        2: one output, the probability of the second class. More: one output a class, adding up to 1.
    widths : tuple of int
        Feature maps of each convolution, see `convolutions`.
    dropout : float
        Share of features dropped before the last layer, in training.

    Returns
    -------
    keras.Model
        uint8 (images, height, width, channels) to float32 (images, 1) or (images, classes), probabilities; not
        compiled.
    """
    inputs, x = _scaled(shape)
    x = convolutions(x, widths, seed=seed)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, probabilities(x, classes, seed=seed, dropout=dropout), name="small_cnn")


def _scaled(shape):
    inputs = keras.Input(shape, dtype="uint8", name="pixels")
    return inputs, layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)


def convolutions(x, widths, *, seed, pooled=None):
    """Convolution, max pooling, batch normalisation and ReLU, once for each width.

    The first convolution already moves in steps of two: a quarter of the work, and nothing is lost at this size.
    Pooling comes right after each convolution, so that all that follows has a quarter of the numbers to work on.

    Parameters
    ----------
    x : keras.KerasTensor
        (images, height, width, channels), about -1 to 1.
    widths : tuple of int
        Feature maps of each convolution.
    seed : int
        Of the starting weights.
    pooled : int, optional
        So many of the first convolutions are followed by max pooling; None: all.

    Returns
    -------
    keras.KerasTensor
        (images, height / 64, width / 64, last width) for five widths, all pooled; 0 or more; sides are rounded up.
    """
    pooled = len(widths) if pooled is None else pooled
    for number, width in enumerate(widths, start=1):
        steps = {"kernel_size": 5, "strides": 2} if number == 1 else {"kernel_size": 3}
        start = keras.initializers.HeNormal(seed=seed * 100 + number)  # He et al. 2015
        name = f"conv{number}"
        x = layers.Conv2D(width, padding="same", use_bias=False, kernel_initializer=start, name=name, **steps)(x)
        if number <= pooled:
            x = layers.MaxPooling2D(padding="same", name=f"pool{number}")(x)
        # Keras' momentum of 0.99 averages over more batches than a small set has in several epochs.
        x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
        x = layers.ReLU(name=f"{name}_relu")(x)
    return x


def two_branch_cnn(shape, *, seed, classes=2, widths=WIDTHS, dropout=0.3):
    """A small convolutional network that looks for small and for large patterns side by side.

    As `small_cnn`, but from the second block on half of the feature maps come from 3 x 3 filters and half from 5 x 5
    ones: parallel branches, as in Szegedy et al. 2015 (arXiv:1409.4842). Both are depthwise-separable (Chollet 2017,
    arXiv:1610.02357): a filter for each map, then mixtures of the maps pixel by pixel, with a fraction of the weights.

    Parameters and return value are those of `small_cnn`.
    """
    inputs, x = _scaled(shape)
    for block, width in enumerate(widths, start=1):
        if block == 1:
            start = keras.initializers.HeNormal(seed=seed * 100)
            options = {"strides": 2, "padding": "same", "use_bias": False, "kernel_initializer": start}
            x = layers.Conv2D(width, 5, name="block1_conv", **options)(x)
        else:
            halves = [(3, "small", width // 2), (5, "large", width - width // 2)]
            branches = [_separable(x, maps, side, f"block{block}_{name}", seed) for side, name, maps in halves]
            x = layers.Concatenate(name=f"block{block}_join")(branches)
        x = layers.MaxPooling2D(padding="same", name=f"pool{block}")(x)
        x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn")(x)  # 0.9 as in `convolutions`
        x = layers.ReLU(name=f"block{block}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    return keras.Model(inputs, probabilities(x, classes, seed=seed, dropout=dropout), name="two_branch_cnn")


def _separable(x, maps, side, name, seed):
    first = zlib.crc32(f"{name} {seed}".encode())  # every kernel of the network draws its own numbers
    return layers.SeparableConv2D(
        maps,
        side,
        padding="same",
        use_bias=False,
        depthwise_initializer=keras.initializers.HeNormal(seed=first),
        pointwise_initializer=keras.initializers.HeNormal(seed=first + 1),
        name=name,
    )(x)


def layer_table(model):
    """List the layers of a network: what each puts out, what it has to learn, how much it computes.

    Parameters
    ----------
    model : keras.Model
        A functional model without nested ones, for images of a known size.

    Returns
    -------
    pandas.DataFrame
        One row a layer, index `layer`. `kind`: what it does; `height`, `width`, `maps`: of its output (1, 1, n for a
        vector); `parameters`:
        its weights, trained or not; `flops`: additions and multiplications for one image. Counted are those of
        convolutions and dense layers (2 for each weight that meets an input number), 2 an output number for
        rescaling and batch normalisation, 1 for a bias and for ReLU, and the window of a pooling.
    """
    rows = []
    for layer in model.layers:
        size = (1, 1, *layer.output.shape[1:])[-3:]
        kind = KINDS.get(type(layer), type(layer).__name__)
        window = getattr(layer, "kernel_size", getattr(layer, "pool_size", ()))
        kind = " ".join([*(["{} × {}".format(*window)] if window else []), kind])
        rows.append((layer.name, kind, *size, layer.count_params(), _flops(layer)))
    columns = ["layer", "kind", "height", "width", "maps", "parameters", "flops"]
    return pd.DataFrame(rows, columns=columns).set_index("layer")


def _flops(layer):
    numbers = math.prod(layer.output.shape[1:])
    if isinstance(layer, layers.SeparableConv2D):
        *window, maps, _ = layer.depthwise_kernel.shape
        positions = numbers // layer.filters
        return 2 * positions * maps * (math.prod(window) + layer.filters)
    if isinstance(layer, (layers.Conv2D, layers.Dense)):
        return (2 * math.prod(layer.kernel.shape[:-1]) + layer.use_bias) * numbers
    if isinstance(layer, layers.MaxPooling2D):
        return math.prod(layer.pool_size) * numbers
    if isinstance(layer, layers.GlobalAveragePooling2D):
        return math.prod(layer.input.shape[1:])
    return numbers * {layers.Rescaling: 2, layers.BatchNormalization: 2, layers.ReLU: 1}.get(type(layer), 0)


def probabilities(features, classes, *, seed, dropout):
    """Go on from features (images, n) to probabilities: dropout, one dense layer, and sigmoid or softmax."""
    x = layers.Dropout(dropout, seed=seed, name="dropout")(features)
    start = keras.initializers.GlorotUniform(seed=seed * 100 + 99)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    return layers.Dense(units, activation=activation, kernel_initializer=start, name="probability")(x)


def ensemble(members, weights):
    """Several models as one: the weighted mean of their probabilities.

    Parameters
    ----------
    members : sequence of keras.Model
        They take the same pixels and have the same outputs.
    weights : sequence of float
        One a member, 0 or more; they are divided by their sum.

    Returns
    -------
    keras.Model
        Called "ensemble". It can be kept as a bundle like any model.

    Raises
    ------
    CourseError
        Members that do not fit together, or weights that do not fit the members.
    """
    members, weights = list(members), np.asarray(weights, float)
    shapes = {(member.input_shape, member.output_shape) for member in members}
    if len(shapes) != 1:
        raise CourseError(
            "Members of an ensemble take the same pixels and answer the same classes; "
            f"got {' and '.join(map(str, sorted(shapes, key=str)))}."
        )
    if weights.shape != (len(members),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise CourseError(f"Expected {len(members)} weights, 0 or more and not all 0; got {weights.tolist()}.")
    inputs = keras.Input(members[0].input_shape[1:], dtype="uint8", name="pixels")
    outputs = 0
    for number, (member, weight) in enumerate(zip(members, weights / weights.sum()), start=1):
        member = keras.Model(member.inputs, member.outputs[0], name=f"member{number}_{member.name}")
        outputs += member(inputs) * float(weight)
    return keras.Model(inputs, outputs, name="ensemble")


def predict(model, pixels, *, mirrored=False, batch_size=64):
    """Run a model in inference mode.

    Parameters
    ----------
    model : keras.Model
        uint8 images in, one row of numbers an image out.
    pixels : numpy.ndarray
        uint8, (images, height, width, channels).
    mirrored : bool
        Answer with the mean over the image and its mirror image: steadier, at twice the work.
    batch_size : int
        Images at once.

    Returns
    -------
    numpy.ndarray
        float32, (images, outputs); (images,) where the model has a single output.

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
    step = compiled(model)
    outputs = np.empty((len(pixels), *model.output_shape[1:]), np.float32)
    for start in range(0, len(pixels), batch_size):
        some = pixels[start : start + batch_size]
        views = [some, some[:, :, ::-1]] if mirrored else [some]
        outputs[start : start + batch_size] = sum(step(view).numpy() for view in views) / len(views)
    return outputs[:, 0] if outputs.shape[1:] == (1,) else outputs


def compiled(model):
    """Compile a model for many batches in inference mode.

    Parameters
    ----------
    model : keras.Model
        uint8 images in.

    Returns
    -------
    callable
        uint8 (images, height, width, channels), numpy array or tensor, to the model's output or outputs, as tensors.
    """
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
    step = tf.function(step, autograph=False).get_concrete_function(batch)
    return lambda pixels: step(tf.constant(pixels))


def save_bundle(folder, model, *, options, card, refusal=None):
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
        What is known about the model: task (one of `TASKS`), classes in the order of its outputs, manifest, split,
        seed, temperature, threshold, decision (how the threshold came about), metrics.
    refusal : utils.refusal.Refusal, optional
        What tells chest X-rays from anything else; predictions on files need it.

    Raises
    ------
    CourseError
        A task that is not known.
    """
    if card["task"] not in TASKS:
        raise CourseError(unknown("task", card["task"], TASKS))
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    try:
        model.save(part / "model.keras")
        if refusal is not None:
            np.savez_compressed(part / "refusal.npz", **refusal._asdict())
        full = {
            **card,
            "preprocessing": {"version": images.VERSION, **asdict(options)},
            "weights": weights_hash(model),
            "versions": {name: version(name) for name in ("tensorflow", "keras", "numpy", "opencv-python-headless")},
            "purpose": "For teaching, never for diagnosis.",
        }
        (part / "card.json").write_text(json.dumps(full, indent=1) + "\n", encoding="utf-8")
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            move_folder(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_bundle(folder):
    """Raise a CourseError where there is no bundle: what is there, which others are, and which notebook trains it.

    Parameters
    ----------
    folder : path-like
    """
    folder = Path(folder)
    lacks = [name for name in ("model.keras", "card.json") if not (folder / name).is_file()]
    if not lacks:
        return
    what = f"it has no {' and no '.join(lacks)}" if folder.is_dir() else "there is no such folder"
    others = sorted(card.parent.name for card in folder.parent.glob("[!.]*/card.json") if card.parent != folder)
    some = others if len(others) <= SHOWN else [*difflib.get_close_matches(folder.name, others, n=SHOWN - 1), "…"]
    there = (
        f"Bundles in {folder.parent}: {', '.join(some)}." if others else f"There is no bundle in {folder.parent} yet."
    )
    trainer = TRAINED_BY.get(_kind(folder))
    otherwise = f"{'Name one of them, or run' if others else 'Run'} the notebook that trains it."
    mend = notebook.first(trainer, trainer[:2]) if trainer else otherwise
    raise CourseError(f"{folder} is not a model bundle: {what}. {there} {mend}")


def _kind(folder):
    return folder.name.rpartition(".")[2]  # RUN.<name>


def open_bundle(folder, *, task=None, split=None):
    """Open a model bundle.

    Parameters
    ----------
    folder : path-like
    task : str, optional
        One of `TASKS`: the task that the model must have been trained for.
    split : str, optional
        The hash of the split that it must have been trained on, so that none of its training images is tested on.

    Returns
    -------
    model : keras.Model
    options : utils.images.Options
    card : dict

    Raises
    ------
    CourseError
        Not a bundle; made by another version of the preprocessing; a card that does not describe the model: its
        weights, classes, image size or channels; of another task or split.
    """
    folder = Path(folder)
    check_bundle(folder)
    trainer = TRAINED_BY.get(_kind(folder))
    again = f"Run {f'notebook {trainer}' if trainer else 'the notebook that trains the model'} again."
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
        weights, classes = card["weights"], list(card["classes"])
        preprocessing = dict(card["preprocessing"])
        made_with = preprocessing.pop("version", None)
        options = images.Options(**{**preprocessing, "channels": tuple(preprocessing["channels"])})
    except (ValueError, KeyError, TypeError):
        raise CourseError(f"{folder}/card.json is damaged. {again}") from None
    if made_with != images.VERSION:
        raise CourseError(f"{folder} was trained on another version of the preprocessing. {again}")
    for name, wanted in (("task", task), ("split", split)):
        if wanted is not None and card.get(name) != wanted:
            raise CourseError(f"{folder} should be of {name} {wanted}, but its card says {card.get(name)}. {again}")
    model = _load(folder, card, again)
    _require_described(folder, model, options, classes, weights, again)
    return model, options, card


def _load(folder, card, again):
    try:
        return keras.models.load_model(folder / "model.keras", compile=False)
    except Exception:  # a damaged archive makes Keras raise nearly anything
        versions = card.get("versions")
        made_by = versions.get("keras") if isinstance(versions, dict) else None
        other = made_by not in (None, keras.__version__)
        why = f", or comes from Keras {made_by}, which Keras {keras.__version__} here cannot read" if other else ""
        raise CourseError(f"{folder}/model.keras is damaged{why}. {again}") from None


def _require_described(folder, model, options, classes, weights, again):
    taken, outputs = tuple(model.input_shape[1:]), model.output_shape[-1]
    described = (options.size, options.size, len(options.channels))
    if taken != described:
        raise CourseError(f"{folder}: the model takes images of {taken}, card.json describes {described}. {again}")
    if max(2, outputs) != len(classes):
        raise CourseError(
            f"{folder}: the model answers {max(2, outputs)} classes, card.json names {len(classes)}: "
            f"{', '.join(map(str, classes))}. {again}"
        )
    if weights_hash(model) != weights:
        raise CourseError(f"{folder}: the weights are not those that card.json describes. {again}")


def weights_hash(model):
    """Return 16 hex digits that stand for the model's weights."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(weights.tobytes())
    return digest.hexdigest()[:16]
