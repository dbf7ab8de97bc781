"""`make figures` draws the gallery from the results of this session; what is missing is named."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils import config, figures
from utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["pipeline.png", "phantoms.png", "gradcam.png", "gap.png"]


@pytest.fixture(scope="module")
def run(work_dir):
    if figures.missing(config.start()):
        pytest.skip("the notebooks were not executed in this session: run `make test`")
    return config.start()


@pytest.fixture(scope="module")
def gallery(run, tmp_path_factory):
    return figures.build(run, tmp_path_factory.mktemp("gallery"))


def test_each_figure_is_there_small_and_not_blank(gallery):
    assert [path.name for path in gallery] == NAMES
    for path in gallery:
        pixels = np.asarray(Image.open(path).convert("L"))
        assert path.stat().st_size < 200_000 and pixels.shape[1] >= 800, path.name
        assert (pixels < 128).mean() > 0.01 and (pixels > 250).mean() > 0.1, path.name


def test_a_second_time_by_command_gives_the_same_bytes(gallery, tmp_path):
    command = [sys.executable, "-m", "utils.figures", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(".png") == len(NAMES), done.stderr
    for path in gallery:
        first, second = (hashlib.sha256(one.read_bytes()).digest() for one in (path, tmp_path / path.name))
        assert first == second, path.name


def test_the_gap_is_that_of_the_results(run, gallery, tmp_path):
    scores = json.loads((run.results / "07_shortcuts.json").read_text())["metrics"]
    fig = figures.gap(run)
    written = {text.get_text().split()[0] for ax in fig.axes for text in ax.texts}
    assert f"{scores['planted.no_cure.auroc_no_link']:.3f}" in written
    real = pd.read_csv(figures.REAL, comment="#")
    assert {f"{value:.3f}" for value in real["auroc"]} <= written
    assert "simulated" in fig.axes[0].get_title(loc="left").lower() and "Real" in fig.axes[1].get_title(loc="left")


def test_without_results_it_says_which_notebooks_must_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path))
    with pytest.raises(CourseError, match="utils.course run 01 02 03 04 06 07"):
        figures.build(config.start(), tmp_path / "gallery")
    assert not (tmp_path / "gallery").exists()


def test_the_command_runs_what_is_missing_and_stops_where_that_fails(tmp_path):
    environment = {
        **os.environ,
        "CXR_WORK_DIR": str(tmp_path / "work"),
        "CXR_COURSE_DIR": str(tmp_path),
    }  # no notebooks
    command = [sys.executable, "-m", "utils.figures", "--out", str(tmp_path / "gallery")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "01, 02, 03, 04, 06, 07" in done.stdout and "There are no notebooks" in done.stderr
    assert not (tmp_path / "gallery").exists()


def test_real_xrays_are_never_drawn(tmp_path):
    with pytest.raises(CourseError, match="simulated radiographs only"):
        figures.build(config.start("darkcovidnet"), tmp_path)


def results(folder, dataset, **metrics):
    folder.mkdir()
    about = {"notebook": "07_shortcuts", "dataset": dataset, "profile": "fast", "seed": 7, "metrics": metrics}
    (folder / "07_shortcuts.json").write_text(json.dumps(about))
    return folder


def score(name, value):
    return {name: value, f"{name}.lo": value - 0.1, f"{name}.hi": value + 0.1, f"{name}.n": 50}


def test_the_table_of_real_scores_is_written_from_results(tmp_path):
    found = score("abnormal.real_model.sources_seen_auroc", 0.8) | score(
        "abnormal.real_model.sources_unseen_auroc", 0.6
    )
    figures.write_real(results(tmp_path / "all", "all", **found), tmp_path / "table.csv")
    first, *rest = (tmp_path / "table.csv").read_text().splitlines()
    assert re.match(r"# make course DATASET=all PROFILE=fast SEED=7, notebook 07, \d{4}-\d\d-\d\d", first)
    assert rest == ["task,sources,auroc,lo,hi,n", "abnormal,seen,0.8,0.7,0.9,50", "abnormal,unseen,0.6,0.5,0.7,50"]


@pytest.mark.parametrize(
    ("dataset", "message"), [("phantom", "simulated"), ("cohen", "leaves no sources out"), (None, "run that notebook")]
)
def test_a_table_of_real_scores_needs_real_scores(dataset, message, tmp_path):
    folder = results(tmp_path / "some", dataset) if dataset else tmp_path
    with pytest.raises(CourseError, match=message):
        figures.write_real(folder, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_shows_what_the_command_makes_with_a_description(name):
    assert (ROOT / "figures" / name).stat().st_size < 200_000
    (alt,) = re.findall(rf"!\[(.*)\]\(figures/{name}\)", (ROOT / "README.md").read_text())
    assert len(alt) > 60
