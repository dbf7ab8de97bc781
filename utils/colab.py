"""Colab: each notebook's link and first cell, written by `python -m utils.colab`, and the packages missing there.

Colab opens a notebook alone: the first cell fetches the rest of the course. The repository's address stands in
pyproject.toml.
"""

import argparse
import importlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

from utils import config
from utils.errors import CourseError, one_line
from utils.files import write_text

BRANCH = "main"  # whose notebooks the links open
# Versions that pip takes; packages of Ubuntu's own may have others.
VERSION = r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[\w.]+)?"
# What must not be older: until 1.7 scikit-learn draws other splits, and 1.6 knows no `curve_kwargs`; until 3.14 Keras
# cannot open the bundle that comes with the course.
NEWER = {"keras": "3.15", "scikit-learn": "1.8"}
LINK = "[Open in Colab](https://colab.research.google.com/github{})"
FIRST_CELL = """import os
import sys

if "google.colab" in sys.modules and not os.path.exists("../utils"):  # Colab opens a notebook alone: fetch the rest
    course = "{address}"
    os.system("test -d course || git clone --quiet --depth 1 " + course + " course")
    os.chdir("course/notebooks")  # not there? Then git could not fetch it
if not os.path.exists("../utils") and not os.environ.get("PYTHONPATH"):  # by which nbgrader finds the course
    raise ImportError("Put this notebook back into the folder `notebooks` of the course, and open it there.")
sys.path.insert(0, "..")  # where the course's own package, `utils`, lies
from utils import environment

environment.require(say=print)"""


def address():
    """Return the address of the course's repository, as pyproject.toml has it."""
    urls = tomllib.loads((config.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    return urls["repository"].rstrip("/")


def first_cell():
    """Return the source of each notebook's first code cell."""
    return FIRST_CELL.format(address=address())


def link(name):
    """Return the line that opens the notebook `name`, a file's name, in Colab."""
    return LINK.format(f"{urlsplit(address()).path}/blob/{BRANCH}/notebooks/{name}")


def write(path):
    """Write link and first cell into a notebook, and change nothing else.

    Parameters
    ----------
    path : pathlib.Path
        A notebook whose first cell is its title and whose first code cell finds the course.

    Returns
    -------
    bool
        Whether anything had to be changed.
    """
    before = path.read_text(encoding="utf-8")
    notebook = json.loads(before)
    title = notebook["cells"][0]
    code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    old = re.escape(LINK).replace(r"\{\}", ".*")
    heading, rest = re.sub(f"{old}\n\n", "", "".join(title["source"])).split("\n\n", 1)
    title["source"] = f"{heading}\n\n{link(path.name)}\n\n{rest}".splitlines(keepends=True)
    code["source"] = first_cell().splitlines(keepends=True)
    after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    if after != before:
        write_text(path, after)
    return after != before


def install(packages, *, say=None):
    """Install packages beside those that Colab has, which stay as they are: so nothing has to start anew.

    Parameters
    ----------
    packages : list of str
        What is missing. Those of `NEWER` are added where Colab's are older.
    say : callable, optional
        Told in a line what is done.

    Raises
    ------
    CourseError
        They cannot be installed; the reason in pip's words.
    """
    found = {}
    for one in importlib.metadata.distributions():
        found.setdefault(one.name, one.version)  # the first on the path is the one that counts
    older = {name for name, needed in NEWER.items() if name in found and _number(found[name]) < _number(needed)}
    wanted = [*packages, *(f"{name}>={NEWER[name]}" for name in sorted(older))]
    if not wanted:
        return
    if say:
        say(f"Colab lacks {', '.join(wanted)}: installing, half a minute ...")
    kept = {name: version for name, version in found.items() if name not in older and re.fullmatch(VERSION, version)}
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "kept.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, "--constraint", constraints, *wanted], capture_output=True, text=True)
    if done.returncode:
        reason = one_line((done.stderr.strip().splitlines() or ["no message"])[-1])
        raise CourseError(f"{', '.join(wanted)} could not be installed: {reason} Run this cell again.")
    importlib.invalidate_caches()


def _number(version):
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def main(argv=None):
    """Write links and first cells into all notebooks; say which have changed."""
    argparse.ArgumentParser(prog="python -m utils.colab", description=__doc__).parse_args(argv)
    for path in sorted((config.ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        print(f"{path.name:<32} {'changed' if write(path) else 'as it was'}")


if __name__ == "__main__":
    main()
