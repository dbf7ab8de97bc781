"""How well bundles of real sets refuse what is no frontal chest X-ray.

    CXR_WORK_DIR=... python tests/benchmarks/bench_refusal.py RAW [--profile full] [--photos FOLDER] [DATASET:BUNDLE ...]

RAW holds ieee8023 (its CT slices and laterals are asked about) and the sets of the runs, which are made before by
`python -m utils.course run 01 02 03 04 --dataset DATASET --raw RAW`, of the profile fast if none is named. Statistics are fitted as notebook 04 fits
them, on training and validation patients; frontal X-rays are those of test patients. Documents and patterns are generated;
photographs come from a folder, whole and in six random cuts each.
"""

import argparse
import random
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from utils import config, images, manifest, models, refusal  # noqa: E402

DOCUMENTS, PATTERNS = 300, 100


def document(number):
    """Draw a page: lines of words, a table or a plot, on paper or screen, straight or askew."""
    rng = random.Random(number)
    width, height = rng.choice([600, 800, 1000]), rng.choice([600, 850, 1100, 1400])
    paper, ink = (
        (rng.randint(0, 60), rng.randint(170, 255))
        if rng.random() < 0.2
        else (rng.randint(200, 255), rng.randint(0, 90))
    )
    page = np.full((height, width), paper, np.uint8)
    margin, step, scale = rng.randint(20, 140), rng.randint(20, 44), rng.uniform(0.4, 1.1)
    if rng.random() < 0.3:
        points = [(margin + x * (width - 2 * margin) // 40, rng.randint(80, height - 80)) for x in range(41)]
        cv2.polylines(page, [np.array(points, np.int32)], False, ink, 3)
        cv2.rectangle(page, (margin, 60), (width - margin, height - 60), ink, 2)
    words = Path(ROOT / "README.md").read_text(encoding="utf-8").encode("ascii", "ignore").decode().split()
    for line in range(60, height - 40, step) if rng.random() < 0.8 else ():
        text = " ".join(rng.choices(words, k=rng.randint(3, 12)))
        cv2.putText(page, text, (margin, line), rng.choice(range(8)), scale, ink, rng.randint(1, 2), cv2.LINE_AA)
    if rng.random() < 0.4:
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-6, 6), 1)
        page = cv2.warpAffine(page, turn, (width, height), borderValue=paper)
    return page


def pattern(number):
    """Draw noise of one grain or another, a wave, or a plain grey picture."""
    rng = np.random.default_rng(number)
    if number % 4 == 3:
        return np.full((300, 300), rng.integers(0, 256), np.uint8)
    if number % 4 == 2:
        y, x = np.mgrid[:300, :300]
        return np.uint8(127 + 120 * np.sin(x / rng.uniform(3, 60) + y / rng.uniform(3, 60)))
    grain = 2 ** int(rng.integers(1, 9))
    return cv2.resize(rng.integers(0, 256, (grain, grain), np.uint8), (300, 300), interpolation=cv2.INTER_LINEAR)


def photographs(folder):
    """Return the pictures of a folder, and six cuts of each."""
    found, rng = [], random.Random(0)
    for path in sorted(Path(folder).rglob("*")) if folder else ():
        if path.suffix.lower() not in (".jpg", ".jpeg"):
            continue
        grey = images.read_grey(path)
        grey = images.fit_square(grey, 1200, fit="crop") if min(grey.shape) > 1200 else grey
        found.append(grey)
        for _ in range(6):
            side = rng.randint(min(grey.shape) // 3, min(grey.shape))
            top, left = (rng.randint(0, whole - side) for whole in grey.shape)
            found.append(grey[top : top + side, left : left + side])
    return found


def others(raw, photos):
    """Return what should be refused, grey images by kind."""
    folder = next(path.parent for path in Path(raw).rglob("metadata.csv") if (path.parent / "images").is_dir())
    table = pd.read_csv(folder / "metadata.csv").drop_duplicates("filename")
    table = table[[(folder / "images" / name).is_file() for name in table["filename"]]]
    kinds = {"CT slices": table["modality"] == "CT", "laterals": (table["modality"] != "CT") & (table["view"] == "L")}
    found = {
        kind: [images.read_grey(folder / "images" / name) for name in table["filename"][of]]
        for kind, of in kinds.items()
    }
    found |= {
        "documents": [document(n) for n in range(DOCUMENTS)],
        "patterns, blank": [pattern(n) for n in range(PATTERNS)],
    }
    return found | {"photographs": photographs(photos)}


def measure(run, name, odd):
    """Return the share refused by kind, and the number of images."""
    root, table = manifest.open_saved(run)
    part, _ = manifest.open_split(run, table)
    model, options, _ = models.open_bundle(run.bundle(name))
    pixels = images.cached(root, table, options, run.pixels, complete=True).pixels
    known = part != "test"
    watch = refusal.fit(model, pixels[known], table["patient"].to_numpy(str)[known], seed=run.seed)
    asked = {"frontal, test patients": pixels[~known]}
    asked |= {
        kind: np.stack([images.preprocess(grey, options) for grey in greys]) for kind, greys in odd.items() if greys
    }
    asked["frontal, inverted"] = 255 - asked["frontal, test patients"]
    far = {kind: refusal.distances(watch, refusal.features_of(model, some)) for kind, some in asked.items()}
    return {kind: f"{(values > watch.limit).mean():.1%} of {len(values)}" for kind, values in far.items()}


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("raw", nargs="?", default=str(ROOT.parent / "shared" / "data"))
    parser.add_argument(
        "bundles",
        nargs="*",
        default=["cohen:transfer", "radiography:transfer", "darkcovidnet:transfer", "all:transfer"],
    )
    parser.add_argument("--photos")
    parser.add_argument("--profile", default="fast", choices=config.PROFILES)
    args = parser.parse_intermixed_args()  # bundles may follow the options
    runs = [(config.start(dataset, args.profile, args.raw), name) for dataset, _, name in (one.partition(":") for one in args.bundles)
            if Path(args.raw).is_dir()]  # fmt: skip
    runs = [(run, name) for run, name in runs if run.bundle(name).is_dir()]
    if not runs:
        print(
            "Refusal: skipped, since no run on real X-rays lies in the work folder (see the head of bench_refusal.py)."
        )
        return
    odd = others(args.raw, args.photos)
    found = pd.DataFrame({f"{run.name}.{name}": measure(run, name, odd) for run, name in runs})
    print(found.to_string())


if __name__ == "__main__":
    main()
