"""The runner, through its command line: tiny notebooks, real kernels, a data root of their own."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from utils import config, course, report

ROOT = config.ROOT
PARAMETERS = 'DATASET = "phantom"\nPROFILE = "fast"\nRAW = ""\nSEED = 7'
IMPORTS = f"import json, pathlib, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils import config"
RESULTS = """from math import nan
run = config.start(DATASET, PROFILE, RAW, SEED)
metrics = {metrics}
text = json.dumps(dict(notebook="{name}", dataset=DATASET, profile=PROFILE, seed=SEED, metrics=metrics))
run.results.mkdir(parents=True, exist_ok=True)
(run.results / "{name}.json").write_text(text)"""
PICTURE = """import base64
from IPython.display import display
png = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
                       "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
display({"image/png": png}, raw=True, metadata={"image/png": {"alt": "one <small> dot"}})
display({"image/png": png}, raw=True, metadata={"alt": "another dot"})"""
CNN = "binary.small_cnn.accuracy"
GOOD = {CNN: 0.9, f"{CNN}.lo": 0.85, f"{CNN}.hi": 0.95, f"{CNN}.n": 120, "binary.majority.accuracy": 0.5}


def write_notebook(folder, name, *cells, parameters=PARAMETERS, tags=()):
    """Write a notebook: texts that begin with # are markdown, the others code; `tags` go to the last cell."""
    kinds = [("markdown" if cell.startswith("#") else "code", cell) for cell in (f"# About {name}", *cells)]
    made = [
        {"cell_type": kind, "id": f"c{number}", "metadata": {}, "source": text}
        for number, (kind, text) in enumerate(kinds)
    ]
    made[-1]["metadata"]["tags"] = list(tags)
    if parameters is not None:
        tagged = {"tags": ["parameters"]}
        made.insert(1, {"cell_type": "code", "id": "given", "metadata": tagged, "source": parameters})
    for cell in made:
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def with_results(folder, name, metrics, *cells):
    return write_notebook(folder, name, *cells, IMPORTS, RESULTS.format(name=name, metrics=metrics))


def environment(folder):
    ours = {"CXR_COURSE_DIR": folder, "CXR_WORK_DIR": folder / "work", "PYTHONPATH": ROOT}
    return os.environ | {name: str(path) for name, path in ours.items()}


def call(folder, *arguments, **settings):
    """Run `python -m utils.course` on the course in `folder`, from there."""
    done = subprocess.run(
        [sys.executable, "-m", "utils.course", *arguments], cwd=folder, env=environment(folder) | settings,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def read_report(folder, run="phantom-fast"):
    return json.loads((folder / "work" / "runs" / run / "report.json").read_text())


def write_contract(folder, name, ranges, run="phantom-fast"):
    path = folder / "tests" / "contracts" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({run: ranges}))


def write_results(folder, name, metrics):
    path = folder / "work" / "results" / "phantom-fast" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics}))


@pytest.fixture(scope="module")
def course_run(tmp_path_factory):
    """A course of two notebooks in a folder with blanks and braces, run once with another seed."""
    folder = tmp_path_factory.mktemp("a {course} here")
    kernel = folder / "home" / ".local" / "share" / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    other = {"argv": ["/bin/false"], "display_name": "another Python", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(other))
    where = "import os\nos.write(2, b'C++ chatter')\n"
    where += "print(sys.executable, pathlib.Path.cwd().name, config.data_root())"
    where += "\nprint(DATASET, PROFILE, repr(RAW), SEED)"
    write_notebook(folder, "00_first", IMPORTS, where, "raise ValueError('meant')", tags=["raises-exception"])
    with_results(folder, "03_second", GOOD, "## A `first` look", PICTURE)
    write_contract(folder, "03_second", {CNN: [0.8, 1.0]})
    settings = {"HOME": str(folder / "home"), "CXR_WORK_DIR": "work", "MPLBACKEND": "Agg"}
    done = call(folder, "run", "--seed", "8", "--raw", "", "--dataset", "", **settings)
    return SimpleNamespace(folder=folder, done=done, runs=folder / "work" / "runs" / "phantom-fast-s8")


# A run that ends well


def test_run_prints_a_line_a_notebook_and_at_last_what_to_open(course_run):
    lines = course_run.done.out.splitlines()
    assert course_run.done.code == 0, course_run.done
    assert [line.split()[:2] for line in lines[1:3]] == [["00_first", "ok"], ["03_second", "ok"]]
    assert lines[-1] == "Report: work/runs/phantom-fast-s8/report.html"
    assert course_run.done.err == ""


