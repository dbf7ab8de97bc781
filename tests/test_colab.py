"""The first cell of each notebook: on Colab, in a wrong kernel, moved away; and what later cells say to a student."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pytest

from utils import colab, config, environment, models
from utils.errors import CourseError

NOTEBOOKS = sorted((config.ROOT / "notebooks").glob("*.ipynb"))


def code_of(path):
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


# What stands in the notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_link_and_first_cell_are_those_of_the_address_in_pyproject(path):
    title = "".join(json.loads(path.read_text())["cells"][0]["source"])
    place = colab.address().removeprefix("https://github.com/")
    link = f"[Open in Colab](https://colab.research.google.com/github/{place}/blob/main/notebooks/{path.name})"
    assert title.split("\n\n")[1] == link, "run .venv/bin/python -m utils.colab"
    assert code_of(path)[0] == colab.first_cell(), "run .venv/bin/python -m utils.colab"


def test_a_fork_writes_its_own_address_and_nothing_else(tmp_path, monkeypatch):
    copy = Path(shutil.copy(NOTEBOOKS[3], tmp_path))
    assert not colab.write(copy)
    (tmp_path / "pyproject.toml").write_text('[project.urls]\nrepository = "https://github.com/some/fork/"\n')
    monkeypatch.setattr(config, "ROOT", tmp_path)
    assert colab.write(copy) and not colab.write(copy)
    before, after = NOTEBOOKS[3].read_text().splitlines(), copy.read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2 and all("github.com/some/fork" in line or "github/some/fork" in line for line in changed)


@pytest.mark.parametrize("path", NOTEBOOKS[2:], ids=lambda path: path.stem)
def test_a_notebook_asks_for_the_earlier_ones_before_anything_slow(path):
    first = next(number for number, cell in enumerate(code_of(path)) if "manifest.open_saved" in cell)
    assert first <= 5


# On Colab


@pytest.fixture(scope="module")
def on_colab(tmp_path_factory):
    """Notebook 03 alone in a folder of a Colab that knows the course's address, some cells run: its folder, outputs."""
    if not shutil.which("git"):
        pytest.skip("needs git, as Colab has it")
    folder = tmp_path_factory.mktemp("colab")
    repository, site, content = folder / "repository", folder / "site", folder / "content"
    for name in ("utils", "notebooks"):
        shutil.copytree(config.ROOT / name, repository / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -q -m one"):
        subprocess.run(["git", *command.split()], cwd=repository, check=True)
    (site / "google" / "colab").mkdir(parents=True)
    (site / "google" / "colab" / "__init__.py").touch()
    (site / "sitecustomize.py").write_text("import google.colab\n")
    content.mkdir()
    first, parameters, imports, opening = code_of(Path(shutil.copy(NOTEBOOKS[3], content)))[:4]
    where = "import utils\nprint(os.path.abspath(utils.__file__), os.getcwd(), config.data_root())"
    cells = [first, parameters, imports, where, opening, first, "SEED = 8", "1 + 1", imports, "SEED = 7", "1 + 2"]
    kernel = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "language": "python"}
    git = {
        "COUNT": "1",
        "KEY_0": f"url.file://{repository}.insteadOf",
        "VALUE_0": colab.address(),
        "GLOBAL": os.devnull,
    }
    kernel["env"] = {f"GIT_CONFIG_{name}": value for name, value in git.items()} | {"PYTHONPATH": str(site)}
    kernel["env"] |= {"CXR_WORK_DIR": "", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "IPYTHONDIR": str(folder / "ipython")}
    (folder / "kernels" / "colab").mkdir(parents=True)
    (folder / "kernels" / "colab" / "kernel.json").write_text(json.dumps({**kernel, "display_name": "Colab"}))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        place = {"metadata": {"path": str(content)}}
        nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="colab", allow_errors=True, resources=place
        ).execute()
    return content, [cell.outputs for cell in notebook.cells]


def test_colab_fetches_the_course_once_and_goes_on_inside_it(on_colab):
    content, (first, _, imports, where, _, again, *_) = on_colab
    assert first == imports == again == []
    here = content / "course"
    assert where[0]["text"].split() == [str(here / part) for part in ("utils/__init__.py", "notebooks", "data")]
    assert (here / ".git").is_dir() and sorted(path.name for path in content.iterdir()) == [NOTEBOOKS[3].name, "course"]


def test_colab_is_told_how_to_run_the_earlier_notebooks_there(on_colab):
    (error,) = on_colab[1][4]
    assert error["traceback"] == [f"CourseError: {error['evalue']}"]
    assert "Run notebook 01_data first, with the same parameters." in error["evalue"]
    assert "`!cd .. && python -m utils.course run 01 02`" in error["evalue"]


def test_no_cell_runs_while_the_parameters_are_others_than_at_the_start(on_colab):
    changed, refused, imports, set_back, goes_on = on_colab[1][6:]
    assert changed == set_back == []
    for (error,) in (refused, imports):
        assert error["output_type"] == "error" and len(error["traceback"]) == 1
        assert "SEED is now 8, but this notebook was started with 7" in error["evalue"]
        assert "Restart the kernel and run all cells from the top" in error["evalue"]
    assert goes_on[0]["data"]["text/plain"] == "3"


def write_wheel(folder, name, version, needs=""):
    """Write a package of one empty module."""
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": "",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


