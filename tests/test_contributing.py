"""What CONTRIBUTING.md says is done, step by step, in copies of the course: set-up, a data set, a backbone."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from web_app import radiographs

from utils.config import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(?:python)?\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
COPIED = ("utils", "notebooks", "tests", "figures", "README.md", "CONTRIBUTING.md", "Makefile", "conftest.py",
          "pyproject.toml", "requirements.txt", "environment.yml", ".gitattributes", ".gitignore",
          ".pre-commit-config.yaml")  # fmt: skip
NOTEBOOK = "notebooks/08_deployment.ipynb"
needs_git = pytest.mark.skipif(not shutil.which("git"), reason="needs git")


def copy_course(folder):
    """Copy what is needed of the course; the environment is ours."""
    skipped = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name, **({"ignore": skipped} if copy is shutil.copytree else {}))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def run(command, folder, **settings):
    """Run a command in a copy, as from a shell that knows neither .venv nor the network nor this person's git."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "PRE_COMMIT", "CXR_"))}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "PRE_COMMIT_HOME": str(folder / "data" / "pc")}
    env |= dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    env["PATH"] = os.pathsep.join(part for part in env["PATH"].split(os.pathsep) if not part.startswith(sys.prefix))
    shell = isinstance(command, str)
    return subprocess.run(command, cwd=folder, env=env | settings, shell=shell, capture_output=True, text=True)


def git(folder, *arguments, **settings):
    who = ("-c", "user.name=A Student", "-c", "user.email=student@example.org")
    return run(["git", *who, *arguments], folder, **settings)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A repository with all files committed, in a folder with a blank, in which CONTRIBUTING's set-up has been done."""
    folder = copy_course(tmp_path_factory.mktemp("a clone"))
    assert git(folder, "init", "-q", "-b", "main").returncode == 0
    git(folder, "add", "-A")
    assert git(folder, "commit", "-qm", "all").returncode == 0
    return folder


@pytest.fixture(scope="module")
def set_up(clone):
    done = run(BLOCKS[0], clone)
    assert done.returncode == 0, done.stderr
    assert git(clone, "status", "--short").stdout == ""
    return clone


@pytest.fixture
def clean(clone):
    """Afterwards the clone is as it was."""
    yield
    git(clone, "reset", "-q", "--hard", "main")


def change(folder, how, path=NOTEBOOK):
    notebook = json.loads((folder / path).read_text(encoding="utf-8"))
    how(notebook["cells"], notebook["metadata"])
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    (folder / path).write_text(text, encoding="utf-8")


def add_a_line(text, cell=0):
    def how(cells, _):
        markdown = [one for one in cells if one["cell_type"] == "markdown"]
        markdown[cell]["source"] += ["\n", text]

    return how


def merge(folder):
    """Change the first text on one branch and the last on another, and merge."""
    for branch, cell in (("one", 0), ("other", -1)):
        git(folder, "checkout", "-qb", branch, "main")
        change(folder, add_a_line(f"Of branch {branch}.", cell))
        assert git(folder, "commit", "-qam", branch, "--no-verify").returncode == 0
    done = git(folder, "merge", "one", "-m", "both")
    text = (folder / NOTEBOOK).read_text(encoding="utf-8")
    git(folder, "checkout", "-q", "main")
    git(folder, "branch", "-qD", "one", "other")
    assert done.returncode == 0 and "Of branch one." in text and "Of branch other." in text, done.stdout + done.stderr
    json.loads(text)


@needs_git
def test_git_works_without_nbdime_as_in_every_fresh_clone(clone, clean):
    assert "nbdiff" not in git(clone, "config", "--list").stdout
    change(clone, add_a_line("One more sentence."))
    assert '+    "One more sentence."' in git(clone, "diff").stdout
    git(clone, "checkout", ".")
    merge(clone)


@needs_git
def test_git_shows_and_merges_notebooks_cell_by_cell_after_the_set_up(set_up, clean):
    change(set_up, add_a_line("One more sentence."))
    shown = git(set_up, "diff")
    assert shown.returncode == 0 and "modified /cells/0/source" in shown.stdout, shown.stderr
    assert "+One more sentence." in re.sub(r"\x1b\[[0-9;]*m", "", shown.stdout)
    git(set_up, "checkout", ".")
    merge(set_up)


