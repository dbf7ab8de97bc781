"""How large and how fast a bundle is as a SavedModel, a LiteRT and an ONNX file, next to Keras itself.

    .venv/bin/python tests/benchmarks/bench_export.py [--runs 5]

Two bundles for images of 128 x 128: the small CNN, and MobileNet (0.25) with ImageNet's weights where `$KERAS_HOME`
or ../shared/keras_home holds them, else PhantomNet. Weights do not matter for speed, so nothing is trained.

- MB: on disk. Keras: model.keras.
- load: ms from the path to a model that is ready, imports done before; `utils.models.predict` loads what Keras does.
- alone, 32: ms an image, one image in a call and 32. Keras is `model.predict`. `utils.models.predict` builds its graph
  anew in every call: it is made for many images at once, and 320 stand beside 32 for that reason. The files answer
  calibrated probabilities, the other two what goes into the calibration.

Every way gets all cores. One run measures all ways one after the other, so that a busy machine slows all; medians of
the runs, and of the calls within one. Ratio: Keras' time over the way's; above 1 is faster than Keras.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
WEIGHTS = ROOT.parent / "shared" / "keras_home"
if "KERAS_HOME" not in os.environ and (WEIGHTS / "models").is_dir():
    os.environ["KERAS_HOME"] = str(WEIGHTS)

import numpy as np  # noqa: E402  (after the repository is on the path)

from utils import backbones, calibration, export, images, models  # noqa: E402
from utils.errors import CourseError  # noqa: E402

SIDE, SEED, TEMPERATURE = 128, 7, 1.3
COUNTS = {1: 10, 32: 3, 320: 1}  # images in a call: calls in a run
OURS, KERAS = "utils.models.predict", "Keras model.predict"


def networks():
    """Yield the name and the model of each bundle."""
    shape = SIDE, SIDE, 1
    yield "small CNN", models.small_cnn(shape, seed=SEED)
    try:
        extractor = backbones.build("MobileNet", shape, weights="imagenet")
    except CourseError:
        extractor = backbones.build("PhantomNet", shape, weights="phantom")
    yield extractor.name, backbones.classifier(extractor, classes=2, seed=SEED)


def ways(bundle, exported):
    """Return by name what to open, how, and the bytes it takes."""

    def keras_way(path):
        model = models.open_bundle(path)[0]
        return lambda pixels: model.predict(pixels, verbose=0)

    def our_way(path):
        model = models.open_bundle(path)[0]
        return lambda pixels: models.predict(model, pixels)

    found = {KERAS: (keras_way, bundle, (bundle / "model.keras").stat().st_size), OURS: (our_way, bundle, None)}
    about = export.export(bundle, exported)
    for name, key in (("SavedModel", "savedmodel"), ("LiteRT", "litert"), ("ONNX Runtime", "onnx")):
        one = about["formats"][key]
        found[name] = export.open_exported, exported / one["path"], one["bytes"]
    return found


def measure(opener, path, pixels):
    """Open one file and ask it; return ms to load, {images in a call: ms an image}, and answers."""
    start = time.perf_counter()
    ask = opener(path)
    load, speeds = 1000 * (time.perf_counter() - start), {}
    for count, calls in COUNTS.items():
        some = np.resize(pixels, (count, *pixels.shape[1:]))
        ask(some)  # the first call of a size builds a graph or reserves memory
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            answers = ask(some)
            times.append(time.perf_counter() - start)
        speeds[count] = 1000 * statistics.median(times) / count
    return load, speeds, answers[: len(pixels)]


def differences(found):
    """Say how far calibrated probabilities of each way are from those of `utils.models.predict`, at most."""

    def calibrated(name):
        said = np.asarray(found[name][2])
        if name in (OURS, KERAS):
            return calibration.calibrated(calibration.columns(said.reshape(len(said))), TEMPERATURE)
        return said

    return {name: np.abs(calibrated(name) - calibrated(OURS)).max() for name in found}


def print_rows(network, sizes, runs):
    """Print one line a way: medians over the runs, ratios to Keras within a run."""
    for name, size in sizes.items():
        loads = [run[name][0] for run in runs]
        cells = ["" if size is None else f"{size / 1e6:.2f}", "" if name == OURS else f"{statistics.median(loads):.3g}"]
        for count in COUNTS:
            times = [run[name][1][count] for run in runs]
            ratios = [run[KERAS][1][count] / run[name][1][count] for run in runs]
            cells.append(f"{statistics.median(times):.3g} | {statistics.median(ratios):.3g}")
        largest = max(differences(run)[name] for run in runs)
        print(f"| {network}, {name} | {' | '.join(cells)} | {largest:.1e} |")


def main():
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    if args.runs < 1:
        parser.error("at least 1 run, or there is nothing to measure")
    start = time.perf_counter()
    pixels, tables = export.check_images((SIDE, SIDE, 1)), []
    card = {"task": "binary", "classes": ["Normal", "COVID-19"], "temperature": TEMPERATURE, "simulated": True}
    with tempfile.TemporaryDirectory() as folder:
        for name, model in networks():
            bundle = Path(folder) / name
            models.save_bundle(bundle, model, options=images.Options(size=SIDE), card=card)
            found = ways(bundle, Path(folder) / f"{name} exported")
            runs = [
                {way: measure(opener, path, pixels) for way, (opener, path, _) in found.items()}
                for _ in range(args.runs + 1)
            ][1:]  # fmt: skip  (the first wakes every runtime)
            tables.append((name, {way: size for way, (*_, size) in found.items()}, runs))
    print(f"Images of {SIDE} x {SIDE}; medians of {args.runs} runs, ratios within a run; {os.cpu_count()} cores, load "
          f"{os.getloadavg()[0]:.1f}; {time.perf_counter() - start:.0f} s in all\n")  # fmt: skip
    print("| Bundle, way | MB | load, ms | alone, ms | ratio | 32, ms an image | ratio | 320, ms an image | ratio "
          "| largest difference |")  # fmt: skip
    print("|---" * 10 + "|")
    for table in tables:
        print_rows(*table)


if __name__ == "__main__":
    main()