def test_colab_installs_what_is_missing_and_replaces_nothing(tmp_path, monkeypatch):
    for name, version, needs in (
        ("tiny", "1.0", ""),
        ("greedy", "1.0", "Requires-Dist: numpy>=999\n"),
        ("numpy", "999", ""),
    ):
        write_wheel(tmp_path, name, version, needs)
    target = tmp_path / "target"
    settings = {"NO_INDEX": "1", "FIND_LINKS": tmp_path, "TARGET": target, "CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    said = []
    colab.install([], say=said.append)
    assert not said, "nothing is missing here, nothing too old"
    colab.install(["tiny"], say=said.append)
    assert (target / "tiny.py").exists() and len(said) == 1 and "tiny" in said[0]
    with pytest.raises(CourseError, match="greedy could not be installed: ERROR: .*Run this cell again"):
        colab.install(["greedy"])
    assert not list(target.glob("numpy*")), "Colab's own packages must stay as they are"
    monkeypatch.setattr(colab, "NEWER", {"numpy": "998.5"})
    colab.install([], say=said.append)
    assert (target / "numpy.py").exists() and "numpy>=998.5" in said[-1]


# A wrong kernel, a notebook that was moved


def first_cell_in(folder, *options, before=""):
    """Run the first cell with a Python that has nothing but its standard library."""
    command = [sys.executable, "-I", "-S", *options, "-c", f"{before}\n{colab.first_cell()}"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("version", ["", "3.9.1"])
def test_a_wrong_kernel_is_told_how_to_choose_the_right_one(version):
    pretend = "import platform; sys.version_info = (3, 9, 1); platform.python_version = lambda: '3.9.1'"
    done = first_cell_in(config.ROOT / "notebooks", before=f"import sys\n{pretend if version else ''}")
    message = done.stderr[done.stderr.index("CourseError: ") :]
    assert done.returncode == 1 and f"runs on Python {version}" in message and sys.executable in message
    assert "lacks tensorflow, numpy, pandas and" in message
    for way in ("`make lab`", "VS Code: Select Kernel, Python Environments, .venv", "`conda activate cxr-course`"):
        assert way in message
    assert "ModuleNotFoundError" not in done.stderr


def test_the_course_own_kernel_hears_nothing_and_nothing_is_imported_for_it():
    code = f"{colab.first_cell()}\nassert not {{'numpy', 'pandas', 'tensorflow'}} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=config.ROOT / "notebooks", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_notebook_that_was_moved_says_so(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    done = first_cell_in(tmp_path / "elsewhere")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("ImportError: Put this notebook back into the folder `notebooks` of the course")


def test_what_an_old_python_meets_is_written_so_that_it_can_read_it():
    files = [(config.ROOT / "utils" / name).read_text() for name in ("__init__.py", "environment.py", "errors.py")]
    for source in (*files, colab.first_cell()):
        ast.parse(source, feature_version=(3, 6))
        assert not re.search(r":=|\b(tomllib|removeprefix|importlib\.metadata\.)", source)


def imported(source):
    """Return the first names of all modules that a source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        yield from (name.split(".")[0] for name in names)


def test_every_package_that_course_and_notebooks_import_is_looked_for():
    sources = [path.read_text() for path in (config.ROOT / "utils").rglob("*.py") if path.parent.name != "site"]
    sources += [cell for path in NOTEBOOKS for cell in code_of(path)]
    names = {name for source in sources for name in imported(source)} - set(sys.stdlib_module_names) - {"utils"}
    brought_by_others = {"IPython", "keras", "urllib3", "werkzeug"}  # ipykernel, tensorflow, requests, flask
    called_by_others = {"tf2onnx", "pylibjpeg", "libjpeg", "openjpeg"}
    assert set(environment.PACKAGES) == names - brought_by_others | called_by_others
    direct = set(re.findall(r'^    "([\w-]+)", #', (config.ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    assert set(environment.PACKAGES.values()) <= direct


# Bundles


def test_a_bundle_that_is_missing_is_named_with_its_notebook_and_those_that_there_are(tmp_path):
    missing = tmp_path / "models" / "phantom-fast.small_cnn"
    with pytest.raises(CourseError) as error:
        models.open_bundle(missing)
    assert f"{missing} is not a model bundle: there is no such folder. There is no bundle in" in str(error.value)
    assert str(error.value).endswith("Run notebook 03_binary_cnn first, with the same parameters.")
    for name in ("phantom-fast.transfer", "phantom-full.small_cnn", ".part-x"):
        (missing.parent / name).mkdir(parents=True)
        (missing.parent / name / "card.json").touch()
    missing.mkdir()
    (missing / "model.keras").touch()
    with pytest.raises(CourseError) as error:
        models.open_bundle(missing)
    assert "is not a model bundle: it has no card.json. " in str(error.value)
    assert f"Bundles in {missing.parent}: phantom-fast.transfer, phantom-full.small_cnn. Run" in str(error.value)
    with pytest.raises(CourseError, match="Name one of them, or run the notebook that trains it"):
        models.check_bundle(missing.parent / "phantom-fast.transfr")


def test_of_many_bundles_the_nearest_are_named(tmp_path):
    for number in range(30):
        (tmp_path / f"cohen-fast-s{number}.own").mkdir()
        (tmp_path / f"cohen-fast-s{number}.own" / "card.json").touch()
    with pytest.raises(CourseError, match=r": cohen-fast-s29\.own, .*…\. Name") as error:
        models.check_bundle(tmp_path / "cohen-fast-s29.ow")
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("name", models.TRAINED_BY)
def test_each_bundle_is_saved_by_the_notebook_that_is_named(name):
    (path,) = [path for path in NOTEBOOKS if path.stem == models.TRAINED_BY[name]]
    code = "\n".join(code_of(path))
    assert "models.save_bundle(" in code and f'"{name}"' in code
