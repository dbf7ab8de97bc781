"""What a network is made of: a table of its layers, a drawing, and a thriftier relative of the small CNN."""

import math
from typing import NamedTuple

import pandas as pd
from matplotlib.patches import FancyArrowPatch, Rectangle

from utils import plots
from utils.backend import keras
from utils.errors import CourseError

layers = keras.layers

# A quantised or subclassed layer counts as its parent does: `isinstance` decides, first come first served. So children
# stand before their parents: Keras derives DepthwiseConv2D and SeparableConv2D from bases of their own.
CONVOLUTIONS = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.Dense)
AFFINE = (layers.BatchNormalization, layers.Rescaling)
POOLING = (layers.MaxPooling2D, layers.AveragePooling2D)
GLOBAL_POOLING = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
ACTIVATIONS = (layers.Activation, layers.ReLU, layers.LeakyReLU, layers.Softmax)
MERGES = (layers.Add, layers.Subtract, layers.Multiply, layers.Average, layers.Maximum, layers.Minimum)


def two_branch_cnn(shape, *, seed, classes=2, widths=(16, 32, 48, 64, 64), dropout=0.3):
    """A small convolutional network that looks for small and for large patterns side by side.

    As `models.small_cnn`, but from the second block on, half of the feature maps come from 3 x 3 filters (vessels,
    edges) and half from 5 x 5 ones (haze): parallel branches, as in Szegedy et al. 2015, arXiv:1409.4842. Both are
    depthwise-separable (Chollet 2017, arXiv:1610.02357): one filter a feature map, then a mixture of the maps point
    by point, a fraction of the weights and of the arithmetic. Processors do less of it a second, though: fewer
    operations do not mean as much less time.

    Parameters
    ----------
    shape : tuple of int
        (height, width, channels) of the uint8 images.
    seed : int
        Of the starting weights and of dropout.
    classes : int
        2: one output, the probability of the second class. More: one output a class, adding up to 1.
    widths : tuple of int
        Feature maps of each block, both branches together; at least 2 from the second on.
    dropout : float
        Share of features dropped before the last layer, in training; from 0 to below 1.

    Returns
    -------
    keras.Model
        uint8 (images, height, width, channels) to float32 (images, 1) or (images, classes), probabilities; not
        compiled.

    Raises
    ------
    CourseError
        A block too narrow to be halved.
    """
    if min(widths[1:], default=2) < 2:
        raise CourseError(f"Two branches need 2 feature maps or more in every block after the first, got {widths}.")
    inputs = keras.Input(shape, dtype="uint8", name="pixels")
    x = layers.Rescaling(1 / 127.5, offset=-1.0, name="scale")(inputs)
    for block, width in enumerate(widths, start=1):
        x = _first(x, width, seed) if block == 1 else _branches(x, width, block, seed)
        # Momentum 0.9 as in `models.small_cnn`.
        x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_norm")(x)
        x = layers.ReLU(name=f"block{block}_relu")(x)
        x = layers.MaxPooling2D(padding="same", name=f"block{block}_pool")(x)
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(dropout, seed=seed, name="dropout")(x)
    start = keras.initializers.GlorotUniform(seed=seed * 100 + 99)
    units, activation = (1, "sigmoid") if classes == 2 else (classes, "softmax")
    outputs = layers.Dense(units, activation=activation, kernel_initializer=start, name="probability")(x)
    return keras.Model(inputs, outputs, name="two_branch_cnn")


def _first(x, width, seed):
    start = keras.initializers.HeNormal(seed=seed * 100)
    options = {"strides": 2, "padding": "same", "use_bias": False, "kernel_initializer": start}
    return layers.Conv2D(width, 5, name="block1_conv", **options)(x)


