"""Where a network looks: Grad-CAM and its relatives, and how to test them where the truth is known."""

from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from utils.backend import keras, tf
from utils.config import unknown
from utils.errors import CourseError

layers = keras.layers
activations = keras.activations
FEW = 8  # images
PIXELS = "pixels "  # what a gradient can be taken of, besides the maps of a layer; no layer can be called so
RELUS = (activations.relu, activations.relu6)


class Heat(NamedTuple):
    """Heat maps, and what they are about; all in one order."""

    maps: np.ndarray  # float32, (images, height, width): 0 or more; how much a place speaks for the class
    classes: np.ndarray  # int64, (images,): numbers of the classes that are explained


def grad_cam(model, pixels, *, layer=None, classes=None, size=None, batch_size=32):
    """Gradient-weighted class activation maps (Grad-CAM, Selvaraju et al. 2017, arXiv:1610.02391).

    Every feature map of a layer is weighted by how much the score of a class rises with it, on average over the image;
    what the sum has above zero is the heat. The score is the number before the sigmoid or softmax; of an ensemble,
    which has none, the logarithm of the probability (of two classes: of the odds).

    Parameters
    ----------
    model : keras.Model
        Functional or Sequential, with other such models in it or without: uint8 pixels in, probabilities out.
    pixels : numpy.ndarray
        uint8, (images, height, width, channels).
    layer : str, optional
        Name of the layer whose maps are used, see `layers_with_maps`. Where several parts of the model have one of
        this name, or call it several times (for plain and CLAHE, for an image and its mirror image), their maps are
        added. None: the last one whose maps still have places.
    classes : int or array-like of int, optional
        The class to explain, one for all or one an image. None: the predicted one.
    size : int, optional
        Side of the maps in pixels. None: as the image.
    batch_size : int
        Images at once.

    Returns
    -------
    Heat
        In units of the score, enlarged (bilinear) before what lies below zero is cut off: so no place speaks for both
        of two classes. All zero where nothing speaks for the class.

    Raises
    ------
    CourseError
        A model without a convolution, a layer or class that does not exist, or images that the model does not take.
    """
    way = _Way(model)
    way.scored(tf.constant(_checked(model, pixels)[:1]))
    layer = way.known(layer)

    def maps(x, chosen, tape, way):
        found = way.maps[layer]
        slopes = tape.gradient(chosen, [one for one, _ in found])
        sides = x.shape[1:3] if size is None else (size, size)
        heat = 0.0
        for (one, mirrored), slope in zip(found, slopes):
            if slope is None:
                raise CourseError(f"The score of {model.name} does not depend on layer {layer}.")
            one, slope = tf.cast(one, tf.float32), tf.cast(slope, tf.float32) / way.lift
            summed = tf.reduce_sum(one * tf.reduce_mean(slope, (1, 2), keepdims=True), axis=3, keepdims=True)
            heat += tf.image.resize(summed[:, :, ::-1] if mirrored else summed, sides)
        return tf.nn.relu(heat[..., 0])

    return Heat(*_explain(model, pixels, classes, maps, batch_size, since=layer))


def gradients(model, pixels, *, guided=False, classes=None, batch_size=32):
    """How the score of a class changes with each pixel (Simonyan et al. 2013, arXiv:1312.6034).

    Parameters
    ----------
    model, pixels, classes, batch_size
        As for `grad_cam`.
    guided : bool
        On the way back let only positive numbers pass each ReLU (guided backpropagation, Springenberg et al. 2014,
        arXiv:1412.6806).

    Returns
    -------
    numpy.ndarray
        float32, shape of `pixels`: score per grey value, above zero where brighter speaks for the class.

    Raises
    ------
    CourseError
        As for `grad_cam`; `guided` with a network without ReLU.
    """

    def slopes(x, chosen, tape, way):
        if guided and not way.rectified:
            raise CourseError(f"Guided backpropagation changes how a ReLU passes gradients; {model.name} has none.")
        return tape.gradient(chosen, x) / way.lift

    return _explain(model, pixels, classes, slopes, batch_size, guided=guided)[0]


