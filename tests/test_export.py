"""Exported files answer in their own runtimes as the bundle does, or there are none; no file of a user is deleted."""

import json
import os
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from utils import backbones, calibration, config, export, files, images, models
from utils.backend import keras, tf
from utils.errors import CourseError

SIDE = 64
TEMPERATURE = 1.7
CARD = {"task": "multiclass", "temperature": TEMPERATURE, "decision": "sensitivity 0.95", "simulated": True, "seed": 1}
NAMES = ["Normal", "COVID-19", "Viral Pneumonia", "Lung Opacity"]


def noise(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def normalisations(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from normalisations(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            yield layer


def lively(model):
    """Give a random network statistics that fit its maps, and answers that differ between images."""
    for layer in normalisations(model):
        layer.momentum = 0.0
    pixels = noise(16, *model.input_shape[1:]) // np.arange(1, 17, dtype=np.uint8)[:, None, None, None]
    model(pixels, training=True)
    return model


def tempered(model, slope):
    """Make a network less sure, or surer."""
    kernel, bias = model.layers[-1].get_weights()
    model.layers[-1].set_weights([kernel * slope, bias])
    return model


def small(shape=(SIDE, SIDE, 1), *, seed=1, **options):
    return lively(models.small_cnn(shape, seed=seed, widths=(8, 16, 16), **options))


def phantom_head():
    extractor = backbones.build("PhantomNet", (SIDE, SIDE, 2), weights="phantom", mirrored=True)
    pixels = noise(30, SIDE, SIDE, 2) // np.arange(1, 31, dtype=np.uint8)[:, None, None, None]
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
    return backbones.with_head(extractor, head.fit(models.predict(extractor, pixels), np.arange(30) > 12))


def mobilenet():
    extractor = backbones.build("MobileNet", (24, 24, 1), weights="none", seed=1)  # enlarged, and grey thrice
    return tempered(lively(backbones.classifier(extractor, classes=3, seed=1)), 0.2)  # it magnifies rounding


MAKE = {
    "small_cnn": small,
    "two_branch_cnn": lambda: lively(models.two_branch_cnn((SIDE, SIDE, 1), seed=1, widths=(8, 16, 16))),
    "several classes, two channels": lambda: small((SIDE, SIDE, 2), classes=4),
    "PhantomNet, mirrored, head": phantom_head,
    "short_sighted": lambda: lively(backbones.short_sighted((SIDE, SIDE, 1), weights="phantom", seed=1)),
    "MobileNet": mobilenet,
    "ensemble": lambda: models.ensemble([small(seed=1), small(seed=2)], [2, 1]),
}


def save(folder, model, **changes):
    size, _, channels = model.input_shape[1:]
    options = images.Options(size=size, channels=("plain", "clahe")[:channels])
    card = {**CARD, "classes": NAMES[: max(2, model.output_shape[-1])], **changes}
    card.setdefault("threshold", 0.3 if len(card["classes"]) == 2 else None)
    models.save_bundle(folder, model, options=options, card=card)
    return folder


@pytest.fixture(scope="module", params=MAKE)
def exported(request, tmp_path_factory):
    """A bundle of each kind, exported to all formats."""
    folder = tmp_path_factory.mktemp("a {folder} here")
    bundle = save(folder / "run.model", MAKE[request.param]())
    about = export.export(bundle, folder / "new" / "out")
    model = models.open_bundle(bundle)[0]
    pixels = noise(5, *model.input_shape[1:], seed=5) // np.array([1, 2, 3, 5, 9], np.uint8)[:, None, None, None]
    said = calibration.columns(models.predict(model, pixels))
    expected = calibration.calibrated(said, TEMPERATURE)
    # Else a model that answers the same to everything, or one without the calibration, would pass.
    assert np.ptp(expected, axis=0).max() > 1e-2 and np.abs(expected - said).max() > 1e-3
    return SimpleNamespace(model=model, about=about, folder=folder / "new" / "out", pixels=pixels, expected=expected)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return save(tmp_path_factory.mktemp("bundles") / "run.small", small((32, 32, 1)))


@pytest.fixture(scope="module")
def earlier(bundle, tmp_path_factory):
    """An export of `bundle`, by the command."""
    out = tmp_path_factory.mktemp("earlier") / "out"
    return SimpleNamespace(folder=out, done=call(bundle, "--out", out))


def as_savedmodel(folder):
    model = tf.saved_model.load(str(folder / "saved_model"))
    signature = model.signatures["serving_default"]
    (taken,) = signature.structured_input_signature[1].values()
    assert (taken.name, taken.dtype, taken.shape[0]) == ("pixels", tf.uint8, None)
    assert not signature.variables
    return lambda pixels: {name: out.numpy() for name, out in signature(pixels=tf.constant(pixels)).items()}


def as_litert(folder):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(folder / "model.tflite"))
    names = {"inputs": ["pixels"], "outputs": ["probability"]}
    assert interpreter.get_signature_list() == {"serving_default": names}
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    assert taken["dtype"] == np.uint8 and taken["shape_signature"][0] == given["shape_signature"][0] == -1

    def ask(pixels):
        interpreter.resize_tensor_input(taken["index"], pixels.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(taken["index"], pixels)
        interpreter.invoke()
        return {"probability": interpreter.get_tensor(given["index"])}

    return ask


def as_onnx(folder):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, taken.type, taken.shape[0]) == ("pixels", "tensor(uint8)", "images")
    assert (given.type, given.shape[0]) == ("tensor(float)", "images")
    return lambda pixels: {given.name: session.run(None, {"pixels": pixels})[0]}


OPEN = {"savedmodel": as_savedmodel, "litert": as_litert, "onnx": as_onnx}


@pytest.mark.parametrize("key", OPEN)
def test_every_format_answers_in_its_runtime_as_the_bundle(exported, key):
    pixels, expected = exported.pixels, exported.expected
    ask = OPEN[key](exported.folder)
    for some in (slice(1), slice(5), slice(2, 3)):
        found = ask(pixels[some])
        assert list(found) == ["probability"] and found["probability"].dtype == np.float32
        np.testing.assert_allclose(found["probability"], expected[some], rtol=0, atol=1e-5)
    through_us = export.open_exported(exported.folder / export.FORMATS[key].file)(pixels)
    np.testing.assert_allclose(through_us, expected, rtol=0, atol=1e-5)


def test_model_json_describes_the_files_and_how_to_use_them(exported):
    about = json.loads((exported.folder / "model.json").read_text())
    assert about == exported.about
    found = (path for path in exported.folder.rglob("*") if path.is_file())
    there = {path.relative_to(exported.folder).as_posix(): path for path in found}
    assert set(about["files"]) | {"model.json"} == set(there)
    for name, one in about["files"].items():
        assert one == {"bytes": there[name].stat().st_size, "sha256": files.sha256(there[name])}
    for key, one in about["formats"].items():
        of_it = [file["bytes"] for name, file in about["files"].items() if name.split("/")[0] == one["path"]]
        assert sum(of_it) == one["bytes"] > 1000 and 0 <= one["largest_difference"] <= 1e-5
        assert one["versions"]["keras"] == keras.__version__
    assert list(about["formats"]) == list(OPEN)
    size, _, channels = exported.model.input_shape[1:]
    assert about["input"] == {"name": "pixels", "dtype": "uint8", "shape": [None, size, size, channels]}
    assert about["preprocessing"]["size"] == size and about["preprocessing"]["version"] == images.VERSION
    assert about["classes"] == NAMES[: about["output"]["shape"][1]] and about["task"] == "multiclass"
    two = len(about["classes"]) == 2
    assert about["threshold"] == (0.3 if two else None) and about["decision"] == "sensitivity 0.95"
    assert about["called"].startswith("COVID-19 where" if two else "the most probable")
    assert about["weights"] == models.weights_hash(exported.model) and about["bundle"] == "run.model"
    assert about["simulated"] is True and about["purpose"] == "For teaching, never for diagnosis."


def test_nothing_but_the_export_is_left_in_the_folder_above(exported):
    assert [path.name for path in exported.folder.parent.iterdir()] == ["out"]
    assert {path.name for path in exported.folder.parents[1].iterdir() if path.is_dir()} == {"run.model", "new"}


def test_a_probability_of_0_or_1_is_clipped_as_in_the_bundle():
    model, pixels = tempered(small(), 1e4), export.check_images((SIDE, SIDE, 1))
    said = models.predict(model, pixels)
    assert said.min() == 0 and said.max() == 1
    found = export.frozen(model, 3.0)(pixels)["probability"]
    np.testing.assert_allclose(found, calibration.calibrated(calibration.columns(said), 3.0), rtol=0, atol=1e-6)
    assert found.numpy().min() > 1e-3


def test_rounding_is_allowed_where_digits_are_lost_and_hardly_elsewhere():
    model, pixels = tempered(small(), 30), export.check_images((SIDE, SIDE, 1))
    before, said = model.get_weights(), models.predict(model, pixels)
    expected, rounding = export._expected(model, pixels, 3.0)
    np.testing.assert_allclose(expected, calibration.calibrated(calibration.columns(said), 3.0), rtol=0, atol=1e-12)
    nearly = (said > 1 - 1e-5) & (said < 1)
    assert nearly.any() and rounding[nearly].min() > 1e-5 and rounding[said < 0.9].max() < 1e-5
    for one, other in zip(before, model.get_weights()):
        np.testing.assert_array_equal(one, other)


# Refusals


def kept(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("key", OPEN)
def test_a_file_that_answers_otherwise_is_refused_and_the_earlier_export_stays(
    bundle, earlier, tmp_path, monkeypatch, key
):
    out = shutil.copytree(earlier.folder, tmp_path / "out")
    before, convert = kept(out), keras.Model.export
    kernel = models.open_bundle(bundle)[0].layers[-1].get_weights()[0]

    def damaged(model, path, **options):
        convert(model, path, **options)
        path = os.path.join(path, "saved_model.pb") if key == "savedmodel" else path
        with open(path, "rb+") as file:
            data = file.read()
            assert kernel.tobytes() in data
            file.seek(0)
            file.write(data.replace(kernel.tobytes(), (kernel * 1.01).tobytes()))

    monkeypatch.setattr(keras.Model, "export", damaged)
    message = rf"^{key}: probabilities of the file differ .* by up to 0\.\d+; expected at most 1e-05"
    with pytest.raises(CourseError, match=message):
        export.export(bundle, out, formats=[key])
    assert kept(out) == before and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_converter_that_fails_says_why_and_leaves_nothing(bundle, tmp_path, monkeypatch):
    def fails(model, path, **options):
        open(path, "wb").close()
        raise RuntimeError("op Flip is unknown\nat 0xdeadbeef")

    monkeypatch.setattr(keras.Model, "export", fails)
    with pytest.raises(CourseError, match=r"could not be written as onnx \(op Flip is unknown\)\. Nothing was kept"):
        export.export(bundle, tmp_path / "out", formats=["onnx"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", OPEN)
def test_files_that_cannot_be_written_are_said_and_leave_nothing(bundle, tmp_path, key):
    resource = pytest.importorskip("resource")  # not on Windows
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(CourseError, match=r"(cannot be written|could not be written as .*) \(.*File too large"):
            export.export(bundle, tmp_path / "out", formats=[key])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_that_tensorflow_meets_is_called_one(bundle, tmp_path, monkeypatch):
    def full(model, path, **options):
        raise tf.errors.ResourceExhaustedError(None, None, f"{path}; No space left on device")

    monkeypatch.setattr(keras.Model, "export", full)
    with pytest.raises(CourseError, match=r"out cannot be written \(No space left on device\)\. Make room"):
        export.export(bundle, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_an_earlier_one_or_an_empty_folder_and_nothing_else(
    bundle, earlier, tmp_path, caplog, capfd
):
    caplog.set_level("DEBUG")
    out = tmp_path / "out"
    for make in (out.mkdir, lambda: shutil.copytree(earlier.folder, out, dirs_exist_ok=True)):
        make()
        export.export(bundle, out, formats=["litert"])
        assert {path.name for path in out.iterdir()} == {"model.tflite", "model.json"}
    export.export(bundle, out, formats=["onnx"])
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.json"}
    for note in (out / "notes.txt", out / "plots" / "roc.png"):
        note.parent.mkdir(exist_ok=True)
        note.write_text("mine")
        before = kept(out)
        with pytest.raises(CourseError, match=rf"no export has written, {note.relative_to(out)}, .*Name a new folder"):
            export.export(bundle, out, formats=["onnx"])
        assert kept(out) == before
        note.unlink()
    (out / "model.json").write_text("{}")
    foreign = "no export has written"
    for folder, message in ((out, foreign), (bundle, foreign), (out / "model.onnx", "is a file")):
        with pytest.raises(CourseError, match=message):
            export.export(bundle, folder, formats=["onnx"])
    with pytest.raises(CourseError, match=r"cannot be written \(Not a directory\)"):
        export.export(bundle, out / "model.onnx" / "deeper", formats=["onnx"])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not caplog.records and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("temperature", [None, 0, "1.3", float("nan")])
def test_a_card_without_a_temperature_is_refused(bundle, tmp_path, temperature):
    other = shutil.copytree(bundle, tmp_path / "bundle")
    card = json.loads((other / "card.json").read_text())
    (other / "card.json").write_text(json.dumps({**card, "temperature": temperature}))
    with pytest.raises(CourseError, match=f"should name a temperature above 0.* says {temperature}"):
        export.export(other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx", "saved_model/saved_model.pb"])
def test_a_damaged_file_or_none_is_not_opened(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x08\x07 no model")
    with pytest.raises(CourseError, match="is damaged, or was not written by utils.export"):
        export.open_exported(path.parent if path.suffix == ".pb" else path)
    for other in (tmp_path / "none.onnx", path.with_name("model.h5")):
        with pytest.raises(CourseError, match="expected a file of an export"):
            export.open_exported(other)


# The command


def call(*arguments):
    command = [sys.executable, "-m", "utils.export", *map(str, arguments)]
    return subprocess.run(command, cwd=config.ROOT, capture_output=True, text=True, timeout=120)


def test_the_command_prints_a_table_and_nothing_of_the_converters(earlier):
    done = earlier.done
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["Format", "savedmodel", "litert", "onnx"] and len(lines) == 8
    assert "simulated" in lines[-2] and lines[-1] == "For teaching, never for diagnosis."
    assert (earlier.folder / "model.json").is_file()


LIGHT = """import sys
from utils import export
try:
    code = export.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
assert not {"tensorflow", "keras", "onnx", "cv2", "scipy"} & set(sys.modules)
sys.exit(code)"""


@pytest.mark.parametrize("arguments, code, message", [
    (["--help"], 0, "--format FORMAT"), (["x"], 2, "required: --out"), (["x", "--out", __file__], 2, "is a file"),
    (["x", "--out", "y", "--format", "h5"], 2, "invalid choice: 'h5'"),
])  # fmt: skip
def test_help_and_usage_errors_do_not_wait_for_tensorflow(arguments, code, message):
    done = subprocess.run([sys.executable, "-c", LIGHT, *arguments], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == code and message in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_a_broken_bundle_is_one_line_and_exit_2(bundle, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    broken = shutil.copytree(bundle, tmp_path / "broken")
    (broken / "model.keras").write_bytes((broken / "model.keras").read_bytes()[:-200])
    for folder, message in ((broken, "model.keras is damaged"), (tmp_path / "none", "is not a model bundle")):
        assert export.main([str(folder), "--out", str(tmp_path / "out")]) == 2
        out, err = capfd.readouterr()
        assert out == "" and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]
