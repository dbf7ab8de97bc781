"""Bad input, one table: whatever goes wrong, a clear message or a counted skip, and then the same data as ever."""

import functools
import re
from types import SimpleNamespace

import bad_files
import bad_network
import pytest
from bad_input import make_set, whole_way
from http_server import Server

from utils import download
from utils.errors import CourseError
from utils.sources import _fetch

COMMIT = "c" * 40
IMPATIENT = download.Limits(tries=3, pause=0.01, connect=2, read=2, seconds=20)


def small_repository(origin, pins):
    """Make the small set and its table of pins; return {path: bytes}."""
    make_set(origin)
    files = {path.relative_to(origin).as_posix(): path for path in sorted(origin.rglob("*.png"))}
    rows = [f"{name},{path.stat().st_size},{download.blob_id(path)}" for name, path in files.items()]
    pins.mkdir(parents=True)
    head = f"# owner/name at commit {COMMIT}; id = git blob id\npath,bytes,id\n"
    (pins / "darkcovidnet.csv").write_text(head + "\n".join(rows) + "\n")
    return {name: path.read_bytes() for name, path in files.items()}


@pytest.fixture
def case(tmp_path, monkeypatch):
    """The small set on disk and on a healthy server, and a data root of its own."""
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)
    monkeypatch.setattr(_fetch, "PINS", tmp_path / "pins")
    monkeypatch.setattr(download, "LIMITS", IMPATIENT)
    files = small_repository(tmp_path / "origin", tmp_path / "pins")
    pictures = make_set(tmp_path / "raw")
    with Server(files, repository="owner/name", commit=COMMIT) as server:
        server.use(monkeypatch)
        home = tmp_path / "work" / "raw" / "darkcovidnet"
        yield SimpleNamespace(
            server=server, home=home, root=tmp_path / "raw", pictures=pictures, files=files, tmp_path=tmp_path,
            monkeypatch=monkeypatch, from_disk=functools.partial(whole_way, "darkcovidnet", tmp_path / "raw"),
            downloaded=functools.partial(whole_way, "darkcovidnet", None),
        )  # fmt: skip


def test_the_table_is_long_and_a_download_gives_what_the_disk_gives(case):
    rows = [row.name for row in (*bad_network.ROWS, *bad_files.ROWS, *bad_files.TABLE_ROWS)]
    assert len(rows) >= 30 and len(set(rows)) == len(rows)
    assert case.downloaded() == case.from_disk()
    asked = len(case.server.requests)
    assert case.downloaded() == case.from_disk() and len(case.server.requests) == asked == len(case.files)


@pytest.mark.parametrize("row", bad_network.ROWS, ids=lambda row: row.name)
def test_a_download_that_is_disturbed(case, row):
    undisturbed = case.from_disk()
    row.disturb(case)
    try:
        if row.outcome == "read":
            assert case.downloaded() == undisturbed
        else:
            with pytest.raises(CourseError, match=f"(?s){row.words}") as error:
                case.downloaded()
            assert "By hand: Download https://" in str(error.value) and "Traceback" not in str(error.value)
            for path in case.home.rglob("*.png"):  # what has its name is whole
                assert path.read_bytes() == case.files[path.relative_to(case.home).as_posix()]
    finally:
        row.mend(case)
    assert case.downloaded() == undisturbed
    assert not (case.home / ".parts").exists()


@pytest.mark.parametrize("row", bad_files.ROWS, ids=lambda row: row.name)
def test_a_file_that_is_odd(case, row):
    undisturbed = case.from_disk()
    row.disturb(case)
    found = case.from_disk()
    assert found.pixels == undisturbed.pixels
    if row.outcome == "read":
        assert found.skipped == undisturbed.skipped
    else:
        assert found[:3] == undisturbed[:3]
        (reason,) = [reason for name, reason in found.skipped.items() if name not in undisturbed.skipped]
        assert re.search(row.words, reason)
    case.monkeypatch.setenv("CXR_WORK_DIR", str(case.tmp_path / "again"))
    assert case.from_disk() == found, "the same again, not from the cache"


@pytest.mark.parametrize("row", bad_files.TABLE_ROWS, ids=lambda row: row.name)
def test_a_table_that_is_odd(tmp_path, row):
    bad_files.make_table_set(tmp_path)
    row.change(tmp_path)
    row.expectation(tmp_path)
