"""Hand one notebook out, back in, and have it graded by the real nbgrader.

    python tests/benchmarks/try_nbgrader.py [01_data]

nbgrader is not part of the course: it is installed beside the lock in an environment of its own, in a temporary folder. From
`build/instructor`'s notebook it makes the students' version; three students hand in, one with the solutions, one with the usual
mistakes of `tests/answers`, one with nothing; it grades them, and this prints the points. It exits with 1 where they are not all,
none and none.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import editions, report  # noqa: E402
from utils.files import write_text  # noqa: E402

NBGRADER = "nbgrader==0.9.6"
CONFIG = """
c = get_config()
c.CourseDirectory.course_id = "cxr"
c.Exchange.root = "exchange"
c.ExecutePreprocessor.timeout = 300
c.Execute.timeout = 300
"""


def installed(folder):
    """Return a Python that has the lock and nbgrader."""
    uv, python = ROOT / ".venv" / "bin" / "uv", folder / "venv" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", folder / "venv", "--python", sys.executable], check=True)
    for wanted in (["-r", ROOT / "requirements.txt"], [NBGRADER]):
        subprocess.run([uv, "pip", "install", "-q", "--python", python, *wanted], check=True)
    return python


def handed_in(release, exercises, code):
    """Return the students' version with an answer's code (or none) in each exercise."""
    notebook = json.loads(json.dumps(release))
    for exercise in exercises:
        if exercise.number in code:
            mine = next(cell for cell in notebook["cells"] if cell.get("id") == exercise.solution["id"])
            mine["source"] = code[exercise.number]
    return notebook


def main(name="01_data"):
    """Print each student's points; return the exit code."""
    notebook = report.read_json(ROOT / "notebooks" / f"{name}.ipynb")
    exercises, tried = editions.exercises(notebook), editions.answers(name)
    with tempfile.TemporaryDirectory(prefix="nbgrader-") as folder:
        folder = Path(folder)
        python, course = installed(folder), folder / "course"
        write_text(course / "nbgrader_config.py", CONFIG)
        write_text(course / "source" / "cxr" / f"{name}.ipynb", json.dumps(editions.instructor(notebook)))
        # nbgrader executes each hand-in in a folder of its own: the course is found by PYTHONPATH.
        own = {"PYTHONPATH": str(ROOT), "CXR_WORK_DIR": str(folder / "data"), "CXR_QUIET": "1"}
        own["PATH"] = os.pathsep.join([str(python.parent), os.environ["PATH"]])  # it calls alembic by name

        def nbgrader(*command):
            command = [python, "-m", "nbgrader", *command, "--log-level=WARN"]
            subprocess.run(command, cwd=course, env={**os.environ, **own}, check=True)

        nbgrader("generate_assignment", "cxr")
        release = report.read_json(course / "release" / "cxr" / f"{name}.ipynb")
        text = "\n".join("".join(cell["source"]) for cell in release["cells"])
        assert not any(answer.code in text for answer in tried), "answers are handed out"
        students = {
            "solved": {exercise.number: "".join(exercise.solution["source"]) for exercise in exercises},
            "mistaken": {answer.number: answer.code for answer in tried if not answer.right},
            "nothing": {},
        }
        for student, code in students.items():
            path = course / "submitted" / student / "cxr" / f"{name}.ipynb"
            write_text(path, json.dumps(handed_in(release, exercises, code)))
        nbgrader("autograde", "cxr")
        nbgrader("export", "--to=grades.csv")
        import pandas as pd

        grades = pd.read_csv(course / "grades.csv").set_index("student_id")[["score", "max_score"]]
    print(grades.to_string())
    return int(grades["score"].to_dict() != {"solved": len(exercises), "mistaken": 0, "nothing": 0})


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
