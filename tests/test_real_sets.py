"""The course on real X-rays and on a user's own folder, through the command line."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]


def course(*arguments, work, **settings):
    command = [sys.executable, "-m", "utils.course", *arguments]
    environment = {**os.environ, "CXR_WORK_DIR": str(work), **settings}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)


def results(work, run, notebook):
    return json.loads((work / "results" / run / f"{notebook}.json").read_text())["metrics"]


REAL = {"cohen": ".", "radiography": "radiography", "darkcovidnet": "darkcovidnet"}  # the longest first
OFFLINE = {"https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def runs(shared, tmp_path_factory):
    """The course on each real set: two at a time, as much of a run is one thread's work."""
    with ThreadPoolExecutor(2) as pool:
        works = {dataset: tmp_path_factory.mktemp(dataset) for dataset in REAL}
        # ImageNet's weights for one set; for the others neither these nor a network.
        home = {"darkcovidnet": {"KERAS_HOME": str(shared.parent / "keras_home")}}

        def run(dataset, raw):
            settings = home.get(dataset, {"KERAS_HOME": str(works[dataset] / "keras"), **OFFLINE})
            options = ("run", "--dataset", dataset, "--raw", str(shared / raw))
            return course(*options, work=works[dataset], **settings)

        yield {dataset: (works[dataset], pool.submit(run, dataset, raw)) for dataset, raw in REAL.items()}


@pytest.mark.parametrize(
    ("dataset", "images", "twins"), [("darkcovidnet", 242, 1), ("cohen", 1546, None), ("radiography", 1200, 0)]
)
def test_real_sets_run_through(runs, dataset, images, twins):
    tmp_path, future = runs[dataset]
    done = future.result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    run = f"{dataset}-fast"
    data = results(tmp_path, run, "01_data")
    assert data["data.manifest.images"] == images
    assert twins is None or data["data.twins.pairs"] == twins
    assert results(tmp_path, run, "02_preprocessing")["data.split.shared_patients"] == 0
    binary = results(tmp_path, run, "03_binary_cnn")
    assert binary["binary.small_cnn.auroc"] > 0.6  # it does learn; how well is for the contracts
    transfer = results(tmp_path, run, "04_transfer_learning")
    assert transfer["binary.transfer.auroc"] > 0.6
    assert transfer["multiclass.transfer.accuracy"] > transfer["multiclass.majority.accuracy"]
    card = json.loads((tmp_path / "models" / f"{run}.transfer" / "card.json").read_text())
    assert card["pretrained"] == ("imagenet" if dataset == "darkcovidnet" else "phantom")
    evaluation = results(tmp_path, run, "05_evaluation")
    assert evaluation["binary.transfer.test_auroc"] > 0.6
    assert evaluation["multiclass.ensemble.test_macro_f1"] > evaluation["multiclass.majority.test_macro_f1"]
    cards = sorted((tmp_path / "results" / run).glob("model_card_*.md"))
    assert len(cards) == 4 and all("not known: not recorded" in card.read_text() for card in cards)
    explained = results(tmp_path, run, "06_gradcam_feature_maps")
    assert explained["binary.short_sighted.auroc"] > 0.6
    drawn = {name: share for name, share in explained.items() if name.startswith("lungs.short_sighted_called_covid_19")}
    assert "lungs.short_sighted_called_covid_19_lungnet" in drawn and all(0 < share for share in drawn.values())
    assert ("lungs.short_sighted_called_covid_19_masks_of_the_set" in drawn) == (dataset == "cohen")
    assert "binary.short_sighted.pointing" not in explained  # nobody has drawn the lesions of a real set
    best = json.loads((tmp_path / "models" / f"{run}.abnormal_best" / "card.json").read_text())
    assert best["task"] == "abnormal" and 0 < best["threshold"] < 1 and best["decision"]
    drawn = results(tmp_path, run, "07_shortcuts").get("lungs.lungnet.dice")  # by a network that has seen phantoms only
    assert drawn is None if dataset != "cohen" else drawn > 0.87
    report = json.loads((tmp_path / "runs" / run / "report.json").read_text())
    assert [entry["status"] for entry in report["notebooks"]] == ["ok"] * len(
        list((ROOT / "notebooks").glob("*.ipynb"))
    )
    assert "Traceback" not in done.stdout + done.stderr


def test_all_sets_are_joined_and_their_twins_are_those_of_the_data_notes(shared, tmp_path):
    done = course("run", "01", "--dataset", "all", "--raw", str(shared), work=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    data = results(tmp_path, "all-fast", "01_data")
    assert data["data.manifest.images"] == 2036
    assert {name.removeprefix("data.twins."): count for name, count in data.items() if "data.twins." in name} == {
        "pairs": 6, "ieee8023_darkcovidnet": 62, "ieee8023_radiography": 40, "kermany_radiography": 36,
        "darkcovidnet_radiography": 9}  # fmt: skip


def own_folder(folder, *, patients=14, classes=("normal", "covid", "Edema")):
    """A folder with one sub-folder a class, one of them unknown to the course, and files that are no images."""
    rng = np.random.default_rng(1)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for index in range(patients):
            picture = rng.normal(100, 25, (90, 80))
            picture[30:60, 20:50] += 60 * number
            Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / name / f"{index} scan.png")
    (folder / classes[0] / "notes.png").write_text("no picture")
    (folder / classes[1] / "empty.jpg").write_bytes(b"")
    data = (folder / classes[0] / "0 scan.png").read_bytes()
    (folder / classes[0] / "cut.png").write_bytes(data[: len(data) // 2])
    return folder


def test_an_own_folder_runs_through_and_bad_files_are_counted(tmp_path):
    folder = own_folder(tmp_path / "my own set")
    done = course("run", "--dataset", str(folder), work=tmp_path / "work", KERAS_HOME=str(tmp_path), **OFFLINE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    (run,) = [path.name for path in (tmp_path / "work" / "runs").iterdir()]
    assert run.startswith("my_own_set-") and run.endswith("-fast")
    assert results(tmp_path / "work", run, "01_data")["data.manifest.images"] == 42
    text = (tmp_path / "work" / "runs" / run / "01_data.ipynb").read_text()
    assert "cut.png" in text and "corrupt or truncated" in text


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: (folder / "normal").rename(folder / "hearts"), "no negative class"),
        (lambda folder: [path.unlink() for path in (folder / "covid").iterdir()], "holds no image"),
    ],
)
def test_a_folder_that_does_not_fit_meets_a_message(tmp_path, prepare, message):
    folder = own_folder(tmp_path / "set")
    prepare(folder)
    done = course("run", "--dataset", str(folder), work=tmp_path / "work")
    assert done.returncode in (1, 2) and message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_wrong_layout_names_what_was_found_and_what_was_looked_for(tmp_path):
    folder = own_folder(tmp_path / "set")
    done = course("run", "--dataset", "radiography", "--raw", str(folder), work=tmp_path / "work")
    assert done.returncode == 2
    assert "covid" in done.stderr and "Viral Pneumonia" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "work" / "runs").exists()


def test_one_class_too_small_is_said(tmp_path):
    folder = own_folder(tmp_path / "set", patients=3)
    done = course("run", "01", "02", "--dataset", str(folder), work=tmp_path / "work")
    assert done.returncode == 1 and "at least 5 patients a label" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
