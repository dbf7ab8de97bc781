"""Downloads from a real server on this machine that misbehaves: what is in its place is whole, all else is said."""

import errno
import hashlib
import io
import logging
import os
import random
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import bad_network
import pytest
from filelock import FileLock
from http_server import ARCHIVE, Server

from utils import download
from utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
QUICK = download.Limits(tries=3, pause=0.01, connect=2, read=5, seconds=20, workers=4)
FILES = {f"images/scan {n}, #1 ü%.png": random.Random(n).randbytes(3000 + n) for n in range(8)}
FIRST = next(iter(FILES))
HANDLE = "owner/chest-set/versions/2"


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
    download.fetch(pins, paths or pins.files, folder, limits=QUICK._replace(**changes), quiet=True)


def contents(folder):
    """Return {path: bytes} of all files but the lock."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if name != ".lock"}


def leave_part(folder, data, *, path=FIRST):
    """Leave what a killed run leaves."""
    part = folder / ".parts" / PINS.files[path].blob
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


@pytest.mark.parametrize("data, blob", [
    (b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
    (b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
])
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
        "a, b/ü.png": download.Pin("a, b/ü.png", 12, "1" * 40), "c.png": download.Pin("c.png", None, "2" * 40),
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


def test_everything_comes_once_and_no_part_stays(server, tmp_path, capfd):
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


@pytest.mark.parametrize("data, asked", [
    (bytes(1000), ["bytes=1000-", None]),  # found out when the file is whole
    (bytes(len(FILES[FIRST])), [None]),
    (bytes(9000), [None]),
])
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
    code = (f"from utils import download as d; d.fetch(d.Pins('owner/name', {'c' * 40!r}, "
            f"{{{FIRST!r}: d.Pin{tuple(PINS.files[FIRST])!r}}}), [{FIRST!r}], {str(tmp_path)!r})")
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    assert server.arrived.wait(20)
    thread, errors = in_thread(lambda: get(tmp_path))
    assert waiting.wait(5)
    child.kill()
    child.wait(5)
    server.heal()
    thread.join(10)
    assert not errors and contents(tmp_path) == FILES


@pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in bad_network.ROWS])
def test_a_bad_network_harms_nothing(server, tmp_path, monkeypatch, row):
    case = SimpleNamespace(server=server, home=tmp_path / "home", monkeypatch=monkeypatch, tmp_path=tmp_path)
    case.server.files = {path: data * 2 for path, data in FILES.items()}
    pins = pins_of(case.server.files)
    row.disturb(case)
    try:
        if row.outcome == "read":
            get(case.home, pins=pins)
            assert contents(case.home) == case.server.files
        else:
            with pytest.raises(CourseError, match=f"(?s){row.words}"):
                get(case.home, pins=pins)
            there = {path: data for path, data in contents(case.home).items() if not path.startswith(".")}
            assert there.items() < case.server.files.items()
    finally:
        row.mend(case)
    get(case.home, pins=pins)
    assert contents(case.home) == case.server.files


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
    assert time.monotonic() - start < 3
    assert len(server.requests) < 10 and server.asked("000.png") == [None]
    assert not [thread for thread in threading.enumerate() if thread.name == "download"]  # none writes any longer
    done = len([path for path in contents(tmp_path) if not path.startswith(".")])
    assert re.search(rf"^000.png: expected 1 bytes from 127.*410.* {done} of 60 files are in place", str(caught.value))


@pytest.mark.parametrize("fault, words", [
    ("drips", r"only \d+ came in 0.3 seconds"),
    ("hangs", r"cannot be reached \(Read timed out"),
])
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
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        get(tmp_path)
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
    with pytest.raises(CourseError, match="no-such-host.invalid cannot be reached.*RAW=.*HTTPS_PROXY"):
        get(tmp_path, tries=1)


# Kaggle

SET = {"chest/a.png": random.Random(1).randbytes(40_000), "chest/b/ü.png": b"b"}


def zipped(files, *, compression=zipfile.ZIP_STORED):
    """Return the bytes of a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture
def kaggle(server, monkeypatch, tmp_path):
    """The server as Kaggle, with a good archive and nobody's log-in."""
    server.files[ARCHIVE] = zipped(SET)
    (tmp_path / "user").mkdir()
    server.use_for_kaggle(monkeypatch, tmp_path / "user")
    return server


@pytest.fixture
def home(tmp_path):
    """The folder that a set goes to."""
    return tmp_path / "home"


def get_kaggle(folder, *, most=10**6):
    download.fetch_kaggle(HANDLE, folder, most=most, quiet=True)


def is_whole(folder):
    """True when exactly the set and its record are there."""
    there = contents(folder)
    record = there.pop("files.csv", b"").decode()
    expected = {f"chest-set/{path}": data for path, data in SET.items()}
    rows = [f"{path},{len(data)},{hashlib.sha256(data).hexdigest()}" for path, data in sorted(expected.items())]
    return there == expected and record.splitlines() == ["path,bytes,sha256", *rows]


