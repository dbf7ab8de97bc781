"""What all tests share: a data root of their own, and how stored outputs are compared."""

import os
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import IPyNbCell

from utils import editions

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
        collector.collect = lambda cells=collector.collect: _with_answers(collector, cells)


TRIED = """
exec({answer!r}, globals())
try:
    exec({check!r}, globals())
except AssertionError as what_the_check_said:
    assert {wrong}, f"The check refuses a right answer: {{what_the_check_said}}"
    assert len(str(what_the_check_said)) > 20, "The check says nothing of what is wrong."
else:
    assert not {wrong}, "The check lets a wrong answer pass."
"""


def _with_answers(collector, collect):
    """Collect a notebook's cells and then, in the same kernel, the answers on which its checks are tried."""
    yield from collect()
    checks = {exercise.number: exercise.check["source"] for exercise in editions.exercises(collector.nb)}
    for answer in editions.answers(collector.path.stem):
        source = TRIED.format(answer=answer.code, check=checks[answer.number], wrong=not answer.right)
        name = f"Exercise {answer.number}, {'right' if answer.right else 'wrong'}: {answer.name}"
        cell = nbformat.v4.new_code_cell(source)
        yield TriedAnswer.from_parent(
            collector, name=name, cell_num=answer.number, cell=cell, options=defaultdict(bool)
        )


class TriedAnswer(IPyNbCell):
    """An answer to an exercise, tried after the notebook's own cells."""

    def reportinfo(self):
        return self.path, 0, f"{self.path.stem}::{self.name}"


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