def test_run_leaves_the_executed_notebooks_and_the_report(course_run):
    left = {path.name for path in course_run.runs.iterdir() if path.name != ".lock"}
    assert left == {"00_first.ipynb", "03_second.ipynb", "report.html", "report.json"}


def test_report_json_holds_what_the_contract_names(course_run):
    found = read_report(course_run.folder, "phantom-fast-s8")
    assert (found["dataset"], found["profile"], found["seed"]) == ("phantom", "fast", 8)
    assert (found["verdict"], found["claim"]) == ("ok", "For teaching, not for diagnosis")
    assert {"python", "tensorflow", "keras", "numpy"} == set(found["versions"]) and found["platform"]
    first, second = found["notebooks"]
    assert first["status"] == second["status"] == "ok"
    assert 0 < second["seconds"] < 60 and 20 < second["peak_memory_mb"] < 2000
    assert first["metrics"] == {} and second["metrics"] == GOOD
    assert first["contract"]["status"] == "not checked" and second["contract"]["status"] == "ok"
    heading = "A first look"
    assert second["figures"] == [
        {"cell": 3, "heading": heading, "alt": "one <small> dot"},
        {"cell": 3, "heading": heading, "alt": "another dot"},
    ]


def test_page_survives_numbers_that_are_none(tmp_path):
    write_notebook(tmp_path, "03_cnn", "1")
    page = tmp_path / "work" / "runs" / "phantom-fast" / "report.html"
    page.parent.mkdir(parents=True)
    earlier = {"notebooks": [{"notebook": "03_cnn", "status": "ok"}]}
    (page.parent / "report.json").write_text(json.dumps(earlier))
    odd = {"a.b.c": float("nan"), "a.b.c.lo": 0.1, "a.b.d": None, "a.b.d.lo": float("nan"), "a.b.e": "text",
           "alone": True, "a.b.f": 0.5, "a.b.f.lo": 0.25, "a.b.f.hi": None, "a.b.f.n": float("inf"),
           }  # fmt: skip
    write_results(tmp_path, "03_cnn", odd)
    assert call(tmp_path, "report").code == 0
    assert "from 0.250" in page.read_text()
    assert read_report(tmp_path)["notebooks"][0]["metrics"]["a.b.c"] is None


def test_page_is_self_contained_and_says_what_it_is(course_run):
    page = (course_run.runs / "report.html").read_text()
    for text in ("For teaching, not for diagnosis", "simulated radiographs", "About 03_second", "small CNN",
                 "0.850–0.950", 'alt="one &lt;small&gt; dot"', "data:image/png;base64,iVBOR"):  # fmt: skip
        assert text in page
    for forbidden in ("<script", "http://", "https://", "<link", "@import"):
        assert forbidden not in page


def test_kernel_is_this_python_with_the_four_parameters_and_absolute_folders(course_run):
    executed = json.loads((course_run.runs / "00_first.ipynb").read_text())
    outputs = ["".join(out.get("text", "")) for cell in executed["cells"] for out in cell.get("outputs", [])]
    work = course_run.folder / "work"
    assert outputs[0].strip() == f"{sys.executable} notebooks {work}\nphantom fast '' 8"
    assert not any("chatter" in text for text in outputs)
    assert not [cell for cell in executed["cells"] if report.ERROR_MARK in report.tags(cell)]


def test_check_and_report_repeat_the_verdict_of_the_run(course_run):
    checked = call(course_run.folder, "check", "--seed", "8")
    assert checked.code == 0 and "Check: 1 not checked, 1 ok" in checked.out
    before = read_report(course_run.folder, "phantom-fast-s8")
    (course_run.runs / "report.html").unlink()
    assert call(course_run.folder, "report", "--seed", "8").code == 0
    after = read_report(course_run.folder, "phantom-fast-s8")
    assert after | {"date": ""} == before | {"date": ""}
    assert (course_run.runs / "report.html").exists()


# A run that does not