def _branches(x, width, block, seed):
    halves = []
    for side, name, share in ((3, "small", width // 2), (5, "large", width - width // 2)):
        # A seed of its own for each kernel. Keras starts depthwise ones low, as if each filter saw all feature maps;
        # the batch normalisation that follows makes up for it.
        first = seed * 100 + 4 * block + (side == 5) * 2
        convolution = layers.SeparableConv2D(
            share,
            side,
            padding="same",
            use_bias=False,
            depthwise_initializer=keras.initializers.HeNormal(seed=first),
            pointwise_initializer=keras.initializers.HeNormal(seed=first + 1),
            name=f"block{block}_{name}",
        )
        halves.append(convolution(x))
    return layers.Concatenate(name=f"block{block}_join")(halves)


def layer_table(model):
    """List the layers of a network: what each gives out, what it has to learn, how much it computes.

    Parameters
    ----------
    model : keras.Model
        Functional or sequential, made for images of a known size. The sides of a nested model may be open.

    Returns
    -------
    pandas.DataFrame
        One row a layer, in order of computation, nested models taken apart. Index `layer`: its name, "trunk/conv1"
        where nested. Columns: `output`, such as "64 x 64 x 16" (height, width, channels), of its first call;
        `parameters`, int, its own weights, trained or not; `flops`, int, arithmetic operations for one image, over
        all calls of a layer that is used several times.

        Counted: 2 x multiply-adds of convolutions (also depthwise and separable) and dense layers, 1 an output number
        for a bias and 1 for an activation; batch normalisation (a factor and a term when predicting) and rescaling 2
        an output number; pooling its window an output number; sums and products of layers. All else counts 0:
        joining, reshaping, dropout, resizing, operations that are no layer.

    Raises
    ------
    CourseError
        A model without a graph of layers, for images of open size, or with weights in a layer not named above.
    """
    rows = {}
    for call in _trace(model):
        if not isinstance(call.layer, layers.Layer) or isinstance(call.layer, keras.Model):
            continue
        row = rows.setdefault(
            call.name,
            {"output": _size(call.outputs[0]), "parameters": int(call.layer.count_params()), "flops": 0},
        )
        row["flops"] += _flops(call)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["output", "parameters", "flops"])
    return table.rename_axis("layer")


class _Call(NamedTuple):
    """One use of a layer on tensors of known shape."""

    name: str  # with the names of the models around it
    layer: keras.Operation
    inputs: list  # of keras.KerasTensor, as are the outputs
    outputs: list


class _Recorder(keras.Operation):
    """Stands in for a layer: notes shapes, has no weights, computes nothing."""

    def __init__(self, layer, calls, prefix):
        super().__init__(name=layer.name)
        self.layer, self.calls, self.prefix = layer, calls, prefix

    def compute_output_spec(self, *args, **kwargs):
        name = self.prefix + self.layer.name
        if isinstance(self.layer, keras.Model):
            outputs = _run(self.layer, args[0], self.calls, name + "/")
        else:
            outputs = self.layer.compute_output_spec(*args, **kwargs)
        self.calls.append(_Call(name, self.layer, _tensors((args, kwargs)), _tensors(outputs)))
        return outputs


def _trace(model):
    """Every call of a layer in one pass over one image; a nested model comes after its layers."""
    inputs = getattr(model, "inputs", None)
    if not (isinstance(model, keras.Sequential) or hasattr(model, "operations")) or not inputs:
        raise CourseError(f"{model.name} shows no graph of layers: build it from keras.Input to its outputs.")
    if any(None in tensor.shape[1:] for tensor in inputs):
        raise CourseError(f"{model.name} takes images of any size: wrap it in a model whose keras.Input has one.")
    calls = [_Call(tensor.name, layers.InputLayer(tensor.shape[1:]), [], [tensor]) for tensor in inputs]
    _run(model, model.input, calls, "")
    return calls


def _run(model, inputs, calls, prefix):
    fresh = keras.tree.map_structure(lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype), inputs)
    if isinstance(model, keras.Sequential):
        outputs = fresh
        for layer in model.layers:
            outputs = _Recorder(layer, calls, prefix)(outputs)
    else:
        # A copy with recorders for layers: the shapes of the real ones may be open, and calling them again would
        # leave traces in their model.
        copy = keras.models.clone_model(model, fresh, clone_function=lambda layer: _Recorder(layer, calls, prefix))
        outputs = copy.output
    return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), outputs)


def _tensors(structure):
    return [one for one in keras.tree.flatten(structure) if isinstance(one, keras.KerasTensor)]


def _numbers(tensor):
    return math.prod(tensor.shape[1:])


def _size(tensor):
    return " x ".join(map(str, tensor.shape[1:])) or "1"


def _flops(call):
    layer, out = call.layer, sum(map(_numbers, call.outputs))
    if isinstance(layer, CONVOLUTIONS):
        bias = layer.use_bias * out
        return 2 * _multiply_adds(call, out) + bias + (layer.activation is not keras.activations.linear) * out
    if isinstance(layer, AFFINE):
        return 2 * out
    if isinstance(layer, POOLING):
        return math.prod(layer.pool_size) * out
    if isinstance(layer, GLOBAL_POOLING):
        return _numbers(call.inputs[0])
    if isinstance(layer, ACTIVATIONS):
        return out
    if isinstance(layer, MERGES):
        return (len(call.inputs) - 1) * out
    if layer.count_params():
        raise CourseError(f"{call.name} is a {type(layer).__name__}: layer_table does not know how much it computes.")
    return 0


def _multiply_adds(call, out):
    layer = call.layer
    if isinstance(layer, layers.SeparableConv2D):
        *window, maps, multiple = layer.depthwise_kernel.shape
        between = out // layer.filters * maps * multiple
        return math.prod(window) * between + maps * multiple * out
    # A depthwise kernel is (height, width, maps, multiple), and each output number sees one map alone.
    seen = layer.kernel.shape[:2] if isinstance(layer, layers.DepthwiseConv2D) else layer.kernel.shape[:-1]
    return math.prod(seen) * out
