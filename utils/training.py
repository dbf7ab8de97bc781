"""One `fit` for every notebook."""

import pandas as pd

from utils.backend import keras
from utils.pipeline import batches


def fit(model, train, validation=None, *, epochs, seed, augmentation=None, rate=3e-3, batch_size=32):
    """Train a model; with validation data keep the weights of its best epoch.

    Parameters
    ----------
    model : keras.Model
        uint8 images in, probabilities out: one output for two classes, otherwise one a class. Its weights change.
    train, validation : tuple
        (uint8 pixels (images, height, width, channels), class numbers (images,)).
    epochs : int
        At most; the learning rate falls along half a cosine to zero over them (Loshchilov & Hutter 2017).
    seed : int
        Of order and augmentation.
    augmentation : utils.pipeline.Augmentation, optional
    rate : float
        Learning rate at the start (Adam, Kingma & Ba 2015).
    batch_size : int

    Returns
    -------
    pandas.DataFrame
        One row an epoch: `loss`, `accuracy`, and with validation data `val_loss`, `val_accuracy`.
    """
    batch_size = min(batch_size, len(train[1]))
    steps = len(train[1]) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
    loss = "binary_crossentropy" if model.output_shape[-1] == 1 else "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=["accuracy"])
    best = keras.callbacks.EarlyStopping(patience=epochs, restore_best_weights=True)
    history = model.fit(
        batches(*train, seed=seed, size=batch_size, augmentation=augmentation),
        validation_data=validation,
        epochs=epochs,
        steps_per_epoch=steps,
        callbacks=[best] if validation else [],
        shuffle=False,  # the batches are shuffled already
        verbose=0,
    )
    return pd.DataFrame(history.history, index=pd.RangeIndex(1, len(history.epoch) + 1, name="epoch"))
