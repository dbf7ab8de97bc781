"""Arrays become batches for training: shuffled, augmented, repeatable."""

import os

import numpy as np

from utils.backend import tf


def batches(pixels, targets, *, seed, size=32, augmentation=None):
    """Endless training batches.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, (images, height, width, channels).
    targets : numpy.ndarray
        One an image.
    seed : int
        Order and augmentation follow from it alone.
    size : int
        Images a batch.
    augmentation : Augmentation, optional

    Returns
    -------
    tf.data.Dataset
        Of (uint8 (size, height, width, channels), targets), without end.
    """
    seed = tf.constant(seed, tf.int64)
    pixels, targets = tf.constant(np.asarray(pixels)), tf.constant(np.asarray(targets))
    counter = tf.data.Dataset.counter()

    # Stateless: order and augmentation follow from seed and step, not from TensorFlow's global seed, nor from which
    # thread comes first.
    def shuffled(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(len(targets)), seed=tf.stack([seed, epoch]))
        return tf.data.Dataset.from_tensor_slices(order)

    def gather(step, rows):
        images = tf.gather(pixels, rows)
        if augmentation is not None:
            images = augmentation(images, seed=tf.stack([seed, step]))
        return images, tf.gather(targets, rows)

    rows = counter.flat_map(shuffled).batch(size, drop_remainder=True)
    stream = tf.data.Dataset.zip(counter, rows).map(gather, num_parallel_calls=os.cpu_count()).prefetch(4)
    # The tuner's thread sleeps between its looks, and whoever ends a training waits for it: up to five seconds.
    options = tf.data.Options()
    options.autotune.enabled = False
    return stream.with_options(options)


class Augmentation:
    """Random rotation, zoom, shift, shear and mirror image, as one affine map and so one interpolation.

    Parameters
    ----------
    degrees : float
        Rotation up to this, either way.
    zoom : float
        Larger or smaller by up to this share.
    shift : float
        Moved by up to this share of a side.
    shear : float
        Degrees by which upright lines may lean.
    mirror : bool
        Mirror half of the images. A mirrored chest has its heart on the wrong side: it helps small sets, and it
        is doubtful wherever side matters.
    """

    def __init__(self, *, degrees=8.0, zoom=0.08, shift=0.05, shear=0.0, mirror=True):
        self.degrees, self.zoom, self.shift, self.shear, self.mirror = degrees, zoom, shift, shear, mirror

    def __call__(self, images, *, seed):
        """Augment a batch.

        Parameters
        ----------
        images : tf.Tensor or numpy.ndarray
            uint8, (images, height, width, channels).
        seed : tf.Tensor or tuple of int
            Two numbers: the same give the same images.

        Returns
        -------
        tf.Tensor
            Same shape and dtype; what comes in from outside is black.
        """
        count, side = tf.shape(images)[0], tf.cast(tf.shape(images)[1], tf.float32)
        seed = tf.cast(seed, tf.int64)
        draw = tf.random.stateless_uniform((5, count), seed, -1.0, 1.0)
        lean = tf.random.stateless_uniform((count,), seed + 1, -1.0, 1.0)
        lean = tf.tan(lean * (self.shear * np.pi / 180))
        angle = draw[0] * (self.degrees * np.pi / 180)
        scale = 1 / (1 + draw[1] * self.zoom)
        sign = tf.where((draw[2] > 0) & self.mirror, -1.0, 1.0)
        cos, sin = scale * tf.cos(angle), scale * tf.sin(angle)
        a, b = cos * sign, cos * lean - sin
        c, d = sin * sign, sin * lean + cos
        middle = (side - 1) / 2  # turn about the centre, not about the corner
        x = middle - (a + b) * middle + draw[3] * self.shift * side
        y = middle - (c + d) * middle + draw[4] * self.shift * side
        zero = tf.zeros_like(a)
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=tf.stack([a, b, x, c, d, y, zero, zero], axis=1),
            output_shape=tf.shape(images)[1:3],
            fill_value=0.0,
            interpolation="BILINEAR",
        )
