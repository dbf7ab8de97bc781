"""What earlier projects did by mistake, done on purpose to a copy: each must turn the tests red."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COPIED = (
    "utils",
    "tests",
    "notebooks",
    "conftest.py",
    "pyproject.toml",
    "requirements.txt",
    "environment.yml",
    "Makefile",
)


@pytest.fixture
def copy(tmp_path):
    """A copy of the project to break."""
    for name in COPIED:
        ignore = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        source = ROOT / name
        shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path)
    return tmp_path


@pytest.fixture
def data(work_dir, tmp_path):
    """A copy of what nbval has left in this session, so that a single notebook finds its inputs."""
    if not (work_dir / "processed" / "phantom-fast" / "split.csv").exists():
        pytest.skip("the notebooks were not executed in this session: run `make test`")
    shutil.copytree(work_dir / "processed", tmp_path / "work" / "processed")
    (tmp_path / "work" / "raw").symlink_to(work_dir / "raw")
    return tmp_path / "work"


def replace(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name} no longer holds what this test breaks: {old}"
    path.write_text(text.replace(old, new))


def run_tests(copy, *tests, data=None):
    environment = {**os.environ, "CXR_TEST_WORK_DIR": str(data or "")}
    command = [sys.executable, "-m", "pytest", "-q", *tests]
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=400)
    return done.returncode, done.stdout


def test_shuffled_labels(copy, data):
    replace(
        copy / "utils" / "pipeline.py",
        "tf.constant(np.asarray(targets))",
        "tf.constant(np.random.default_rng(0).permutation(np.asarray(targets)))",
    )
    code, output = run_tests(copy, "notebooks/03_binary_cnn.ipynb", "tests/test_contracts.py", data=data)
    assert code == 1 and "binary.small_cnn.accuracy = " in output, output[-3000:]


def test_scaling_dropped_inside_the_model(copy):
    replace(
        copy / "utils" / "models.py",
        'layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)',
        'layers.Rescaling(1.0, name="scale")(inputs)',
    )
    code, output = run_tests(copy, "tests/test_models.py", "-k", "scaled")
    assert code == 1 and "test_pixels_are_scaled_inside_the_model" in output, output[-3000:]


def test_scaling_done_twice_when_a_file_is_loaded(copy):
    replace(
        copy / "utils" / "images.py",
        "return preprocess(read_grey(path), options)",
        "return preprocess(read_grey(path), options) // 255",
    )
    code, output = run_tests(copy, "tests/test_images.py", "-k", "cache_keeps_order")
    assert code == 1 and "test_the_cache_keeps_order" in output, output[-3000:]


def test_a_patient_on_both_sides(copy):
    replace(copy / "utils" / "splits.py", "splitter.split(np.zeros(len(labels)), labels, patients)",
            "splitter.split(np.zeros(len(labels)), labels, np.arange(len(labels)))")  # fmt: skip
    replace(copy / "utils" / "splits.py", "    assert not shared", "    # assert not shared")
    code, output = run_tests(copy, "tests/test_splits.py", "-k", "two_sides")
    assert code == 1 and "test_no_patient_is_on_two_sides" in output, output[-3000:]


def change_notebook(path, change):
    notebook = json.loads(path.read_text())
    change(notebook["cells"])
    path.write_text(json.dumps(notebook))


def test_a_stored_table_changed(copy):
    def change(cells):
        (output,) = [output for cell in cells for output in cell.get("outputs", []) if "needed" in str(output)]
        for kind, text in output["data"].items():
            output["data"][kind] = "".join(text).replace("memory", "memories")

    change_notebook(copy / "notebooks" / "00_start_here.ipynb", change)
    code, output = run_tests(copy, "notebooks/00_start_here.ipynb")
    assert code == 1 and "memories" in output, output[-3000:]


def test_a_notebook_that_raises(copy):
    def change(cells):
        [cell for cell in cells if cell["cell_type"] == "code"][-1]["source"] = "raise ZeroDivisionError('on purpose')"

    change_notebook(copy / "notebooks" / "00_start_here.ipynb", change)
    code, output = run_tests(copy, "notebooks/00_start_here.ipynb")
    assert code == 1 and "on purpose" in output, output[-3000:]


def test_unbroken_the_same_commands_are_green(copy, data):
    code, output = run_tests(copy, "notebooks/03_binary_cnn.ipynb", "tests/test_contracts.py", data=data)
    assert code == 0, output[-3000:]
    code, output = run_tests(copy, "notebooks/00_start_here.ipynb", "tests/test_splits.py", "-k", "two_sides or Cell")
    assert code == 0, output[-3000:]