def scores(model, pixels, *, batch_size=32):
    """Return the score of every class, float32 (images, classes): what `grad_cam` takes the gradient of."""
    return _explain(model, pixels, None, lambda x, chosen, tape, way: way.scores, batch_size, since=None)[0]


def feature_maps(model, pixels, names):
    """Return what layers put out.

    Parameters
    ----------
    model : keras.Model
    pixels : numpy.ndarray
        uint8, (images, height, width, channels): a few, as all maps are kept.
    names : sequence of str
        From `layers_with_maps`. Of a layer that is called several times, the call that was built first counts.

    Returns
    -------
    dict of numpy.ndarray
        float32, (images, height, width, maps), by name.

    Raises
    ------
    CourseError
        A layer that does not exist.
    """
    way, pixels = _Way(model), _checked(model, pixels)
    way.scored(tf.constant(pixels))
    # Keras goes through branches in the reverse of the order in which they were built: the last call was built first.
    return {name: tf.cast(way.maps[way.known(name)][-1][0], tf.float32).numpy() for name in names}


def layers_with_maps(model):
    """List the layers that put out maps, in the order in which they are called last.

    Returns
    -------
    dict
        Name to (height, width, maps).
    """
    way, shape = _Way(model), (None, *model.input_shape[1:])
    tf.function(lambda x: way.scored(x), autograph=False).get_concrete_function(tf.TensorSpec(shape, tf.uint8))
    return {name: tuple(found[0][0].shape[1:]) for name, found in way.maps.items()}


def occlusion(model, pixels, *, patch, step, classes=None):
    """Cover one place after the other; what the score loses is how much it needed the place.

    Parameters
    ----------
    model, pixels, classes
        As for `grad_cam`. A few images: each is asked about hundreds of times.
    patch : int
        Side of the grey square (the image's mean grey value), in pixels.
    step : int
        Pixels from one square to the next, at most `patch`.

    Returns
    -------
    numpy.ndarray
        float32, (images, height, width): the score lost, averaged over the squares that cover a pixel. Below zero
        where covering speaks for the class.

    Raises
    ------
    CourseError
        As for `grad_cam`; squares that do not fit the images.

    Notes
    -----
    Zeiler & Fergus 2014, arXiv:1311.2901. It needs nothing but answers, so it can check what gradients say.
    """
    whole = scores(model, pixels)
    sides = pixels.shape[1:3]
    if not 0 < step <= patch <= min(sides):
        raise CourseError(f"Expected 0 < step <= patch <= {min(sides)} pixels, got step {step} and patch {patch}.")
    classes = _classes(classes, pixels, whole.shape[1])
    classes = np.where(classes < 0, whole.argmax(axis=1), classes)
    places = [sorted({*range(0, side - patch, step), side - patch}) for side in sides]
    places = [(slice(top, top + patch), slice(left, left + patch)) for top in places[0] for left in places[1]]
    lost, covered = np.zeros((len(pixels), *sides), np.float32), np.zeros(sides, np.float32)
    answers = _answers(model, pixels, places)
    for rows, columns in places:
        covered[rows, columns] += 1
    for image, (answer, number) in enumerate(zip(answers, classes)):
        for (rows, columns), score in zip(places, answer[:, number]):
            lost[image, rows, columns] += whole[image, number] - score
    return lost / covered


def _answers(model, pixels, places):
    # Scores with each place covered, (images, places, classes); one compiled function for all.
    variants = np.repeat(pixels, len(places), axis=0).reshape(len(pixels), len(places), *pixels.shape[1:])
    for image, copies in zip(pixels, variants):
        grey = image.mean(axis=(0, 1)).round().astype(np.uint8)
        for copy, place in zip(copies, places):
            copy[place] = grey
    answers = scores(model, variants.reshape(-1, *pixels.shape[1:]), batch_size=64)
    return answers.reshape(len(pixels), len(places), -1)


