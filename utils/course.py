"""Run the notebooks of the course, check their results, report: `python -m utils.course --help`.

Exit codes: 0 done, 1 a notebook failed or a result is outside its accepted range, 2 wrong usage (nothing was
run), 130 interrupted.
"""

import argparse
import ast
import difflib
import json
import logging
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from utils import config, report
from utils.errors import CourseError
from utils.files import write_text, written

FOLDERS = ("KERAS_HOME", "CXR_DATA_DIR", "CXR_WORK_DIR")
# A kernel's own remarks (ipykernel's on encryption, C++ libraries') go to descriptor 2 and would run through the
# progress and into the cells. What Python writes on sys.stderr reaches the cells all the same.
QUIETLY = """import os, runpy
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
runpy.run_module("ipykernel_launcher", run_name="__main__")"""
LAST_LINES = 15  # of a traceback: the raise and the few frames above it
KEPT = (
    "tags",
    "jupyter",
)  # metadata of cells that stay when outputs are stored: JupyterLab folds solutions by the second


def course_folder():
    """Return the folder of `notebooks/` and `tests/contracts/`: ours, or `$CXR_COURSE_DIR` (for tests)."""
    return Path(os.environ.get("CXR_COURSE_DIR") or config.ROOT).absolute()


def notebook_paths(numbers=()):
    """Return the notebooks of the course in order, or those with the numbers given."""
    paths = sorted((course_folder() / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise CourseError(f"There are no notebooks NN_name.ipynb in {course_folder() / 'notebooks'}.")
    wanted, known = {number.zfill(2) for number in numbers if number}, [path.name[:2] for path in paths]
    for number in sorted(wanted.difference(known)):
        hint = " Options are written like --dataset phantom." if "=" in number else ""
        raise CourseError(f"There is no notebook {number}; there are: {', '.join(known)}.{hint}")
    return [path for path in paths if not wanted or path.name[:2] in wanted]


def check_parameters(path, *, defaults=False):
    """Refuse a notebook whose cell tagged `parameters` does not set exactly the four parameters.

    Parameters
    ----------
    path : pathlib.Path
        The notebook.
    defaults : bool
        Refuse other values than the defaults, too: stored outputs belong to those.

    Raises
    ------
    CourseError
        What was expected, and what was found.
    """
    expected = "one cell tagged `parameters` that sets DATASET, PROFILE, RAW, SEED and nothing else"
    notebook = report.read_json(path)
    tagged = [cell for cell in report.own_cells(notebook) if "parameters" in report.tags(cell)]
    if len(tagged) != 1:
        raise CourseError(f"{path.name}: expected {expected}; found {len(tagged)} such cells.")
    try:
        values = _assigned("".join(tagged[0]["source"]))
    except (SyntaxError, ValueError) as error:
        raise CourseError(f"{path.name}: expected {expected}; cannot read it: {error}") from None
    if sorted(values) != sorted(config.PARAMETERS):
        raise CourseError(f"{path.name}: expected {expected}; found {', '.join(values) or 'nothing'}.")
    if defaults and values != config.DEFAULTS:
        raise CourseError(f"{path.name}: stored outputs belong to {config.DEFAULTS}; its cell sets {values}.")


def _assigned(source):
    values = {}
    for line in ast.parse(source).body:
        target = line.targets[0] if isinstance(line, ast.Assign) and len(line.targets) == 1 else None
        if not isinstance(target, ast.Name):
            raise ValueError(f"line {line.lineno} is not of the form NAME = value")
        values[target.id] = ast.literal_eval(line.value)
    return values


# Contracts


class Problem(NamedTuple):
    """A result outside its accepted range (`value` None: missing)."""

    metric: str
    value: object
    low: float
    high: float

    def __str__(self):
        value = "missing" if self.value is None else self.value
        return f"{self.metric} = {value}, accepted {self.low} to {self.high}"


def check_results(metrics, ranges):
    """Compare results with their accepted ranges.

    Parameters
    ----------
    metrics : dict
        Metric name to number.
    ranges : dict
        Metric name to [low, high]; the ends are accepted. A metric without a range is free.

    Returns
    -------
    list of Problem
        Empty when every metric that has a range is there and lies within it. NaN and what is not a number
        never do.

    Examples
    --------
    >>> check_results({"a": 0.9}, {"a": [0.8, 1.0]})
    []
    """
    problems = []
    for name, (low, high) in ranges.items():
        value = metrics.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or math.isnan(value) or not low <= value <= high:
            problems.append(Problem(name, value, low, high))
    return problems


def ranges_for(run, notebook):
    """Return the accepted ranges of a notebook's results, {metric: [low, high]}; None where there are none.

    A range comes from several seeds, so every seed of a run has the same.
    """
    path = course_folder() / "tests" / "contracts" / f"{notebook}.json"
    if not path.exists():
        return None
    contract = report.read_json(path)
    if not isinstance(contract, dict):
        raise CourseError(f"{path}: expected a JSON object of ranges by run. Mend the file.")
    return contract.get(f"{run.short_dataset}-{run.profile}")


def read_metrics(run, notebook):
    """Return the metrics that a notebook has left for a run; None where it left no results."""
    results = report.read_json(run.results / f"{notebook}.json")
    metrics = results.get("metrics") if isinstance(results, dict) else None
    return metrics if isinstance(metrics, dict) else None


def check_notebook(run, notebook):
    """Return `status` (ok, out of range, no results, not checked) and `problems` of a notebook's results."""
    ranges, metrics = ranges_for(run, notebook), read_metrics(run, notebook)
    if not ranges:
        return {"status": "not checked", "problems": []}
    problems = [{**problem._asdict(), "text": str(problem)} for problem in check_results(metrics or {}, ranges)]
    if metrics is None:
        return {"status": "no results", "problems": problems}
    return {"status": "out of range" if problems else "ok", "problems": problems}


# Kernels


@contextmanager
def _kernels():
    """Make the environment in which kernels start; leave none of them behind."""
    import psutil
    from ipykernel.kernelspec import get_kernel_dict

    for name in FOLDERS:
        if os.environ.get(name):  # a kernel starts in notebooks/, where a relative path would mean another
            os.environ[name] = os.path.abspath(os.environ[name])
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    os.environ["CXR_QUIET"] = "1"  # no progress bars inside the notebooks: they would be stored
    os.environ.pop("MPLBACKEND", None)  # a server's Agg would leave the notebooks without figures
    for name in ("papermill", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # we say ourselves what went wrong
    with tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True) as folder:
        # A kernelspec of our own, found first: the user's python3 may be another Python altogether. And an
        # IPython folder of our own: the user's start-up files are no part of the course.
        spec = get_kernel_dict()
        spec["argv"] = [sys.executable, "-c", QUIETLY, "-f", "{connection_file}"]
        spec["argv"] += ["--IPKernelApp.capture_fd_output=False"]
        write_text(Path(folder) / "kernels" / "python3" / "kernel.json", json.dumps(spec))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("JUPYTER_PATH")]))
        os.environ["IPYTHONDIR"] = folder
        try:
            yield
        finally:
            for process in psutil.Process().children(recursive=True):
                process.kill()


