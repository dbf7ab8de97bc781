"""Kaggle's sets from a server on this machine, and archives that nobody vouches for: whole, or not at all."""

import errno
import hashlib
import io
import os
import random
import re
import shutil
import socket
import stat
import zipfile
from types import SimpleNamespace

import bad_network
import pytest
from http_server import ARCHIVE, Server, contents

from utils import download
from utils import kaggle as kaggle_sets
from utils.errors import CourseError

HANDLE = "owner/chest-set/versions/2"
SET = {"chest/a.png": random.Random(1).randbytes(40_000), "chest/b/ü.png": b"b"}


def zipped(files, *, compression=zipfile.ZIP_STORED):
    """Return the bytes of a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Do not wait between tries."""
    monkeypatch.setattr(download, "LIMITS", download.Limits(tries=3, pause=0.01))


@pytest.fixture
def kaggle(monkeypatch, tmp_path):
    """A server as Kaggle, with a good archive and nobody's log-in."""
    (tmp_path / "user").mkdir()
    with Server({ARCHIVE: zipped(SET)}) as server:
        server.use_for_kaggle(monkeypatch, tmp_path / "user")
        yield server


@pytest.fixture
def home(tmp_path):
    """The folder that a set goes to."""
    return tmp_path / "home"


def get_kaggle(folder, *, most=10**6):
    kaggle_sets.fetch(HANDLE, folder, most=most)


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


@pytest.mark.parametrize(
    "path, fault, words",
    [
        ("kaggle", 401, "log-in.*Settings.*kaggle.json.*KAGGLE_USERNAME.*kaggle.com/datasets/owner/chest-set.*RAW="),
        ("kaggle", 403, "wants a log-in.*put the .zip, as it is"),
        ("kaggle", 404, "answered 404.*put the .zip, as it is"),
        ("kaggle", 500, "the answer was 500.*3 times.*put the .zip"),
        (ARCHIVE, "other content", "a damaged archive came.*put the .zip"),
        (ARCHIVE, "breaks off", "does not come from Kaggle.*go on from there"),
        (ARCHIVE, "html", "a damaged archive came"),
    ],
)
def test_kaggle_refuses(kaggle, home, path, fault, words):
    kaggle.fail(path, fault)
    with pytest.raises(CourseError, match=f"(?s){words}"):
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
    with pytest.raises(CourseError, match="(?s)Is there a network.*HTTPS_PROXY.*put the .zip, as it is, into .*RAW="):
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
    kaggle_sets.unpack(tmp_path / "a.zip", tmp_path / "set", most=most)


def refused(tmp_path, data, words, **options):
    """Check that an archive is refused and leaves nothing, inside the folder or beside it."""
    with pytest.raises(CourseError, match=f"(?s){words}"):
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


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        GOOD[:-30],
        GOOD[:60] + b"damage" + GOOD[66:],
        GOOD.replace(b"\x08\0", b"\x63\0"),
    ],
    ids=["empty", "page", "cut", "damage", "method"],
)
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
            kaggle_sets.unpack(tmp_path / "around" / "a.zip", tmp_path / "around" / "set", most=10**6)
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
    kaggle_sets.write_record(tmp_path)
    return tmp_path


def test_the_record_lists_what_is_visible(recorded):
    lines = (recorded / "files.csv").read_text().splitlines()
    assert lines[0] == "path,bytes,sha256"
    assert lines[1] == f"c.txt,5,{hashlib.sha256(b'c.txt').hexdigest()}"
    assert [line.split(",")[0] for line in lines[1:]] == ["c.txt", "set/a.png", "set/b.png", "set/inner.zip"]
    kaggle_sets.write_record(recorded)
    assert (recorded / "files.csv").read_text().splitlines() == lines
    kaggle_sets.check_record(recorded)


def test_lost_files_are_named(recorded):
    (recorded / "set/a.png").unlink()
    (recorded / "c.txt").write_text("other size")
    with pytest.raises(CourseError, match=r"c.txt, set/a.png of 4 files are gone .* Delete the folder and fetch"):
        kaggle_sets.check_record(recorded)
    shutil.rmtree(recorded / "set")
    with pytest.raises(CourseError, match="c.txt, set/a.png, set/b.png and 1 more of 4 files"):
        kaggle_sets.check_record(recorded)


@pytest.mark.parametrize("text", [None, "nonsense\n1\n", "path,bytes\na,many\n"])
def test_a_record_that_is_no_record(recorded, text):
    (recorded / "files.csv").unlink() if text is None else (recorded / "files.csv").write_text(text)
    with pytest.raises(CourseError, match="files.csv cannot be read"):
        kaggle_sets.check_record(recorded)
