"""What all tests share: a data root of their own, and how stored outputs are compared."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

SHARED = (Path(__file__).resolve().parents[1] / "shared" / "data").resolve()


def pytest_configure(config):
    # Notebooks and tests must never touch a user's data/. A test that runs pytest itself hands its folder down.
    config.own_work_dir = None
    if not os.environ.get("CXR_TEST_WORK_DIR"):
        config.own_work_dir = tempfile.mkdtemp(prefix="cxr-test-")
    os.environ["CXR_WORK_DIR"] = os.environ.get("CXR_TEST_WORK_DIR") or config.own_work_dir
    for name in ("CXR_DATA_DIR", "KERAS_HOME"):
        os.environ.pop(name, None)
    # Nor the network: what a test does not serve itself, nobody answers.
    os.environ.update(CXR_MIRROR="http://127.0.0.1:9", KAGGLE_API_ENVIRONMENT="LOCALHOST", CXR_QUIET="1")


def pytest_unconfigure(config):
    if config.own_work_dir:
        shutil.rmtree(config.own_work_dir, ignore_errors=True)


def pytest_collectstart(collector):
    # Libraries write dates and addresses to standard error; test_notebooks.py sees to it that none is stored.
    if getattr(collector, "path", None) and collector.path.suffix == ".ipynb" and hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)


@pytest.fixture(scope="session")
def work_dir():
    """The data root of this test session, in which nbval has executed the notebooks."""
    return Path(os.environ["CXR_WORK_DIR"])


@pytest.fixture(scope="session")
def shared():
    """The folder of real X-rays; a test that asks for it is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("needs the real X-rays in ../shared/data, which are not part of the project")
    return SHARED