class _Watch(threading.Thread):
    """Follow one notebook: the progress bar on a terminal, and the peak memory of its kernel."""

    def __init__(self, path):
        from tqdm import tqdm

        super().__init__(daemon=True)
        cells = report.own_cells(report.read_json(path))
        self.headings = {cell.get("id"): heading for cell, heading in zip(cells, report.headings(cells))}
        self.peak, self.done, self.processes = 0, threading.Event(), []
        self.bar = tqdm(
            total=len(cells), desc=path.stem, leave=False, dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
            bar_format="{desc}  {bar:20}  cell {n_fmt} of {total_fmt}, {elapsed}{postfix}",
        )  # fmt: skip

    def __enter__(self):
        self.started = time.monotonic()
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()
        self.bar.close()
        self.seconds = round(time.monotonic() - self.started, 1)

    def cell_starts(self, cell, cell_index):
        """Show the cell that runs now (nbclient calls this)."""
        self.bar.n = min(cell_index + 1, self.bar.total)
        self.bar.set_postfix_str(self.headings.get(cell.get("id"), "")[:40])

    def run(self):
        """Sample ten times a second; look for new processes twice a second, as that reads all of /proc."""
        import psutil

        tick = 0
        while not self.done.wait(0.1):
            if tick % 5 == 0 or not self.processes:
                self.processes = psutil.Process().children(recursive=True)
                self.bar.refresh()  # the clock goes on within a long cell
            alive = [memory for memory in map(_memory, self.processes) if memory]
            # The kernel's own high-water mark sees what comes and goes between two samples.
            self.peak = max([self.peak, sum(now for now, _ in alive), *(high for _, high in alive)])
            tick += 1