def _explain(model, pixels, classes, what, batch_size, *, guided=False, since=PIXELS):
    # Run `what` on batches: it gets the pixels, the score of the chosen class of each image, the tape, and the way. The
    # tape keeps what comes after the maps of the layer `since`: all of a deep network takes gigabytes.
    pixels = _checked(model, pixels)
    shape = (None, *pixels.shape[1:])

    def step(x, chosen):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            way = _Way(model, guided=guided, tape=tape, since=since)
            x = tf.cast(x, tf.float32)
            if since == PIXELS:
                tape.watch(x)
            every = way.scored(x)
            chosen = tf.where(chosen < 0, tf.argmax(every, axis=1), chosen)
            score = tf.gather(every, chosen, axis=1, batch_dims=1) * way.lift
        return what(x, score, tape, way), chosen

    numbers = _classes(classes, pixels, _count(model))
    # Compiled, many images take a fraction of the time; but compiling takes as long as some thirty of them. Uncompiled,
    # what is seen on the way stays in memory until the end of it: so a few at a time.
    if len(pixels) > batch_size:
        signature = [tf.TensorSpec(shape, tf.uint8), tf.TensorSpec((None,), tf.int64)]
        step = tf.function(step, autograph=False).get_concrete_function(*signature)
    else:
        batch_size = min(batch_size, FEW)
    parts = [slice(start, start + batch_size) for start in range(0, len(pixels), batch_size)]
    found = [step(tf.constant(pixels[part]), tf.constant(numbers[part])) for part in parts]
    return tuple(np.concatenate([one.numpy() for one in ones]) for ones in zip(*found))


def _checked(model, pixels):
    expected = model.input_shape[1:]
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or pixels.shape[1:] != expected
        or not len(pixels)
    ):
        got = f"{pixels.dtype} of {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise CourseError(
            f"{model.name} explains uint8 images of (images, {', '.join(map(str, expected))}), one or more; got {got}. "
            "Prepare them with utils.images; a single image is pixels[None]."
        )
    return pixels


def _count(model):
    return max(2, model.output_shape[-1])


def _classes(classes, pixels, count):
    # One number an image; -1 stands for the predicted class.
    numbers = np.asarray(-1 if classes is None else classes)
    if numbers.dtype.kind not in "biu" or numbers.shape not in ((), (len(pixels),)):
        raise CourseError(f"Expected the number of a class, or one for each of {len(pixels)} images; got {classes}.")
    numbers = np.broadcast_to(numbers.astype(np.int64), len(pixels)).copy()
    wrong = numbers[(numbers >= count) | (numbers < (0 if classes is not None else -1))]
    if len(wrong):
        raise CourseError(f"The model has the classes 0 to {count - 1}; asked was for {wrong[0]}.")
    return numbers


