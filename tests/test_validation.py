"""`course validate`: a bundle on another hospital's folder, through the command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn import metrics as sk
from test_external import make_actualmed

from utils import calibration, images, models, validation
from utils.backend import keras
from utils.errors import CourseError
from utils.files import sha256

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = images.Options(size=32, crop_border=False)
CARD = {
    "task": "binary", "classes": ["Normal", "COVID-19"], "seed": 7, "temperature": 2.0, "simulated": False,
    "manifest": "m", "split": "s", "decision": "sensitivity 0.95 on the validation images",
}  # fmt: skip


def brightness(classes=2):
    """A model that one can check by hand: the brighter the image, the surer it is."""
    pixels = keras.Input((32, 32, 1), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 25.5, offset=-5.0)(pixels))
    weights = keras.initializers.Constant(1.0)
    activation = "sigmoid" if classes == 2 else "softmax"
    return keras.Model(pixels, keras.layers.Dense(classes - (classes == 2), activation, kernel_initializer=weights)(x))


def bundle(work, name="real-full.small", *, card=CARD, classes=2, threshold=0.4):
    folder = work / "models" / name
    models.save_bundle(folder, brightness(classes), options=OPTIONS, card={**card, "threshold": threshold})
    return folder


def picture(path, grey, *, seed):
    """A file of this mean brightness that resembles no other."""
    noise = np.random.default_rng(seed).normal(0, 60, (8, 8))
    noise = np.kron(noise - noise.mean(), np.ones((8, 8)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(grey + noise, 0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def hospital(tmp_path):
    """Twelve healthy people and eight patients, not quite told apart by brightness."""
    folder, rng = tmp_path / "hospital", np.random.default_rng(3)
    for number in range(20):
        sick = number >= 12
        picture(
            folder / ("covid" if sick else "normal") / f"{number}.png", 110 + 25 * sick + rng.normal(0, 15), seed=number
        )
    return folder


def validate(work, *arguments):
    command = [sys.executable, "-m", "utils.course", "validate", *map(str, arguments)]
    environment = {**os.environ, "CXR_WORK_DIR": str(work)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def value(done, name):
    line = next(line for line in done.stdout.splitlines() if line.startswith(name))
    return float(line.removeprefix(name).split()[0])


def test_scores_at_the_cards_own_threshold_on_calibrated_probabilities(hospital, tmp_path):
    (hospital / "covid" / "broken.png").write_bytes(b"no picture")
    picture(hospital / "edema" / "1.png", 120, seed=50)
    done = validate(tmp_path, bundle(tmp_path), hospital)
    assert done.returncode == 0, done.stderr
    files = sorted(hospital.glob("normal/*.png")) + sorted(hospital.glob("covid/[0-9]*.png"))
    pixels = np.stack([images.preprocess(images.read_grey(file), OPTIONS) for file in files])
    truth = np.array([file.parent.name == "covid" for file in files])
    output = calibration.columns(models.predict(brightness(), pixels))
    called = calibration.calibrated(output, 2.0)[:, 1] >= 0.4
    assert 0 < called[truth].mean() and called[~truth].mean() < 1  # it is a test that can fail
    assert value(done, "sensitivity") == pytest.approx(called[truth].mean(), abs=6e-4)
    assert value(done, "specificity") == pytest.approx((~called)[~truth].mean(), abs=6e-4)
    assert value(done, "auroc") == pytest.approx(sk.roc_auc_score(truth, output[:, 1]), abs=6e-4)
    assert value(done, "accuracy, majority") == pytest.approx(12 / 20)
    assert "20 images of 20 patients, 8 of them positive" in done.stdout and "1 Edema" in done.stdout.title()
    assert "broken.png" in done.stdout and "never for diagnosis" in done.stdout and "[" in done.stdout


def test_pictures_of_the_training_run_are_left_out(hospital, tmp_path):
    trained = tmp_path / "trained"
    names = [f"{number}.png" for number in range(3)]
    for number, name in enumerate(names):  # another file of the same picture: half as large again
        trained.mkdir(exist_ok=True)
        Image.open(hospital / "normal" / name).resize((96, 96)).save(trained / name)
    processed = tmp_path / "processed" / "real-full"
    processed.mkdir(parents=True)
    table = pd.DataFrame({"path": names, "sha256": [sha256(trained / name) for name in names]})
    table.to_csv(processed / "manifest.csv", index=False)
    (processed / "manifest.json").write_text(json.dumps({"root": str(trained), "content": "c", "raw": ""}))
    done = validate(tmp_path, bundle(tmp_path), hospital)
    assert done.returncode == 0, done.stderr
    assert "twins of images of the run real-full: 3" in done.stdout and "17 images of 17 patients" in done.stdout


def test_what_could_not_be_checked_is_said(hospital, tmp_path):
    notes = " ".join(validation.validate(bundle(tmp_path), hospital).notes)
    assert "Not checked: twins of training images (the run real-full is not on this computer)" in notes
    notes = " ".join(validation.validate(bundle(tmp_path, card={**CARD, "simulated": True}), hospital).notes)
    assert "trained on simulated radiographs only" in notes


def test_an_external_set_is_read_by_its_layout(tmp_path):
    root = make_actualmed(tmp_path / "download" / "actualmed")
    for number, name in enumerate(("CR.1.2.840.png", "CR.1.2.841.png")):  # the same patient, with and without
        picture(root / "images" / name, 90 + 60 * (number == 0), seed=number)
    done = validate(tmp_path, bundle(tmp_path), root.parent)
    assert "2 images of 1 patients, 1 of them positive" in done.stdout and "1 Pneumonia" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert "files could not be used" in done.stdout and "sensitivity" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("no bundle", "is not a model bundle"),
        ("four classes", "needs a bundle of two classes"),
        ("no folder", "there is no folder"),
        ("no normal", "has no negative class"),
        ("empty", "no negative class"),
        ("two sets", "holds 2 data sets"),
    ],
)
def test_what_cannot_be_tested_is_refused_with_advice(broken, says, hospital, tmp_path):
    made = bundle(tmp_path)
    if broken == "no bundle":
        (made / "card.json").unlink()
    if broken == "four classes":
        card = {**CARD, "task": "multiclass", "classes": list("abcd")}
        made = bundle(tmp_path, "real-full.several", card=card, classes=4, threshold=None)
    if broken == "no folder":
        hospital = tmp_path / "nowhere"
    if broken == "no normal":
        (hospital / "normal").rename(hospital / "other")
    if broken == "empty":
        hospital = tmp_path / "empty"
        hospital.mkdir()
    if broken == "two sets":
        make_actualmed(hospital / "one")
        (hospital / "two" / "X-Ray Image DataSet").mkdir(parents=True)
        for name in ("Covid-19", "No_findings", "Pneumonia"):
            picture(hospital / "two" / "X-Ray Image DataSet" / name / "00000001_000.png", 100, seed=1)
    with pytest.raises(CourseError, match=says):
        validation.validate(made, hospital)


def test_a_refusal_is_a_line_and_an_exit_code(tmp_path):
    done = validate(tmp_path, tmp_path / "nothing", tmp_path)
    assert done.returncode == 2 and "is not a model bundle" in done.stderr and "Traceback" not in done.stderr