@pytest.fixture(scope="module")
def failing(tmp_path_factory):
    """Three notebooks; the second fails after it has written results, and old ones of the third lie there."""
    folder = tmp_path_factory.mktemp("failing")
    with_results(folder, "01_good", {"a.b.c": 1})
    broken = "print('so far')\nraise RuntimeError('the \\x1b[31mred\\x1b[0m reason')"
    results = RESULTS.format(name="02_bad", metrics={"a.b.c": 2})
    fatal = "## The fatal step\n```\n# not a heading\n```"
    write_notebook(folder, "02_bad", "## Early", IMPORTS, results, fatal, broken)
    write_notebook(folder, "03_later", "open('ran', 'w')")
    write_results(folder, "03_later", {"a.b.c": 3})
    return SimpleNamespace(folder=folder, done=call(folder, "run"))


def test_failure_names_notebook_heading_and_reason(failing):
    assert failing.done.code == 1
    assert "02_bad failed at “The fatal step”" in failing.done.out
    assert "RuntimeError: the red reason" in failing.done.out and "\x1b" not in failing.done.out
    assert failing.done.out.splitlines()[-1] == "Report: work/runs/phantom-fast/report.html"


def test_failure_stops_the_run_and_keeps_what_there_is(failing):
    found = read_report(failing.folder)
    assert [one["status"] for one in found["notebooks"]] == ["ok", "failed", "not run"]
    assert found["verdict"] == "failed" and found["notebooks"][1]["error"]["heading"] == "The fatal step"
    kept = (failing.folder / "work" / "runs" / "phantom-fast" / "02_bad.ipynb").read_text()
    assert "so far" in kept
    assert not (failing.folder / "notebooks" / "ran").exists()


def test_results_of_an_earlier_or_failed_run_are_not_reported(failing):
    assert [one["metrics"] for one in read_report(failing.folder)["notebooks"]] == [{"a.b.c": 1}, {}, {}]
    left = [path.name for path in (failing.folder / "work" / "results" / "phantom-fast").iterdir()]
    assert left == ["01_good.json"]


def test_partial_run_keeps_the_other_entries(failing):
    before = read_report(failing.folder)["notebooks"]
    done = call(failing.folder, "run", "3")
    after = read_report(failing.folder)["notebooks"]
    assert done.code == 0 and [one["status"] for one in after] == ["ok", "failed", "ok"]
    assert after[:2] == before[:2]


def test_course_error_is_told_without_a_traceback(tmp_path):
    raising = "from utils.errors import CourseError\nraise CourseError('Take another folder.')"
    write_notebook(tmp_path, "01_data", IMPORTS, "## Read", raising)
    done = call(tmp_path, "run", "01")
    assert done.code == 1 and "\nTake another folder.\n" in done.out
    assert "CourseError" not in done.out and "---" not in done.out
    assert read_report(tmp_path)["notebooks"][0]["error"]["message"] == "Take another folder."


def test_dead_kernel_is_a_failure_with_a_likely_cause(tmp_path):
    end = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    write_notebook(tmp_path, "01_data", "## Too much", end)
    done = call(tmp_path, "run")
    assert done.code == 1 and "01_data failed at “Too much”" in done.out and "too little memory" in done.out


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for a child alone")
def test_interrupt_ends_the_kernel_and_is_reported_and_a_second_run_is_refused(tmp_path):
    sleeping = "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(100)"
    write_notebook(tmp_path, "01_long", "## Wait", sleeping)
    write_notebook(tmp_path, "02_next", "1")
    command = [sys.executable, "-m", "utils.course", "run"]
    # A shell lets its background jobs ignore Ctrl-C, and what they start inherits that.
    running = subprocess.Popen(
        command, cwd=tmp_path, env=environment(tmp_path), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    mark = tmp_path / "notebooks" / "pid"
    while not mark.exists() or not mark.read_text():
        time.sleep(0.1)
        assert running.poll() is None
    second = call(tmp_path, "run")
    assert second.code == 2 and "Another run of phantom-fast is under way" in second.err
    running.send_signal(signal.SIGINT)
    out, _ = running.communicate(timeout=30)
    assert running.returncode == 130 and "01_long interrupted at “Wait”" in out
    assert "Traceback" not in out
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    found = read_report(tmp_path)
    assert found["verdict"] == "interrupted"
    assert [one["status"] for one in found["notebooks"]] == ["interrupted", "not run"]


# What is refused before anything runs


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("idle")
    write_notebook(folder, "00_first", "open('ran', 'w')")
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--datset", "phantom"], "Did you mean --dataset?"),
        (["run", "--dataset", "phantm"], "Did you mean phantom?"),
        (["run", "--profile", "quick"], "PROFILE=quick is not known"),
        (["run", "--seed", "-1"], "SEED: expected a whole number"),
        (["run", "--dataset", "darkcovidnet", "--raw", "nowhere"], "there is no folder"),
        (["run", "--dataset", "darkcovidnet", "--raw", "notebooks"], "notebooks"),
        (["run", "77"], "There is no notebook 77; there are: 00"),
        (["run", "DATASET=phantom"], "--dataset phantom"),
        (["chek"], "chek"),
        (["notebooks", "--seed", "8"], "--seed"),
        (["fetch"], "--dataset can be darkcovidnet, cohen, radiography, actualmed, figure1"),
        (["report"], "run the course first"),
    ],
)
def test_wrong_usage_is_refused_before_anything_runs(idle, arguments, message):
    done = call(idle, *arguments)
    assert done.code == 2 and message in done.err and done.out == ""
    assert "Traceback" not in done.err
    assert not (idle / "notebooks" / "ran").exists() and not (idle / "work" / "runs").exists()


