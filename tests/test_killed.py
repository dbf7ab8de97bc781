"""Killed at any moment, or two at once, or on a shared folder that nobody may write: the data are the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import bad_network
import pytest
from bad_input import whole_way
from http_server import Server
from test_bad_input import COMMIT, small_repository

from utils import config, models, sources
from utils.errors import CourseError
from utils.sources import _fetch

HERE = Path(__file__).parent


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with the small set."""
    monkeypatch.setattr(_fetch, "PINS", tmp_path / "pins")
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)
    with Server(small_repository(tmp_path / "origin", tmp_path / "pins"), commit=COMMIT) as server:
        server.use(monkeypatch)
        yield server


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_killed_at_twenty_random_moments_of_download_caching_and_splitting(server, tmp_path):
    command = [sys.executable, str(HERE / "killed.py"), str(tmp_path / "pins"), str(tmp_path / "runs"), "20", "7"]
    (tmp_path / "runs").mkdir()
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)
    ends = Counter(code for code, _, _ in answer["results"])
    assert ends[-signal.SIGKILL] >= 10 and set(ends) <= {-signal.SIGKILL, 0}, ends
    reached = Counter(stage for _, stage, _ in answer["results"])
    assert reached["part of the download"] >= 2 and len(reached) >= 2, f"the moments hit one stage only: {reached}"
    assert all(found == answer["expected"] for *_, found in answer["results"])


def test_a_training_killed_at_any_step_restarts_cleanly(tmp_path):
    command = [sys.executable, str(HERE / "train_bundle.py")]
    whole = subprocess.run([*command, str(tmp_path / "whole")], capture_output=True, text=True, timeout=120)
    assert whole.returncode == 0, whole.stderr[-2000:]
    for step in ("features", "training", "bundle"):
        run = subprocess.Popen([*command, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True)
        for line in run.stdout:
            if line.strip() == step:
                run.kill()
                break
        assert run.wait() == -signal.SIGKILL
        run.stdout.close()
        assert not (tmp_path / "cut" / "models" / "run.small").exists()
    again = subprocess.run([*command, str(tmp_path / "cut")], capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr[-2000:]
    cards = [json.loads((tmp_path / name / "models/run.small/card.json").read_text()) for name in ("whole", "cut")]
    assert cards[0] == cards[1] and models.open_bundle(tmp_path / "cut" / "models" / "run.small")
    kept = [sorted(path.name for path in (tmp_path / name / "features").iterdir()) for name in ("whole", "cut")]
    assert set(kept[0]) <= set(kept[1])


def test_two_runs_at_once_share_one_download(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path / "class"))
    code = ("import sys, json; sys.path[:0] = sys.argv[1:3]\n"
            "from pathlib import Path; from utils.sources import _fetch; from bad_input import whole_way\n"
            "_fetch.PINS = Path(sys.argv[3]); print(json.dumps(whole_way('darkcovidnet', None)))")  # fmt: skip
    command = [sys.executable, "-c", code, str(HERE.parent), str(HERE), str(tmp_path / "pins")]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    (first, error), (second, other_error) = (run.communicate(timeout=120) for run in runs)
    assert first and first == second, error + other_error
    assert len(server.requests) == len(server.files), "each file was asked for once"


def test_a_class_shares_a_folder_that_students_cannot_write(server, tmp_path, monkeypatch):
    shared = tmp_path / "class"
    bad_network.mount(shared, "size=4m") if os.name == "posix" and os.geteuid() == 0 else shared.mkdir()
    monkeypatch.setenv("CXR_DATA_DIR", str(shared))
    try:
        instructor = whole_way("darkcovidnet", None)
        if os.path.ismount(shared):
            subprocess.run(["mount", "-o", "remount,ro", str(shared)], check=True)
        else:
            for folder in (shared, *(path for path in shared.rglob("*") if path.is_dir())):
                folder.chmod(0o555)
        asked = len(server.requests)
        monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "student"))
        assert whole_way("darkcovidnet", None) == instructor and len(server.requests) == asked
        shutil.copy(tmp_path / "pins" / "darkcovidnet.csv", tmp_path / "pins" / "figure1.csv")
        with pytest.raises(CourseError, match="cannot be written.*manages the shared folder.*CXR_DATA_DIR"):
            sources.fetch(config.Run("figure1", "full", None, 7))
    finally:
        if os.path.ismount(shared):
            bad_network.unmount(shared)
        else:
            for folder in (shared, *(path for path in shared.rglob("*") if path.is_dir())):
                folder.chmod(0o755)
