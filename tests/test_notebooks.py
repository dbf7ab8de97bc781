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
# A check before each commit runs these tests, so each says what mends it; NN is the number of the notebook.
MEND = "mend with .venv/bin/python -m utils.course notebooks NN"
BY_HAND = f"mend the cell, then {MEND.removeprefix('mend with ')}"


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
    assert 'sys.path.insert(0, "..")' in source(code[0]), f"no sys.path.insert(0, '..') there: {BY_HAND}"


def test_cells_are_short(code):
    # The first is the same everywhere (tests/test_colab.py), and nobody need read the checks of exercises.
    lines = [source(cell).count("\n") + 1 for cell in code[1:] if "check" not in tags(cell)]
    assert statistics.median(lines) <= 8 and max(lines) <= 40, f"over 40 lines, or half of them over 8: {BY_HAND}"


def test_at_most_a_third_of_the_cells_is_exempt_from_comparison(code):
    exempt = sum("nbval-ignore-output" in tags(cell) for cell in code)
    assert exempt <= len(code) / 3, f"{exempt} of {len(code)} cells are tagged nbval-ignore-output: {BY_HAND}"
    for tag in ("nbval-skip", "nbval-raises-exception"):
        assert not any(tag in tags(cell) for cell in code), f"a cell is tagged {tag}: {BY_HAND}"


def test_outputs_are_stored_small_and_clean(notebook, code):
    text = json.dumps(notebook)
    assert len(text) < 1_000_000, f"over 1 MB, figures are too large: {BY_HAND}"
    assert any(cell["outputs"] for cell in code), f"no stored output: {MEND}"
    for output in (output for cell in code for output in cell["outputs"]):
        bad = output["output_type"] == "error" or output.get("name") == "stderr"
        assert not bad, f"an error or a warning is stored: {BY_HAND}\n{str(output)[:300]}"
        shown = json.dumps({key: value for key, value in output.items() if key != "metadata"})
        path = re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", shown)
        assert not path, f"a path of one computer is stored: {BY_HAND}\n{shown[:300]}"
        assert " at 0x" not in shown, f"an address in memory is stored: {MEND}\n{shown[:300]}"
        if "image/png" in output.get("data", {}):
            alt = output["metadata"].get("image/png", {}).get("alt", "")
            assert len(alt) > 20, f"a figure without alternative text, use plots.show(fig, alt=...): {BY_HAND}"


def test_no_trace_of_when_and_where_it_was_executed(notebook):
    kept = notebook["metadata"].keys() == {"kernelspec", "language_info"}
    assert kept and notebook["metadata"]["kernelspec"]["name"] == "python3", f"metadata of a run: {MEND}"
    others = {key for cell in notebook["cells"] for key in cell["metadata"]}.difference(course.KEPT)
    assert not others, f"metadata of cells ({', '.join(others)}): {MEND}"


def test_teaching_not_diagnosis_is_said(notebook):
    text = " ".join("".join(cell["source"]) for cell in notebook["cells"][:2])
    assert re.search(r"for teaching, never for diagnosis", text, re.IGNORECASE), (
        f"'for teaching, never for diagnosis' is not said: {BY_HAND}"
    )


def test_numbers_of_code_cells_run_through(code):
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), f"the cells were not executed in order, each once: {MEND}"


def test_table_of_the_readme_map_and_files_name_the_same_notebooks():
    table = re.findall(r"^\| \[(\d\d) (.+?)\]\(notebooks/(\S+)\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [file for *_, file in table] == [path.name for path in NOTEBOOKS]
    (course_map,) = (one for one in cells_of("00") if '"the map"' in source(one))
    shown = re.findall(r'^    \("(\d\d)", "(.+?)",', source(course_map), re.MULTILINE)
    assert [number for number, _ in shown] == [number for number, *_ in table]
    for (number, title, file), (_, longer) in zip(table, shown):
        assert longer.startswith(title), f"{number}: README says {title}, notebook 00 says {longer}"
        named = f"{source(cells_of(number)[0]).splitlines()[0]} {file}".lower()
        assert title.lower().split()[-1] in named, f"{number}: neither its title nor its name says {title}"


def cells_of(number):
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(number))
    return json.loads(path.read_text())["cells"]


def glossary():
    """Rows of the last cell of notebook 00: terms, what they mean, and where they are said to appear first."""
    text = source(cells_of("00")[-1])
    assert text.startswith("## Glossary")
    return re.findall(r"^\| \*\*(.+?)\*\* \| (.+?) \| (.+?) \|$", text, re.MULTILINE)


def test_the_glossary_is_in_order_and_each_term_stands_in_it_once():
    terms = [term for row in glossary() for term in row[0].split(", ")]
    firsts = [row[0].lower() for row in glossary()]
    assert firsts == sorted(firsts) and len(set(terms)) == len(terms) > 80


def test_each_term_of_the_glossary_appears_where_it_is_said_to():
    other_words = {"confidence interval": "95 % interval", "duplicates": "duplicate", "external validation": "external"}
    lacking = []
    for terms, _, where in glossary():
        for place in re.findall(r"\d\d|README", where):
            text = (ROOT / "README.md").read_text() if place == "README" else said_in(place)
            stems = [re.sub(r"(ing|ion|ix|ed|s|e)$", "", other_words.get(term, term)) for term in terms.split(", ")]
            found = [re.search(rf"(?<!\w){re.escape(stem)}", text, re.IGNORECASE) for stem in stems]
            lacking += [] if all(found) else [f"{terms}: not in {place}"]
    assert not lacking


def said_in(number):
    """All that a notebook says, its code (figures have words, too) among it, but no glossary."""
    return " ".join(" ".join(map(source, cells_of(number))).partition("## Glossary")[0].split())
