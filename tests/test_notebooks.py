"""The stored notebooks keep the house's rules."""

import json
import re
import statistics
from pathlib import Path

import pytest

from utils import course
from utils.report import tags

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return json.loads(request.param.read_text())


@pytest.fixture
def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_holds_exactly_the_four_parameters_and_their_defaults(path):
    course.check_parameters(path, defaults=True)  # raises


def test_first_code_cell_finds_the_package(code):
    assert 'sys.path.insert(0, "..")' in source(code[0])


def test_cells_are_short(code):
    lines = [source(cell).count("\n") + 1 for cell in code[1:]]  # the first is the same everywhere: tests/test_colab.py
    assert statistics.median(lines) <= 8 and max(lines) <= 40


def test_at_most_a_third_of_the_cells_is_exempt_from_comparison(code):
    assert sum("nbval-ignore-output" in tags(cell) for cell in code) <= len(code) / 3
    assert not any(tag in ("nbval-skip", "nbval-raises-exception") for cell in code for tag in tags(cell))


def test_outputs_are_stored_small_and_clean(notebook, code):
    text = json.dumps(notebook)
    assert len(text) < 1_000_000, "over 1 MB: make figures smaller"
    assert any(cell["outputs"] for cell in code), "no stored output: run `make notebooks`"
    for output in (output for cell in code for output in cell["outputs"]):
        assert output["output_type"] != "error" and output.get("name") != "stderr", output
        shown = json.dumps({key: value for key, value in output.items() if key != "metadata"})
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", shown), shown[:300]
        if "image/png" in output.get("data", {}):
            assert len(output["metadata"]["image/png"]["alt"]) > 20, "use plots.show(fig, alt=...)"


def test_no_trace_of_when_and_where_it_was_executed(notebook):
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(set(cell["metadata"]) <= {"tags"} for cell in notebook["cells"])


def test_teaching_not_diagnosis_is_said(notebook):
    text = " ".join("".join(cell["source"]) for cell in notebook["cells"][:2])
    assert re.search(r"for teaching, never for diagnosis", text, re.IGNORECASE)


def test_numbers_of_code_cells_run_through(code):
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
