"""Downloads from a real server on this machine that misbehaves: what is in its place is whole, all else is said."""

import errno
import hashlib
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from http_server import Server, contents

from utils import download
from utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
QUICK = download.Limits(tries=3, pause=0.01, connect=2, read=5, seconds=20, workers=4)
FILES = {f"images/scan {n}, #1 ü%.png": random.Random(n).randbytes(3000 + n) for n in range(8)}
FIRST = next(iter(FILES))


def pins_of(files, *, sizes=True):
    """Pin files as `read_pins` would."""
    pins = {}
    for path, data in files.items():
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        pins[path] = download.Pin(path, len(data) if sizes else None, blob)
    return download.Pins("owner/name", "c" * 40, pins)


PINS = pins_of(FILES)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Do not wait between tries."""
    monkeypatch.setattr(download, "LIMITS", QUICK)


@pytest.fixture
def server(monkeypatch):
    """A healthy server that downloads come from."""
    with Server(FILES) as running:
        running.use(monkeypatch)
        yield running


def get(folder, *, pins=PINS, paths=None, **changes):
    """Fetch with some limits changed."""
    download.fetch(pins, paths or pins.files, folder, limits=QUICK._replace(**changes))


def leave_part(folder, data, *, path=FIRST):
    """Leave what a killed run leaves."""
    part = folder / ".parts" / "killed" / PINS.files[path].blob
    part.parent.mkdir(parents=True)
    part.write_bytes(data)
    return part


def in_thread(function):
    """Run a function beside the test; return the thread and the list that a failure goes to."""
    errors = []

    def run():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


@pytest.fixture
def waiting(monkeypatch):
    """An event: a run has said that it waits for another."""
    event, logger = threading.Event(), logging.getLogger("utils.download")
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: event.set() if "waiting" in record.getMessage() else None
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    yield event
    logger.manager._clear_cache()


# The table of pins


@pytest.mark.parametrize(
    "data, blob",
    [
        (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ],
)
def test_blob_id_is_what_git_says(tmp_path, data, blob):
    (tmp_path / "a").write_bytes(data)
    assert download.blob_id(tmp_path / "a") == blob


def write_pins(folder, *rows, head=f"# owner/na.me-1 at commit {'0' * 40}; id = git blob id"):
    """Write a table of pins."""
    path = folder / "pins.csv"
    path.write_text("\n".join([head, "path,bytes,id", *rows]) + "\n", encoding="utf-8")
    return path


def test_pins_are_read_with_and_without_a_size(tmp_path):
    pins = download.read_pins(write_pins(tmp_path, f'"a, b/ü.png",12,{"1" * 40}', f"c.png,,{'2' * 40}"))
    assert pins.repository == "owner/na.me-1" and pins.commit == "0" * 40
    assert pins.files == {
        "a, b/ü.png": download.Pin("a, b/ü.png", 12, "1" * 40),
        "c.png": download.Pin("c.png", None, "2" * 40),
    }


@pytest.mark.parametrize("path", ["/etc/passwd", "../a", "a/../../b", "a\\..\\b", "C:/a", "a/C:/b", "\\a", ""])
def test_pins_that_lead_out_are_refused(tmp_path, path):
    with pytest.raises(ValueError, match="expected a path inside"):
        download.read_pins(write_pins(tmp_path, f"{path},1,{'1' * 40}"))


def test_pins_need_their_commit_and_ids(tmp_path):
    with pytest.raises(ValueError, match="first line"):
        download.read_pins(write_pins(tmp_path, head="# owner/name at commit main;"))
    with pytest.raises(ValueError, match="and an id"):
        download.read_pins(write_pins(tmp_path, "a,1,../x"))


# GitHub


def test_everything_comes_once_and_no_part_stays(server, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("CXR_QUIET")
    download.fetch(PINS, PINS.files, tmp_path / "new")
    assert contents(tmp_path / "new") == FILES
    assert sorted(server.requests) == sorted((path, None) for path in FILES)
    shown = capfd.readouterr()
    assert "owner/name" in shown.err and not shown.out


def test_quiet_shows_nothing(server, tmp_path, capfd):
    get(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_what_is_there_is_left_alone_and_nothing_is_written(server, tmp_path):
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
    get(tmp_path)
    assert not server.requests and not (tmp_path / ".lock").exists()


def test_only_what_is_missing_or_has_another_size_is_fetched(server, tmp_path):
    (tmp_path / "images").mkdir()
    first, second, third, *_ = FILES
    (tmp_path / first).write_bytes(FILES[first])
    (tmp_path / second).write_bytes(b"cut")
    assert [pin.path for pin in download.missing(PINS, [first, second, third], tmp_path)] == [second, third]
    get(tmp_path, paths=[first, second, third])
    assert contents(tmp_path) == {path: FILES[path] for path in (first, second, third)}
    assert not server.asked(first)


def test_several_come_at_a_time(server, tmp_path):
    server.meeting = threading.Barrier(4)
    get(tmp_path)
    assert contents(tmp_path) == FILES and not server.meeting.broken


def test_files_of_unknown_size(server, tmp_path):
    get(tmp_path, pins=pins_of(FILES, sizes=False))
    assert contents(tmp_path) == FILES
    with pytest.raises(CourseError, match="expected a file from .*; more than 2000 came"):
        get(tmp_path / "other", pins=pins_of(FILES, sizes=False), most=2000)


def test_equal_and_empty_files(server, tmp_path):
    server.files = {"a": b"same", "b/a": b"same", "c": b""}
    get(tmp_path, pins=pins_of(server.files))
    assert contents(tmp_path) == server.files


def test_a_broken_transfer_is_resumed_where_it_broke(server, tmp_path):
    server.fail(FIRST, "breaks off", times=1)
    get(tmp_path)
    assert contents(tmp_path) == FILES
    assert server.asked(FIRST) == [None, f"bytes={len(FILES[FIRST]) // 2}-"]


def test_a_transfer_that_ends_early_without_a_length_is_resumed(server, tmp_path):
    server.fail(FIRST, "breaks off, no length", times=1)
    get(tmp_path)
    assert contents(tmp_path) == FILES
    assert server.asked(FIRST) == [None, f"bytes={len(FILES[FIRST]) // 2}-"]


def test_the_part_of_a_killed_run_is_gone_on_with(server, tmp_path):
    leave_part(tmp_path, FILES[FIRST][:1000])
    get(tmp_path)
    assert contents(tmp_path) == FILES and server.asked(FIRST) == ["bytes=1000-"]


def test_a_whole_part_needs_no_network(server, tmp_path):
    leave_part(tmp_path, FILES[FIRST])
    get(tmp_path)
    assert contents(tmp_path) == FILES and server.asked(FIRST) == []


@pytest.mark.parametrize(
    "data, asked",
    [
        (bytes(1000), ["bytes=1000-", None]),  # found out when the file is whole
        (bytes(len(FILES[FIRST])), [None]),
        (bytes(9000), [None]),
    ],
)
def test_a_wrong_part_is_thrown_away(server, tmp_path, data, asked):
    leave_part(tmp_path, data)
    get(tmp_path)
    assert contents(tmp_path) == FILES and server.asked(FIRST) == asked


@pytest.mark.parametrize("fault, requests", [("no range", 1), ("refuses range", 2), ("wrong range", 2)])
def test_a_server_without_ranges_sends_the_file_from_its_start(server, tmp_path, fault, requests):
    leave_part(tmp_path, FILES[FIRST][:1000])
    server.fail(FIRST, fault)
    get(tmp_path)
    assert contents(tmp_path) == FILES
    assert server.asked(FIRST) == ["bytes=1000-", None][:requests]


def test_a_file_is_moved_only_after_its_check(server, tmp_path):
    server.fail(FIRST, "other content")
    with pytest.raises(CourseError, match="another content came"):
        get(tmp_path, paths=[FIRST])
    assert contents(tmp_path) == {}
    assert server.asked(FIRST) == [None]


def test_a_second_run_waits_and_finds_everything(server, tmp_path, waiting):
    server.meeting = threading.Barrier(2)
    first, errors = in_thread(lambda: get(tmp_path, workers=1))
    assert server.arrived.wait(5)
    second, more_errors = in_thread(lambda: get(tmp_path))
    assert waiting.wait(5)
    meeting, server.meeting = server.meeting, None
    meeting.wait(5)
    first.join(10), second.join(10)
    assert not errors + more_errors and contents(tmp_path) == FILES
    assert sorted(server.requests) == sorted((path, None) for path in FILES)


def test_a_killed_run_frees_the_lock(server, tmp_path, waiting):
    server.fail(FIRST, "hangs")
    code = (
        f"from utils import download as d; d.fetch(d.Pins('owner/name', {'c' * 40!r}, "
        f"{{{FIRST!r}: d.Pin{tuple(PINS.files[FIRST])!r}}}), [{FIRST!r}], {str(tmp_path)!r})"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert server.arrived.wait(20)
    thread, errors = in_thread(lambda: get(tmp_path))
    assert waiting.wait(5)
    child.kill()
    child.wait(5)
    server.heal()
    thread.join(10)
    assert not errors and contents(tmp_path) == FILES


def test_the_pause_is_doubled_and_a_server_may_ask_for_more(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, timeout=None: waits.append(timeout))
    run = download._Fetch(PINS, tmp_path, QUICK._replace(pause=1.0, tries=4))
    answers = iter([download._Again("a"), download._Again("b", 30.0), download._Again("c")])

    def fail(*_):
        raise next(answers, CourseError("enough"))

    run.try_once = fail
    with pytest.raises(CourseError, match="enough"):
        run.bring(None, PINS.files[FIRST])
    assert waits == [1.0, 30.0, 4.0]


@pytest.mark.parametrize("header, seconds", [("7", 7), ("3600", 60), ("Wed, 21 Oct 2026 07:28:00 GMT", 0), (None, 0)])
def test_retry_after(header, seconds):
    headers = {} if header is None else {"Retry-After": header}
    assert download._retry_after(SimpleNamespace(headers=headers)) == seconds


def test_a_refusal_is_not_repeated_and_stops_the_rest(server, tmp_path):
    server.files = {f"{n:03d}.png": b"%d" % n for n in range(60)}
    server.fail("000.png", 410)
    server.fail("001.png", "drips")
    server.files["001.png"] = bytes(1000)
    pins = pins_of(server.files)
    start = time.monotonic()
    with pytest.raises(CourseError) as caught:
        get(tmp_path, pins=pins, workers=2)
    assert time.monotonic() - start < 10  # not the 20 seconds of the file that drips
    assert len(server.requests) < 10 and server.asked("000.png") == [None]
    assert not [thread for thread in threading.enumerate() if thread.name == "download"]  # none writes any longer
    done = len([path for path in contents(tmp_path) if not path.startswith(".")])
    assert re.search(
        rf"(?s)^000.png: expected 1 bytes from 127.*410.*\n{done} of 60 files are in place", str(caught.value)
    )


@pytest.mark.parametrize(
    "fault, words",
    [
        ("drips", r"hardly anything comes any more, \d+ in all"),
        ("hangs", r"cannot be reached \(Read timed out"),
    ],
)
def test_a_server_that_is_too_slow(server, tmp_path, fault, words):
    server.fail(FIRST, fault)
    start = time.monotonic()
    with pytest.raises(CourseError, match=words):
        get(tmp_path, seconds=0.3, read=0.2, tries=2)
    assert time.monotonic() - start < 5


def test_too_many_bytes_leave_no_part(server, tmp_path):
    server.fail(FIRST, "endless")
    with pytest.raises(CourseError, match="more than 3000 came, and were thrown away"):
        get(tmp_path, paths=[FIRST])
    assert contents(tmp_path) == {}


def test_files_are_asked_for_as_they_are(server, tmp_path):
    asked = []

    def note(handler, data):
        asked.append(handler.headers["Accept-Encoding"])
        handler.serve(data)

    server.fail(FIRST, note)
    get(tmp_path, paths=[FIRST])
    assert asked == ["identity"]


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_an_interrupt_ends_a_download_at_once(server, tmp_path):
    def interrupt(handler, data):
        os.kill(os.getpid(), signal.SIGINT)
        server.closing.wait(20)

    server.fail("*", "hangs")
    server.fail(FIRST, interrupt)  # one signal: a second one would end the tests
    # A shell starts what runs in the background with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    start = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            get(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - start < 3 and len(server.requests) <= QUICK.workers
    with FileLock(tmp_path / ".lock", timeout=0):
        assert contents(tmp_path) == {}


def test_a_full_quota_is_a_full_disk(server, tmp_path, monkeypatch):
    def replace(source, target):
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CourseError, match="the disk is full"):
        get(tmp_path, paths=[FIRST])
    assert contents(tmp_path) == {}


def test_a_folder_that_is_a_file(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="cannot be written"):
        get(tmp_path / "file")


def test_a_mirror_that_is_no_address(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_MIRROR", "mirror.school/xray/")
    with pytest.raises(CourseError, match="Is CXR_MIRROR right"):
        get(tmp_path)


def test_a_host_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("CXR_MIRROR", "https://no-such-host.invalid")
    with pytest.raises(CourseError, match="no-such-host.invalid cannot be reached.*HTTPS_PROXY"):
        get(tmp_path, tries=1)
