"""Students' and instructors' editions of the notebooks: `python -m utils.editions [NN ...]`, or `make student`.

The notebooks of the course hold their exercises solved. A cell tagged `solution` answers an exercise between the lines
BEGIN and END below; the cell tagged `check` behind it says whether an answer is right. From these are made

- `build/student`: the answers taken out, to be written anew; outputs cleared; checks kept,
- `build/instructor`: everything solved, and in `answers/` the other answers on which the checks were tried.

Both are whole courses in themselves, and carry nbgrader's cell metadata. The solved one is run before it is kept.
"""

import argparse
import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from utils import config, course, report
from utils.errors import CourseError
from utils.files import move_folder, write_text

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"  # as nbgrader's own
YOUR_TURN = (
    '# Your turn: write your answer here, in place of the next line.\nraise NotImplementedError("not solved yet")'
)
HANDED_OUT = "LICENSE CITATION.cff environment.yml pyproject.toml requirements.txt data/README.md figures utils"
FOR_INSTRUCTORS = "INSTRUCTORS.md CONTRIBUTING.md tests/contracts"
START = """## Start

{needed}

```
make lab        # sets itself up (some minutes), then opens the notebooks in JupyterLab: start with 00_start_here
make course     # runs every notebook, whatever is solved; open data/runs/phantom-fast/report.html
```

Each exercise has a cell for your answer, and below it a check: run both. `make site` builds the course as web pages, `make help` lists
the rest.

*Windows, conda:* `conda env create -f environment.yml`, `conda activate cxr-course`, then `jupyter lab`.

"""  # in the place of what README.md says of the repository
ANSWERS = config.ROOT / "tests" / "answers"


class Exercise(NamedTuple):
    """An exercise: its number in the notebook, and the cells that answer it and check the answer."""

    number: int
    solution: dict
    check: dict


class Answer(NamedTuple):
    """An answer on which a check was tried: the exercise's number, whether it is right, what it does, its code."""

    number: int
    right: bool
    name: str
    code: str


def exercises(notebook):
    """Return the exercises of a notebook in order.

    Raises
    ------
    CourseError
        When a solution has no check right behind it, a check has no solution, or a solution's marks are missing.
    """
    cells = [cell for cell in notebook["cells"] if {"solution", "check"} & set(report.tags(cell))]
    found = [Exercise(n, *pair) for n, pair in enumerate(zip(cells[::2], cells[1::2]), start=1)]
    if len(cells) % 2 or any(
        "solution" not in report.tags(e.solution) or "check" not in report.tags(e.check) for e in found
    ):
        raise CourseError("Expected cells tagged `solution` and `check` in turn; found another order.")
    for exercise in found:
        unanswered("".join(exercise.solution["source"]))
    return found


def unanswered(source):
    """Return a solution's code with what lies between each BEGIN and END taken out, and room for an answer.

    Examples
    --------
    >>> print(unanswered("# The mean.\\n### BEGIN SOLUTION\\nmean = x.mean()\\n### END SOLUTION"))
    # The mean.
    # Your turn: write your answer here, in place of the next line.
    raise NotImplementedError("not solved yet")
    """
    kept, inside = [], False
    for line in source.split("\n"):
        if line.strip() in (BEGIN, END):
            if inside == (line.strip() == BEGIN):
                raise CourseError(f"Expected `{BEGIN}` and `{END}` in turn; found in:\n{source}")
            if not inside:
                kept += [line[: line.index("#")] + row for row in YOUR_TURN.split("\n")]
            inside = not inside
        elif not inside:
            kept.append(line)
    if inside or len(kept) == source.count("\n") + 1:
        raise CourseError(f"Expected the answer between `{BEGIN}` and `{END}`; found in:\n{source}")
    return "\n".join(kept)


