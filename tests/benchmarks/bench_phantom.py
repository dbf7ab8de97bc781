"""How fast phantoms are written, and how hard their classes are to tell apart.

    python tests/benchmarks/bench_phantom.py [--train 1200] [--test 400] [--epochs 25] [--seed 11]
                                             [--skip-speed] [--skip-cnn]

Four balanced classes, one image a patient, other patients in the test set. The phantoms are good for a
course if raw pixels do not suffice (logistic regression on 32 x 32 pixels at most 0.60), if a small
convolutional network learns them (at least 0.85), and if nothing but the lesions gives the label away
(without lesions both stay at chance, 0.25).
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2  # noqa: E402  (after the repository is on the path)
import numpy as np  # noqa: E402

from utils import phantom  # noqa: E402


def writing_speed(patients=60, runs=3):
    """Images and masks written per second as PNG files of 224 pixels, one figure a run."""
    speeds = []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            table = phantom.write(Path(folder) / "set", patients=patients, seed=run)
            speeds.append(len(table) / (time.perf_counter() - start))
    return speeds


def sample(first, count, *, seed, severity=None, size=128):
    """First images of `count` patients: uint8 (count, size, size) and labels (count,)."""

    def one(index):
        patient = phantom.make_patient(index, seed=seed)
        shot = phantom.take_radiograph(patient, 0, severity=severity)
        return cv2.resize(shot.image, (size, size), interpolation=cv2.INTER_AREA)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = np.stack(list(pool.map(one, range(first, first + count))))
    return images, np.arange(first, first + count) % len(phantom.LABELS)


def logistic(train, test, side=32):
    """Test accuracy of logistic regression on standardised pixels, and the C chosen by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def flat(images):
        return np.stack([cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA).ravel() for i in images])

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=400))
    search = GridSearchCV(model, {"logisticregression__C": [1e-4, 1e-3, 1e-2]}, cv=3)
    search.fit(flat(train[0]), train[1])
    return search.score(flat(test[0]), test[1]), search.best_params_["logisticregression__C"]


def network(train, test, *, epochs, seed):
    """Test accuracy, training seconds and confusion matrix of the course's small CNN, augmented."""
    from sklearn.metrics import confusion_matrix

    from utils import models, pipeline, training

    model = models.small_cnn((*train[0].shape[1:], 1), classes=len(phantom.LABELS), seed=seed)
    pixels = train[0][..., None]
    start = time.perf_counter()
    training.fit(model, (pixels, train[1]), epochs=epochs, seed=seed, augmentation=pipeline.Augmentation())
    seconds = time.perf_counter() - start
    guess = model.predict(test[0][..., None], batch_size=64, verbose=0).argmax(axis=1)
    return (guess == test[1]).mean(), seconds, confusion_matrix(test[1], guess)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("train", 1200), ("test", 400), ("epochs", 25), ("seed", 11)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--skip-cnn", action="store_true")
    parser.add_argument("--skip-speed", action="store_true")
    args = parser.parse_args()
    if not args.skip_speed:
        print("images and masks written per second:", ", ".join(f"{s:.0f}" for s in writing_speed()))
    for name, severity in (("with lesions", None), ("without lesions", 0.0)):
        train = sample(0, args.train, seed=args.seed, severity=severity)
        test = sample(args.train, args.test, seed=args.seed, severity=severity)
        accuracy, c = logistic(train, test)
        print(f"{name:16}  logistic regression, 32 x 32   {accuracy:.3f}   (C = {c:g})", flush=True)
        if not args.skip_cnn:
            epochs = args.epochs if severity is None else max(args.epochs // 3, 1)
            accuracy, seconds, table = network(train, test, epochs=epochs, seed=args.seed)
            print(f"{name:16}  small CNN, 128 x 128           {accuracy:.3f}   ({seconds:.0f} s)", flush=True)
            if severity is None:
                print("rows: truth, columns: guess;", ", ".join(phantom.LABELS))
                print(table)


if __name__ == "__main__":
    main()