def _memory(process):
    """Return (resident bytes now, most so far as Linux kept it) of a process; None when it has ended."""
    import psutil

    try:
        now = process.memory_info().rss
        high = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        return now, 1024 * int(high[1]) if high else 0
    except (psutil.Error, ProcessLookupError):
        return None
    except OSError:
        return now, 0


def _execute(path, run):
    """Execute one notebook with papermill; return its entry of the report."""
    values = (run.dataset, run.profile, str(run.raw or ""), run.seed)
    error = None
    with written(run.executed / path.name) as part:
        part.write_bytes(path.read_bytes())  # should it break off before papermill writes
        with _Watch(path) as watch:
            try:
                import papermill

                papermill.execute_notebook(
                    *(str(p).replace("{", "{{").replace("}", "}}") for p in (path, part)),  # it formats paths
                    parameters=dict(zip(config.PARAMETERS, values)), kernel_name="python3",
                    language="python", cwd=str(path.parent), progress_bar=False,
                    on_cell_start=watch.cell_starts, coalesce_streams=True,
                )  # fmt: skip
            except (Exception, KeyboardInterrupt) as raised:
                error = raised
        failure = _failure(report.read_json(part), error)
        if error and not failure:
            _without_marks(part)
    status = "ok" if not failure else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    if failure:  # what it may have written before it broke is no result
        (run.results / f"{path.stem}.json").unlink(missing_ok=True)
    return {"notebook": path.stem, "status": status, "seconds": watch.seconds,
            "peak_memory_mb": round(watch.peak / 1e6) or None, "error": failure}  # fmt: skip


def _failure(notebook, error):
    """Say where a notebook broke off, and why; None when it did not."""
    if error is None:
        return None
    cells = report.own_cells(notebook)
    number, output = _error_output(cells)
    if output is None and type(error).__name__ == "PapermillExecutionError":
        return None  # only cells that are meant to raise have raised: papermill counts them all the same
    if output is None:
        begun = [i for i, cell in enumerate(cells) if cell["metadata"].get("papermill", {}).get("start_time")]
        number = begun[-1] if begun else 0
    where = {"cell": number, "heading": report.headings(cells)[number] if cells else ""}
    return {**where, "message": _message(error, output)}


def _error_output(cells):
    for number, cell in enumerate(cells):
        if "raises-exception" not in report.tags(cell):
            for output in cell.get("outputs", []):
                if output["output_type"] == "error":
                    return number, output
    return 0, None


def _message(error, output):
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if output is None and type(error).__name__ == "DeadKernelError":
        return "Its Python process ended in the middle of this cell; the usual cause is too little memory."
    if output is None:
        return f"{type(error).__name__}: {error}"
    if output["ename"] == CourseError.__name__:
        return output["evalue"]
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(output["traceback"]))
    return "\n".join(text.rstrip().splitlines()[-LAST_LINES:])


def _without_marks(path):
    notebook = report.read_json(path)
    notebook["cells"] = [cell for cell in notebook["cells"] if report.ERROR_MARK not in report.tags(cell)]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# Commands


@contextmanager
def _alone(run):
    """Hold the run's folder; refuse a second run of the same RUN. The system lets go when a process ends."""
    import filelock

    run.executed.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(run.executed / ".lock", timeout=0):
            yield
    except filelock.Timeout:
        busy = f"Another run of {run.name} is under way in {run.executed}. Wait until it has ended."
        raise CourseError(busy) from None


def _run(args):
    run, paths = _start(args), notebook_paths(args.notebooks)
    for path in paths:
        check_parameters(path)
    from utils import sources

    sources.fetch(run, say=_say)
    with _alone(run), _kernels():
        entries = {} if len(paths) == len(notebook_paths()) else _entries(run)
        for path in paths:  # nothing of an earlier run may pass for a result of this one
            entries.pop(path.stem, None)
            for old in (run.results / f"{path.stem}.json", run.executed / path.name):
                old.unlink(missing_ok=True)
        _say(f"{run.name}: {len(paths)} notebook{'s' * (len(paths) > 1)}")
        _write_report(run, entries)
        for path in paths:
            entry = entries[path.stem] = _execute(path, run)
            page, _ = _write_report(run, entries)
            _say(f"{entry['notebook']:<28} {entry['status']:<12} {entry['seconds']:7.1f} s"
                 f" {entry['peak_memory_mb'] or '–':>6} MB")  # fmt: skip
            if entry["status"] != "ok":
                break
    done = [path for path in paths if entries.get(path.stem, {}).get("status") == "ok"]
    good = _print_check(run, done) and done == paths
    if entry["status"] != "ok":
        _print_failure(entry)
        _say(f"Kept as far as it came: {_near(run.executed / path.name)}")
    _say(f"Report: {_near(page)}")
    return 130 if entry["status"] == "interrupted" else int(not good)


