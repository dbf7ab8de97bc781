"""What the course has fetched is never taken for more than it is: fast and full, broken off, half deleted, a wrong archive."""

import shutil
import threading
import zipfile

import pytest
from http_server import Server
from test_bad_input import COMMIT, IMPATIENT, small_repository

from utils import config, download, kaggle, sources
from utils.errors import CourseError
from utils.sources import _fetch


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with the small set, of which the fast profile draws two images a label."""
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)
    monkeypatch.setattr(_fetch, "PINS", tmp_path / "pins")
    monkeypatch.setattr(download, "LIMITS", IMPATIENT)
    source = sources.darkcovidnet.SOURCE._replace(fast_images_per_label=2)
    monkeypatch.setattr(sources.darkcovidnet, "SOURCE", source)
    with Server(small_repository(tmp_path / "origin", tmp_path / "pins"), commit=COMMIT) as server:
        server.use(monkeypatch)
        yield server


@pytest.fixture
def home(tmp_path):
    """Where the download goes."""
    return tmp_path / "work" / "raw" / "darkcovidnet"


def load(dataset="darkcovidnet", profile="full", raw=""):
    return sources.load(config.start(dataset, profile, str(raw)), say=lambda text: None).manifest


def test_fast_fetches_less_and_full_the_rest(server):
    fast = load(profile="fast")
    asked = len(server.requests)
    assert len(fast) == asked < len(server.files)
    full = load()
    assert len(full) == len(server.files) == len(server.requests) and set(fast.sha256) < set(full.sha256)
    assert load(profile="fast").equals(fast)


@pytest.mark.parametrize("dataset", ["all", "darkcovidnet"])
def test_a_fast_download_does_not_pass_for_the_whole_set(server, home, dataset):
    few = len(load(profile="fast"))
    raw = home if dataset == "darkcovidnet" else ""
    words = f"{len(server.files) - few} of the {len(server.files)} files.*make fetch DATASET=darkcovidnet PROFILE=full"
    with pytest.raises(CourseError, match=words):
        load(dataset, raw=raw)
    assert len(load(dataset, "fast", raw)) == few


def test_files_deleted_since_are_missed_by_all_and_fetched_again_by_their_own_name(server, home):
    whole = load()
    for path in sorted(home.rglob("*.png"))[:3]:
        path.unlink()
    with pytest.raises(CourseError, match="3 of the 18 files"):
        load("all")
    assert load().equals(whole) and len(load("all")) == len(whole)


def test_a_full_download_that_broke_off_serves_the_fast_profile(server, home, monkeypatch):
    load(profile="fast")
    last = sorted(set(server.files) - {path.relative_to(home).as_posix() for path in home.rglob("*.png")})[-1]
    server.fail(last, 404)
    with pytest.raises(CourseError, match="404"):
        load()
    asked = len(server.requests)
    monkeypatch.setenv("CXR_DATA_DIR", str(home.parent))
    load(profile="fast")
    assert len(server.requests) == asked


def test_a_download_behind_a_link_is_looked_at_as_well(server, home, tmp_path):
    load(profile="fast")
    shutil.move(home, tmp_path / "disk")
    home.symlink_to(tmp_path / "disk", target_is_directory=True)
    with pytest.raises(CourseError, match="make fetch"):
        load("all")


def test_an_empty_note_harms_nothing(server, home):
    whole = load()
    (home / _fetch.MARK).write_bytes(b"")
    assert load().equals(whole) and len(load("all")) == len(whole)


def test_an_interrupted_fetch_leaves_the_next_one_alone(tmp_path, monkeypatch):
    data = bytes(range(256)) * 1000
    pin = download.Pin("a.png", len(data), "")
    (tmp_path / "a").write_bytes(data)
    pins = download.Pins("owner/name", COMMIT, {"a.png": pin._replace(blob=download.blob_id(tmp_path / "a"))})
    ask, asked, go = download._Fetch.ask, threading.Event(), threading.Event()

    def late(self, *arguments):
        answer = ask(self, *arguments)
        if not asked.is_set():
            asked.set()
            go.wait(20)
        return answer

    monkeypatch.setattr(download._Fetch, "ask", late)
    monkeypatch.setattr(download._Fetch, "next_size", lambda self: asked.wait(20) and interrupt())
    with Server({"a.png": data}, commit=COMMIT) as server:
        server.use(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            download.fetch(pins, pins.files, tmp_path / "home")
        monkeypatch.undo()
        server.use(monkeypatch)
        old = [thread for thread in threading.enumerate() if thread.name == "download"]
        run = download._Fetch(pins, tmp_path / "home", IMPATIENT)
        run.adopt()
        (run.parts / pins.files["a.png"].blob).write_bytes(data[:1000])  # the new run is under way
        go.set()
        for thread in old:
            thread.join(10)
        assert (run.parts / pins.files["a.png"].blob).read_bytes() == data[:1000]
        download.fetch(pins, pins.files, tmp_path / "home")
    assert (tmp_path / "home" / "a.png").read_bytes() == data


def interrupt():
    raise KeyboardInterrupt


def archive(path, names):
    """Write a .zip of empty files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, b"x")


def test_the_wrong_archive_is_refused_and_the_right_one_taken(server, tmp_path):
    folder = tmp_path / "work" / "raw" / "radiography"
    archive(folder / "archive.zip", ["chest_xray/train/NORMAL/a.jpeg", "chest_xray/test/NORMAL/b.jpeg"])
    said = []
    with pytest.raises(CourseError, match="archive.zip: expected the set .*holds chest_xray.*right one in its place"):
        sources.fetch(config.start("radiography"), say=said.append)
    assert said == [f"The COVID-19 Radiography Database: unpacking archive.zip in {folder}."]
    names = [f"D/{name}/images/{name}-1.png" for name in ("COVID", "Normal", "Viral Pneumonia")]
    archive(folder / "archive.zip", names)
    sources.fetch(config.start("radiography"))
    assert (folder / kaggle.RECORD).read_text().count("\n") == 4
    next(folder.rglob("COVID-1.png")).unlink()
    for dataset in ("radiography", "all"):
        with pytest.raises(CourseError, match="COVID-1.png of 3 files are gone"):
            sources.fetch(config.start(dataset))
