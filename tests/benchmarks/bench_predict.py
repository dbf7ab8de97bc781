"""How fast `python -m utils.predict` answers, how much memory it takes, and whether damaged files ever stop it.

    .venv/bin/python tests/benchmarks/bench_predict.py [speed memory fuzz refusal] [--images 2000] [--usual 150]
        [--runs 3] [--many 10000] [--mutations 5000] [--seed 7] [--model BUNDLE] [--data ../shared/data]

1. Speed, images/s: the real command on a folder of simulated X-rays (224 x 224, PNG; of 100 patients, linked again and
   again), whole, and without its start (a second call, with one image). Usual: what notebooks do, in a warm process:
   each file read by OpenCV, resized, and given to `model.predict` of the same model alone. Every figure is a ratio
   within one run, ours and the usual one after the other, so that a busy machine slows both.
2. Peak memory of the command on 1,000 and on `--many` images.
3. Real images in nine forms, damaged at random: a row each, no crash, and what each of them took.
4. What a bundle refuses of real images: frontal X-rays, laterals and CT slices by the table of ieee8023, and all of the
   other sets. Skipped where there is no such folder.
"""

import argparse
import collections
import csv
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cv2  # noqa: E402  (after the repository is on the path)
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from bench_phantom import sample  # noqa: E402
from test_predict import mutated, originals  # noqa: E402

from utils import classifier, config, models, predict  # noqa: E402

PATIENTS = 100
MUST, AIM = 10, 20


def fill(folder, count):
    """Put so many simulated X-rays into a folder: files of `PATIENTS` patients, each linked many times."""
    folder.mkdir()
    pictures, _ = sample(20_000, PATIENTS, seed=99, size=224)
    for number in range(count):
        path = folder / f"{number:06d}.png"
        if number < PATIENTS:
            cv2.imwrite(str(path), pictures[number])
        else:
            os.link(folder / f"{number % PATIENTS:06d}.png", path)
    return folder


def command(*arguments):
    """Run the command; return seconds, peak memory in MB, and its rows."""
    start = time.perf_counter()
    call = [sys.executable, "-m", "utils.predict", *map(str, arguments)]
    nowhere = subprocess.DEVNULL
    with tempfile.TemporaryFile() as out, subprocess.Popen(call, cwd=ROOT, stdout=out, stderr=nowhere) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        rows = list(csv.DictReader(io.TextIOWrapper(out, encoding="utf-8", newline="")))
    if process.returncode not in (0, 3):
        raise SystemExit(f"the command ended with {process.returncode}")
    return seconds, usage.ru_maxrss / 1024, rows


def usual_way(model, paths):
    """One after the other: read, resize, predict; return seconds."""
    side = model.input_shape[1]
    start = time.perf_counter()
    for path in paths:
        grey = cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (side, side), interpolation=cv2.INTER_AREA)
        model.predict(grey[None, ..., None], verbose=0)
    return time.perf_counter() - start


def speed(args, scratch):
    """Print images/s of the command and of the usual way."""
    folder = fill(scratch / "speed", args.images)
    paths = sorted(folder.iterdir())
    model = models.open_bundle(config.SHIPPED)[0]
    usual_way(model, paths[:2])
    runs = []
    for _ in range(args.runs):
        start_up, _, _ = command(paths[0])
        whole, _, rows = command(folder)
        assert len(rows) == args.images
        usual = args.usual / usual_way(model, paths[: args.usual])
        runs.append((args.images / whole, (args.images - 1) / max(whole - start_up, 1e-3), usual, start_up))
    print(f"{args.images:,} X-rays of 224 x 224; usual: {args.usual} of them; medians of {args.runs} runs, ratios "
          f"within a run; the start takes {statistics.median(run[3] for run in runs):.1f} s.\n")  # fmt: skip
    print("| Figure | Ours | Usual | Ratio | Range | Must | Aim |\n|---|---|---|---|---|---|---|")
    for number, name in enumerate(("start included", "start not counted")):
        ours, usual = ([run[place] for run in runs] for place in (number, 2))
        ratios = [a / b for a, b in zip(ours, usual)]
        middle = statistics.median(ratios)
        verdicts = " | ".join(f"{goal}: {'yes' if middle >= goal else 'no'}" for goal in (MUST, AIM))
        print(f"| {name} | {statistics.median(ours):,.0f} images/s | {statistics.median(usual):.1f} images/s "
              f"| {middle:.1f} | {min(ratios):.1f} to {max(ratios):.1f} | {verdicts} |")  # fmt: skip