@pytest.mark.parametrize(
    "parameters",
    [None, PARAMETERS + "\nEPOCHS = 3", 'DATASET = "phantom"', PARAMETERS + "\nprint(1)", PARAMETERS + "\n("],
)
def test_notebook_with_other_parameters_is_refused(tmp_path, parameters):
    write_notebook(tmp_path, "00_first", "open('ran', 'w')", parameters=parameters)
    done = call(tmp_path, "run")
    assert done.code == 2 and "00_first.ipynb: expected one cell tagged `parameters`" in done.err
    assert not (tmp_path / "notebooks" / "ran").exists()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "--profile", "x"]])
def test_help_and_usage_errors_import_nothing_heavy(idle, arguments):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "utils.course", *arguments], cwd=ROOT,
        env=environment(idle), capture_output=True, text=True,
    )  # fmt: skip
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line}
    assert "utils.config" in imported
    heavy = {"tensorflow", "keras", "papermill", "pandas", "numpy", "nbclient", "nbformat", "jinja2"}
    assert not imported & heavy


# Accepted ranges


@pytest.mark.parametrize(
    ("metrics", "wrong"),
    [
        ({"a": 0.8, "b": 1}, []), ({"a": 1.0, "b": 0, "free": 9}, []), ({"a": 0.79, "b": 1}, ["a"]),
        ({"a": float("nan"), "b": 1}, ["a"]), ({"b": 1}, ["a"]), ({"a": None, "b": "1"}, ["a", "b"]),
        ({"a": True, "b": 2}, ["a", "b"]), ({"a": float("inf"), "b": 1}, ["a"]),
    ],
)  # fmt: skip
def test_check_results(metrics, wrong):
    problems = course.check_results(metrics, {"a": [0.8, 1.0], "b": [0, 1]})
    assert [problem.metric for problem in problems] == wrong


def test_check_says_what_is_out_of_range_missing_or_unchecked(tmp_path):
    for name in ("01_in", "02_out", "03_missing", "04_nan", "05_free", "06_none"):
        write_notebook(tmp_path, name, "1")
    for name in ("01_in", "02_out", "03_missing", "04_nan", "06_none"):
        write_contract(tmp_path, name, {"x.y.z": [0.5, 0.75]})
    write_contract(tmp_path, "05_free", {"x.y.z": [0.5, 0.75]}, run="radiography-full")
    for name, value in (("01_in", 0.5), ("02_out", 0.8), ("04_nan", float("nan")), ("05_free", 3)):
        write_results(tmp_path, name, {"x.y.z": value})
    write_results(tmp_path, "03_missing", {"x.y.other": 1})
    done = call(tmp_path, "check")
    lines = [" ".join(line.split()) for line in done.out.splitlines()]
    assert done.code == 1
    assert lines == [
        "01_in ok", "02_out out of range", "x.y.z = 0.8, accepted 0.5 to 0.75",
        "03_missing out of range", "x.y.z = missing, accepted 0.5 to 0.75",
        "04_nan out of range", "x.y.z = nan, accepted 0.5 to 0.75",
        "05_free not checked", "06_none no results", "x.y.z = missing, accepted 0.5 to 0.75",
        "Check: 1 ok, 3 out of range, 1 not checked, 1 no results",
    ]  # fmt: skip
    assert call(tmp_path, "check", "01", "05").code == 0