def test_a_kaggle_set_comes_whole_and_without_a_word(kaggle, home, capfd, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", "mine")
    monkeypatch.setenv("TBE_RUNTIME_ADDR", "127.0.0.1:9")  # as on Colab, whose cache is not to be used
    get_kaggle(home)
    assert is_whole(home) and not (home / ".kaggle").exists()
    assert capfd.readouterr() == ("", "")
    assert os.environ["KAGGLEHUB_CACHE"] == "mine" and "DISABLE_COLAB_CACHE" not in os.environ
    before = len(kaggle.requests)
    get_kaggle(home)
    assert len(kaggle.requests) == before


def test_a_broken_kaggle_archive_is_resumed(kaggle, home):
    large = random.Random(2).randbytes(5_000_000)
    kaggle.files[ARCHIVE] = zipped({**SET, "large.png": large})
    kaggle.fail(ARCHIVE, "breaks off", times=1)
    get_kaggle(home, most=10**7)
    assert (home / "chest-set" / "large.png").read_bytes() == large
    assert kaggle.asked(ARCHIVE)[-1] == "bytes=2097152-"  # kagglehub keeps whole MiB


@pytest.mark.parametrize("path, fault", [("kaggle", 503), ("kaggle", 429), (ARCHIVE, "other content"), (ARCHIVE, 500)])
def test_kaggle_is_asked_again(kaggle, home, path, fault):
    kaggle.fail(path, fault, times=1)
    get_kaggle(home)
    assert is_whole(home)


@pytest.mark.parametrize("path, fault, words", [
    ("kaggle", 401, "log-in.*Settings.*kaggle.json.*KAGGLE_USERNAME.*kaggle.com/datasets/owner/chest-set.*RAW="),
    ("kaggle", 403, "wants a log-in.*put the .zip, as it is"),
    ("kaggle", 404, "answered 404.*put the .zip, as it is"),
    ("kaggle", 500, "the answer was 500.*3 times.*put the .zip"),
    (ARCHIVE, "other content", "a damaged archive came.*put the .zip"),
    (ARCHIVE, "breaks off", "does not come from Kaggle.*go on from there"),
    (ARCHIVE, "html", "a damaged archive came"),
])
def test_kaggle_refuses(kaggle, home, path, fault, words):
    kaggle.fail(path, fault)
    with pytest.raises(CourseError, match=words):
        get_kaggle(home)
    assert not [name for name in contents(home) if not name.startswith(".")]
    kaggle.heal()
    get_kaggle(home)
    assert is_whole(home)


def test_kaggle_without_network(kaggle, home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    kaggle.address = f"http://127.0.0.1:{port}"
    kaggle.use_for_kaggle(monkeypatch, home)
    with pytest.raises(CourseError, match="Is there a network.*HTTPS_PROXY.*put the .zip, as it is, into .*RAW="):
        get_kaggle(home)


def test_a_damaged_log_in_is_said(kaggle, home, tmp_path):
    (tmp_path / "user" / "kaggle.json").write_text("{")
    with pytest.raises(CourseError, match="Invalid Kaggle credentials file.*create a token"):
        get_kaggle(home)


def test_a_kaggle_set_that_is_too_large_is_deleted(kaggle, home):
    with pytest.raises(CourseError, match="expected at most 1000 bytes; 40001 came, and were deleted"):
        get_kaggle(home, most=1000)
    assert contents(home) == {}


def test_a_full_disk_under_kaggle(kaggle, home):
    bad_network.mount(home, "size=32k")
    try:
        with pytest.raises(CourseError, match="the disk is full"):
            get_kaggle(home)
        assert contents(home) == {}
    finally:
        bad_network.unmount(home)


def test_the_users_zip_replaces_the_network(kaggle, home):
    home.mkdir()
    (home / "archive (2).ZIP").write_bytes(zipped(SET))
    get_kaggle(home)
    assert not kaggle.requests and (home / "archive (2).ZIP").exists()
    (home / "archive (2).ZIP").unlink()
    assert is_whole(home)


def test_two_zips_are_one_too_many(kaggle, home):
    home.mkdir()
    for name in ("a.zip", "b.zip"):
        (home / name).write_bytes(zipped(SET))
    with pytest.raises(CourseError, match="expected one .zip; found a.zip, b.zip"):
        get_kaggle(home)


def test_a_run_killed_before_its_record(kaggle, home):
    get_kaggle(home)
    (home / "files.csv").unlink()
    before = len(kaggle.requests)
    get_kaggle(home)
    assert is_whole(home) and len(kaggle.requests) == before


# Archives


def unpack(tmp_path, data, *, most=10**6):
    (tmp_path / "a.zip").write_bytes(data)
    download.unpack(tmp_path / "a.zip", tmp_path / "set", most=most)


def refused(tmp_path, data, words, **options):
    """Check that an archive is refused and leaves nothing, inside the folder or beside it."""
    with pytest.raises(CourseError, match=words):
        unpack(tmp_path, data, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_an_archive_is_unpacked(tmp_path):
    unpack(tmp_path, zipped({**SET, "empty/": b"", "windows\\c.png": b"c"}, compression=zipfile.ZIP_DEFLATED))
    assert contents(tmp_path / "set") == {**SET, "windows/c.png": b"c"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "set"]


def test_what_a_killed_unpacking_left_is_not_used(tmp_path):
    (tmp_path / ".set.part").mkdir()
    (tmp_path / ".set.part" / "old").write_text("")
    unpack(tmp_path, zipped(SET))
    assert contents(tmp_path / "set") == SET


def test_a_folder_that_is_there_is_not_overwritten(tmp_path):
    (tmp_path / "set").mkdir()
    with pytest.raises(CourseError, match="expected not to be there yet"):
        unpack(tmp_path, zipped(SET))


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b", "..\\a", "C:\\a", "c:a", "x/D:/a", "\\\\host\\a"])
def test_an_entry_that_leads_out(tmp_path, name):
    refused(tmp_path, zipped({"good": b"", name: b"x"}), f"{re.escape(repr(name))} is a link or leads out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_a_link_or_a_pipe(tmp_path, kind):
    entry = zipfile.ZipInfo("link")
    entry.external_attr = (kind | 0o777) << 16
    refused(tmp_path, zipped({"good": b"", entry: b"/etc/passwd"}), "'link' is a link")


def test_a_zip_bomb(tmp_path):
    bomb = zipped({"a": bytes(600_000), "b": bytes(600_000)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10_000
    refused(tmp_path, bomb, "expected at most 1000000 bytes when unpacked; it says 1200000")


def test_a_bomb_that_lies_about_its_size(tmp_path):
    bomb = zipped({"a": bytes(600_000)}, compression=zipfile.ZIP_DEFLATED)
    refused(tmp_path, bomb.replace((600_000).to_bytes(4, "little"), (10).to_bytes(4, "little")), "damaged", most=1000)


def test_an_encrypted_archive(tmp_path):
    data = bytearray(zipped({"a": b"x"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(tmp_path, bytes(data), "'a' is encrypted")


GOOD = zipped({"a": bytes(range(256)) * 40}, compression=zipfile.ZIP_DEFLATED)


@pytest.mark.parametrize("data", [
    b"", b"<html>", GOOD[:-30], GOOD[:60] + b"damage" + GOOD[66:], GOOD.replace(b"\x08\0", b"\x63\0"),
], ids=["empty", "page", "cut", "damage", "method"])
def test_a_damaged_archive(tmp_path, data):
    refused(tmp_path, data, "damaged or something else.*Download it again")


def test_no_flipped_byte_does_anything_else(tmp_path):
    rng = random.Random(0)
    (tmp_path / "around").mkdir()
    for number in range(300):
        data = bytearray(GOOD)
        for _ in range(rng.randint(1, 4)):
            data[rng.choice([rng.randrange(len(data)), rng.randrange(60), -rng.randrange(1, 90)])] = rng.randrange(256)
        (tmp_path / "around" / "a.zip").write_bytes(data)
        try:
            download.unpack(tmp_path / "around" / "a.zip", tmp_path / "around" / "set", most=10**6)
        except CourseError:
            assert os.listdir(tmp_path / "around") == ["a.zip"]
        else:
            assert sorted(os.listdir(tmp_path / "around")) == ["a.zip", "set"]
            shutil.rmtree(tmp_path / "around" / "set")


def test_no_room_for_an_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    refused(tmp_path, zipped(SET), "of the disk are free")


def test_a_disk_that_fills_up_while_unpacking(tmp_path, monkeypatch):
    def copy(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", copy)
    refused(tmp_path, zipped(SET), "the disk is full")


# The record


@pytest.fixture
def recorded(tmp_path):
    """A folder with a record, and what is not in it."""
    for name in ("set/a.png", "set/b.png", "set/inner.zip", "c.txt", "user.zip", ".hidden", "set/.x/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    download.write_record(tmp_path)
    return tmp_path


def test_the_record_lists_what_is_visible(recorded):
    lines = (recorded / "files.csv").read_text().splitlines()
    assert lines[0] == "path,bytes,sha256"
    assert lines[1] == f"c.txt,5,{hashlib.sha256(b'c.txt').hexdigest()}"
    assert [line.split(",")[0] for line in lines[1:]] == ["c.txt", "set/a.png", "set/b.png", "set/inner.zip"]
    download.write_record(recorded)
    assert (recorded / "files.csv").read_text().splitlines() == lines
    download.check_record(recorded)


def test_lost_files_are_named(recorded):
    (recorded / "set/a.png").unlink()
    (recorded / "c.txt").write_text("other size")
    with pytest.raises(CourseError, match=r"c.txt, set/a.png of 4 files are gone .* Delete the folder and fetch"):
        download.check_record(recorded)
    shutil.rmtree(recorded / "set")
    with pytest.raises(CourseError, match="c.txt, set/a.png, set/b.png and 1 more of 4 files"):
        download.check_record(recorded)


@pytest.mark.parametrize("text", [None, "nonsense\n1\n", "path,bytes\na,many\n"])
def test_a_record_that_is_no_record(recorded, text):
    (recorded / "files.csv").unlink() if text is None else (recorded / "files.csv").write_text(text)
    with pytest.raises(CourseError, match="files.csv cannot be read"):
        download.check_record(recorded)
