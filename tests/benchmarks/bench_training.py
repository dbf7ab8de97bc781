"""How much faster the course trains than the usual recipes, and how much memory its notebooks take.

    python tests/benchmarks/bench_training.py [--images 400] [--side 224] [--epochs 4] [--runs 3] [--matrix 2048]

Every figure is a ratio within one run, ours and the usual one after the other, so that a busy machine slows both. The
images are simulated radiographs, PNG files of 224 x 224 as the course writes them (public sets have 299 to over 1024
pixels a side, which cost the usual recipe more in every epoch; see --side); models see 128 x 128 x 1.

1. Training with augmentation, images/s. Both train on the same images, Adam, batches of 32; the first epoch, which
   traces, does not count. Usual: see `usual_training`.
2. That speed in float operations (three times a forward pass, 2 for a multiplication with addition) as a share of what
   one large float32 matmul reaches.
3. Frozen MobileNet 0.25 with a linear head, once and over five folds: features once and logistic regressions, against
   Keras' `fit` with a frozen trunk. Building the networks counts for neither, tracing them for both; nobody augments,
   and both have their pixels in memory.
4. Reading all prepared pixels the second time, against decoding and preparing the files on every core. All files are
   in the system's cache.
5. Peak memory of each notebook, from the last report of `make course`.
"""

import argparse
import hashlib
import os
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["CXR_QUIET"] = "1"  # no progress bars in the table

import pandas as pd  # noqa: E402  (after the repository is on the path)

from utils import config, images, phantom, report  # noqa: E402

BATCH, FOLDS, HEAD_EPOCHS, SEED = 32, 5, 10, 7
TRUNK = "MobileNet"
MEMORY_LIMIT = 2500  # MB a notebook
CLASSES = len(phantom.LABELS)

# Figure, what is counted, at least, aimed at.
FIGURES = (
    ("training with augmentation", "images/s", 5, 8),
    ("share of the matmul rate", "GFLOP/s", None, None),
    ("frozen features, one head", "s", 5, 6),
    ("frozen features, five folds", "s", 20, 20),
    ("prepared pixels, second time", "s", 50, 50),
)


