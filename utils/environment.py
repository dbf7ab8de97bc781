"""Build `.venv` from the lock, or say in one line why that cannot be done; say what a student's Python lacks.

`environment.py` builds; `environment.py values` only looks whether the parameters of `make course` have known values,
so that a slip of the pen is refused before anything is built. Run as a script by `make` with whatever `python3`
there is, and by the first cell of each notebook with whatever kernel there is, so it imports nothing but the standard
library and stays readable to Python 3.6: an old Python must meet a sentence, not a syntax error.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.txt"
OLDEST, NEWEST = (3, 11), (3, 13)  # as in pyproject.toml
DISK_GB = 3.2  # what .venv takes, measured

# What notebooks and `utils` import, by its name in Python, and the package that it comes in.
PACKAGES = {
    "tensorflow": "tensorflow",
    "numpy": "numpy",
    "pandas": "pandas",
    "matplotlib": "matplotlib",
    "seaborn": "seaborn",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "pydicom": "pydicom",
    "pylibjpeg": "pylibjpeg",  # pydicom calls these three for compressed pixels
    "libjpeg": "pylibjpeg-libjpeg",
    "openjpeg": "pylibjpeg-openjpeg",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "tf2onnx": "tf2onnx",  # Keras calls it to export
    "ai_edge_litert": "ai-edge-litert",
    "flask": "flask",
    "waitress": "waitress",
    "jinja2": "jinja2",
    "papermill": "papermill",
    "nbclient": "nbclient",
    "nbformat": "nbformat",
    "ipykernel": "ipykernel",
    "requests": "requests",
    "kagglehub": "kagglehub",
    "filelock": "filelock",
    "psutil": "psutil",
    "threadpoolctl": "threadpoolctl",
    "tqdm": "tqdm",
}


def main(arguments=()):
    """Build `.venv` when it is missing or stale. Return the exit status: 0 done, 1 it cannot be done."""
    try:
        if "values" in arguments:
            check_values()
        elif not is_current():
            python = find_python()
            with _alone():
                is_current() or build(python)
    except KeyboardInterrupt:
        print("course: interrupted; the next make begins anew.", file=sys.stderr)
        return 1
    except SystemExit as stop:
        print("course: " + str(stop), file=sys.stderr)
        return 1
    except OSError as error:
        print("course: cannot build {}: {}. Mend that, and run make again.".format(VENV, error), file=sys.stderr)
        return 1
    return 0


def check_values():
    """Stop when the environment names a value of DATASET, PROFILE, RAW or SEED that the course does not know."""
    if sys.version_info[:2] < OLDEST:
        return  # cannot read the course's code; find_python will say what is missing, or the course itself
    sys.path.insert(0, str(ROOT))
    from utils import config

    given = {name.lower(): os.environ[name] for name in config.PARAMETERS if os.environ.get(name)}
    try:
        config.start(**given)
    except config.CourseError as error:
        raise SystemExit(error)


@contextmanager
def _alone():
    # Two commands in a fresh clone: the second waits, and finds .venv built. (Without make, conda does this work.)
    with open(str(ROOT / ".venv.lock"), "w") as lock:
        if os.name == "posix":
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def venv_python():
    """Return the path of the Python inside `.venv`."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def is_current():
    """Tell whether `.venv` was built completely, from the lock as it is now."""
    mark = VENV / "lock.sha256"
    return mark.is_file() and venv_python().exists() and mark.read_text() == _lock_hash()


def find_python():
    """Return the path of a Python that the course runs on: this one, or another on the PATH."""
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        raise SystemExit("TensorFlow has ended for Macs with an Intel processor. Open the notebooks in Colab instead.")
    names = ["python3.{}".format(minor) for minor in range(NEWEST[1], OLDEST[1] - 1, -1)]
    for name in [sys.executable] + [found for found in map(shutil.which, names) if found]:
        probe = "import sys, venv, ensurepip; sys.exit(not {} <= sys.version_info[:2] <= {})".format(OLDEST, NEWEST)
        if name and subprocess.run([name, "-c", probe], stderr=subprocess.DEVNULL).returncode == 0:
            return name
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        raise SystemExit(
            "this Python is {}, the course needs 3.11, 3.12 or 3.13. Install one (python.org, or your system's "
            "packages), or name it: make PYTHON=/path/to/python3.12".format(platform.python_version())
        )
    raise SystemExit(
        "this Python lacks the venv module. On Debian and Ubuntu: sudo apt install python{}.{}-venv".format(
            *sys.version_info[:2]
        )
    )


def check_disk():
    """Stop when the disk has no room for the environment."""
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    if free < DISK_GB:
        raise SystemExit(
            "the environment needs {} GB, and the disk of {} has {:.1f} GB left. Make room, and run make again.".format(
                DISK_GB, ROOT, free
            )
        )