def pre_commit(folder):
    return run([".venv/bin/pre-commit", "run", "--all-files"], folder)


@needs_git
def test_all_checks_pass_here_without_a_network(set_up, clean):
    done = pre_commit(set_up)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"\.(Passed|Failed|Skipped)", done.stdout) == ["Passed"] * 3


def counted_wrong(cells, _):
    next(cell for cell in cells if cell["cell_type"] == "code")["execution_count"] = 41


def warned(cells, _):
    output = {"output_type": "stream", "name": "stderr", "text": ["careful\n"]}
    next(cell for cell in cells if cell["cell_type"] == "code")["outputs"].append(output)


def failed(cells, _):
    output = {"output_type": "error", "ename": "ValueError", "evalue": "no", "traceback": []}
    next(cell for cell in cells if cell["cell_type"] == "code")["outputs"].append(output)


def told_its_folder(cells, _):
    output = {"output_type": "stream", "name": "stdout", "text": ["/home/me/course\n"]}
    next(cell for cell in cells if cell["cell_type"] == "code")["outputs"].append(output)


def timed(cells, _):
    cells[-1]["metadata"]["execution"] = {"iopub.execute_input": "2026-01-01"}


def run_by_papermill(_, metadata):
    metadata["papermill"] = {"duration": 3}


DIRTY = [counted_wrong, warned, failed, told_its_folder, timed, run_by_papermill]


@needs_git
def test_a_dirty_notebook_is_not_committed_and_what_mends_it_is_said(set_up, clean):
    names = [path.name for path in sorted((set_up / "notebooks").glob("*.ipynb"))]
    for name, how in zip(names, DIRTY):  # one fault a notebook: the checks take seconds
        change(set_up, how, f"notebooks/{name}")
    done = git(set_up, "commit", "-qam", "dirty")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "mend with make notebooks" in said, said
    mend = r"^FAILED \S+\[(\d\d)_\w+\] - .*\.venv/bin/python -m utils\.course notebooks NN$"
    assert sorted(re.findall(mend, said, re.MULTILINE)) == [name[:2] for name in names[: len(DIRTY)]], said
    assert git(set_up, "log", "--oneline").stdout.count("\n") == 1


@needs_git
def test_careless_code_is_not_committed_in_files_and_in_notebooks(set_up, clean):
    (set_up / "utils" / "mine.py").write_text("import os\nx = {  'a':1}\n")
    change(set_up, lambda cells, _: cells[-1].update(source=["x = {  'a':1}"], cell_type="code", outputs=[],
                                                     execution_count=99))  # fmt: skip
    git(set_up, "add", "-A")
    done = git(set_up, "commit", "-qm", "careless", SKIP="notebooks")
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "mend with .venv/bin/ruff check --fix" in said and "F401" in said
    format_says = said.split("mend with .venv/bin/ruff format")[1]
    assert "utils/mine.py" in format_says and NOTEBOOK in format_says, said


def written_file(block):
    """Return the place that CONTRIBUTING gives a block of code."""
    before = TEXT[: TEXT.index(block)]
    return re.findall(r"`(utils/[\w/]+\.py)`", before)[-1]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """The folder that CONTRIBUTING talks of: xrays/ and patients.csv, in a folder of another name."""
    folder = tmp_path_factory.mktemp("download") / "2026-01"
    (folder / "xrays").mkdir(parents=True)
    rows = []
    for number, data in enumerate(radiographs(80)):
        (folder / "xrays" / f"{number}.png").write_bytes(data)
        finding = "edema" if number == 79 else ("none", "covid")[number % 2]
        rows.append(
            (f"{number}.png", f"{number // 4}-{number % 2}", finding, "L" if number == 78 else "PA", 30 + number)
        )
    with open(folder / "patients.csv", "w", newline="") as file:
        csv.writer(file).writerows([("file", "patient", "finding", "view", "age"), *rows])
    return folder


