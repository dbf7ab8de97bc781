"""The page and the JSON file about one run of the course; `utils.course` writes them."""

import base64
import importlib.metadata
import json
import math
import platform
import re
import struct
from datetime import datetime
from pathlib import Path

from utils.files import write_text

TITLE = "COVID-19 and chest X-rays, hands on"
CLAIM = "For teaching, not for diagnosis"
PACKAGES = ("tensorflow", "keras", "numpy")
TASKS = {
    "binary": "COVID-19 against Normal",
    "multiclass": "all labels of the data set",
    "abnormal": "any pneumonia or opacity against Normal",
}
SHORT = {"auc", "auroc", "clahe", "cnn", "ece", "f1", "iou", "npv", "ppv"}  # written in capitals on the page
ERROR_MARK = "papermill-error-cell-tag"
INSERTED = {"injected-parameters", ERROR_MARK}  # tags of papermill's own cells


def read_json(path):
    """Return what a JSON file holds, or None when it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def tags(cell):
    """Return the tags of a cell."""
    return cell["metadata"].get("tags", [])


def own_cells(notebook):
    """Return the cells of a notebook without those that papermill put in.

    Parameters
    ----------
    notebook : dict or None
        A notebook as its JSON file holds it, or as nbformat does.

    Returns
    -------
    list of dict
        Their numbers are those of the course's notebook, whether executed or not.
    """
    cells = notebook.get("cells", []) if isinstance(notebook, dict) else []
    return [cell for cell in cells if not INSERTED & set(tags(cell))]


def headings(cells):
    """Return for each cell the last markdown heading in it or above it ("" before the first)."""
    found, last = [], ""
    for cell in cells:
        if cell["cell_type"] == "markdown":
            text = re.sub(r"(?ms)^```.*?^```", "", "".join(cell["source"]))
            lines = re.findall(r"(?m)^#{1,6}\s+(.+?)\s*#*\s*$", text)
            last = _plain(lines[-1]) if lines else last
        found.append(last)
    return found


def _plain(text):
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return re.sub(r"[*`]|<[^>]+>", "", text).strip()


def title(cells, name):
    """Return the first markdown heading of a notebook, or its name made readable."""
    return next(filter(None, headings(cells)), name[3:].replace("_", " "))


def figures(cells):
    """Return every PNG among the outputs: `cell` (from 0), `heading`, `alt`, `png` (base64)."""
    found = []
    for number, (cell, heading) in enumerate(zip(cells, headings(cells))):
        for output in cell.get("outputs", []):
            png = "".join(output.get("data", {}).get("image/png", "")).replace("\n", "")
            if not png:
                continue
            metadata = output.get("metadata", {})
            alt = metadata.get("image/png", {}).get("alt") or metadata.get("alt") or ""
            found.append({"cell": number, "heading": heading, "alt": alt, "png": png})
    return found


def scores(metrics):
    """Group the metrics of a notebook as tables, one a task.

    Parameters
    ----------
    metrics : dict
        Name to number; `<task>.<model>.<metric>`, with `.lo`, `.hi` and `.n` beside a score.

    Returns
    -------
    list of dict
        `task` ("" for names of another form), `meaning` and `models`: model to rows, each with `metric`,
        `value`, `lo`, `hi`, `n` (None: not given) and `bar`.
    """
    tables = {}
    for name, value in metrics.items():
        base, _, tail = name.rpartition(".")
        if tail in ("lo", "hi", "n") and base in metrics:
            continue
        task, *model, metric = name.split(".") if name.count(".") > 1 else ["", name.replace(".", " ")]
        row = {"metric": _words(metric), "value": value}
        beside = {side: metrics.get(f"{name}.{side}") for side in ("lo", "hi", "n")}
        row.update({side: number if _is_number(number) else None for side, number in beside.items()})
        rows = tables.setdefault(task, {}).setdefault(_words(" ".join(model)), [])
        rows.append({**row, "bar": _bar(row)})
    return [{"task": task, "meaning": TASKS.get(task, ""), "models": tables[task]} for task in tables]


def _words(name):
    return " ".join(word.upper() if word in SHORT else word for word in name.replace("_", " ").split())


def _bar(row):
    """Return (left, width, dot) of the interval in per cent of the line from 0 to 1, or None."""
    numbers = [row["value"], row["lo"], row["hi"]]
    if not all(_is_number(number) and 0 <= number <= 1 for number in numbers):
        return None
    value, low, high = (100 * number for number in numbers)
    return round(low, 1), round(max(high - low, 0), 1), round(value, 1)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def verdict(entries):
    """Return (status, sentence) for a run: ok, failed, interrupted, out of range or incomplete."""
    named = {}
    for entry in entries:
        named.setdefault(entry["status"], []).append(entry["notebook"])
        if entry["status"] == "ok":
            named.setdefault(entry["contract"]["status"], []).append(entry["notebook"])
    for status, text in (("failed", "failed"), ("interrupted", "was interrupted")):
        if status in named:
            rest = f" {len(named['not run'])} of {len(entries)} have not run." if "not run" in named else ""
            return status, f"{' and '.join(named[status])} {text}.{rest}"
    wrong = named.get("out of range", []) + named.get("no results", [])
    if wrong:
        return "out of range", f"Results of {', '.join(wrong)} are missing or outside their accepted ranges."
    if "not run" in named:
        return "incomplete", f"{len(named['not run'])} of {len(entries)} notebooks have not run."
    every = f"All {len(entries)} notebooks ran to the end."
    checked = sum(entry["contract"]["status"] == "ok" for entry in entries)
    if not checked:
        return "ok", f"{every} No accepted ranges are known for this run, so its results were not checked."
    return "ok", f"{every} Results were checked in {checked} of them: all lie within their accepted ranges."


def write(run, entries, notebooks):
    """Write `report.json` and `report.html` of a run, each whole or not at all.

    Parameters
    ----------
    run : utils.config.Run
    entries : list of dict
        One a notebook, in order: `notebook, status, seconds, peak_memory_mb, error, metrics, contract`.
    notebooks : pathlib.Path
        Folder of the course's notebooks: those that have not run are named from there.

    Returns
    -------
    pathlib.Path
        The page.
    """
    pictures = []
    for entry in entries:
        executed = read_json(run.executed / f"{entry['notebook']}.ipynb")
        source = executed or read_json(notebooks / f"{entry['notebook']}.ipynb")
        entry["title"] = title(own_cells(source), entry["notebook"])
        pictures.append(figures(own_cells(executed)))
        entry["figures"] = [{key: one[key] for key in ("cell", "heading", "alt")} for one in pictures[-1]]
    about = _about(run, entries)
    text = json.dumps(_finite({**about, "notebooks": entries}), indent=1, ensure_ascii=False, allow_nan=False)
    write_text(run.executed / "report.json", text + "\n")
    page = run.executed / "report.html"
    write_text(page, _page(about, entries, pictures))
    return page


def _about(run, entries):
    status, sentence = verdict(entries)
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "title": TITLE, "claim": CLAIM, "run": run.name,
        "dataset": run.short_dataset,
        "simulated": run.dataset == "phantom", "profile": run.profile, "seed": run.seed,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "verdict": status, "summary": sentence,
        "versions": versions, "platform": platform.platform(),
    }  # fmt: skip


def _finite(value):
    """JSON knows no NaN: such a number becomes null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _page(about, entries, pictures):
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    env = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters.update(number=_number, score=_score, duration=_duration)
    parts = [
        {**entry, "tables": scores(entry["metrics"]), "pictures": [_sized(one) for one in found]}
        for entry, found in zip(entries, pictures)
    ]
    for part in parts:  # a notebook with nothing to show stands in the list alone
        part["shown"] = any((part["tables"], part["pictures"], part["error"], part["contract"]["problems"]))
    date = datetime.fromisoformat(about["date"])
    when = f"{date.day} {date:%B %Y, %H:%M} {date.tzname()}"
    return env.get_template("report.html.j2").render(**about, when=when, parts=parts)


def _sized(picture):
    """Add width and height, from the header of the PNG: the page keeps their place while one is enlarged."""
    head = base64.b64decode(picture["png"][:32])
    width, height = struct.unpack(">II", head[16:24]) if len(head) >= 24 else (4, 3)
    return {**picture, "width": width or 4, "height": height or 3}


def _number(value):
    if not _is_number(value):
        return "–" if value is None else str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) > 1):
        return f"{int(value):,}".replace(",", "\u202f")  # a narrow space between thousands
    return _score(value)


def _score(value):
    """Three digits behind the point, so that the ends of intervals stand below each other."""
    if not _is_number(value):
        return "–"
    text = f"{value:.3f}" if 0.001 <= abs(value) < 1000 or value == 0 else f"{value:.3g}"
    return text.replace("-", "\u2212")  # a minus sign, not a hyphen


def _duration(seconds):
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
