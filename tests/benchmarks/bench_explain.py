"""How fast `explain.grad_cam` is, next to the usual loop over images and to tf-keras-vis.

    .venv/bin/python tests/benchmarks/bench_explain.py [--images 320] [--runs 3]

320 images are the test set of a course run on phantoms; they are 128 x 128 x 1. Every way explains the same class of
each image (its label) by the same layer, and ends with a float map of the image's size. Every figure is a ratio within
one run, ours and the others one after the other, so that a busy machine slows all. Each run has new models, which
nobody has called; building them counts for nobody.

1. All images, images/s, everything counted: `grad_cam` traces the network anew in every call of more than one
   batch of 32. Usual: see `usual_way`; of what it builds, the model with two outputs counts.
2. Each further image, images/s: what is left when all that is built and traced is there already. Ours: what four times
   the images take longer than a single one. The others: what comes after the first image or batch.
3. One image alone, s: `grad_cam` does not trace for so few.

tf-keras-vis explains the small CNN only: it cannot look into a nested network. It is no part of the course; get it by

    .venv/bin/uv pip install --no-deps --target build/bench -r tests/benchmarks/requirements.txt
"""

import argparse
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.append(str(ROOT / "build" / "bench"))  # at the end: what the course has itself comes from its own lock

import cv2  # noqa: E402  (after the repository is on the path)
import numpy as np  # noqa: E402
from bench_phantom import sample  # noqa: E402

from utils import backbones, explain, models, phantom  # noqa: E402
from utils.backend import keras, tf  # noqa: E402

BATCH, SEED, SIDE = 32, 7, 128
MORE = 4  # so many times the images, for what a further image takes
CLASSES = len(phantom.LABELS)
INSTALL = next(line.strip() for line in __doc__.splitlines() if "uv pip install" in line)
ALIKE = 0.99  # correlation of two maps that are the same

# Network, layer that is explained, and the layer behind it: where a textbook finds the maps of a nested network.
NETWORKS = (
    ("small CNN", "conv5", "pool5"),
    ("PhantomNet", "trunk", "average"),
    ("MobileNet", "trunk", "average"),
)

# Against, what is counted, at least, aimed at.
FIGURES = {
    "usual": (("all images", 20, None), ("each further image", None, None), ("one image alone", None, None)),
    "tf-keras-vis": (("all images", 1, 1.2), ("each further image", None, None), ("one image alone", None, None)),
}


class Result(NamedTuple):
    """What one way took, and its maps."""

    speeds: tuple  # images/s of all, images/s of each further image, s for one alone
    maps: np.ndarray  # (images, height, width), as one gets them
    raw: np.ndarray | None = None  # (images, rows, columns): not yet enlarged, with what is below zero


def network(name):
    """One of `NETWORKS`, new; MobileNet (0.25) has random weights: speed does not depend on them."""
    shape = SIDE, SIDE, 1
    if name == "small CNN":
        return models.small_cnn(shape, seed=SEED, classes=CLASSES)
    extractor = backbones.build(name, shape, weights="phantom" if name == "PhantomNet" else "none", seed=SEED)
    return backbones.classifier(extractor, classes=CLASSES, seed=SEED)


def textbook(model):
    """The model as the others want it: a copy that takes floats, and answers with the numbers before the softmax."""
    copy = keras.models.clone_model(model, input_tensors=keras.Input((SIDE, SIDE, 1)))
    copy.set_weights(model.get_weights())
    copy.layers[-1].activation = None
    return copy


def our_way(model, layer, pixels, labels):
    """`explain.grad_cam`, called once."""

    def timed(count):
        some, classes = np.resize(pixels, (count, *pixels.shape[1:])), np.resize(labels, count)
        start = time.perf_counter()
        heat = explain.grad_cam(model, some, layer=layer, classes=classes, batch_size=BATCH)
        return time.perf_counter() - start, heat.maps

    (alone, _), (all_of_them, maps), (more, _) = (timed(count) for count in (1, len(pixels), MORE * len(pixels)))
    further = (MORE * len(pixels) - 1) / (more - alone)
    return Result((len(pixels) / all_of_them, further, alone), maps)


def usual_way(model, behind, pixels, labels):
    """The loop of keras.io's example "Grad-CAM class activation visualization", which most notebooks start from.

    One image at a time, not compiled. The example builds its model with two outputs for every image; here it is built
    once. It colours the map and lays it over the image; here it is only enlarged.
    """
    times, heats, raw = [time.perf_counter()], [], []
    both = keras.Model(model.input, [model.get_layer(behind).input, model.output])
    for image, label in zip(pixels, labels):
        with tf.GradientTape() as tape:
            maps, scores = both(image[None])
            score = scores[:, label]
        weights = tf.reduce_mean(tape.gradient(score, maps), axis=(0, 1, 2))
        heat = tf.squeeze(maps[0] @ weights[:, None])
        raw.append(heat)
        heat = tf.maximum(heat, 0) / tf.reduce_max(heat)
        heats.append(cv2.resize(heat.numpy(), (SIDE, SIDE)))
        times.append(time.perf_counter())
    return Result(_speeds(times, 1, len(pixels)), np.stack(heats), np.stack(raw))