class _Way:
    """One way through a model, layer by layer, and what was seen on it.

    The textbook builds `keras.Model(model.inputs, [layer.output, model.output])`. With a model inside the model that
    fails: the inner layer's output belongs to another graph. So every layer is called here, one after the other.
    """

    def __init__(self, model, *, guided=False, tape=None, since=None):
        self.model, self.guided, self.tape, self.since = model, guided, tape, since
        self.maps = {}  # layer's name: [(maps, seen in a mirror)], one a call; the layer called last comes last
        self.mirrored = set()  # references to tensors that show the image in a mirror
        self.before = {}  # reference to probabilities: the numbers that they were made of
        self.convolutions = self.rectified = 0
        # In half precision small gradients would round to zero: the score is lifted, and gradients are lowered again.
        # A reopened model no longer knows its precision, its layers do.
        self.lift = 1024.0 if "float16" in {layer.compute_dtype for layer in _leaves(model)} else 1.0

    def scored(self, x):
        """Scores of all classes, float32 (images, classes)."""
        answer = self._through(self.model, tf.cast(x, tf.float32))
        scores = self.before.get(answer.ref())
        if scores is None:
            answer = tf.clip_by_value(tf.cast(answer, tf.float32), 1e-7, 1 - 1e-7)
            scores = tf.math.log(answer)
            scores = scores - tf.math.log1p(-answer) if answer.shape[-1] == 1 else scores
        scores = tf.cast(scores, tf.float32)
        self.scores = tf.concat([-scores, scores], axis=1) if scores.shape[-1] == 1 else scores
        return self.scores

    def known(self, name):
        """The name of a layer with maps; None: of the last one."""
        if not self.maps:
            raise CourseError(f"{self.model.name} has no convolution, so it has no feature maps to look at.")
        if name is None:
            return next(reversed(self.maps))
        if name not in self.maps:
            raise CourseError(unknown("layer", name, self.maps))
        return name

    def _through(self, model, x):
        if isinstance(model, keras.Sequential):
            for layer in model.layers:
                x = self._call(layer, x)
            return x
        if not isinstance(model, keras.Model) or not hasattr(model, "_run_through_graph"):
            raise CourseError(f"{model.name} is neither a Functional nor a Sequential model: its layers are not known.")
        # Not public, but what Keras itself calls a functional model with, since 3.0.
        outputs = model._run_through_graph(
            x, operation_fn=lambda operation: lambda *a, **k: self._call(operation, *a, **k)
        )
        return outputs[0] if isinstance(outputs, list) and len(outputs) == 1 else outputs

    def _call(self, operation, *args, **kwargs):
        inside = isinstance(operation, keras.Model)
        outputs = self._through(operation, args[0]) if inside else operation(*args, **kwargs)
        if not inside:
            self.convolutions += "Conv" in type(operation).__name__
            outputs = self._rectified(operation, outputs)
            outputs = self._probabilities(operation, args, outputs)
        self._note_maps(operation, args, outputs)
        return outputs

    def _rectified(self, operation, outputs):
        # A ReLU passes a gradient where its output is above zero. Clipping the gradient behind it does the rest.
        is_relu = isinstance(operation, layers.ReLU) or getattr(operation, "activation", None) in RELUS
        self.rectified += is_relu
        return _only_positive(outputs) if is_relu and self.guided else outputs

    def _probabilities(self, operation, args, outputs):
        activation = getattr(operation, "activation", None)
        if isinstance(operation, layers.Softmax):
            before, activation = tf.cast(args[0], tf.float32), partial(activations.softmax, axis=operation.axis)
        elif activation not in (activations.sigmoid, activations.softmax):
            return outputs
        elif isinstance(operation, layers.Activation):
            before = tf.cast(args[0], tf.float32)
        elif isinstance(operation, layers.Dense):
            before = tf.cast(args[0], tf.float32) @ operation.kernel + (operation.bias if operation.use_bias else 0.0)
        else:
            return outputs
        # In float16 0.9998 is 1, and the gradient of a logarithm overflows: an ensemble needs more places.
        outputs = outputs if outputs.dtype == tf.float32 else activation(before)
        self.before[outputs.ref()] = before
        return outputs

    def _note_maps(self, operation, args, outputs):
        given, made = ([one for one in tf.nest.flatten(some) if tf.is_tensor(one)] for some in (args, outputs))
        turned = type(operation).__name__ == "Flip" and operation.axis in (2, -2)  # keras.ops.flip has no public class
        mirrored = any(one.ref() in self.mirrored for one in given) != turned
        if mirrored:
            self.mirrored |= {one.ref() for one in made}
        is_layer = isinstance(operation, keras.Layer) and self.convolutions
        if is_layer and len(made) == 1 and len(made[0].shape) == 4 and max(made[0].shape[1:3]) > 1:
            if operation.name == self.since:
                self.tape.watch(made[0])
            earlier = self.maps.pop(operation.name, [])
            self.maps[operation.name] = [*earlier, (made[0], mirrored)]


@tf.custom_gradient
def _only_positive(outputs):
    return tf.identity(outputs), tf.nn.relu


