"""The table of layers counts as TensorFlow does; two branches cost a fraction and keep the contract of a model."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from test_models import CARD, OPTIONS, blobs

from utils import models, plots
from utils.backend import keras, tf

layers = keras.layers
WEIGHING = ("Conv2D", "DepthwiseConv2dNative", "MatMul")  # TensorFlow's names of what convolutions and dense layers do


def profiled(model):
    """Operations of convolutions and matrix products for one image, as TensorFlow's profiler counts them."""
    spec = tf.TensorSpec((1, *model.input_shape[1:]), model.inputs[0].dtype)
    function = tf.function(lambda batch: model(batch, training=False)).get_concrete_function(spec)
    graph = convert_variables_to_constants_v2(function).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder
    options = options(options.float_operation()).with_empty_output().order_by("name").build()
    node = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    counted = {}
    while node.children:  # the profiler hangs each kind of operation below the one before
        node = node.children[0]
        counted[node.name] = node.float_ops
    return sum(counted.get(name, 0) for name in WEIGHING)


def test_a_tiny_model_by_hand():
    inputs = keras.Input((6, 5, 2), name="image")
    x = layers.MaxPooling2D(name="pool")(layers.ReLU(name="relu")(layers.Conv2D(3, 3, name="conv")(inputs)))
    outputs = layers.Dense(2, name="dense")(layers.GlobalAveragePooling2D(name="average")(x))
    table = models.layer_table(keras.Model(inputs, outputs))
    assert list(table.index) == ["image", "conv", "relu", "pool", "average", "dense"]
    assert table.loc["conv", ["kind", "height", "width", "maps"]].tolist() == ["3 × 3 convolution", 4, 3, 3]
    # 3 filters of 3 x 3 x 2 weights and a bias; 3 x 2 weights and 2 biases.
    assert table["parameters"].tolist() == [0, 57, 0, 0, 0, 8]
    # 36 numbers, each 18 products, 18 sums and a bias; 36 ReLUs; 2 x 1 x 3 maxima of four; their mean; the last layer.
    assert table["flops"].tolist() == [0, 36 * 37, 36, 4 * 6, 6, 2 * (6 + 1)]


@pytest.mark.parametrize("make", [models.small_cnn, models.two_branch_cnn])
def test_convolutions_and_dense_layers_agree_with_tensorflows_profiler(make):
    model = make((64, 64, 1), seed=1)
    table = models.layer_table(model)
    assert table["parameters"].sum() == model.count_params() and table.index.is_unique
    weighing = table[table["kind"].str.contains("convolution|separable|dense")]
    assert weighing["flops"].sum() == pytest.approx(profiled(model), rel=0.03)


def test_two_branches_cost_a_fraction():
    thrifty, plain = (models.layer_table(make((128, 128, 1), seed=1)).sum(numeric_only=True)
                      for make in (models.two_branch_cnn, models.small_cnn))  # fmt: skip
    assert thrifty["parameters"] < plain["parameters"] / 3 and thrifty["flops"] < plain["flops"] / 2


@pytest.mark.parametrize("classes", [2, 3])
def test_two_branches_take_bytes_repeat_with_their_seed_and_fit_into_a_bundle(classes, tmp_path):
    model, again, other = (
        models.two_branch_cnn((32, 32, 1), seed=seed, classes=classes, widths=(4, 7, 8)) for seed in (3, 3, 4)
    )
    for one, same, else_ in zip(model.get_weights(), again.get_weights(), other.get_weights()):
        np.testing.assert_array_equal(one, same)
        assert one.ndim < 2 or (one != else_).any()
    kernels = [weight for weight in model.get_weights() if weight.ndim == 4]
    assert len({kernel.ravel()[0] for kernel in kernels}) == len(kernels)  # each draws its own numbers
    pixels, _ = blobs(10, seed=1)
    answers = models.predict(model, pixels)
    assert (answers > 0).all() and (answers < 1).all() and (classes == 2 or answers.sum(axis=1) == pytest.approx(1))
    card = {**CARD, "task": "multiclass", "classes": list("abc")[:classes]}
    models.save_bundle(tmp_path / "b", model, options=OPTIONS, card=card)
    np.testing.assert_allclose(models.predict(models.open_bundle(tmp_path / "b")[0], pixels), answers, atol=1e-6)


@pytest.mark.parametrize("make", [models.small_cnn, models.two_branch_cnn])
def test_the_drawing_names_every_box_and_nothing_overlaps(make):
    fig = plots.network(models.layer_table(make((128, 128, 1), seed=1)), title="Network")
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    texts = [text for text in fig.axes[0].texts if text.get_text().strip()]
    boxes = [text.get_window_extent(renderer).padded(-1) for text in texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    frame = fig.bbox
    assert all(box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 for box in boxes)
    assert "FLOPs" in fig.axes[0].get_title(loc="left")