def _print_failure(entry):
    error = entry["error"]
    _say(f"\n{entry['notebook']} {entry['status']} at “{error['heading'] or 'its start'}”")
    _say(error["message"] + "\n")


def _entries(run):
    """Return the entries of the run's earlier report, by notebook."""
    earlier = report.read_json(run.executed / "report.json")
    entries = earlier.get("notebooks", []) if isinstance(earlier, dict) else []
    return {entry["notebook"]: entry for entry in entries if entry.get("status") != "not run"}


def _write_report(run, entries):
    """Write the report on all notebooks of the course; return the page and the entries."""
    blank = {"status": "not run", "seconds": None, "peak_memory_mb": None, "error": None}
    found = []
    for path in notebook_paths():
        entry = {"notebook": path.stem, **blank, **entries.get(path.stem, {})}
        metrics, contract = None, {"status": "not checked", "problems": []}
        if entry["status"] == "ok":
            metrics, contract = read_metrics(run, path.stem), check_notebook(run, path.stem)
        found.append({**entry, "metrics": metrics or {}, "contract": contract})
    return report.write(run, found, course_folder() / "notebooks"), found


def _print_check(run, paths, *, every=False):
    """Print the verdict on the results; return True when nothing is wrong."""
    checks = {path.stem: check_notebook(run, path.stem) for path in paths}
    if not checks:
        return True
    for name, check in checks.items():
        if every or check["problems"]:
            _say(f"{name:<28} {check['status']}")
        for problem in check["problems"]:
            _say(f"    {problem['text']}")
    counts = {}
    for check in checks.values():
        counts[check["status"]] = counts.get(check["status"], 0) + 1
    _say("Check: " + ", ".join(f"{number} {status}" for status, number in counts.items()))
    return not any(check["problems"] for check in checks.values())


def _check(args):
    return int(not _print_check(_start(args), notebook_paths(args.notebooks), every=True))


def _fetch(args):
    from utils import sources

    run = config.Run(args.dataset or "", args.profile or "full", None, config.DEFAULTS["SEED"])
    if run.dataset not in sources.DOWNLOADS or run.profile not in config.PROFILES:
        raise CourseError(f"fetch: --dataset can be {', '.join(sources.DOWNLOADS)}, --profile {', '.join(config.PROFILES)};"
                          f" got {run.dataset or 'no data set'}, {run.profile}.")  # fmt: skip
    sources.fetch(run, say=_say)
    _say(f"{run.dataset}: all here that PROFILE={run.profile} uses.")
    return 0


def _validate(args):
    from utils import metrics, validation

    found = validation.validate(args.bundle, args.folder)
    for line in found.notes:
        _say(line)
    _say(metrics.table(found.scores).to_string())
    _say("For teaching, never for diagnosis.")
    return 0


def _report(args):
    run = _start(args)
    entries = _entries(run)
    if not entries:
        raise CourseError(f"There is no report of {run.name} in {run.executed} yet: run the course first.")
    page, entries = _write_report(run, entries)
    _say(report.verdict(entries)[1])
    _say(f"Report: {_near(page)}")
    return 0


def _notebooks(args):
    paths = notebook_paths(args.notebooks)
    for path in paths:
        check_parameters(path, defaults=True)
    with _kernels():
        for path in paths:
            entry = _refresh(path)
            _say(f"{path.stem:<28} {entry['status']:<12} {entry['seconds']:7.1f} s")
            if entry["error"]:
                _print_failure(entry)
                _say(f"Left as it was: {_near(path)}")
                return 130 if entry["status"] == "interrupted" else 1
    return 0


def _refresh(path):
    """Execute a notebook in place; an error leaves the file as it was."""
    import nbclient
    import nbformat

    source, error = report.read_json(path), None
    for number, cell in enumerate(source["cells"]):
        cell.setdefault("id", f"cell-{number:02d}")  # nbformat would draw one at random
    notebook = nbformat.reads(json.dumps({**source, "nbformat": 4, "nbformat_minor": 5}), as_version=4)
    with _Watch(path) as watch:
        client = nbclient.NotebookClient(
            notebook, timeout=None, kernel_name="python3", record_timing=False, store_widget_state=False,
            coalesce_streams=True, on_cell_start=watch.cell_starts,
            resources={"metadata": {"path": str(path.parent)}},
        )  # fmt: skip
        try:
            # Not client.execute(): on Ctrl-C that stops the kernel, and then goes on without it.
            client.reset_execution_trackers()
            with client.setup_kernel(cwd=str(path.parent)):
                for number, cell in enumerate(notebook.cells):
                    client.execute_cell(cell, number)
        except (Exception, KeyboardInterrupt) as raised:
            error = raised
    failure = _failure(notebook, error)
    if not failure:
        write_text(path, nbformat.writes(_stripped(notebook)).rstrip("\n") + "\n")
    status = "ok" if not failure else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    return {"notebook": path.stem, "status": status, "seconds": watch.seconds, "error": failure}


