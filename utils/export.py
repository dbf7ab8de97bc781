"""Write a model bundle as files that other programs open: `python -m utils.export --help`.

A bundle needs Keras. A SavedModel is served by TensorFlow's own server, LiteRT runs on telephones and small boards,
ONNX in nearly every other runtime. Each file holds the whole way from bytes to calibrated probabilities; the
preprocessing, from an X-ray to bytes, stays outside (`utils.images`).

Exit codes: 0 done, 2 wrong usage, a bundle or a folder that cannot be used, or a file that answers otherwise than the
bundle (nothing was written), 130 interrupted.
"""

import argparse
import errno
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import CourseError
from utils.files import move_folder, sha256

LIMIT = 1e-5  # largest difference of a probability, beside what the rounding of float32 explains
IMAGES = 32  # that each file is compared with the bundle on
ULP = float(np.finfo(np.float32).eps)
MADE_BY = "utils.export"
PURPOSE = "For teaching, never for diagnosis."


class Format(NamedTuple):
    """A kind of file."""

    file: str  # its name in the folder of an export
    exporter: str  # what Keras calls it
    packages: tuple  # that convert it, and that open it


FORMATS = {
    "savedmodel": Format("saved_model", "tf_saved_model", ("keras", "tensorflow")),
    "litert": Format("model.tflite", "litert", ("keras", "tensorflow", "ai-edge-litert")),
    "onnx": Format("model.onnx", "onnx", ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime")),
}


def export(bundle, folder, *, formats=tuple(FORMATS)):
    """Write a bundle as files for other runtimes; each is opened there and compared with the bundle.

    Parameters
    ----------
    bundle : path-like
        A folder of `models.save_bundle`.
    folder : path-like
        Where to: it gets `saved_model/`, `model.tflite`, `model.onnx` (see `frozen` for what they compute) and
        `model.json`, whole or not at all. An earlier export there is replaced.
    formats : sequence of str
        Keys of `FORMATS`.

    Returns
    -------
    dict
        What `model.json` holds: classes, threshold, preprocessing; by file its bytes and SHA-256; by format the largest
        difference of a probability from the bundle's on `IMAGES` images.

    Raises
    ------
    CourseError
        No bundle; `folder` holds something else, or cannot be written; a format that does not take this model, or whose
        file answers otherwise than the bundle.
    """
    folder = Path(folder).resolve()
    part = None
    try:
        _require_replaceable(folder)
        with _hushed():
            opened = _opened(bundle)
            beside = next(parent for parent in folder.parents if parent.exists())
            part = Path(tempfile.mkdtemp(dir=beside, prefix=".part-"))
            about = _write_all(part, Path(bundle).resolve().name, *opened, list(dict.fromkeys(formats)))
        _place(part, folder)
    except OSError as error:
        raise CourseError(
            f"{folder} cannot be written ({error.strerror or error}). Make room or name another folder, and run again."
        ) from None
    finally:
        if part:
            shutil.rmtree(part, ignore_errors=True)
    return about


def frozen(model, temperature):
    """The model of a bundle and its calibration in one, with weights as constants, fit for `keras.Model.export`.

    Parameters
    ----------
    model : keras.Model
        From `models.open_bundle`.
    temperature : float
        That of the card.

    Returns
    -------
    keras.Model
        Input `pixels`: uint8 (images, size, size, channels), the number of images open. Output `probability`: float32
        (images, classes), what `calibration.calibrated` makes of the model's answers.
    """
    from utils import calibration
    from utils.backend import keras, tf

    ops, shape = keras.ops, model.input_shape[1:]
    trained = [weight.numpy() for weight in model.trainable_variables]
    others = [weight.numpy() for weight in model.non_trainable_variables]

    def answer(pixels):
        weights = [[tf.constant(values) for values in group] for group in (trained, others)]
        # Said aloud: a model called without it runs what follows a Resizing layer in training mode (Keras 3.15).
        said = model.stateless_call(*weights, pixels, training=False)[0]
        said = ops.concatenate([1 - said, said], axis=1) if said.shape[-1] == 1 else said
        return ops.softmax(ops.log(ops.maximum(said, calibration.SMALLEST)) / temperature, axis=1)

    # An exporter traces a model up to eight times, half a minute for two backbones. It finds one layer here.
    traced = tf.function(answer, autograph=False).get_concrete_function(tf.TensorSpec((None, *shape), tf.uint8))
    inputs = keras.Input(shape, dtype="uint8", name="pixels")
    outputs = {"probability": keras.layers.Lambda(traced, name="calibrated")(inputs)}
    whole = keras.Model(inputs, outputs, name="export")
    whole(np.zeros((1, *shape), np.uint8))  # the ONNX exporter refuses a model that nobody has called
    return whole


def open_exported(path):
    """Open a file of an export in its own runtime.

    Parameters
    ----------
    path : path-like
        The folder of a SavedModel, a .tflite or an .onnx file.

    Returns
    -------
    callable
        uint8 (images, size, size, channels) in, float32 (images, classes) out.

    Raises
    ------
    CourseError
        Not there, of another kind, or damaged.
    """
    path = Path(path)
    opener = _savedmodel if path.is_dir() else {".tflite": _litert, ".onnx": _onnx}.get(path.suffix)
    if opener is None or not path.exists():
        raise CourseError(f"{path}: expected a file of an export, {', '.join(kind.file for kind in FORMATS.values())}.")
    try:
        with _hushed():
            return opener(str(path))
    except Exception as error:  # a damaged file makes the runtimes raise nearly anything
        raise CourseError(f"{path} is damaged, or was not written by utils.export ({_reason(error)}).") from None


def _savedmodel(path):
    from utils.backend import tf

    model = tf.saved_model.load(path)
    return lambda pixels: model.signatures["serving_default"](pixels=tf.constant(pixels))["probability"].numpy()


def _litert(path):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path, num_threads=os.cpu_count()).get_signature_runner("serving_default")
    return lambda pixels: run(pixels=pixels)["probability"]


