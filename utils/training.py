"""One `fit` for every notebook."""

import os

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from utils.backend import keras
from utils.errors import CourseError
from utils.pipeline import batches


def fit(
    model,
    train,
    validation=None,
    *,
    epochs,
    seed,
    augmentation=None,
    rate=3e-3,
    falling=True,
    batch_size=32,
    balanced=False,
    patience=None,
    keep_best=True,
):
    """Train a model; with validation data keep the weights of its best epoch.

    Parameters
    ----------
    model : keras.Model
        uint8 images (or float32 features) in, probabilities out: one output for two classes, otherwise one a class.
        Its weights change.
    train, validation : tuple
        (inputs (images, ...), class numbers (images,)).
    epochs : int
        At most.
    seed : int
        Of order and augmentation.
    augmentation : utils.pipeline.Augmentation, optional
    rate : float
        Learning rate at the start (Adam, Kingma & Ba 2015).
    falling : bool
        The rate falls along half a cosine to zero (Loshchilov & Hutter 2017); False: it stays.
    batch_size : int
        At most the number of training images.
    balanced : bool
        Weight the images so that all classes count the same in the loss, however rare.
    patience : int, optional
        Stop after so many epochs without a lower validation loss; None: go on to the end.
    keep_best : bool
        Keep the weights of the epoch with the lowest validation loss; False: those of the last.

    Returns
    -------
    pandas.DataFrame
        One row an epoch: `loss`, `accuracy`, and with validation data `val_loss`, `val_accuracy`.

    Raises
    ------
    CourseError
        A class without an image in training or validation, or a loss that is no number any more.
    """
    classes = max(2, model.output_shape[-1])
    _require_classes(train[1], classes, "training")
    if validation:
        _require_classes(validation[1], classes, "validation")
    batch_size = min(batch_size, len(train[1]))
    steps = len(train[1]) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps) if falling else rate
    loss, accuracy = "sparse_categorical_crossentropy", keras.metrics.SparseCategoricalAccuracy
    if model.output_shape[-1] == 1:
        loss, accuracy = "binary_crossentropy", keras.metrics.BinaryAccuracy
    # With all variables made before the first step, TensorFlow traces it once, not twice: a second less a training.
    model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=[accuracy(name="accuracy")])
    model.optimizer.build(model.trainable_variables)
    stop = keras.callbacks.EarlyStopping(patience=patience or epochs, restore_best_weights=keep_best)
    history = model.fit(
        batches(*train, seed=seed, size=batch_size, augmentation=augmentation),
        validation_data=validation,
        epochs=epochs,
        steps_per_epoch=steps,
        class_weight=class_weights(train[1]) if balanced else None,
        callbacks=[_NotANumber(), _Progress(), *([stop] if validation else [])],
        shuffle=False,  # the batches are shuffled already
        verbose=0,
    )
    return pd.DataFrame(history.history, index=pd.RangeIndex(1, len(history.epoch) + 1, name="epoch"))


def linear_head(features, targets, *, C=0.01, weights=None):
    """Fit a linear classifier on frozen features: logistic regression on standardised inputs.

    Parameters
    ----------
    features : numpy.ndarray
        float32, (images, features).
    targets : numpy.ndarray
        Class numbers, (images,).
    C : float
        The smaller, the more the head is restrained. 0.01 is strong already, since there are often more features than
        images; it was chosen on DarkCovidNet, with seeds that the course never shows.
    weights : numpy.ndarray, optional
        How much each image counts, in standardising as well; (images,).

    Returns
    -------
    sklearn.pipeline.Pipeline
        A `StandardScaler` and a `LogisticRegression`.
    """
    with threadpool_limits(1):  # arrays this small are slower on several threads, on a busy computer ten times
        head = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
        counted = {} if weights is None else {f"{step}__sample_weight": weights for step in head.named_steps}
        return head.fit(features, targets, **counted)


def held_out(recipe, rounds, *, seeds):
    """Judge a finished recipe: train it anew for each seed and round, and predict what it has not seen.

    Parameters
    ----------
    recipe : callable
        Takes row numbers to fit on, row numbers held out, and a seed; returns the probabilities of those held out,
        float (held out,) or (held out, classes).
    rounds : callable
        Takes a seed; returns a list of (row numbers to fit on, row numbers held out), as `splits.rounds` does.
    seeds : sequence of int

    Returns
    -------
    rows : numpy.ndarray
        int, (images,): which rows were held out, once in every seed.
    probability : numpy.ndarray
        float, (seeds, images) or (seeds, images, classes), in the order of `rows`.
    """
    predicted = []
    for seed in seeds:
        with threadpool_limits(1):  # for linear recipes, see `linear_head`; TensorFlow has threads of its own
            parts = [(held, recipe(rows, held, seed)) for rows, held in rounds(seed)]
        held = np.concatenate([held for held, _ in parts])
        predicted.append(np.concatenate([probability for _, probability in parts])[np.argsort(held)])
    return np.sort(held), np.stack(predicted)


def class_weights(targets):
    """Return {class number: weight}, so that all classes weigh the same together and the mean weight is 1."""
    numbers, counts = np.unique(np.asarray(targets).astype(int), return_counts=True)
    return {int(number): len(targets) / (len(numbers) * count) for number, count in zip(numbers, counts)}


def _require_classes(targets, classes, part):
    missing = sorted(set(range(classes)) - set(np.unique(np.asarray(targets)).astype(int).tolist()))
    if missing:
        raise CourseError(
            f"The {part} images should show all {classes} classes; class number {missing[0]} is missing among "
            f"{len(targets)} images. Split again, or leave the class out."
        )


class _NotANumber(keras.callbacks.Callback):
    """Stop with advice when the loss is no number: all that follows would be none either."""

    def on_epoch_end(self, epoch, logs=None):
        if not np.isfinite((logs or {}).get("loss", 0.0)):
            raise CourseError(
                "The loss is no longer a number. Most often the learning rate is too high: try a tenth of it. Else look "
                "for inputs that are no numbers, or divided by zero."
            )


class _Progress(keras.callbacks.Callback):
    """A progress bar over epochs for whoever sits in front of the notebook; not in runs without anybody."""

    def on_train_begin(self, logs=None):
        from tqdm import tqdm

        self.bar = tqdm(
            total=self.params["epochs"], unit="epoch", leave=False, disable=bool(os.environ.get("CXR_QUIET"))
        )

    def on_epoch_end(self, epoch, logs=None):
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()