def test_run_fails_when_a_result_is_out_of_range(tmp_path):
    with_results(tmp_path, "03_cnn", {"binary.cnn.accuracy": 0.5, "binary.cnn.auc": float("nan")})
    write_contract(tmp_path, "03_cnn", {"binary.cnn.accuracy": [0.6, 1]})
    done = call(tmp_path, "run")
    assert done.code == 1 and "binary.cnn.accuracy = 0.5, accepted 0.6 to 1" in done.out
    found = read_report(tmp_path)  # NaN would not be JSON
    assert found["verdict"] == "out of range" and found["notebooks"][0]["metrics"]["binary.cnn.auc"] is None
    assert "accepted 0.6 to 1" in (tmp_path / "work" / "runs" / "phantom-fast" / "report.html").read_text()


def test_ranges_hold_for_every_seed_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_COURSE_DIR", str(tmp_path))
    write_contract(tmp_path, "03_cnn", {"a": [0, 1]}, run="phantom-fast")
    assert course.ranges_for(config.start(seed=8), "03_cnn") == {"a": [0, 1]}
    assert course.ranges_for(config.start(profile="full"), "03_cnn") is None
    assert course.ranges_for(config.start(), "04_other") is None


def test_scores_become_tables_by_task_with_baselines_as_rows():
    binary, other = report.scores(GOOD | {"data.images": 1234})
    assert (binary["task"], list(binary["models"])) == ("binary", ["small CNN", "majority"])
    row = binary["models"]["small CNN"][0]
    score = {"metric": "accuracy", "value": 0.9, "lo": 0.85, "hi": 0.95, "n": 120}
    assert row == score | {"bar": (85.0, 10.0, 90.0)}
    assert binary["models"]["majority"][0]["bar"] is None
    assert other["task"] == "" and other["models"][""][0]["metric"] == "data images"


# Stored outputs


def test_notebooks_are_refreshed_without_traces_and_twice_the_same(tmp_path):
    path = write_notebook(tmp_path, "00_first", IMPORTS, "print(6 * 7)", tags=["kept"])
    raw = json.loads(path.read_text())
    mine = {"name": "mine", "display_name": "Mine"}
    raw["metadata"] = {"papermill": {"x": 1}, "kernelspec": mine, "vscode": {"x": 1}}
    raw["cells"][2]["metadata"] = {"execution": {"iopub.status.busy": "2026"}, "editable": True}
    del raw["cells"][0]["id"]
    path.write_text(json.dumps(raw))
    assert call(tmp_path, "notebooks").code == 0
    first = path.read_bytes()
    found = json.loads(first)
    assert found["cells"][-1]["outputs"][0]["text"] == ["42\n"]
    assert found["cells"][-1]["metadata"] == {"tags": ["kept"]}
    assert found["cells"][2]["metadata"] == {}
    assert found["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert call(tmp_path, "notebooks", "00").code == 0
    assert path.read_bytes() == first


def test_tables_with_a_style_are_stored_without_random_names_and_addresses(tmp_path):
    table = "import pandas as pd\npd.DataFrame({'file': [1, 2]}).style.hide(axis='index').set_properties(color='red')"
    path = write_notebook(tmp_path, "00_first", table, table)
    stored = []
    for _ in range(2):
        assert call(tmp_path, "notebooks").code == 0
        stored.append(path.read_bytes())
    assert stored[0] == stored[1] and b" at 0x" not in stored[0]
    pages = ["".join(cell["outputs"][0]["data"]["text/html"]) for cell in json.loads(stored[0])["cells"][-2:]]
    names = [set(re.findall(r'table id="([\w-]+)"', page)) for page in pages]
    assert len(names[0]) == len(names[1]) == 1 and names[0] != names[1]  # on one page, two tables need two names
    assert all(f"#{name.pop()}_row0_col0" in page for name, page in zip(names, pages))


def test_notebook_that_breaks_stays_as_it_was(tmp_path):
    path = write_notebook(tmp_path, "00_first", "## Here", "1 / 0")
    before = path.read_bytes()
    done = call(tmp_path, "notebooks")
    assert done.code == 1 and "00_first failed at “Here”" in done.out and "ZeroDivisionError" in done.out
    assert path.read_bytes() == before and [one.name for one in path.parent.iterdir()] == [path.name]


def test_stored_outputs_belong_to_the_defaults(tmp_path):
    write_notebook(tmp_path, "00_first", "1", parameters=PARAMETERS.replace("fast", "full"))
    done = call(tmp_path, "notebooks")
    assert done.code == 2 and "stored outputs belong to" in done.err