def test_the_data_set_of_the_example_is_one_file(tmp_path, hospital):
    course, block = copy_course(tmp_path), BLOCKS[1]
    place = Path(written_file(block))
    assert place == Path("utils/sources/mine.py")
    (course / place).write_text(block)
    python, work = sys.executable, {"CXR_WORK_DIR": str(tmp_path / "work")}
    assert run([python, "utils/environment.py", "values"], course, DATASET="mine", RAW=str(hospital)).returncode == 0

    missing = run([python, "-m", "utils.course", "run", "01", "--dataset", "mine"], course, **work)
    assert missing.returncode == 2 and "Ask for it at https://example.org/mine." in missing.stderr, missing.stderr

    command = [python, "-m", "utils.course", "run", "01", "--dataset", "mine", "--raw", str(hospital.parent)]
    done = run(command, course, **work)
    assert done.returncode == 0, done.stdout + done.stderr
    metrics = json.loads((tmp_path / "work/results/mine-fast/01_data.json").read_text())["metrics"]
    assert (metrics["data.manifest.images"], metrics["data.manifest.patients"]) == (78, 40)

    joined = run([python, "-c", ALL, str(hospital.parent)], course, **work)
    assert joined.stdout.split() == ["mine", "78", "Normal", "39", "COVID-19", "39"], joined.stderr
    assert run([".venv/bin/ruff", "check", str(place)], course).returncode == 0
    assert run([".venv/bin/ruff", "format", "--check", str(place)], course).returncode == 0


ALL = """
import sys
from utils import config, sources
loaded = sources.load(config.start("all", "full", sys.argv[1]))
print(loaded.sources[0].name, len(loaded.manifest), "Normal", (loaded.manifest.label == "Normal").sum(), "COVID-19",
      (loaded.manifest.label == "COVID-19").sum())
"""


def test_the_backbone_of_the_example_is_one_entry(tmp_path):
    course, block = copy_course(tmp_path), BLOCKS[2]
    assert re.findall(r"`BACKBONES`, in `(utils/\w+\.py)`", TEXT) == ["utils/backbones.py"]
    name = re.match(r' +"(\w+)": Backbone', block)[1]
    path = course / "utils" / "backbones.py"
    path.write_text(path.read_text().replace("\nBACKBONES = {\n", f"\nBACKBONES = {{\n{block}"))
    done = run([sys.executable, "-c", BACKBONE, name], course, KERAS_HOME=str(tmp_path / "keras"))
    assert re.search(r"^1 passed", done.stdout, re.MULTILINE), done.stdout + done.stderr
    weights = re.search(r'"(\S+\.h5)"', block)[1]
    assert f"models/{weights}, and could not be downloaded" in done.stdout, done.stdout + done.stderr
    assert f"/{weights}: " in done.stdout  # Keras wanted that very file
    assert run([".venv/bin/ruff", "format", "--check", "utils/backbones.py"], course).returncode == 0


# The course's own test of scaling finds the new entry; and what Keras would download is the file that it names.
BACKBONE = """
import os, sys
import pytest
home = os.environ["KERAS_HOME"]
pytest.main(["-q", "tests/test_backbones.py", "-k", sys.argv[1]])
from utils import backbones
os.environ["KERAS_HOME"] = home
try:
    backbones.build(sys.argv[1], (96, 96, 1))
except backbones.CourseError as error:
    print(error)
"""


def test_the_workflow_calls_the_two_commands_of_the_readme_and_may_only_read():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert set(workflow[True]) == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert job["timeout-minutes"] == 90 and "permissions" not in job
    commands = [step["run"] for step in job["steps"] if "run" in step]
    readme = (ROOT / "README.md").read_text(encoding="utf-8").split("## Two commands")[1]
    assert commands == re.findall(r"^(make \w+) +#", readme, re.MULTILINE)[:2] == ["make course", "make test"]
    actions = [step["uses"] for step in job["steps"] if "uses" in step]
    assert actions and all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in actions)
