"""The bad-input table's rows for a network, a server or a disk that fails during a download.

`case.server` is a healthy `http_server.Server`, `case.home` the folder that the download goes to.
"""

import os
import shutil
import socket
import subprocess
from types import SimpleNamespace

import pytest
from bad_input import Row

_DISK_USAGE = shutil.disk_usage
PROXY = "HTTPS_PROXY"
GOES_ON = r".*\d+ of \d+ files are in place in .* run again.*By hand: .*RAW="
TOO_LONG = r"expected \d+ bytes.*more than \d+ came" + GOES_ON


def _one(case):
    return sorted(case.server.files)[len(case.server.files) // 2]


def _fail(fault, *, times=None, everywhere=False):
    def disturb(case):
        case.server.fail("*" if everywhere else _one(case), fault, times=times)

    return disturb


def _heal(case):
    case.server.heal()


def _closed_port(case):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    case.monkeypatch.setenv("CXR_MIRROR", f"http://127.0.0.1:{port}")


def _open_port(case):
    case.monkeypatch.setenv("CXR_MIRROR", case.server.address)


def _free(size):
    usage = SimpleNamespace(total=size, used=0, free=size)
    return lambda case: case.monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


def _true_free(case):
    case.monkeypatch.setattr(shutil, "disk_usage", _DISK_USAGE)


def mount(folder, options):
    """Mount a file system in memory on a folder, or skip the test."""
    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")


def unmount(folder):
    """Take it away again, with all that is in it."""
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill_up(case):
    _free(10**12)(case)  # there is room before, and none in the middle: another program may fill a disk meanwhile
    mount(case.home, "size=16k")


def _drain(case):
    _true_free(case)
    unmount(case.home)


def _lock_folder(case):
    case.monkeypatch.setenv("CXR_DATA_DIR", str(case.home.parent))
    if hasattr(os, "geteuid") and os.geteuid() == 0:  # root may write everywhere but on a read-only disk
        mount(case.home, "ro,size=1m")
    else:
        case.home.mkdir(parents=True, exist_ok=True)
        case.home.chmod(0o555)


def _unlock_folder(case):
    if os.path.ismount(case.home):
        unmount(case.home)
    else:
        case.home.chmod(0o755)


ROWS = [
    Row("connection breaks off once", _fail("breaks off", times=1), "read", "", _heal),
    Row("connections break off once each", _fail("breaks off", times=1, everywhere=True), "read", "", _heal),
    Row("connection breaks off always", _fail("breaks off"), "error", "the transfer broke off" + GOES_ON, _heal),
    Row("file not found", _fail(404), "error", "the answer was 404.*" + GOES_ON, _heal),
    Row("access refused", _fail(403), "error", "the answer was 403.*" + GOES_ON, _heal),
    Row("too many requests once", _fail(429, times=1), "read", "", _heal),
    Row("server error once", _fail(500, times=1), "read", "", _heal),
    Row("server error always", _fail(500), "error", "the answer was 500.*tries" + GOES_ON, _heal),
    Row("endless redirects", _fail("redirects"), "error", "redirects from address to address" + GOES_ON, _heal),
    Row("log-in page", _fail("html", everywhere=True), "error", "a web page came instead of the file" + GOES_ON, _heal),
    Row("more bytes than announced", _fail("longer"), "error", TOO_LONG, _heal),
    Row("file that never ends", _fail("endless"), "error", TOO_LONG, _heal),
    Row("another content", _fail("other content"), "error", "another content came.*thrown away" + GOES_ON, _heal),
    Row("no network", _closed_port, "error", r"127\.0\.0\.1:\d+ cannot be reached.*" + PROXY + GOES_ON, _open_port),
    Row("disk full before", _free(0), "error", "needs .* MB.*are free.*Nothing was fetched", _true_free),
    Row("disk full in the middle", _fill_up, "error", "the disk is full" + GOES_ON, _drain),
    Row(
        "read-only cache",
        _lock_folder,
        "error",
        "cannot be written.*manages the shared folder.*CXR_DATA_DIR",
        _unlock_folder,
    ),
]
