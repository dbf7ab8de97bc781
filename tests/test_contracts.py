"""The notebooks' results are still right: within the ranges that five seeds and several processors gave."""

import json
from pathlib import Path

import pytest

from utils import config, course

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def executed(request):
    """The run whose results nbval has left in this session."""
    if not any(item.nodeid.startswith("notebooks/") for item in request.session.items):
        pytest.skip("the notebooks were not executed in this session: run `make test`")
    return config.start()


def numbers(request, run, notebook):
    if not any(f"notebooks/{notebook}.ipynb" in item.nodeid for item in request.session.items):
        pytest.skip(f"{notebook} was not executed in this session")
    return json.loads((run.results / f"{notebook}.json").read_text())["metrics"]


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_results_lie_within_their_ranges(executed, request, notebook):
    results = numbers(request, executed, notebook)
    ranges = course.ranges_for(executed, notebook)
    assert ranges, f"{notebook} has no ranges for {executed.name}; make them with tests/contracts/measure.py"
    problems = course.check_results(results, ranges)
    assert not problems, "; ".join(map(str, problems))


@pytest.mark.parametrize(
    ("notebook", "model", "metrics"),
    [
        ("03_binary_cnn", "binary.small_cnn", ("accuracy", "auroc")),
        ("04_transfer_learning", "multiclass.transfer", ("accuracy", "balanced_accuracy")),
        ("04_transfer_learning", "multiclass.ensemble", ("accuracy", "balanced_accuracy")),
        ("05_evaluation", "binary.small_cnn", ("test_accuracy", "test_balanced_accuracy")),
        ("05_evaluation", "multiclass.ensemble", ("test_accuracy", "test_balanced_accuracy")),
    ],
)
def test_predicting_the_majority_falls_outside(executed, request, notebook, model, metrics):
    results = numbers(request, executed, notebook)
    ranges = course.ranges_for(executed, notebook)
    task = model.split(".")[0]
    for metric in metrics:
        lazy = {**results, f"{model}.{metric}": results[f"{task}.majority.{metric}"]}
        assert course.check_results(lazy, ranges) != []


def test_heat_that_is_the_same_everywhere_falls_outside(executed, request):
    notebook = "06_gradcam_feature_maps"
    results, ranges = numbers(request, executed, notebook), course.ranges_for(executed, notebook)
    for score in ("pointing", "times_its_area", "overlap"):
        lazy = {**results, f"binary.short_sighted.{score}": results[f"binary.chance.{score}"]}
        assert course.check_results(lazy, ranges) != []