def answers(name):
    """Return the answers on which the checks of a notebook are tried.

    Parameters
    ----------
    name : str
        The notebook, for instance "01_data". Its answers lie in `tests/answers/<name>.py`, each behind a line
        `# %% 1 right: what it does` or `# %% 1 wrong: what it does`.

    Returns
    -------
    list of Answer
        Empty where there is no such file.
    """
    path = ANSWERS / f"{name}.py"
    if not path.exists():
        return []
    parts = re.split(r"^# %% (\d+) (right|wrong): (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    rows = zip(parts[::4], parts[1::4], parts[2::4], parts[3::4])
    return [Answer(int(number), kind == "right", text, code.strip()) for number, kind, text, code in rows]


def student(notebook):
    """Return a students' edition: answers taken out, outputs cleared; an exercise not solved stops no run."""
    edition = instructor(notebook)
    for exercise in exercises(edition):
        exercise.solution["source"] = unanswered("".join(exercise.solution["source"]))
        for cell in exercise[1:]:
            cell["metadata"]["tags"].append("raises-exception")
    for cell in edition["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
        else:  # Colab would open the notebook with its solutions
            cell["source"] = re.sub(r"^\[Open in Colab\].*\n\n", "", "".join(cell["source"]), flags=re.MULTILINE)
    return edition


def told(tried):
    """Return, as Markdown, the answers on which the checks of a notebook were tried: what to expect of a class."""
    kinds = {True: "also right", False: "a usual mistake, which the check refuses"}
    parts = [
        f"## Exercise {one.number}, {kinds[one.right]}: {one.name}\n\n```python\n{one.code}\n```\n" for one in tried
    ]
    return "\n".join(parts)


def instructor(notebook):
    """Return an instructors' edition: solved, with nbgrader's metadata: students write solutions, a check gives a point."""
    edition = copy.deepcopy(notebook)
    for exercise in exercises(edition):
        exercise.solution["metadata"].pop("jupyter", None)  # folded no longer, nor in what nbgrader makes of it
        for cell, is_check in ((exercise.solution, False), (exercise.check, True)):
            cell["metadata"]["nbgrader"] = {
                "schema_version": 3,
                "grade_id": cell["id"],
                "solution": not is_check,
                "grade": is_check,
                "locked": is_check,
                "task": False,
                **({"points": 1} if is_check else {}),
            }
    return edition


def build(folder):
    """Write both editions as whole courses to `folder/student` and `folder/instructor`."""
    for name, files in (("student", HANDED_OUT), ("instructor", f"{HANDED_OUT} {FOR_INSTRUCTORS}")):
        for file in files.split():
            _copy(config.ROOT / file, folder / name / file)
        for file, rewritten in (("README.md", _readme), ("Makefile", _makefile)):
            write_text(folder / name / file, rewritten((config.ROOT / file).read_text(encoding="utf-8")))
        for path in course.notebook_paths():
            notebook = report.read_json(path)
            edition = student(notebook) if name == "student" else instructor(notebook)
            write_text(
                folder / name / "notebooks" / path.name, json.dumps(edition, indent=1, ensure_ascii=False) + "\n"
            )

    for path in course.notebook_paths():
        if tried := answers(path.stem):
            write_text(folder / "instructor" / "answers" / f"{path.stem}.md", f"# {path.stem}\n\n{told(tried)}")


def _readme(text):
    """Leave out what holds in the repository alone: its tests, its solutions, and how it is taught and changed."""
    start = START.format(needed=re.search(r"^You need `make`.*?disk\.", text, re.MULTILINE)[0])
    text = re.sub(r"^## Two commands\n.*?(?=^## )", start, text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\*To teach with it:\*.*\n\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^## How it is built\n.*?(?=^MIT licence)", "", text, flags=re.MULTILINE | re.DOTALL)


def _makefile(text):
    gone = "test|student|notebooks|bench"
    text = re.sub(rf"^({gone}): .*\n(\t.*\n)+\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^\.PHONY:.*", lambda line: re.sub(rf" ({gone})\b", "", line[0]), text, flags=re.MULTILINE)


def _copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    else:
        shutil.copy(source, target)


def prove(folder, numbers=()):
    """Run the notebooks of an edition in a data root of their own; return whether all went well."""
    own = {name: value for name, value in os.environ.items() if name != "CXR_COURSE_DIR"}
    with tempfile.TemporaryDirectory(prefix="cxr-editions-", ignore_cleanup_errors=True) as work:
        command = [sys.executable, "-m", "utils.course", "run", *numbers]
        return subprocess.run(command, cwd=folder, env={**own, "CXR_WORK_DIR": work}).returncode == 0


def main(argv=None):
    """Do what the command line says; return the exit code: 0 done, 1 the solved edition does not run, 2 usage, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.editions",
        description="Build the students' and the instructors' edition, and run the solved one.",
        allow_abbrev=False,
    )
    parser.add_argument("numbers", nargs="*", metavar="NN", help="run these notebooks only (default: all)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended like that, too, it leaves nothing behind
    target = Path(os.environ.get("CXR_BUILD_DIR") or config.ROOT / "build")
    try:
        course.notebook_paths(args.numbers)  # raises
        if not ANSWERS.is_dir():
            raise CourseError("This is an edition itself. Editions are built in a clone of the course's repository.")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".editions-", dir=target) as part:
            build(Path(part))
            print("Running the solved edition, as long as `make course` ...", flush=True)
            if not prove(Path(part) / "instructor", args.numbers):
                print(f"The solved edition does not run: nothing in {target} was changed.", file=sys.stderr)
                return 1
            for name in ("student", "instructor"):
                move_folder(Path(part) / name, target / name)
                print(f"{target / name}")
    except KeyboardInterrupt:
        print("Interrupted: nothing was changed.", file=sys.stderr)
        return 130
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"{error.filename or 'A file'} cannot be used: {error.strerror}. Mend that, and run again.", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