def randomised(model, *, seed):
    """Forget what a network has learned, from the last layer to the first (Adebayo et al. 2018, arXiv:1810.03292).

    Parameters
    ----------
    model : keras.Model
        It stays as it is: copies forget.
    seed : int

    Yields
    ------
    name : str
        The layer that has forgotten now, as have all behind it.
    model : keras.Model
        The numbers of every weight of these layers are shuffled: as large as before, in no order. Always the same
        copy, so use it before asking for the next.
    """
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    rng = np.random.default_rng(seed)
    for layer in reversed(_leaves(copy)):
        values = layer.get_weights()
        # Mean, deviation, slope and offset of a batch normalisation move together, or outputs would explode.
        order = rng.permutation(values[0].size)
        layer.set_weights([value.ravel()[order if value.size == len(order) else rng.permutation(value.size)]
                           .reshape(value.shape) for value in values])  # fmt: skip
        if hasattr(layer, "kernel") or hasattr(layer, "depthwise_kernel"):
            yield layer.name, copy


def _leaves(model):
    found = [_leaves(layer) if isinstance(layer, keras.Model) else [layer] for layer in model.layers]
    return [layer for some in found for layer in some if layer.weights]


def rank_correlation(maps, others):
    """How alike two heat maps are: Spearman's correlation of their pixels.

    Parameters
    ----------
    maps, others : numpy.ndarray
        Numbers, (images, height, width).

    Returns
    -------
    numpy.ndarray
        float64, (images,): from -1 to 1, the same order; 0 where one of the two has a single value everywhere.
    """
    _same_shape(maps, others)
    ranks = [rankdata(some.reshape(len(some), -1), axis=1) for some in (maps, others)]
    first, second = (some - some.mean(axis=1, keepdims=True) for some in ranks)
    size = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    return np.divide((first * second).sum(axis=1), size, out=np.zeros(len(size)), where=size > 0)


def pointing(maps, masks):
    """Does the hottest pixel lie in the mask (the pointing game, Zhang et al. 2016, arXiv:1608.00507; no tolerance)?

    Parameters
    ----------
    maps : numpy.ndarray
        0 or more, (images, height, width).
    masks : numpy.ndarray
        bool, same shape: what there is to be found.

    Returns
    -------
    numpy.ndarray
        float64, (images,): 1 or 0; where several pixels are the hottest, the share of them in the mask; 0 for a map
        without heat.

    Raises
    ------
    CourseError
        Masks of another size.
    """
    _same_shape(maps, masks)
    hottest = (maps == maps.max(axis=(1, 2), keepdims=True)) & (maps > 0)
    return (hottest & masks).sum(axis=(1, 2)) / np.maximum(hottest.sum(axis=(1, 2)), 1)


def heat_inside(maps, masks):
    """Share of a map's heat that lies in the mask; arguments and errors as for `pointing`; 0 for a map without heat."""
    _same_shape(maps, masks)
    maps = np.asarray(maps, float)
    whole = maps.sum(axis=(1, 2))
    return np.divide((maps * masks).sum(axis=(1, 2)), whole, out=np.zeros(len(maps)), where=whole > 0)


def overlap(maps, masks):
    """Intersection over union of the mask and as many of the hottest pixels as it has.

    Arguments and errors are those of `pointing`. Pixels without heat are never among the hottest. Where too many are
    equally hot, each counts with the same share, so the same heat everywhere gets what chance gets.
    """
    _same_shape(maps, masks)
    found = np.zeros(len(maps))
    for number, (heat, mask) in enumerate(zip(maps, masks)):
        size = mask.sum()
        least = np.partition(heat, -size, axis=None)[-size] if size else np.inf
        hotter, equal = (heat > least) & (heat > 0), (heat == least) & (heat > 0)
        counted = size if equal.any() else hotter.sum()
        both = (hotter & mask).sum() + (equal & mask).sum() * (counted - hotter.sum()) / max(1, equal.sum())
        found[number] = both / max(1, counted + size - both)
    return found


def _same_shape(maps, others):
    if maps.shape != others.shape or maps.ndim != 3:
        raise CourseError(
            f"Expected heat maps and masks of one shape (images, height, width), got {maps.shape} and {others.shape}. "
            "Masks read with shortcuts.masks(..., size) have the size of the prepared images."
        )
