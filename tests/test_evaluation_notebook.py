"""Notebook 05 on sets that lack something: it says what it leaves out, and the rest runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from utils import config, images, manifest, models, sources, splits
from utils.backend import keras

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = images.Options(size=config.PROFILES["fast"].image_size)


def network(outputs, *, constant):
    """Bright images are sick; or all images are alike."""
    pixels = keras.Input((OPTIONS.size, OPTIONS.size, 1), dtype="uint8")
    x = keras.layers.GlobalAveragePooling2D()(
        keras.layers.Rescaling(0.0 if constant else 1 / 25.5, offset=-5.0)(pixels)
    )
    kernel = keras.initializers.RandomNormal(seed=1) if outputs > 1 else keras.initializers.Constant(1.0)
    activation = "softmax" if outputs > 1 else "sigmoid"
    return keras.Model(pixels, keras.layers.Dense(outputs, activation, kernel_initializer=kernel)(x))


def prepare(tmp_path, labels, *, absent=None, one_patient=False, constant=False):
    """A folder set with manifest, split and four bundles, as notebooks 01 to 04 leave them."""
    rng, folder = np.random.default_rng(1), tmp_path / "hospital"
    for label, brightness in zip(labels, (100, 150, 125)):
        (folder / label).mkdir(parents=True)
        for number in range(20):
            noise = np.kron(rng.normal(0, 50, (8, 8)), np.ones((8, 8)))
            Image.fromarray(np.clip(brightness + noise, 0, 255).astype(np.uint8)).save(folder / label / f"{number}.png")
    run = config.start(str(folder))
    loaded = sources.load(run)
    table = loaded.manifest.assign(patient=loaded.manifest["path"])
    part = splits.split_by_patient(table, seed=1)
    if one_patient:
        table["patient"] = np.where(part == "test", "one", table["patient"])
    part = np.where((part == "test") & (table["label"] == absent), "train", part)
    manifest.save(run, loaded.root, table)
    digest = splits.split_hash(table, part)
    manifest.save_split(run, table, part, digest)
    several = sorted(set(table["label"]), key=lambda name: (name != "Normal", name))
    for name in ("small_cnn", "transfer", "multiclass", "ensemble"):
        binary = name in ("small_cnn", "transfer")
        classes = list(manifest.BINARY) if binary else several
        card = {"task": "binary" if binary else "multiclass", "classes": classes, "seed": 7, "temperature": 1.3}
        card |= {"threshold": 0.4 if len(classes) == 2 else None, "decision": "by hand", "metrics": {}}
        card |= manifest.provenance(run, table, digest)
        outputs = 1 if len(classes) == 2 else len(classes)
        models.save_bundle(run.bundle(name), network(outputs, constant=constant), options=OPTIONS, card=card)
    return run, folder


def evaluate(run, folder):
    command = [sys.executable, "-m", "utils.course", "run", "05", "--dataset", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    printed = json.loads((run.executed / "05_evaluation.ipynb").read_text())["cells"]
    said = "".join("".join(o.get("text", "")) for cell in printed for o in cell.get("outputs", []))
    return said, json.loads((run.results / "05_evaluation.json").read_text())["metrics"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    return tmp_path


def test_a_folder_of_two_classes_without_view_sex_age_and_with_one_source(work):
    said, numbers = evaluate(*prepare(work, ("normal", "covid")))
    assert "Not recorded in this data set: view, sex, age" in said and "nothing to compare: source" in said
    assert 0.5 < numbers["binary.small_cnn.test_auroc"] <= 1 and numbers["binary.small_cnn.test_auroc.lo"] is not None
    assert numbers["multiclass.ensemble.test_accuracy.n"] == 8


def test_a_class_that_is_absent_from_the_test(work):
    said, numbers = evaluate(*prepare(work, ("normal", "covid", "opacity"), absent="COVID-19"))
    assert said.count("Missing from the test images: COVID-19") == 2
    assert (
        numbers["binary.small_cnn.test_auroc"] is None and numbers["binary.small_cnn.test_covid_19_sensitivity"] is None
    )
    assert numbers["binary.small_cnn.test_normal_sensitivity"] is not None
    assert numbers["multiclass.ensemble.test_covid_19_auroc"] is None
    assert numbers["multiclass.ensemble.test_balanced_accuracy"] is not None  # of the classes that there are


def test_one_patient_and_answers_that_are_all_alike(work):
    said, numbers = evaluate(*prepare(work, ("normal", "covid", "opacity"), one_patient=True, constant=True))
    assert numbers["binary.transfer.test_auroc"] == 0.5 and numbers["binary.transfer.test_auroc.lo"] is None
    assert "Saved." in said