def _onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(["probability"], {"pixels": pixels})[0]


# Writing


def _opened(bundle):
    """Open the bundle; return model and card."""
    from utils import models

    try:
        model, _, card = models.open_bundle(bundle)
    except OSError as error:
        raise CourseError(f"{bundle} cannot be read ({error.strerror}). Mend that, and run again.") from None
    temperature = card.get("temperature")
    if not isinstance(temperature, (int, float)) or not 0 < temperature < np.inf:
        raise CourseError(
            f"{bundle}/card.json should name a temperature above 0, for the calibration; it says {temperature}. "
            "Run the notebook that trains the model again."
        )
    return model, card


def _write_all(part, name, model, card, formats):
    """Fill the folder `part`; return what is known about the files."""
    pixels = check_images(model.input_shape[1:])
    expected, rounding = _expected(model, pixels, card["temperature"])
    whole = frozen(model, card["temperature"])
    about = _about(name, card, model)
    about["compared"] = {"images": IMAGES, "limit": LIMIT, "rounding": float(rounding.max())}
    for key in formats:
        kind = FORMATS[key]
        path = part / kind.file
        _convert(whole, path, kind, key)
        difference = _difference(path, pixels, expected, rounding, key)
        about["formats"][key] = {
            "path": kind.file,
            "bytes": sum(file.stat().st_size for file in _files(path)),
            "largest_difference": difference,
            "versions": {package: version(package) for package in kind.packages},
        }
    for file in _files(part):
        about["files"][file.relative_to(part).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    (part / "model.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return about


def _about(name, card, model):
    classes, threshold = list(card["classes"]), card.get("threshold")
    called = "the most probable class"
    if threshold is not None:
        called = f"{classes[1]} where its probability is at least the threshold"
    return {
        "purpose": PURPOSE,
        "made_by": MADE_BY,
        "bundle": name,
        "weights": card["weights"],
        "simulated": card.get("simulated"),
        "task": card["task"],
        "classes": classes,
        "threshold": threshold,
        "decision": card.get("decision"),
        "called": called,
        "input": {"name": "pixels", "dtype": "uint8", "shape": list(model.input_shape)},
        "output": {"name": "probability", "dtype": "float32", "shape": [None, len(classes)]},
        "calibration": {"temperature": card["temperature"], "inside": True},
        "preprocessing": card["preprocessing"],
        "formats": {},
        "files": {},
    }


def _files(path):
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _convert(whole, path, kind, key):
    try:
        whole.export(str(path), format=kind.exporter, verbose=False)
        if key == "onnx":
            _name_images(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # converters raise nearly anything
        full = os.strerror(errno.ENOSPC)
        if full in str(error):  # TensorFlow has errors of its own for it
            raise OSError(errno.ENOSPC, full) from None
        raise CourseError(
            f"The model could not be written as {key} ({_reason(error)}). Nothing was kept. Leave this format out with "
            "--format, or install the versions of requirements.txt."
        ) from None


def _name_images(path):
    # tf2onnx calls the open number of images "unk__103".
    import onnx

    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "images"
    onnx.save(model, path)


def _reason(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# Comparing


def check_images(shape):
    """Draw the images that files are compared on: half noise, half smooth, a black and a white one among them.

    Parameters
    ----------
    shape : tuple of int
        (size, size, channels).

    Returns
    -------
    numpy.ndarray
        uint8, (`IMAGES`, size, size, channels); the same in every call.
    """
    import cv2

    rng = np.random.default_rng(0)
    height, width, channels = shape
    pixels = rng.integers(0, 256, (IMAGES, *shape), np.uint8)
    for image in pixels[::2]:
        for channel in range(channels):
            coarse = rng.integers(0, 256, (6, 6), np.uint8)
            image[..., channel] = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels[-2], pixels[-1] = 0, 255
    return pixels


def _expected(model, pixels, temperature):
    """Return the bundle's answers, and how far each may move by rounding alone: float64 (images, classes), twice.

    Two runtimes that are both right differ, since they add in different orders: by 1e-7 mostly, by far more where a
    network is ill-conditioned (MobileNet on noise: 5e-5), or where the last digit of a probability near 1 decides how
    near. Measured are both: all weights moved by one digit in the last place, and the probability by two.
    """
    from utils import calibration, models

    def answers(said):
        return calibration.calibrated(calibration.columns(np.clip(said, 0, 1)), temperature)

    said = models.predict(model, pixels).astype(float)
    expected = answers(said)
    last_digit = np.max([np.abs(answers(said * (1 + step)) - expected) for step in (-2 * ULP, 2 * ULP)], axis=0)
    rng, weights = np.random.default_rng(1), model.get_weights()
    try:
        model.set_weights([(one * (1 + ULP * rng.choice([-1, 1], one.shape))).astype(one.dtype) for one in weights])
        moved = np.abs(answers(models.predict(model, pixels)) - expected)
    finally:
        model.set_weights(weights)
    return expected, last_digit + np.maximum(moved - last_digit, 0).max()


def _difference(path, pixels, expected, rounding, key):
    """Return the largest difference of a file's answers from the bundle's; refuse what rounding does not explain."""
    try:
        ask = open_exported(path)
        together, alone = ask(pixels), np.concatenate([ask(pixels[[row]]) for row in range(0, len(pixels), 5)])
    except Exception as error:
        raise CourseError(f"{key}: its runtime cannot run the file that was written ({_reason(error)}).") from None
    if together.dtype != np.float32 or together.shape != expected.shape:
        raise CourseError(
            f"{key}: the file should answer float32 {expected.shape}, and answers {together.dtype} {together.shape}."
        )
    differences = np.abs(np.concatenate([together - expected, alone - expected[::5]]))
    allowed = LIMIT + np.concatenate([rounding, rounding[::5]])
    if not (differences <= allowed).all():  # NaN is refused, too
        raise CourseError(
            f"{key}: probabilities of the file differ from the bundle's by up to {differences.max():.2g}; expected at "
            f"most {LIMIT:g} (and {rounding.max():.1g} for rounding). Nothing was kept. The converter, or this version "
            "of it, does not suit the model: leave this format out with --format."
        )
    return float(differences.max())


# Folder


def _require_replaceable(folder):
    """Refuse a folder with anything in it that no export has written."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CourseError(f"{folder} is a file; an export is a folder. Name another one.")
    there = next(folder.iterdir(), None)
    if there is None:
        return
    try:
        about = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        ours = {"model.json", *about["files"]} if about["made_by"] == MADE_BY else set()
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        ours = set()
    if ours:
        paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
        there = next((path for path in paths if path.relative_to(folder).as_posix() not in ours), None)
    if there:
        raise CourseError(
            f"{folder} holds something that no export has written, {there.relative_to(folder)}, and would be replaced. "
            "Name a new folder, or move that away."
        )


def _place(part, folder):
    _require_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    move_folder(part, folder)


@contextmanager
def _hushed():
    """Keep what converters and runtimes print, log and warn from the user; errors pass."""
    kept, logged = [os.dup(1), os.dup(2)], logging.root.manager.disable
    with open(os.devnull, "w") as nowhere, warnings.catch_warnings(action="ignore"):
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            try:
                logging.disable(logging.CRITICAL)
                for descriptor in (1, 2):  # C++ writes there
                    os.dup2(nowhere.fileno(), descriptor)
                yield
            finally:
                for descriptor, old in zip((1, 2), kept):
                    os.dup2(old, descriptor)
                    os.close(old)
                logging.disable(logged)


# Command line


def _print(about, folder):
    print(f"{'Format':<12}{'File':<14}{'MB':>8}{'Largest difference':>22}")
    for key, one in about["formats"].items():
        print(f"{key:<12}{one['path']:<14}{one['bytes'] / 1e6:>8.2f}{one['largest_difference']:>22.1e}")
    print(f"\nWritten to {folder}; model.json says how to use the files.")
    if about["simulated"]:
        print("The model has learned from simulated radiographs only.")
    print(PURPOSE)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m utils.export",
        description="Write a model bundle as files that other programs open; compare their answers with the bundle's.",
        epilog=f"Exit: 0 done; 2 it cannot be done, and nothing was written; 130 interrupted. {PURPOSE}",
        allow_abbrev=False,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a folder such as data/models/phantom-fast.transfer")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="a new folder, or that of an earlier export")
    parser.add_argument(
        "--format", nargs="+", choices=list(FORMATS), default=list(FORMATS), dest="formats", metavar="FORMAT",
        help=f"{', '.join(FORMATS)} (default: all)",
    )  # fmt: skip
    return parser


def _interrupt(*_):
    raise KeyboardInterrupt


def main(argv=None):
    """Do what the command line says; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a path may hold what an old terminal cannot show
    args = _parser().parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # end as after Ctrl-C: nothing half-written stays
    try:
        _print(export(args.bundle, args.out, formats=args.formats), args.out)
        return 0
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