def memory(args, scratch):
    """Print the command's peak memory on few and on many images."""
    print("| Images | Peak memory | Limit |\n|---|---|---|")
    for count in (1_000, args.many):
        _, peak, rows = command(fill(scratch / str(count), count))
        assert len(rows) == count
        print(f"| {count:,} | {peak:,.0f} MB | 1,500 MB: {'yes' if peak <= 1_500 else 'no'} |")


def fuzz(args, scratch):
    """Print what became of damaged images, and the slowest of them."""
    folder = scratch / "fuzz"
    folder.mkdir()
    real = sorted((args.data / "ieee8023" / "images").glob("*"))[:12]
    files, rng = originals([path.read_bytes() for path in real]), np.random.default_rng(args.seed)
    for number in range(args.mutations):
        (folder / f"{number:06d}").write_bytes(mutated(files[number % len(files)], rng))
    arguments = [str(folder / f"{number:06d}") for number in range(args.mutations)]
    listed = scratch / "list"
    listed.write_text("\n".join(arguments))
    start = time.perf_counter()
    with open(listed, "rb") as stdin:
        done = subprocess.run([sys.executable, "-m", "utils.predict", "-"], cwd=ROOT, stdin=stdin, capture_output=True)
    seconds = time.perf_counter() - start
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode(), newline="")))
    assert [row["path"] for row in rows] == arguments and done.returncode == 3, "a row each"
    assert done.stderr.count(b"\n") == 1, f"standard error should be one line: {done.stderr[:999]}"
    counts = collections.Counter(
        "error" if row["error"] else "refused" if row["refused"] else "answered" for row in rows
    )
    predict._apart_from_libraries()
    model, slowest = classifier.Classifier(), (0.0, "")
    for path in arguments:
        began = time.perf_counter()
        model.look(Path(path).read_bytes())
        slowest = max(slowest, (time.perf_counter() - began, path))
    print(
        "| Damaged images | Rows | Error | Refused | Answered | Seconds | Slowest file |\n|---|---|---|---|---|---|---|"
    )
    found = " | ".join(f"{counts[name]:,}" for name in ("error", "refused", "answered"))
    print(f"| {args.mutations:,} | {len(rows):,} | {found} | {seconds:.0f} | {slowest[0]:.2f} s |")


def groups(data):
    """Yield name and files of each group of real images."""
    table = data / "ieee8023" / "metadata.csv"
    if table.is_file():
        rows = pd.read_csv(table)
        views = {"PA": "frontal", "AP": "frontal", "AP Supine": "frontal", "L": "laterals"}
        kind = rows["view"].map(views).fillna("unknown view").where(rows["modality"] != "CT", "CT slices")
        for name, names in rows["filename"].groupby(kind):
            paths = (data / "ieee8023" / "images" / one for one in names.unique())
            yield f"ieee8023, {name}", [path for path in paths if path.is_file()]
    for name in ("darkcovidnet", "kermany", "radiography"):
        if (data / name).is_dir():
            yield name, [path for path in sorted((data / name).rglob("*")) if path.suffix.lower() in predict.SUFFIXES]


def refusal(args, scratch):
    """Print what share of real images a bundle refuses, and how it calls the others."""
    model = classifier.Classifier([args.model] if args.model else ())
    called = " | ".join(f"Called {name}" for name in model.classes)
    print(f"{model.name}\n\n| Images | Number | Refused | Unreadable | {called} |")
    print("|---|---|---|---|" + "---|" * len(model.classes))
    for name, paths in groups(args.data):
        rows = [row for row, _ in predict.predictions(model, predict.Files(map(str, paths)))]
        called = collections.Counter(row["decision"] for row in rows)
        off, bad = (sum(bool(row[column]) for row in rows) for column in ("refused", "error"))
        print(f"| {name} | {len(rows):,} | {100 * off / len(rows):.1f} % | {bad} "
              f"| {' | '.join(str(called[one]) for one in model.classes)} |")  # fmt: skip


PARTS = {"speed": speed, "memory": memory, "fuzz": fuzz, "refusal": refusal}


def main():
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    numbers = {"images": 2_000, "usual": 150, "runs": 3, "many": 10_000, "mutations": 5_000, "seed": 7}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", help="the bundle whose refusals are counted; by default the shipped one")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    args = parser.parse_args()
    if set(args.parts) - set(PARTS) or args.images < args.usual or args.runs < 1:
        parser.error(f"parts are {', '.join(PARTS)}; at least as many images as the usual way gets, and one run")
    for name in args.parts or PARTS:
        print(f"\n### {name}\n", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            PARTS[name](args, Path(scratch))


if __name__ == "__main__":
    main()
