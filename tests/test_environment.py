"""pyproject.toml, the lock and environment.yml say the same; a bad machine meets one line."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from utils import environment

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = (ROOT / "pyproject.toml").read_text()
LOCK = (ROOT / "requirements.txt").read_text()
DIRECT = tomllib.loads(PYPROJECT)["project"]["dependencies"]


@pytest.mark.parametrize("name", DIRECT)
def test_every_dependency_has_its_reason_a_pin_and_a_comment(name):
    assert re.search(rf'^    "{name}", # \w.+', PYPROJECT, re.MULTILINE), f"{name}: no reason in pyproject.toml"
    assert re.search(rf"^{name}==\S+", LOCK, re.MULTILINE), (
        f"{name}: not in the lock; run the command in pyproject.toml"
    )
    comment = rf"^ +#   {name}: \w.+"
    assert re.search(comment, (ROOT / "environment.yml").read_text(), re.MULTILINE), f"{name}: no comment"


def test_environment_yml_installs_the_lock_and_names_nothing_else():
    text = (ROOT / "environment.yml").read_text()
    lines = [line.split("#")[0].strip() for line in text.split("dependencies:")[1].splitlines()]
    assert [line for line in lines if line] == ["- python=3.12", "- pip", "- pip:", "- -r requirements.txt"]
    named = set(re.findall(r"^ +#   ([\w.-]+):", text, re.MULTILINE))
    assert named == set(DIRECT)


def test_the_lock_has_a_hash_for_every_package_and_no_address():
    blocks = re.split(r"\n(?=\S)", LOCK.strip())
    assert len(blocks) > 100
    assert all(re.match(r"[\w.-]+==\S+", block) and "--hash=sha256:" in block for block in blocks)
    assert "://" not in LOCK


def test_the_lock_is_what_is_installed_here():
    rows = {row["what"]: row["ok"] for row in environment.report() if row["what"] not in ("memory", "free disk")}
    assert len(rows) > 5 and set(rows.values()) == {"yes"}, rows


def test_admitted_pythons_agree():
    assert tomllib.loads(PYPROJECT)["project"]["requires-python"] == ">=3.11,<3.14"
    assert (environment.OLDEST, environment.NEWEST) == ((3, 11), (3, 13))


def clone(tmp_path):
    """A folder with what is needed to build the environment, and nothing built."""
    (tmp_path / "utils").mkdir()
    for name in ("Makefile", "requirements.txt", "utils/environment.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def fake_python(folder, version, *, probe):
    """A python that claims a version and answers the probe for venv with an exit status."""
    folder.mkdir()
    runner = folder / "runner.py"
    runner.write_text(
        "import platform, runpy, sys\n"
        f"sys.version_info = {version}\nplatform.python_version = lambda: '.'.join(map(str, {version}))\n"
        "sys.argv = sys.argv[1:]\nsys.path.insert(0, 'utils')\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exit {probe}\nexec {sys.executable} {runner} "$@"\n')
    python.chmod(0o755)
    return python


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ((3, 9, 1), "this Python is 3.9.1, the course needs 3.11, 3.12 or 3.13"),
        ((3, 12, 4), "lacks the venv module"),
    ],
)
def test_a_python_that_does_not_fit_meets_one_line(tmp_path, version, message):
    python = fake_python(tmp_path / "bin", version, probe=1)
    script = f"import shutil, sys; shutil.which = lambda name: None; sys.executable = {str(python)!r}\n"
    runner = tmp_path / "bin" / "runner.py"
    runner.write_text(script + runner.read_text())
    folder = tmp_path / "clone"
    folder.mkdir()
    done = subprocess.run(
        ["make", "test", f"PYTHON={python}"], cwd=clone(folder), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("course:")]) == 1


def test_a_full_disk_meets_one_line(tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    assert environment.main() == 1
    assert "the environment needs 3.2 GB" in capsys.readouterr().err
    assert not (tmp_path / ".venv").exists()


def test_a_failed_installation_says_so_and_is_begun_anew(tmp_path, monkeypatch, capsys):
    lock = tmp_path / "requirements.txt"
    lock.write_text("uv==0.0.0 \\\n    --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "LOCK", lock)
    assert environment.main() == 1
    assert "the packages could not be installed" in capsys.readouterr().err
    assert not environment.is_current()


def make(*arguments, **environ):
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environ},
    )


def test_unknown_variables_are_refused_by_name_before_anything_is_built():
    done = make("course", "EPOCH=3", "DATASET=phantom")
    assert done.returncode == 2 and "EPOCH is not known" in done.stderr and "utils/environment.py" not in done.stdout


@pytest.mark.parametrize("given", ["PROFILE=quick", "DATASET=fantom", "SEED=x", "RAW=/nowhere/at all"])
def test_unknown_values_are_refused_by_name(given):
    done = make("course", given)
    name, value = given.split("=")
    assert done.returncode == 2 and name in done.stderr and value.split("/")[-1] in done.stderr


@pytest.mark.parametrize("given", ["PROFILE=quick", "RAW=/nowhere/at all"])
def test_an_unknown_value_is_refused_before_anything_is_built(tmp_path, given):
    folder = clone(tmp_path)
    for name in ("__init__", "config", "errors", "notebook"):
        shutil.copy(ROOT / "utils" / f"{name}.py", folder / "utils")
    done = subprocess.run(["make", "course", given], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and given.split("=")[0] in done.stderr, done.stderr
    assert not (folder / ".venv").exists() and "Building" not in done.stdout and "Traceback" not in done.stderr


def test_variables_of_another_command_are_refused():
    done = make("test", "DATASET=cohen")
    assert done.returncode == 2 and "DATASET is not known to make test" in done.stderr


def test_only_the_command_line_counts_and_values_arrive_as_typed():
    typed = "/a b/$(touch x)/'q'\"r\"$HOME"
    done = make("course", f"RAW={typed}", PROFILE="quick", EPOCH="3")
    assert done.returncode == 2
    assert typed in done.stderr, done.stderr
    assert not (ROOT / "x").exists()


def test_help_lists_every_command():
    text = make("help").stdout
    commands = re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"course", "test", "lab", "notebooks", "bench"} <= set(commands)
    assert all(f"make {name}" in text for name in commands)
