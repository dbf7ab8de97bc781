"""How long a large set takes from the folder to its manifest and its near-twins, and how much memory.

    python tests/benchmarks/bench_manifest.py [--images 20000] [--side 299] [--twins 500]

The set is made first: simulated radiographs, each turned, shifted and zoomed at random, as PNG files in two class
folders; some are saved again at another size, as planted twins. Then, each timed: `sources.load` (every file opened and
hashed), `images.cached` (decoded once, prepared, thumbnails), `splits.find_twins`, `splits.join_patients`.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2  # noqa: E402  (after the repository is on the path)
import numpy as np  # noqa: E402

from utils import config, images, phantom, splits  # noqa: E402


def make_set(folder, *, count, side, twins, patients=400):
    """Write `count` images, the last `twins` of them smaller copies of the first."""

    def portrait(index):
        return phantom.take_radiograph(phantom.make_patient(index, seed=3), 0, size=side).image

    def write(number):
        source = number if number < count - twins else number - (count - twins)
        rng = np.random.default_rng(source)
        angle, zoom, (x, y) = rng.uniform(-15, 15), rng.uniform(0.8, 1.25), rng.uniform(-0.12, 0.12, 2) * side
        move = cv2.getRotationMatrix2D((side / 2, side / 2), angle, zoom) + [[0, 0, x], [0, 0, y]]
        picture = cv2.warpAffine(portraits[source % patients], move, (side, side), borderMode=cv2.BORDER_REFLECT)
        if number != source:
            picture = cv2.resize(picture, (side * 3 // 4,) * 2, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / ("normal" if source % 2 else "covid") / f"{number:06d}.png"), picture)

    for name in ("normal", "covid"):
        (folder / name).mkdir(parents=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        portraits = list(pool.map(portrait, range(patients)))
        list(pool.map(write, range(count)))


def timed(name, function, *arguments, **options):
    """Call a function; print how long it took."""
    start = time.perf_counter()
    result = function(*arguments, **options)
    print(f"{name:<44} {time.perf_counter() - start:7.1f} s", flush=True)
    return result


def main():
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 20_000), ("side", 299), ("twins", 500)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    from utils import sources

    with tempfile.TemporaryDirectory() as scratch:
        os.environ["CXR_WORK_DIR"] = str(Path(scratch, "work"))
        folder = Path(scratch, "set")
        timed(f"making {args.images} images", make_set, folder, count=args.images, side=args.side, twins=args.twins)
        run = config.start(str(folder), "full")
        start = time.perf_counter()
        data = timed("manifest (sources.load)", sources.load, run)
        cache = timed("decoding (images.cached)", images.cached, data.root, data.manifest, images.Options(), run.pixels)
        found = timed("near-twins (splits.find_twins)", splits.find_twins, cache.thumbnails)
        timed("patients (splits.join_patients)", splits.join_patients, data.manifest, found)
        print(f"{'all':<44} {time.perf_counter() - start:7.1f} s")
        names = data.manifest.path.str.extract(r"(\d+)\.png")[0].astype(int).to_numpy()
        gap = np.abs(names[found["first"]] - names[found["second"]])
        planted = int((gap == args.images - args.twins).sum())
        print(f"planted twins found: {planted} of {args.twins}; other pairs: {len(found) - planted}")
        print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