def make_set(folder, count, side):
    """Write `count` phantoms of side x side pixels, one a patient; return their manifest and prepared pixels."""
    table = phantom.write(folder / "set", patients=count, seed=SEED, size=side, images=1)
    table["sha256"] = [hashlib.sha256((folder / "set" / path).read_bytes()).hexdigest() for path in table.path]
    for path, label in zip(table.path[: count // BATCH * BATCH], table.label):  # whole batches, for both recipes
        place = folder / "classes" / label
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "set" / path, place)
    return table, read_prepared(folder, table)


def read_prepared(folder, table):
    """Return the pixels of all images; from the second time on out of the cache."""
    return images.cached(folder / "set", table, images.Options(), folder / "pixels").pixels


def seconds(function, *arguments):
    """Call a function; return how long it took."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def training_speed(model, fit, count):
    """Images a second from the end of the first epoch to the end of the last."""
    from utils.backend import keras

    ends, plain = [], model.fit
    clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))
    # `training.fit` takes no callbacks: the clock gets in where it calls Keras.
    model.fit = lambda *data, callbacks=(), **options: plain(*data, callbacks=[*callbacks, clock], **options)
    fit(model)
    return count * (len(ends) - 1) / (ends[-1] - ends[0])


def our_training(pixels, labels, epochs):
    """Images a second of the course: bytes decoded once, one affine map as augmentation, a first step of two."""
    from utils import models, pipeline, training

    count = len(labels) // BATCH * BATCH
    data, options = (pixels[:count], labels[:count]), {"epochs": epochs, "seed": SEED, "batch_size": BATCH}
    model = models.small_cnn(pixels.shape[1:], seed=SEED, classes=CLASSES)
    return training_speed(
        model, lambda model: training.fit(model, data, augmentation=pipeline.Augmentation(), **options), count
    )


def usual_training(folder, shape, epochs):
    """Images a second of the usual recipe.

    It is that of TensorFlow's tutorial "Transfer learning and fine-tuning" and of keras.io's "Image classification
    from scratch", which most student notebooks start from: `image_dataset_from_directory` decodes and resizes the
    files in every epoch (as ImageDataGenerator did before), random layers in front of the network augment.
    (TensorFlow's "Image classification" tutorial keeps decoded images in memory; few notebooks on X-rays do, since as
    floats a set of full size would not fit.)
    """
    from utils.backend import keras, tf

    data = keras.utils.image_dataset_from_directory(
        folder / "classes", color_mode="grayscale", image_size=shape[:2], batch_size=BATCH, seed=SEED, verbose=False
    )
    model = usual_network(shape)
    model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    data = data.prefetch(tf.data.AUTOTUNE)
    count = len(data) * BATCH
    # shuffle=False: the data set is shuffled already, and Keras would warn of it.
    return training_speed(model, lambda model: model.fit(data, epochs=epochs, shuffle=False, verbose=0), count)


def usual_network(shape):
    """`models.small_cnn` but for the usual first layer, 3 x 3 in steps of one, with augmentation in front."""
    from utils import models
    from utils.backend import keras

    layers = keras.layers
    structure = models.small_cnn(shape, seed=SEED, classes=CLASSES).get_config()
    changes = {"pixels": {"dtype": "float32"}, "conv1": {"kernel_size": (3, 3), "strides": (1, 1)}}
    for layer in structure["layers"]:
        layer["config"].update(changes.pop(layer["name"], {}))
    if changes:
        raise RuntimeError(f"small_cnn has no layer {', '.join(changes)} any more: adapt this baseline.")
    augmentation = [  # the ranges of pipeline.Augmentation
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(8 / 360),
        layers.RandomTranslation(0.05, 0.05),
        layers.RandomZoom(0.08),
    ]
    return keras.Sequential([keras.Input(shape), *augmentation, keras.Model.from_config(structure)])


def forward_flops(shape):
    """Arithmetic operations of one image's forward pass through `models.small_cnn`."""
    from utils import models

    return int(models.layer_table(models.small_cnn(shape, seed=SEED, classes=CLASSES)).flops.sum())


def matmul_rate(side, tries=8):
    """Float operations a second of the best of several float32 matmuls of side x side."""
    from utils.backend import tf

    matrix = tf.random.stateless_normal((side, side), (1, 2))
    return 2 * side**3 / min(seconds(lambda: tf.matmul(matrix, matrix).numpy()) for _ in range(tries))


def backbone(shape):
    """MobileNet 0.25, with ImageNet weights where they are at hand: speed does not depend on them."""
    from utils import backbones

    file = Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models" / backbones.BACKBONES[TRUNK].file
    return backbones.build(TRUNK, shape, weights="imagenet" if file.is_file() else "none")


def our_heads(model, pixels, labels, parts):
    """Seconds for the features of all images and a logistic regression on each part of them."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from utils import models

    def work():
        features = models.predict(model, pixels)
        for rows in parts:
            make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000)).fit(features[rows], labels[rows])

    return seconds(work)


def usual_heads(pixels, labels, parts):
    """Seconds for a Keras `fit` of ten epochs on each part, the trunk frozen.

    As in TensorFlow's tutorial "Transfer learning and fine-tuning" (ten epochs, batches of 32, Adam), but without its
    augmentation, validation after each epoch and decoding of files: these would only make it slower.
    """
    from utils.backend import keras

    def head(trunk):
        trunk.trainable = False
        x = keras.layers.Dropout(0.2)(trunk.output)
        model = keras.Model(trunk.input, keras.layers.Dense(CLASSES, activation="softmax")(x))
        model.compile("adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        return model

    heads = [head(backbone(pixels.shape[1:])) for _ in parts]

    def work():
        for model, rows in zip(heads, parts):
            model.fit(pixels[rows], labels[rows], epochs=HEAD_EPOCHS, batch_size=BATCH, verbose=0)

    return seconds(work)


def one_run(folder, table, pixels, labels, args):
    """Measure everything once; return {figure: (ours, usual)}."""
    from sklearn.model_selection import StratifiedKFold

    shape, everything = pixels.shape[1:], [list(range(len(labels)))]
    folds = [rows for rows, _ in StratifiedKFold(FOLDS, shuffle=True, random_state=SEED).split(labels, labels)]

    def decode():
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(images.load, [folder / "set" / path for path in table.path]))

    rate = matmul_rate(args.matrix)
    ours = our_training(pixels, labels, args.epochs)
    figures = [
        (ours, usual_training(folder, shape, args.epochs)),
        (3 * ours * forward_flops(shape) / 1e9, max(rate, matmul_rate(args.matrix)) / 1e9),
        *((our_heads(backbone(shape), pixels, labels, parts), usual_heads(pixels, labels, parts))
          for parts in (everything, folds)),
        (seconds(lambda: read_prepared(folder, table).sum()), seconds(decode)),
    ]  # fmt: skip
    return {name: pair for (name, *_), pair in zip(FIGURES, figures)}


def print_table(runs):
    """Print one line a figure: medians, the ratio with its range, and whether it is enough."""
    print(f"{'':<30}{'ours':>9}{'usual':>9} {'':<9}{'ratio':>7}   {'range':<17}{'must: met':<12}{'aim: met':<12}")
    for name, unit, must, aim in FIGURES:
        ours, usual = zip(*(run[name] for run in runs))
        ratios = [b / a if unit == "s" else a / b for a, b in zip(ours, usual)]
        middle = statistics.median(ratios)
        spread = f"{min(ratios):.4g} to {max(ratios):.4g}"
        verdicts = [f"{goal}: {'yes' if middle >= goal else 'no'}" if goal else "-" for goal in (must, aim)]
        print(
            f"{name:<30}{statistics.median(ours):>9.4g}{statistics.median(usual):>9.4g} {unit:<9}{middle:>7.2f}   "
            f"{spread:<17}{verdicts[0]:<12}{verdicts[1]}"
        )


def print_memory():
    """Print seconds and peak memory of each notebook of the newest run of the fast profile."""
    found = sorted((config.data_root() / "runs").glob("*-fast/report.json"), key=lambda path: path.stat().st_mtime)
    print()
    if not found:
        print("Peak memory of the notebooks: nothing to read yet; `make course` has to run first.")
        return
    print(f"Peak memory of the notebooks, run {found[-1].parent.name} (limit {MEMORY_LIMIT} MB each)")
    for entry in report.read_json(found[-1])["notebooks"]:
        peak = entry["peak_memory_mb"]
        verdict = "not measured" if not peak else f"within: {'yes' if peak <= MEMORY_LIMIT else 'no'}"
        print(f"{entry['notebook']:<30}{entry['seconds'] or 0:>9.1f} s{peak or '-':>9} MB   {verdict}")


def main():
    """Do what the module says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 400), ("side", 224), ("epochs", 4), ("runs", 3), ("matrix", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.images < 2 * BATCH or args.epochs < 2 or args.runs < 1:
        parser.error(f"at least {2 * BATCH} images, 2 epochs and 1 run, or there is nothing to measure")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        table, pixels = make_set(Path(scratch), args.images, args.side)
        labels = pd.factorize(table.label, sort=True)[0]
        runs = [one_run(Path(scratch), table, pixels, labels, args) for _ in range(args.runs)]
    seen = images.Options().size
    print(f"{args.images} phantoms as PNG files of {args.side} x {args.side}, seen at {seen} x {seen};")
    print(f"medians of {args.runs} runs, ratios within a run; {time.perf_counter() - start:.0f} s in all\n")
    print_table(runs)
    print_memory()


if __name__ == "__main__":
    main()