def _stripped(notebook):
    """Take away what tells of the machine and the moment."""
    for cell in notebook.cells:
        for key in set(cell.metadata).difference(KEPT):
            del cell.metadata[key]
        # Addresses in memory, and the names that pandas draws at random for the styles of a table.
        random_names = {
            "text/plain": (r" at 0x[0-9a-f]+", ""),
            "text/html": (r"\bT_[0-9a-f]{5}(?=_|\b)", f"T_{cell.id}"),
        }
        for output in cell.get("outputs", []):
            for kind, (pattern, name) in random_names.items():
                if kind in output.get("data", {}):
                    output.data[kind] = re.sub(pattern, name, output.data[kind])
    notebook.metadata.clear()
    notebook.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata.language_info = {"name": "python"}
    return notebook


# Command line


def _say(text):
    print(text, flush=True)


def _near(path):
    """Return a path as seen from the current folder, when it lies in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _start(args):
    options = {name: getattr(args, name) for name in ("dataset", "profile", "raw", "seed")}
    return config.start(**{name: value for name, value in options.items() if value})


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m utils.course", description="Run the notebooks of the course, check results, report.",
        epilog="Exit: 0 done; 1 a notebook failed or a result is out of range; 2 usage; 130 interrupted.",
        allow_abbrev=False,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = {
        "run": (_run, "run the notebooks in order, check their results and write a report"),
        "check": (_check, "compare the results of a run with their accepted ranges"),
        "report": (_report, "write report.html and report.json of a run again"),
        "validate": (_validate, "test a model bundle on a folder of X-rays that it was never trained on"),
        "fetch": (_fetch, "download a data set, for instance into the folder that a class shares"),
        "notebooks": (_notebooks, "execute the notebooks in place, for their stored outputs"),
    }
    for name, (function, text) in known.items():
        about = f"{text.capitalize()}."
        command = commands.add_parser(name, help=text, description=about, allow_abbrev=False)
        command.set_defaults(function=function)
        if name == "validate":
            command.add_argument("bundle", metavar="BUNDLE", help="a folder such as data/models/phantom-fast.transfer")
            command.add_argument("folder", metavar="FOLDER", help="Actualmed, Figure 1, or one sub-folder a class")
            continue
        if name not in ("report", "fetch"):
            command.add_argument("notebooks", nargs="*", metavar="NN", help="by number (default: all)")
        if name == "notebooks":
            continue
        if name == "fetch":
            command.add_argument("--dataset", metavar="D", help="which (see README)")
            command.add_argument("--profile", metavar="P", help="fast: only what that uses; full (default): all")
            continue
        sets = f"{', '.join(config.DATASETS)}, or a folder with one sub-folder a class"
        command.add_argument("--dataset", metavar="D", help=f"{sets} (default: phantom)")
        command.add_argument("--profile", metavar="P", help=f"{', '.join(config.PROFILES)} (default: fast)")
        command.add_argument("--raw", metavar="FOLDER", help="the download of a real data set")
        command.add_argument("--seed", metavar="N", help=f"whole number (default: {config.DEFAULTS['SEED']})")
    return parser


def _parse(argv):
    parser = _parser()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        takes_none = args.command in ("notebooks", "validate")
        known = [] if takes_none else ["--dataset", "--profile", "--raw", "--seed", "--help"]
        near = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        parser.error(f"{args.command} does not know {' '.join(unknown)}.{hint}")
    return args


def _interrupt(*_):
    raise KeyboardInterrupt


def main(argv=None):
    """Do what the command line says; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a message may hold what an old terminal cannot show
    args = _parse(argv)
    signal.signal(signal.SIGTERM, _interrupt)  # end as after Ctrl-C: kernel stopped, report written
    try:
        return args.function(args)
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that cannot be written
        print(
            f"{error.filename or 'A file'} cannot be used: {error.strerror}. Mend that, and run again.", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