def build(python):
    """Make `.venv` anew with `python` and install the lock; the mark that says it is whole is written last."""
    shutil.rmtree(str(VENV), ignore_errors=True)
    check_disk()
    print("Building .venv from requirements.txt: once, a minute or two ...", flush=True)
    _run([python, "-m", "venv", str(VENV)])
    _install_lock(str(venv_python()))
    (VENV / "lock.sha256").write_text(_lock_hash())


def _install_lock(python):
    # uv is three times faster than pip, but reads neither pip's settings nor every proxy's: where it fails, pip tries.
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r"]
    with tempfile.TemporaryDirectory() as folder:
        only_uv = Path(folder) / "uv.txt"
        only_uv.write_text(re.search(r"^uv==(.*\\\n)*.*\n", LOCK.read_text(), re.MULTILINE).group())
        _run(pip + [str(only_uv)])
    uv = [
        python,
        "-m",
        "uv",
        "pip",
        "install",
        "--quiet",
        "--python",
        python,
        "--compile-bytecode",
        "--link-mode=copy",
    ]
    if subprocess.run(uv + ["--require-hashes", "-r", str(LOCK)], stderr=subprocess.DEVNULL).returncode:
        _run(pip + [str(LOCK)])


def _run(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
    if done.returncode:
        check_disk_after(done.stdout)
        last = [line for line in done.stdout.splitlines() if line.strip()][-1:] or ["no message"]
        raise SystemExit(
            "the packages could not be installed: {} Is the network there (a proxy may need HTTPS_PROXY)? "
            "Then run make again.".format(last[0].strip())
        )


def check_disk_after(output):
    """Stop with the true reason when `output` of a failed command tells of a full disk."""
    if "No space left" in output or "Errno 28" in output:
        raise SystemExit("the disk is full: the environment needs {} GB. Make room, run make again.".format(DISK_GB))


def _lock_hash():
    return hashlib.sha256(LOCK.read_bytes()).hexdigest()


def require(say=None):
    """Stop a notebook whose kernel the course does not run on; on Colab, install what is missing or too old.

    Cheap: it looks whether packages are there, and imports none.

    Parameters
    ----------
    say : callable, optional
        Told in a line what Colab is given.

    Raises
    ------
    CourseError
        The Python is too old, or packages are missing; how to choose the right kernel.
    """
    from utils.errors import CourseError

    missing = [package for name, package in PACKAGES.items() if find_spec(name) is None]
    old = sys.version_info[:2] < OLDEST  # a newer one will do, should the packages be there
    if "google.colab" in sys.modules and not old:
        from utils import colab

        colab.install(missing, say=say)
    elif missing or old:
        raise CourseError(_other_kernel(missing))


def _other_kernel(missing):
    lacks = ", ".join(missing[:3]) + (" and {} more packages".format(len(missing) - 3) if len(missing) > 3 else "")
    return (
        "This notebook runs on Python {}, {}{}. The course needs Python 3.11, 3.12 or 3.13 and packages of its own:\n"
        "- with make: type `make lab` in a terminal, in the folder of the course, and open the notebook there;\n"
        "- in VS Code: Select Kernel, Python Environments, .venv;\n"
        "- with conda, and on Windows: type `conda activate cxr-course`, then `jupyter lab`."
    ).format(platform.python_version(), sys.executable, ", which lacks " + lacks if lacks else "")


def report():
    """List what the course needs beside what is here, for notebook 00.

    Returns
    -------
    list of dict
        One row a thing, with the keys `what`, `needed`, `ok` ("yes" or what to do about it).
    """
    from importlib.metadata import PackageNotFoundError, version

    import psutil

    needed = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
    fine = OLDEST <= sys.version_info[:2] <= NEWEST
    rows = [{"what": "Python", "needed": needed, "ok": "yes" if fine else "no: see README, Set-up"}]
    for name in ("tensorflow", "keras", "scikit-learn", "opencv-python-headless", "pandas", "matplotlib"):
        pinned = re.search(r"^{}==([^ ;\\]+)".format(name), LOCK.read_text(), re.MULTILINE).group(1)
        try:
            ok = (
                "yes"
                if version(name) == pinned
                else "another version, {}: results may differ a little".format(version(name))
            )
        except PackageNotFoundError:
            ok = "missing: run make, or install requirements.txt"
        rows.append({"what": name, "needed": pinned, "ok": ok})
    memory = psutil.virtual_memory().total / 2**30
    free = shutil.disk_usage(str(ROOT)).free / 1e9
    short = "only {:.1f} GB: {}"
    enough = "yes" if memory > 3.5 else short.format(memory, "close other programs")
    rows.append({"what": "memory", "needed": "4 GB", "ok": enough})
    rows.append({"what": "free disk", "needed": "1 GB", "ok": "yes" if free > 1 else short.format(free, "make room")})
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
