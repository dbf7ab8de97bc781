"""What a run is called, which parameters are refused, and files that are whole or not there."""

import os
from pathlib import Path

import pytest

from utils import config, files
from utils.errors import CourseError


def test_runs_are_called_by_data_set_profile_and_seed(tmp_path):
    assert config.start().name == "phantom-fast"
    assert config.start("cohen", "full", str(tmp_path), "12").name == "cohen-full-s12"
    own = tmp_path / "my own: set"
    own.mkdir()
    run = config.start(str(own))
    name, digits = run.short_dataset.rsplit("-", 1)
    assert name == "my_own_set" and len(digits) == 6 and run.name == f"{name}-{digits}-fast"
    twin = tmp_path / "elsewhere" / "my own: set"
    twin.mkdir(parents=True)
    assert config.start(str(twin)).name != run.name
    foreign = tmp_path / "папка"
    foreign.mkdir()
    assert config.start(str(foreign)).name.startswith("folder-")


def test_a_folder_is_the_same_run_however_its_path_is_written(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    assert config.start("set").name == config.start("./set").name == config.start(str(tmp_path / "set")).name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile": "quick"}, "PROFILE=quick is not known; it can be: fast, full"),
        ({"dataset": "fantom"}, "DATASET=fantom is not known.*Did you mean phantom"),
        ({"dataset": ""}, "DATASET= is not known"),
        ({"dataset": "/nowhere/at/all"}, "there is no folder /nowhere/at/all"),
        ({"dataset": "cohen", "raw": "/nowhere"}, "RAW: there is no folder /nowhere"),
        ({"dataset": "cohen", "raw": "~nobody-of-this-name/x"}, "RAW: .* cannot be opened"),
        ({"dataset": "cohen", "raw": "x" * 5000}, "RAW: .* cannot be opened"),
        ({"raw": "."}, "DATASET=phantom is built in and reads nothing from RAW"),
        ({"dataset": os.getcwd(), "raw": "."}, "leave RAW out"),
        ({"seed": "x"}, "SEED: expected a whole number"),
        ({"seed": -1}, "SEED: expected a whole number"),
        ({"seed": 1.5}, "SEED: expected a whole number"),
    ],
)
def test_what_is_not_known_is_refused_by_name(arguments, message):
    with pytest.raises(CourseError, match=message):
        config.start(**arguments)


def test_everything_made_lies_below_the_work_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path))
    run = config.start()
    places = (run.processed, run.pixels, run.results, run.executed, run.bundle("small_cnn"))
    assert all(tmp_path in place.parents for place in places)
    assert run.bundle("small_cnn").name == "phantom-fast.small_cnn"
    monkeypatch.delenv("CXR_WORK_DIR")
    assert config.data_root() == config.ROOT / "data"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "folder" / "results.json"
    files.write_text(file, "one\n")
    with pytest.raises(RuntimeError), files.written(file) as part:
        part.write_text("half")
        raise RuntimeError("killed")
    assert file.read_text() == "one\n"
    files.write_text(file, "two\n")
    assert file.read_bytes() == b"two\n"
    assert [path.name for path in file.parent.iterdir()] == ["results.json"]
    assert file.stat().st_mode & 0o044, "a class shares one cache: others must be able to read"


def test_sha256_of_bytes_and_of_a_file_agree(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert files.sha256(tmp_path / "x") == files.sha256(b"abc")
    assert files.sha256(Path(tmp_path / "x")).startswith("ba7816bf")
