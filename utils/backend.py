"""TensorFlow and Keras, imported in one place and without their greeting."""

import gc
import os
from contextlib import contextmanager


@contextmanager
def _quiet():
    # TensorFlow greets on the process's standard error before any of its log settings counts: red noise under the
    # first cell of every notebook. An import that fails still raises.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _unwatched():
    # The import makes a million objects, and all stay: to look for garbage among them over and over takes a fifth of
    # its time.
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


with _quiet(), _unwatched():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
