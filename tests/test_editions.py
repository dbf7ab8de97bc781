"""Exercises, their checks, and the two editions that are made from them.

That each check takes right answers and refuses wrong ones is proven while nbval executes the notebooks: see conftest.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils import course, editions
from utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0[1-8]_*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def test_two_to_four_exercises_each_with_a_hint_and_answers_right_and_wrong(path, notebook):
    found = editions.exercises(notebook)
    assert 2 <= len(found) <= 4
    for exercise in found:
        assert exercise.solution["metadata"]["jupyter"] == {"outputs_hidden": True, "source_hidden": True}
        asked = source(notebook["cells"][notebook["cells"].index(exercise.solution) - 1])
        assert asked.startswith(f"### Exercise {exercise.number} · "), asked
        assert "<details><summary>Hint</summary>\n\n" in asked and asked.rstrip().endswith("</details>")
        tried = [answer.right for answer in editions.answers(path.stem) if answer.number == exercise.number]
        assert tried.count(True) >= 2 and tried.count(False) >= 2, "two right and two wrong answers, in tests/answers"
    assert max(answer.number for answer in editions.answers(path.stem)) == len(found)


def test_students_get_the_task_and_the_check_but_no_answer_and_no_output(notebook):
    edition = editions.student(notebook)
    assert not any(cell.get("outputs") for cell in edition["cells"])
    cells = [source(cell) for cell in edition["cells"]]
    text = "\n".join(cells)
    for exercise in editions.exercises(notebook):
        answer = re.findall(r"### BEGIN SOLUTION\n(.*?)\n\s*### END SOLUTION", source(exercise.solution), re.DOTALL)
        assert answer and not any(part in text for part in answer)
        assert source(exercise.check) in cells
    assert text.count("not solved yet") == len(editions.exercises(notebook))


def test_instructors_get_the_same_code_and_beside_it_the_other_answers(path, notebook):
    edition, told = editions.instructor(notebook), editions.told(editions.answers(path.stem))
    assert [*map(source, edition["cells"])] == [
        *map(source, notebook["cells"])
    ]  # nbgrader hands out what is no solution
    for answer in editions.answers(path.stem):
        assert answer.code in told and answer.name in told


def test_no_link_leads_a_student_to_the_solutions(notebook):
    assert "colab.research.google.com" in json.dumps(notebook)
    assert "colab.research.google.com" not in json.dumps(editions.student(notebook))


def test_the_cells_metadata_is_nbgraders(notebook):
    for edition in (editions.student(notebook), editions.instructor(notebook)):
        assert not any("jupyter" in cell["metadata"] for cell in edition["cells"])  # folded no longer
        marked = [cell["metadata"]["nbgrader"] for cell in edition["cells"] if "nbgrader" in cell["metadata"]]
        assert len({one["grade_id"] for one in marked}) == len(marked) == 2 * len(editions.exercises(notebook))
        assert sum(one.get("points", 0) for one in marked) == len(editions.exercises(notebook))
        assert all(one["schema_version"] == 3 and one["solution"] != one["grade"] == one["locked"] for one in marked)


@pytest.mark.parametrize(
    "solution",
    [
        "x = 1",
        "### BEGIN SOLUTION\nx = 1",
        "### END SOLUTION\nx = 1\n### BEGIN SOLUTION",
        "### BEGIN SOLUTION\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION",
    ],
)
def test_a_solution_without_its_marks_is_refused_and_shown(solution):
    with pytest.raises(CourseError, match=r"BEGIN SOLUTION[\s\S]*x = 1"):
        editions.unanswered(solution)


def test_only_what_lies_between_the_marks_is_taken_out_and_blanks_are_kept():
    given = "def f(x):\n    y = 2 * x\n    ### BEGIN SOLUTION\n    return y + 1\n    ### END SOLUTION\n\n\nf(1)"
    left = editions.unanswered(given)
    assert left.startswith("def f(x):\n    y = 2 * x\n    # Your turn") and left.endswith('yet")\n\n\nf(1)')
    with pytest.raises(NotImplementedError, match="not solved yet"):
        exec(left)


def test_a_check_without_a_solution_is_refused():
    cell = {"cell_type": "code", "source": "assert x", "metadata": {"tags": ["check"]}}
    with pytest.raises(CourseError, match="in turn"):
        editions.exercises({"cells": [cell]})


def run(arguments, folder, **environment):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, **{name: str(value) for name, value in environment.items()}},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Both editions as the command builds them; of the solved one, notebooks 00 and 01 have been run."""
    folder = tmp_path_factory.mktemp("build")
    done = run(["utils.editions", "00", "01"], ROOT, CXR_BUILD_DIR=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_command_leaves_two_whole_courses_and_nothing_else(built):
    assert sorted(path.name for path in built.iterdir()) == ["instructor", "student"]
    for path in built.iterdir():
        assert len(list((path / "notebooks").glob("*.ipynb"))) == len(course.notebook_paths())
        assert not [
            part for part in path.rglob("*") if part.name == "__pycache__" and part.parent == path / "utils" / "web"
        ]
        assert (path / "README.md").exists() and (path / "utils" / "weights").is_dir()
    answers = sorted((built / "instructor" / "answers").glob("*.md"))
    assert [path.stem for path in answers] == [path.stem for path in NOTEBOOKS]
    assert (built / "instructor" / "tests" / "contracts").is_dir() and not (built / "student" / "tests").exists()


def test_an_edition_offers_what_it_has_and_no_more(built):
    for edition in built.iterdir():
        readme, makefile = (edition / "README.md").read_text("utf-8"), (edition / "Makefile").read_text("utf-8")
        assert (
            "make lab" in readme
            and "You need `make`, a Python 3." in readme
            and "MIT licence" in readme
            and "DATASET=darkcovidnet" in readme
        )
        links = re.findall(r"\]\(([^)#]+)\)", readme)
        assert links and not [link for link in links if not (edition / link).exists()]
        targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
        assert {"course", "lab", "site"} <= targets and not {"test", "student", "notebooks", "bench"} & targets
        asked_for = subprocess.run(["make", "test"], cwd=edition, capture_output=True, text=True)
        assert "No rule to make target" in asked_for.stderr
        asked = set(re.findall(r"`make ([a-z]+)", readme))
        assert asked <= targets, asked - targets
    assert not (built / "student" / "INSTRUCTORS.md").exists() and (built / "instructor" / "INSTRUCTORS.md").exists()


def test_an_edition_says_that_it_is_one(built):
    for edition in built.iterdir():
        done = run(["utils.editions"], edition)
        assert done.returncode == 2 and "clone of the course" in done.stderr
        assert not (edition / "build").exists()


def test_a_student_runs_all_solves_the_exercises_and_the_checks_say_right(built, tmp_path, work_dir):
    if (work_dir / "raw").exists():  # the same phantoms again would take half a minute
        (tmp_path / "raw").symlink_to(work_dir / "raw")

    def executed():
        done = run(["utils.course", "run", "01"], built / "student", CXR_WORK_DIR=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads((tmp_path / "runs" / "phantom-fast" / "01_data.ipynb").read_text(encoding="utf-8"))
        return [
            [output["output_type"] == "error" for output in cell["outputs"]]
            for cell in told["cells"]
            if "check" in cell["metadata"]["tags"]
        ]

    assert all(any(errors) for errors in executed())
    path = built / "student" / "notebooks" / "01_data.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for exercise in editions.exercises(json.loads((built / "instructor/notebooks/01_data.ipynb").read_text("utf-8"))):
        mine = next(cell for cell in notebook["cells"] if cell["id"] == exercise.solution["id"])
        mine["source"] = source(exercise.solution)
    path.write_text(json.dumps(notebook), encoding="utf-8")
    assert not any(any(errors) for errors in executed())


def test_a_solution_that_does_not_run_is_not_handed_out(tmp_path):
    (tmp_path / "course" / "notebooks").mkdir(parents=True)
    notebook = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[-1]["source"] = "raise ValueError('broken')"
    (tmp_path / "course" / "notebooks" / "00_start_here.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    (tmp_path / "build" / "student").mkdir(parents=True)
    done = run(["utils.editions"], ROOT, CXR_BUILD_DIR=tmp_path / "build", CXR_COURSE_DIR=tmp_path / "course")
    assert done.returncode == 1 and "broken" in done.stdout and "nothing in" in done.stderr
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["student"]
    assert run(["utils.editions", "99"], ROOT, CXR_BUILD_DIR=tmp_path / "build").returncode == 2