def other_library(model, layer, pixels, labels):
    """tf-keras-vis at its best: one object for all, a model that it need not clone or change, batches of 32."""
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    def explained(part, **options):
        # Floats: of bytes it finds no gradient.
        score, floats = CategoricalScore(labels[part].tolist()), pixels[part].astype(np.float32)
        return library(score, floats, penultimate_layer=layer, **options)

    start = time.perf_counter()
    library = Gradcam(model, clone=False)
    explained(slice(1))
    times, heats = [time.perf_counter()], []
    alone = times[0] - start
    parts = [slice(start, start + BATCH) for start in range(0, len(pixels), BATCH)]
    for part in parts:
        heats.append(explained(part))
        times.append(time.perf_counter())
    all_of_them, further, _ = _speeds(times, BATCH, len(pixels))
    untouched = {"expand_cam": False, "normalize_cam": False, "activation_modifier": None}
    raw = np.concatenate([explained(part, **untouched) for part in parts])
    return Result((all_of_them, further, alone), np.concatenate(heats), raw)


def _speeds(times, first, count):
    # From the time at the start and after each step; the first step had `first` images.
    return count / (times[-1] - times[0]), (count - first) / (times[-1] - times[1]), times[1] - times[0]


def alike(maps, other):
    """Correlation of the pixels of each pair of maps, left out those without heat: enlarged our way, and their way."""
    ours_of_it = tf.nn.relu(tf.image.resize(other.raw[..., None], (SIDE, SIDE))).numpy()[..., 0]
    return [_correlations(maps, others) for others in (ours_of_it, other.maps)]


def _correlations(maps, others):
    pairs = [(one.ravel(), other.ravel()) for one, other in zip(maps, others) if one.max() > 0 and other.max() > 0]
    return [np.corrcoef(pair)[0, 1] for pair in pairs]


def one_run(pixels, labels, *, installed):
    """Measure everything once; return {(network, against): (our speeds, the other's)} and the same of `alike`."""
    speeds, correlations = {}, {}
    for name, layer, behind in NETWORKS:
        model = network(name)
        ours = our_way(model, layer, pixels, labels)
        others = {"usual": usual_way(textbook(model), behind, pixels, labels)}
        if name == "small CNN" and installed:
            others["tf-keras-vis"] = other_library(textbook(model), layer, pixels, labels)
        for against, other in others.items():
            speeds[name, against] = ours.speeds, other.speeds
            correlations[name, against] = alike(ours.maps, other)
    return speeds, correlations


def print_table(runs, *, installed):
    """Print one line a figure: medians, the ratio with its range, and whether it is enough."""
    print("| Figure | Ours | Other | Ratio | Range | Must | Aim |\n|---|---|---|---|---|---|---|")
    for name, against in [(name, "usual") for name, *_ in NETWORKS] + [("small CNN", "tf-keras-vis")]:
        if against == "tf-keras-vis" and not installed:
            print(f"| {name}, {against} | not installed: `{INSTALL}` | | | | | |")
            continue
        for number, (figure, must, aim) in enumerate(FIGURES[against]):
            ours, other = zip(*([some[number] for some in run[name, against]] for run in runs))
            unit = "s" if figure.endswith("alone") else "images/s"
            ratios = [b / a if unit == "s" else a / b for a, b in zip(ours, other)]
            middle = statistics.median(ratios)
            verdicts = [f"{goal}: {'yes' if middle >= goal else 'no'}" if goal else "–" for goal in (must, aim)]
            print(
                f"| {name}, {against}: {figure} | {_short(ours)} {unit} | {_short(other)} {unit} | {middle:.3g} "
                f"| {min(ratios):.3g} to {max(ratios):.3g} | {' | '.join(verdicts)} |"
            )


def _short(values):
    middle = statistics.median(values)
    return f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}"


def print_alike(correlations):
    """Print how alike our maps and those of the others are."""
    print("\nCorrelation with our maps, median (smallest) over the images with heat:")
    for (name, against), found in correlations.items():
        same, given = (f"{statistics.median(some):.4f} ({min(some):.4f})" for some in found)
        verdict = "yes" if min(found[0]) > ALIKE else "no"
        print(f"- {name}, {against}: {same} if enlarged before the ReLU as ours, all above {ALIKE}: {verdict};")
        print(f"  {given} with the ReLU before enlarging, as it does; {len(found[0])} images")


def main():
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 320), ("runs", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.images < 2 * BATCH or args.runs < 1:
        parser.error(f"at least {2 * BATCH} images and 1 run, or there is nothing to measure")
    warnings.filterwarnings("ignore", message="The structure of `inputs`")  # tf-keras-vis puts its images in a list
    try:
        import tf_keras_vis.gradcam  # noqa: F401
    except ImportError:
        installed = False
    else:
        installed = True
    start = time.perf_counter()
    pixels, labels = sample(0, args.images, seed=SEED, size=SIDE)
    pixels = pixels[..., None]
    one_run(pixels[: BATCH + 1], labels[: BATCH + 1], installed=installed)  # wakes TensorFlow, for all alike
    runs, found = zip(*(one_run(pixels, labels, installed=installed) for _ in range(args.runs)))
    print(f"{args.images} phantoms of {SIDE} x {SIDE}, batches of {BATCH};")
    print(f"medians of {args.runs} runs, ratios within a run; {time.perf_counter() - start:.0f} s in all\n")
    print_table(runs, installed=installed)
    print_alike(found[-1])


if __name__ == "__main__":
    main()
