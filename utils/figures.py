"""Rebuild the gallery in `figures/` from the results of a run: `python -m utils.figures --help`.

The scores on real X-rays are read from a small table, so that nobody needs the X-rays to draw them.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.patches
import numpy as np
import pandas as pd

from utils import config, images, manifest, metrics, phantom, plots
from utils.errors import CourseError
from utils.files import write_text, written

FOLDER = config.ROOT / "figures"
REAL = FOLDER / "gap_real.csv"  # scores on real X-rays: numbers, never pixels
COLOURS = 96  # noise in radiographs is what takes the bytes
SHOWN = 6  # patients under the heat maps
# Whose results and bundles are drawn.
NOTEBOOKS = {
    "01_data": (),
    "02_preprocessing": (),
    "03_binary_cnn": (),
    "04_transfer_learning": ("transfer",),
    "06_gradcam_feature_maps": ("short_sighted",),
    "07_shortcuts": (),
}
GAP = """Left, simulated. Above: nearly all ill phantoms of the training come from one hospital, nearly all healthy ones
from another; tested on new patients of both, with that link and without it. Below: hospitals draw all labels alike, and
one at a time is left out. Right, DATASET=all: two sources at a time are left out; the same images are judged with and
without these sources in training. Means over what is left out; intervals over patients. Dashed: chance. Not for diagnosis."""
TASKS = {
    "abnormal": "any pneumonia or opacity,\nor Normal",
    "covid_19_or_other_pneumonia": "COVID-19,\nor other pneumonia",
}


def missing(run):
    """Return the numbers of the notebooks that must run before the gallery can be drawn, in order."""
    return [
        name[:2]
        for name, bundles in NOTEBOOKS.items()
        if not all(path.exists() for path in [run.results / f"{name}.json", *map(run.bundle, bundles)])
    ]


def build(run, folder=FOLDER):
    """Draw the gallery.

    Parameters
    ----------
    run : utils.config.Run
        Of phantoms: a figure that shows real X-rays must not be passed on.
    folder : path-like
        Made when missing; figures of these names are replaced.

    Returns
    -------
    list of pathlib.Path
        What was written.

    Raises
    ------
    CourseError
        Another data set, or results that are not there yet.
    """
    if run.dataset != "phantom":
        raise CourseError(f"The gallery shows simulated radiographs only, not {run.name}: leave DATASET=phantom.")
    numbers = missing(run)
    if numbers:
        raise CourseError(
            f"The figures need results of {run.name} that are not in {config.data_root()} yet. First run: "
            f"python -m utils.course run {' '.join(numbers)}"
        )
    drawn = {"pipeline": pipeline(), "phantoms": phantoms(run), "gradcam": grad_cam(run), "gap": gap(run)}
    paths = [Path(folder) / f"{name}.png" for name in drawn]
    for path, fig in zip(paths, drawn.values()):
        with written(path) as part:
            part.write_bytes(plots.png(fig, colours=COLOURS))
    return paths


def pipeline():
    """Draw the way of the data, with the notebook of each step; return the figure."""
    steps = [
        ("source", "files, origin,\nlicence", "01"),
        ("manifest", "one row an image:\nlabel, patient, hospital", "01"),
        ("pixels, split", "one function for all;\npatients kept apart", "02"),
        ("model", "small CNN; transfer;\nkept as a bundle", "03, 04"),
    ]
    ends = [
        ("scores", "intervals, baselines", "05"),
        ("explanations", "Grad-CAM, measured", "06"),
        ("other hospitals", "shortcuts, remedies", "07"),
        ("command, page", "may refuse; one answer", "08"),
    ]
    fig, ax = plots.figure(width=10, height=3.1)
    for column, step in enumerate(steps):
        _box(ax, 2.1 * column, 0, 1.75, 1.2, *step)
        _arrow(ax, (2.1 * column + 1.75, 0), (2.1 * column + 2.1, 0), head=column < len(steps) - 1)
    last = 2.1 * len(steps)
    ax.plot([last, last], [-1.8, 1.8], color="black", lw=1.2)
    for row, end in enumerate(ends):
        _arrow(ax, (last, 1.8 - 1.2 * row), (last + 0.3, 1.8 - 1.2 * row))
        _box(ax, last + 0.3, 1.8 - 1.2 * row, 2.3, 0.95, *end)
    ax.set(xlim=(-0.05, last + 2.65), ylim=(-2.4, 2.4))
    ax.set_axis_off()
    return fig


def _box(ax, left, middle, width, height, title, text, notebooks):
    place = (left, middle - height / 2)
    ax.add_patch(matplotlib.patches.Rectangle(place, width, height, fc="#EDF3F7", ec="black", lw=1.2))
    top = middle + height / 2
    ax.text(left + 0.12, top - 0.16, title, fontsize=11, fontweight="bold", va="top")
    ax.text(left + 0.12, top - 0.55, text, fontsize=8.5, va="top", linespacing=1.3)
    badge = {"boxstyle": "round,pad=0.25", "fc": plots.BLUE, "ec": "white"}
    ax.text(left + width, top, notebooks, fontsize=9, fontweight="bold", color="white", ha="right", bbox=badge)


def _arrow(ax, start, end, *, head=True):
    ax.annotate(
        "",
        end,
        start,
        arrowprops={"arrowstyle": "-|>" if head else "-", "lw": 1.2, "fc": "black", "shrinkA": 0, "shrinkB": 0},
    )


def phantoms(run):
    """Draw a phantom of each class above the same with its masks as outlines; return the figure."""
    fig, axes = plots.figure(2, 4, width=8.7, height=4.75)
    for column, index in enumerate(range(4)):
        patient = phantom.make_patient(index, seed=22)
        shot = phantom.take_radiograph(patient, 0, size=320)
        plots.radiographs(axes[0, column], shot.image, f"{patient.label}\n({shot.view} view)")
        plots.radiographs(axes[1, column], shot.image)
        plots.outline(axes[1, column], shot.lung_mask, plots.BLUE)
        plots.outline(axes[1, column], shot.lesion_mask, plots.ORANGE, style="dashed")
    plots.caption(fig, run, "Below, as the simulator placed them: lungs (blue), lesions (orange, dashed).")
    return fig


def grad_cam(run):
    """Draw X-rays, the truth, and the heat of two networks; return the figure.

    The patients are not chosen: the first of the test part with COVID-19, by number, one image each.
    """
    from utils import explain, models, shortcuts  # with TensorFlow, which takes seconds

    root, table = manifest.open_saved(run)
    part, split = manifest.open_split(run, table)
    ill = np.flatnonzero((part == "test") & (table["label"] == "COVID-19"))
    rows = ill[np.unique(table["patient"].to_numpy(str)[ill], return_index=True)[1][:SHOWN]]
    size = run.settings.image_size
    lesions = shortcuts.masks(root, table.iloc[rows], size, column="lesion_mask")[..., 0]
    shown = [images.load(root / path, images.Options(size=size)) for path in table["path"].iloc[rows]]
    heats, titles = [None] * 2 * len(rows), ["COVID-19"] * len(rows) + [""] * len(rows)
    for name in ("short_sighted", "transfer"):
        model, options, card = models.open_bundle(run.bundle(name), task="binary", split=split)
        pixels = np.stack([images.load(root / path, options) for path in table["path"].iloc[rows]])
        found = explain.grad_cam(model, pixels, size=size)
        # Rounded: what threads add up in another order must not change the picture.
        heats += list(np.round(found.maps / np.maximum(found.maps.max(axis=(1, 2), keepdims=True), 1e-9), 3))
        titles += [f"called {card['classes'][number]}" for number in found.classes]
    names = ["X-ray", "truth", "short-sighted\nnetwork", "transfer,\nlast layer"]
    fig = plots.grid([*shown] * 4, titles, columns=len(rows), side=1.35, row_labels=names)
    plots.overlay(fig, heats, masks=[*[None] * len(rows), *[*lesions] * 3])
    for ax, heat in zip(fig.axes, heats):
        if heat is not None and heat.max() > 0:
            y, x = np.unravel_index(heat.argmax(), heat.shape)
            ax.plot(x, y, "P", ms=8, mfc="white", mec="black")
            plots.outline(ax, heat >= 0.5, plots.ORANGE, style="dotted")  # heat is hardly seen in grey
    fig.axes[-1].axhline(0.5, color="black", ls=":")
    plots.caption(fig, run, _pointing(run))
    return fig


def _pointing(run):
    found = _results(run.results, "06_gradcam_feature_maps")
    whose = {
        "short-sighted network": "short_sighted",
        "a guess by the usual place of lesions": "usual_place",
        "transfer, last layer": "transfer_last_layer",
        "chance": "chance",
    }
    scores = "; ".join(f"{name} {_said(_score(found, f'binary.{key}.pointing'))}" for name, key in whose.items())
    return (
        "The first test patients with COVID-19, by number. Blue: the true lesion. Heat for the class that is called; "
        "dotted: half of the greatest heat; cross: the hottest place. How often it lies in the lesion, over all test "
        f"images with COVID-19 (of the networks: called so): {scores}. Not for diagnosis."
    )


def _said(score):
    return f"{score.value:.2f} [{score.lo:.2f}, {score.hi:.2f}], n = {score.n}"


def gap(run, real=REAL):
    """Draw AUROC on the sources of the training beside sources left out; return the figure.

    Parameters
    ----------
    run : utils.config.Run
        Of phantoms.
    real : path-like
        The table that `write_real` writes.
    """
    found = _results(run.results, "07_shortcuts")
    link = [_score(found, f"planted.no_cure.auroc_{where}") for where in ("same_link", "no_link")]
    alike = [_score(found, f"abnormal.real_model.sources_{where}_auroc") for where in ("seen", "unseen")]
    simulated = {"hospital follows the label\nin training": link, "all hospitals alike": alike}
    table = pd.read_csv(real, comment="#", index_col=["task", "sources"])
    known = {TASKS[task]: [metrics.Score(*table.loc[(task, where)]) for where in ("seen", "unseen")]
             for task in table.index.unique("task")}  # fmt: skip
    fig, axes = plots.figure(1, 2, width=10, height=3.3)
    for ax, title, rows in zip(axes, ("Simulated radiographs", "Real X-rays"), (simulated, known)):
        plots.gaps(ax, rows, names=("as in training", "elsewhere"), label="AUROC (95 % interval)", line=0.5)
        ax.set(title=title, xlim=(0.35, 1.1), ylim=(1.5, -0.5))
        for row, both in enumerate(rows.values()):
            _value(ax, both[0], row - 0.2, "bottom")
            _value(ax, both[1], row + 0.2, "top")
    axes[0].get_legend().remove()
    plots.caption(fig, None, GAP)
    return fig


def _value(ax, score, row, side):
    box = {"fc": "white", "ec": "none", "pad": 1}
    text = f"{score.value:.3f}  (n = {int(score.n)})"
    ax.text(score.value, row, text, ha="center", va=side, fontsize=8, bbox=box)


def write_real(results, path=REAL):
    """Write the table of scores on real X-rays from what notebook 07 has left.

    Parameters
    ----------
    results : path-like
        A folder such as data/results/all-fast.
    path : path-like
        The table.

    Raises
    ------
    CourseError
        No results of notebook 07 there, simulated ones, or a set with no sources to leave out.
    """
    file = Path(results) / "07_shortcuts.json"
    found = _results(Path(results), "07_shortcuts")
    about = json.loads(file.read_text(encoding="utf-8"))
    if about["dataset"] == "phantom":
        raise CourseError(f"{file} holds results on simulated radiographs; this table is for real ones.")
    rows = {
        (task, where): _score(found, key)
        for task in TASKS
        for where in ("seen", "unseen")
        if (key := f"{task}.real_model.sources_{where}_auroc") in found
    }
    if not rows:
        raise CourseError(f"{file} leaves no sources out; DATASET=all, with several sets, does.")
    date = datetime.date.fromtimestamp(file.stat().st_mtime)
    command = f"make course DATASET={about['dataset']} PROFILE={about['profile']} SEED={about['seed']}"
    table = pd.DataFrame(rows.values(), index=pd.MultiIndex.from_tuples(rows, names=["task", "sources"])).round(4)
    text = table.rename(columns={"value": "auroc"}).to_csv(lineterminator="\n")
    write_text(path, f"# {command}, notebook 07, {date}: AUROC with 95 % intervals over patients, n images\n{text}")


def _results(folder, notebook):
    file = folder / f"{notebook}.json"
    if not file.is_file():
        raise CourseError(f"There is no {notebook}.json in {folder}: run that notebook first.")
    return json.loads(file.read_text(encoding="utf-8"))["metrics"]


def _score(found, name):
    return metrics.Score(found[name], *(found[f"{name}.{end}"] for end in ("lo", "hi", "n")))


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m utils.figures",
        description="Draw the gallery anew from results on the built-in data; notebooks whose results are missing run first.",
        epilog="Exit: 0 done; 1 a notebook failed, or a file could not be written; 2 usage; 130 interrupted.",
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="FOLDER", default=FOLDER, help="where the figures go (default: figures/)")
    parser.add_argument(
        "--real", metavar="RESULTS", help="write figures/gap_real.csv from a folder such as data/results/all-fast first"
    )
    return parser


def _run_missing(run):
    numbers = missing(run)
    if not numbers:
        return 0
    print(f"Notebooks that must run first, up to four minutes each: {', '.join(numbers)}", flush=True)
    command = [sys.executable, "-m", "utils.course", "run", *numbers]
    return subprocess.run(command, cwd=config.ROOT).returncode


def main(argv=None):
    """Do what the command line says; return the exit code."""
    args = _parser().parse_args(argv)
    run = config.start()
    try:
        if args.real:
            write_real(args.real)
        status = _run_missing(run)
        for path in [] if status else build(run, args.out):
            print(f"{path}  {path.stat().st_size / 1000:.0f} kB")
        return status
    except CourseError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or 'A file'} cannot be used: {error.strerror}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
