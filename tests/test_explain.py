"""Grad-CAM is what mathematics says, whatever the build of a model; its relatives and scores agree with hand work."""

import contextlib
import functools
from itertools import product

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import spearmanr
from test_models import CARD

from utils import backbones, explain, images, models
from utils.backend import keras, tf
from utils.errors import CourseError

layers = keras.layers
SHAPE = 12, 10
SIDE = 16


def noise(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(1, 255, (count, *shape), np.uint8)


def close(one, other, tolerance=1e-4):
    """Equal, but for a share of the largest number; and not because all are zero."""
    largest = np.abs(other).max()
    assert largest > 0
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * largest)


def enlarged(maps, size):
    """Bilinear, by OpenCV."""
    return np.stack([cv2.resize(np.float32(one), size[::-1], interpolation=cv2.INTER_LINEAR) for one in maps])


def through(steps, x):
    for step in steps:
        x = step(x)
    return x


def functional(steps, shape=(*SHAPE, 1), dtype="uint8"):
    inputs = keras.Input(shape, dtype=dtype, name="pixels")
    return keras.Model(inputs, through(steps, inputs))


def filled(model, seed=0):
    """Random weights everywhere, in biases and statistics too."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(0, 1, weight.shape)
        weight.assign(np.abs(values) + 0.5 if "variance" in weight.path else values)
    return model


def of_every_class(model, pixels, **options):
    """Grad-CAM for each class, (classes, images, height, width)."""
    count = max(2, model.output_shape[-1])
    classes = np.repeat(np.arange(count), len(pixels))
    found = explain.grad_cam(model, np.concatenate([pixels] * count), classes=classes, **options)
    assert found.maps.dtype == np.float32 and found.classes.tolist() == classes.tolist()
    return found.maps.reshape(count, *pixels.shape[:3])


def signed(model, pixels, **options):
    """Grad-CAM of a binary model before what is below zero is cut off: class 0 has the same sum with a minus."""
    other, one = of_every_class(model, pixels, **options)
    assert ((one == 0) | (other == 0)).all()
    return one - other


HEADS = {
    "sigmoid": lambda: [layers.Dense(1, activation="sigmoid")],
    "softmax": lambda: [layers.Dense(3, activation="softmax")],
    "sigmoid apart": lambda: [layers.Dense(1), layers.Activation("sigmoid")],
    "softmax apart": lambda: [layers.Dense(3), layers.Activation("softmax")],
    "Softmax": lambda: [layers.Dense(3), layers.Softmax()],
    "no offset": lambda: [layers.Dense(1, activation="sigmoid", use_bias=False)],
}


def by_hand(head, *, activation=None, seed=0, offset=0.0):
    """A convolution, averages and a linear layer; with NumPy, its scores, and Grad-CAM of each class before ReLU."""
    steps = [
        layers.Rescaling(1 / 255),
        layers.Conv2D(3, 3, strides=2, activation=activation, name="conv"),
        layers.GlobalAveragePooling2D(),
        *HEADS[head](),
    ]
    model, pixels = filled(functional(steps), seed), noise(4, *SHAPE, 1)
    if np.any(offset):
        model.weights[-1].assign(model.weights[-1] + offset)
    kernel, bias, slopes, *last = model.get_weights()
    windows = np.lib.stride_tricks.sliding_window_view(pixels[..., 0] / 255, (3, 3), axis=(1, 2))[:, ::2, ::2]
    maps = np.einsum("nyxij,ijk->nyxk", windows, kernel[:, :, 0]) + bias
    maps = np.maximum(maps, 0) if activation else maps
    scores = maps.mean(axis=(1, 2)) @ slopes + sum(last)
    heat = np.stack([enlarged(maps @ slope / (5 * 4), SHAPE) for slope in slopes.T])
    if len(heat) == 1:
        scores, heat = np.concatenate([-scores, scores], axis=1), np.concatenate([-heat, heat])
    return model, pixels, scores, heat


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_before_an_average_and_a_linear_layer_grad_cam_is_the_weighted_sum_of_maps(activation, head):
    model, pixels, scores, heat = by_hand(head, activation=activation, seed=4 if activation else 0)
    close(explain.scores(model, pixels), scores)
    close(of_every_class(model, pixels), np.maximum(heat, 0))


@pytest.mark.parametrize("sure", [40, -40])
@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_a_network_that_is_sure_has_the_same_map_as_one_that_doubts(head, sure):
    """The probability is 0 or 1, and no gradient is left of it; the score before it has one."""
    model, pixels, scores, heat = by_hand(head, offset=[sure, 0, 0] if head == "softmax" else sure)
    answers = models.predict(model, pixels).reshape(4, -1)[:, 0]
    assert (np.abs(answers - (sure > 0)) < 1e-10).all()
    close(explain.scores(model, pixels), scores)
    close(of_every_class(model, pixels), np.maximum(heat, 0))


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_the_predicted_class_is_explained_unless_others_are_asked_for(head):
    middle = np.median(by_hand(head)[2], axis=0)
    model, pixels, scores, heat = by_hand(head, offset=-middle if head == "softmax" else -middle[1:])
    predicted, others = scores.argmax(axis=1), np.arange(4) % len(heat)
    assert len(set(predicted)) > 1 and (predicted != others).any()
    for asked, classes in ((None, predicted), (others, others), (list(others), others), (1, np.ones(4))):
        found = explain.grad_cam(model, pixels, classes=asked)
        assert found.classes.tolist() == classes.tolist()
        close(found.maps, np.maximum([heat[int(number), row] for row, number in enumerate(classes)], 0))


@pytest.mark.parametrize("head", ["sigmoid", "softmax"])
def test_the_score_of_an_ensemble_is_the_logarithm_of_its_probability_or_odds(head):
    members, _, scores, heats = zip(*(by_hand(head, activation="relu", seed=seed) for seed in (3, 8)))
    both, pixels, weights = models.ensemble(members, [3, 1]), noise(4, *SHAPE, 1), [0.75, 0.25]
    binary = head == "sigmoid"
    slopes = [heat / 2 if binary else heat for heat in heats]  # half a score each way: a softmax of two
    powers = [np.exp(score / 2 if binary else score) for score in scores]
    probabilities = [power / power.sum(axis=1, keepdims=True) for power in powers]
    answer = sum(weight * each for weight, each in zip(weights, probabilities))
    close(explain.scores(both, pixels), np.log(answer / (1 - answer)) if binary else np.log(answer))
    found = of_every_class(both, pixels)
    for number in range(answer.shape[1]):
        rise = 0
        for weight, each, slope in zip(weights, probabilities, slopes):
            mean = np.einsum("nc,cnyx->nyx", each, slope)
            rise += weight * each[:, number, None, None] * (slope[number] - mean)
        expected = rise / (answer * (1 - answer) if binary else answer)[:, number, None, None]
        close(found[number], np.maximum(expected, 0), 1e-3)


def two_convolutions():
    return filled(functional([
        layers.Rescaling(1 / 255, name="scale"),
        layers.Conv2D(3, 3, name="conv1"), layers.ReLU(name="relu1"), layers.MaxPooling2D(name="pool"),
        layers.Conv2D(4, 2, name="conv2"), layers.ReLU(name="relu2"),
        layers.Flatten(name="flat"), layers.Dense(1, name="score"), layers.Activation("sigmoid"),
    ]))  # fmt: skip


def behind(model, name):
    """What follows a layer, up to the score, computed with 64 bits."""
    names = [layer.name for layer in model.layers]
    first = names.index(name)
    later = model.layers[first + 1 : names.index("score") + 1]
    copies = [type(layer).from_config({**layer.get_config(), "dtype": "float64"}) for layer in later]
    rest = keras.Sequential([keras.Input(model.layers[first].output.shape[1:], dtype="float64"), *copies])
    rest.set_weights([values for layer in later for values in layer.get_weights()])
    return rest


@pytest.mark.parametrize("name", ["conv1", "relu1", "pool", "conv2", "relu2"])
def test_a_maps_weight_is_what_the_score_gains_when_the_whole_map_rises(name):
    model, pixels, step = two_convolutions(), noise(3, *SHAPE, 1, seed=2), 1e-6
    maps = np.float64(explain.feature_maps(model, pixels, [name])[name])
    rest, summed = behind(model, name), 0
    close(rest(maps), explain.scores(model, pixels)[:, 1:])
    for number in range(maps.shape[3]):
        rise = step * (np.arange(maps.shape[3]) == number)
        gain = np.asarray(rest(maps + rise) - rest(maps - rise)) / (2 * step)
        summed = summed + gain[..., None] / maps[0, ..., 0].size * maps[..., number]
    close(signed(model, pixels, layer=name), enlarged(summed, SHAPE))


def test_a_gradient_is_what_the_score_gains_per_grey_value():
    steps = [
        layers.Rescaling(1 / 127.5, offset=-1),
        layers.Conv2D(4, 3, activation="softplus"),
        layers.Conv2D(4, 2, activation="tanh"),
        layers.Flatten(),
        layers.Dense(3, activation="softmax"),
    ]
    model, pixels = filled(functional(steps, (6, 5, 2))), noise(1, 6, 5, 2)
    steps = np.eye(pixels.size, dtype=np.uint8).reshape(-1, 6, 5, 2)
    gains = (explain.scores(model, pixels + steps) - explain.scores(model, pixels - steps)) / 2
    found = explain.gradients(model, np.concatenate([pixels] * 3), classes=[0, 1, 2])
    assert found.shape == (3, 6, 5, 2) and found.dtype == np.float32
    for number in range(3):
        close(found[number].ravel(), gains[:, number], 2e-3)


def textbook(model, pixels, name, number, size=None):
    """Grad-CAM as it is written for flat models, of the numbers before the last activation."""
    last = model.layers[-1]
    inside = keras.Model(model.inputs[0], [model.get_layer(name).output, last.input])
    with tf.GradientTape() as tape:
        maps, features = inside(pixels, training=False)
        score = (features @ last.kernel + last.bias)[:, number]
    weights = tf.reduce_mean(tape.gradient(score, maps), axis=(1, 2), keepdims=True)
    return np.maximum(enlarged(tf.reduce_sum(weights * maps, axis=-1).numpy(), size or pixels.shape[1:3]), 0)


@pytest.mark.parametrize("make, name", [(models.small_cnn, "conv2_relu"), (models.two_branch_cnn, "block2_join")])
def test_our_own_networks_agree_with_the_textbook(make, name):
    model, pixels = filled(make((SIDE, SIDE, 1), seed=1, classes=3, widths=(4, 5)), seed=1), noise(9, SIDE, SIDE, 1)
    expected = [textbook(model, pixels, name, number) for number in range(3)]
    close(of_every_class(model, pixels, layer=name), expected)


def chain():
    return [
        layers.Rescaling(1 / 127.5, offset=-1, name="scale"),
        layers.Conv2D(4, 3, padding="same", name="conv1"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(name="relu1"),
        layers.MaxPooling2D(name="pool"),
        layers.Conv2D(5, 3, padding="same", activation="relu", name="conv2"),
        layers.GlobalAveragePooling2D(name="average"),
        layers.Dropout(0.5, name="dropout"),
        layers.Dense(3, activation="softmax", name="probability"),
    ]


def sequential(steps, **options):
    return keras.Sequential([keras.Input((SIDE, SIDE, 1), **options), *steps])


def flat(steps):
    return functional(steps, (SIDE, SIDE, 1))


def inner(steps, shape, outputs=lambda x: x):
    inputs = keras.Input(shape)
    return keras.Model(inputs, outputs(through(steps, inputs)))


def in_a_list(model):
    return keras.Model(model.inputs, model.outputs)


BUILDS = {
    "flat": flat,
    "Sequential": lambda c: sequential(c, dtype="uint8"),
    "fed with float32": lambda c: sequential(c),
    "outputs in a list": lambda c: in_a_list(flat(c)),
    "nested": lambda c: flat([c[0], inner(c[1:6], (SIDE, SIDE, 1)), *c[6:]]),
    "nested, outputs in a list": lambda c: flat(
        [c[0], lambda x: inner(c[1:6], (SIDE, SIDE, 1), lambda x: [x])(x)[0], *c[6:]]
    ),
    "nested, training=False": lambda c: flat(
        [c[0], lambda x: inner(c[1:6], (SIDE, SIDE, 1))(x, training=False), *c[6:]]
    ),
    "head nested as well": lambda c: flat([c[0], inner(c[1:6], (SIDE, SIDE, 1)), inner(c[6:], (8, 8, 5))]),
    "twice nested": lambda c: flat([inner([c[0], inner(c[1:4], (SIDE, SIDE, 1)), *c[4:]], (SIDE, SIDE, 1))]),
    "Sequential in Functional": lambda c: flat([c[0], keras.Sequential(c[1:6]), keras.Sequential(c[6:])]),
    "Functional in Sequential": lambda c: sequential([*c[:4], inner(c[4:], (SIDE, SIDE, 4))], dtype="uint8"),
}


def asked(model, pixels):
    """What could come out otherwise in another build; several classes at once."""
    return {
        "early": explain.grad_cam(model, pixels, layer="conv1", classes=[0, 1, 2]).maps,
        "gradients": explain.gradients(model, pixels, classes=[0, 1, 2], guided=True),
        **explain.feature_maps(model, pixels, ["norm", "conv2"]),
    }


@functools.cache
def of_the_flat_one():
    model = filled(BUILDS["flat"](chain()), seed=2)
    pixels = noise(3, SIDE, SIDE, 1)
    return model.get_weights(), explain.grad_cam(model, pixels, classes=[0, 1, 2]).maps, asked(model, pixels)


@pytest.mark.parametrize("build", BUILDS)
def test_every_build_of_a_model_has_the_maps_of_the_flat_one(build):
    model = BUILDS[build](chain())
    weights, _, expected = of_the_flat_one()
    model.set_weights(weights)
    for name, found in asked(model, noise(3, SIDE, SIDE, 1)).items():
        close(found, expected[name])
    listed = explain.layers_with_maps(model)
    own = {"conv1": (16, 16, 4), "norm": (16, 16, 4), "relu1": (16, 16, 4), "pool": (8, 8, 4), "conv2": (8, 8, 5)}
    assert [(name, size) for name, size in listed.items() if name in own] == list(own.items())
    assert set(listed.values()) == set(own.values())


@pytest.mark.parametrize("build", ["flat", "Sequential", "nested", "head nested as well", "Sequential in Functional"])
def test_a_model_from_a_bundle_has_the_same_maps(build, tmp_path):
    model = BUILDS[build](chain())
    weights, expected, _ = of_the_flat_one()
    model.set_weights(weights)
    card = {**CARD, "task": "multiclass", "classes": list("abc")}
    models.save_bundle(tmp_path / "b", model, options=images.Options(size=SIDE, channels=("plain",)), card=card)
    opened = models.open_bundle(tmp_path / "b")[0]
    close(explain.grad_cam(opened, noise(3, SIDE, SIDE, 1), classes=[0, 1, 2]).maps, expected)


def test_a_network_that_starts_with_a_convolution_takes_bytes_all_the_same():
    model, pixels = filled(sequential(chain()[1:])), noise(2, SIDE, SIDE, 1)
    expected = keras.Model(model.inputs[0], model.get_layer("conv2").output)(np.float32(pixels), training=False)
    close(explain.feature_maps(model, pixels, ["conv2"])["conv2"], expected)
    assert list(explain.layers_with_maps(model)) == ["conv1", "norm", "relu1", "pool", "conv2"]
    close(explain.grad_cam(model, pixels, classes=1).maps, textbook(model, np.float32(pixels), "conv2", 1))


@functools.cache
def extractor(name, mirrored=False, channels=1):
    return backbones.build(name, (64, 48, channels), weights="none", seed=3, mirrored=mirrored)


def classifier(*features):
    model = backbones.classifier(*features, classes=2, seed=1)
    return filled(model.get_layer("probability"), seed=5) and model


@pytest.mark.parametrize("layer", [None, "conv2_relu"])
def test_over_an_image_and_its_mirror_image_the_map_is_the_mean_of_both_turned_back(layer):
    plain, both = (classifier(extractor("PhantomNet", mirrored, 2)) for mirrored in (False, True))
    assert both.count_params() == plain.count_params()
    pixels = noise(2, 64, 48, 2)
    pixels = np.concatenate([pixels, pixels[:, :, ::-1]])
    heat, mirrored = np.split(signed(plain, pixels, layer=layer), 2)
    found, turned = np.split(signed(both, pixels, layer=layer), 2)
    close(found, (heat + mirrored[:, :, ::-1]) / 2)
    close(turned, found[:, :, ::-1])
    assert np.abs(found - heat).max() > 0.1 * np.abs(heat).max()


def test_maps_of_plain_and_clahe_are_added():
    model, pixels = classifier(extractor("PhantomNet", channels=2)), noise(2, 64, 48, 2)
    slopes, offset = model.get_layer("probability").get_weights()
    expected = 0
    for channel, slope in enumerate(np.split(slopes, 2)):
        alone = classifier(extractor("PhantomNet"))
        alone.get_layer("probability").set_weights([slope, offset])
        expected += signed(alone, pixels[..., [channel]])
    close(signed(model, pixels), expected)


def test_of_maps_that_are_many_those_of_the_plain_image_as_it_is_are_shown():
    model, pixels = extractor("PhantomNet", True, 2), noise(2, 64, 48, 2)
    grey = np.float32(pixels[..., :1]) / 127.5 - 1
    trunk = model.get_layer("trunk")
    found = explain.feature_maps(model, pixels, ["conv3_relu", "trunk"])
    close(found["trunk"], trunk(grey))
    close(found["conv3_relu"], keras.Model(trunk.input, trunk.get_layer("conv3_relu").output)(grey))


def test_maps_of_backbones_side_by_side_are_added():
    names, pixels = ("MobileNet", "MobileNetV2"), noise(2, 64, 48, 1)
    extractors = [extractor(name) for name in names]
    model, expected = classifier(backbones.join(extractors)), 0
    slopes, _ = model.get_layer("probability").get_weights()
    for one, slope in zip(extractors, np.split(slopes, [extractors[0].output_shape[1]])):
        maps = explain.feature_maps(one, pixels, ["trunk"])["trunk"]
        assert maps.shape[:3] == (2, 2, 1)
        heat = enlarged(maps @ slope / 2, (64, 48))
        assert np.abs(heat).max() > 0
        expected = expected + heat
    close(signed(model, pixels), expected)


def test_a_short_sighted_network_is_read_at_its_mixtures_of_maps():
    model = filled(backbones.short_sighted((64, 48, 1), weights="none", seed=1), seed=1)
    pixels, (slopes, _) = noise(2, 64, 48, 1), model.get_layer("probability").get_weights()
    maps = explain.feature_maps(model, pixels, ["look_relu"])["look_relu"]
    assert maps.shape == (2, 8, 6, 64)
    close(signed(model, pixels), enlarged(maps @ slopes / 48, (64, 48)))


def turned_by(axis):
    inputs = keras.Input((SIDE, SIDE, 1), dtype="uint8")
    steps = chain()
    views = [through(steps[:6], view) for view in (inputs, keras.ops.flip(inputs, axis=axis))]
    maps = layers.Concatenate(name="both")([views[0], keras.ops.flip(views[1], axis=axis)])
    return keras.Model(inputs, through(steps[6:], layers.Conv2D(5, 1, name="mixed")(maps)))


@pytest.mark.parametrize("axis", [2, -2])
def test_maps_that_are_turned_back_inside_are_not_turned_again(axis):
    model, pixels = filled(turned_by(axis), seed=3), noise(2, SIDE, SIDE, 1)
    inside = np.asarray(keras.Model(model.input, model.get_layer("mixed").output)(pixels))
    slopes, _ = model.get_layer("probability").get_weights()
    close(explain.grad_cam(model, pixels, layer="mixed", classes=1).maps,
          np.maximum(enlarged(inside @ slopes[:, 1] / 64, (SIDE, SIDE)), 0))  # fmt: skip
    inside = np.asarray(keras.Model(model.input, model.get_layer("both").output)(pixels))
    kernel = model.get_layer("mixed").get_weights()[0][0, 0] @ slopes[:, 1]
    plain, turned = (enlarged(part @ some / 64, (SIDE, SIDE)) for part, some in
                     zip(np.split(inside, 2, axis=-1), np.split(kernel, 2)))  # fmt: skip
    close(explain.grad_cam(model, pixels, layer="conv2", classes=1).maps, np.maximum(plain + turned, 0))


@contextlib.contextmanager
def half_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def small(*, members=1, slope=1.0, offset=0.0):
    """The small CNN, or two of them; `slope` 1e-5: the score hardly moves, `offset` 9: the network is sure."""
    made = []
    for seed in range(1, 1 + members):
        model = models.small_cnn((SIDE, SIDE, 1), seed=seed, widths=(4, 8))
        kernel, bias = model.layers[-1].get_weights()
        model.layers[-1].set_weights([kernel * slope, bias + offset])
        made.append(model)
    return made[0] if members == 1 else models.ensemble(made, [1] * members)


@pytest.mark.parametrize("members, slope, offset", [(1, 1, 0), (1, 1e-5, 0), (2, 1e-5, 0), (2, 1, 9), (2, 1, -9)])
def test_half_precision_gives_the_same_maps(members, slope, offset, tmp_path):
    """Where gradients are smaller than 16 bits can say, and where a probability is 1 in 16 bits, too."""
    options, pixels = {"members": members, "slope": slope, "offset": offset}, noise(2, SIDE, SIDE, 1)
    whole = small(**options)
    with half_precision():
        half = small(**options)
    half.save(tmp_path / "half.keras")
    reopened = keras.models.load_model(tmp_path / "half.keras")
    assert half.weights[0].dtype == reopened.weights[0].dtype == "float32"
    close(signed(half, pixels), signed(whole, pixels), 0.02)
    close(explain.gradients(reopened, pixels, classes=1), explain.gradients(whole, pixels, classes=1), 0.02)


def test_a_precision_for_each_layer():
    half = [
        type(layer).from_config({**layer.get_config(), "dtype": "mixed_float16"})
        if isinstance(layer, (layers.Conv2D, layers.BatchNormalization, layers.ReLU)) else layer
        for layer in chain()
    ]  # fmt: skip
    model, (weights, expected, _) = flat(half), of_the_flat_one()
    model.set_weights([*weights[:-2], weights[-2] * 1e-6, weights[-1]])
    found = explain.grad_cam(model, noise(3, SIDE, SIDE, 1), classes=[0, 1, 2]).maps
    close(found * 1e6, expected, 0.02)


def test_a_batch_has_the_maps_of_its_images_one_by_one():
    model, pixels = filled(flat(chain())), noise(5, SIDE, SIDE, 1)
    whole = explain.grad_cam(model, pixels)
    assert whole.maps.shape == (5, SIDE, SIDE) and np.ptp(whole.maps, axis=0).max() > 0
    for size in (1, 2, 3):  # from three batches on it is compiled
        other = explain.grad_cam(model, pixels, batch_size=size)
        close(other.maps, whole.maps)
        np.testing.assert_array_equal(other.classes, whole.classes)
    close(explain.grad_cam(model, pixels[3:4]).maps, whole.maps[3:4])
    larger = explain.grad_cam(model, pixels, classes=1, size=24).maps
    close(larger, textbook(model, pixels, "conv2", 1, size=(24, 24)))
    close(explain.gradients(model, pixels, batch_size=2), explain.gradients(model, pixels))


def test_explained_is_what_the_model_answers_and_not_what_it_does_in_training():
    model, pixels = filled(flat(chain())), noise(4, SIDE, SIDE, 1)
    scores = explain.scores(model, pixels)
    close(keras.ops.softmax(scores), models.predict(model, pixels))
    np.testing.assert_array_equal(explain.scores(model, pixels), scores)
    np.testing.assert_array_equal(explain.grad_cam(model, pixels).classes, scores.argmax(axis=1))


def test_explaining_changes_nothing():
    model, pixels = filled(BUILDS["nested"](chain())), noise(2, SIDE, SIDE, 1)
    model.layers[2].trainable = False
    parts = [*model.layers, *model.layers[2].layers]

    def state():
        return [(one.trainable, len(one._inbound_nodes), len(one._outbound_nodes)) for one in parts]

    weights, before, given = model.get_weights(), state(), pixels.copy()
    explain.grad_cam(model, pixels)
    explain.gradients(model, pixels, guided=True)
    explain.feature_maps(model, pixels, list(explain.layers_with_maps(model)))
    explain.occlusion(model, pixels, patch=8, step=8)
    for _, forgetful in explain.randomised(model, seed=1):
        explain.scores(forgetful, pixels)
    assert state() == before
    np.testing.assert_array_equal(pixels, given)
    for one, other in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_array_equal(one, other)


RELUS = {
    "fused": lambda units, size: [layers.Conv2D(units, size, activation="relu")],
    "ReLU": lambda units, size: [layers.Conv2D(units, size), layers.ReLU()],
    "Activation": lambda units, size: [layers.Conv2D(units, size), layers.Activation("relu")],
}


@pytest.mark.parametrize("relu", RELUS)
@pytest.mark.parametrize("guided", [False, True])
def test_gradients_plain_and_guided_by_hand(relu, guided):
    """The first convolution takes the whole image, the second a single place, so both are matrices."""
    steps = [*RELUS[relu](6, (4, 3)), *RELUS[relu](5, 1), layers.Flatten(), layers.Dense(1, activation="sigmoid")]
    model, pixels = filled(functional([layers.Rescaling(1 / 255), *steps], (4, 3, 2)), seed=4), noise(5, 4, 3, 2)
    first, offset1, second, offset2, last, _ = (np.squeeze(values) for values in model.get_weights())
    first = first.reshape(24, 6)
    hidden1 = np.maximum(pixels.reshape(5, 24) / 255 @ first + offset1, 0)
    hidden2 = np.maximum(hidden1 @ second + offset2, 0)
    assert 0 < (hidden1 > 0).mean() < 1 and 0 < (hidden2 > 0).mean() < 1
    passed = (lambda slopes: np.maximum(slopes, 0)) if guided else lambda slopes: slopes
    for number, sign in ((1, 1), (0, -1)):
        back2 = passed(sign * last) * (hidden2 > 0)
        back1 = passed(back2 @ second.T) * (hidden1 > 0)
        found = explain.gradients(model, pixels, guided=guided, classes=number)
        close(found, (back1 @ first.T / 255).reshape(pixels.shape))


def one_place(row, column, channel=0, shape=(10, 9, 2), classes=2):
    """A model that looks at a single pixel."""
    head = HEADS["sigmoid" if classes == 2 else "softmax"]()
    model = functional([layers.Rescaling(1 / 255), layers.Flatten(), *head], shape)
    kernel = np.zeros((*shape, model.output_shape[1]), np.float32)
    kernel[row, column, channel] = 2 if classes == 2 else [2, -1, 0]
    model.set_weights([kernel.reshape(-1, kernel.shape[-1]), np.zeros(kernel.shape[-1])])
    return model


TOPS, LEFTS = (0, 3, 6), (0, 3, 5)  # squares of 4 x 4 in steps of 3 on 10 x 9 pixels; the last ones touch the edge


@pytest.mark.parametrize("row, column", [(0, 0), (9, 8), (9, 0), (4, 5), (3, 3)])
def test_what_is_lost_by_covering_is_where_the_model_looks(row, column):
    pixels = noise(2, 10, 9, 2)
    found = explain.occlusion(one_place(row, column), pixels, patch=4, step=3, classes=1)
    expected, covered = np.zeros((2, 10, 9)), np.zeros((10, 9))
    for top, left in product(TOPS, LEFTS):
        covered[top : top + 4, left : left + 4] += 1
        if 0 <= row - top < 4 and 0 <= column - left < 4:
            grey = np.round(pixels.mean(axis=(1, 2)))[:, 0]
            lost = 2 * (pixels[:, row, column, 0] - grey) / 255
            expected[:, top : top + 4, left : left + 4] += lost[:, None, None]
    assert (covered > 0).all() and found.dtype == np.float32
    close(found, expected / covered, 1e-5)
    assert (found[:, expected[0] == 0] == 0).all()


def test_squares_side_by_side_lose_exactly_their_own_and_the_asked_or_predicted_class_counts():
    model, pixels = one_place(5, 5, shape=(8, 8, 1), classes=3), noise(3, 8, 8, 1)
    pixels[:, 5, 5] = 250
    lost = (250 - np.round(pixels.mean(axis=(1, 2, 3)))) / 255
    for asked, slopes in ((None, [2, 2, 2]), (1, [-1, -1, -1]), ([0, 1, 2], [2, -1, 0])):
        expected = np.zeros((3, 8, 8))
        expected[:, 4:, 4:] = (slopes * lost)[:, None, None]
        close(explain.occlusion(model, pixels, patch=4, step=4, classes=asked), expected, 1e-5)
    whole = explain.occlusion(model, pixels, patch=8, step=8)
    close(whole, np.broadcast_to(2 * lost[:, None, None], whole.shape), 1e-5)


@pytest.mark.parametrize("patch, step", [(4, 0), (4, -1), (4, 5), (11, 5), (0, 0)])
def test_squares_that_do_not_fit_are_refused(patch, step):
    with pytest.raises(CourseError, match=f"0 < step <= patch <= 9 pixels, got step {step} and patch {patch}"):
        explain.occlusion(one_place(0, 0), noise(1, 10, 9, 2), patch=patch, step=step)


def ensemble():
    members = [filled(models.small_cnn((64, 48, 1), seed=1, widths=(6,)), seed=seed) for seed in (3, 4)]
    return models.ensemble(members, [1, 1])


FORGETFUL = {
    "flat": (
        lambda: filled(models.two_branch_cnn((64, 48, 1), seed=1, widths=(4, 6))),
        ["probability", "block2_large", "block2_small", "block1_conv"],
    ),
    "nested": (
        lambda: filled(classifier(extractor("PhantomNet", True))),
        ["probability", "conv5", "conv4", "conv3", "conv2", "conv1"],
    ),
    "ensemble": (ensemble, ["probability", "conv1"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORGETFUL)
def test_a_network_forgets_from_its_last_layer_to_its_first(kind):
    (make, names), pixels = FORGETFUL[kind], noise(3, 64, 48, 1)
    model = make()
    before, answers = model.get_weights(), explain.scores(model, pixels)
    forgotten, changed = [], []
    for name, copy in explain.randomised(model, seed=1):
        forgotten.append(name)
        now = copy.get_weights()
        changed.append(sum((one != other).any() for one, other in zip(now, before, strict=True)))
        for one, other in zip(now, before):
            np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(other, axis=None))
        assert np.abs(explain.scores(copy, pixels) - answers).max() > 0.01 * np.abs(answers).max()
    assert forgotten == names
    assert changed == sorted(set(changed)) and changed[0] == 1 and changed[-1] == sum(one.size > 1 for one in before)
    np.testing.assert_array_equal(explain.scores(model, pixels), answers)


def test_forgetting_repeats_with_its_seed_and_keeps_a_normalisation_together():
    model = filled(flat(chain()))
    runs = [[copy.get_weights() for _, copy in explain.randomised(model, seed=seed)][-1] for seed in (1, 1, 2)]
    for one, same in zip(*runs[:2]):
        np.testing.assert_array_equal(one, same)
    assert any((one != other).any() for one, other in zip(runs[0], runs[2]))
    before, after = (np.stack(weights[2:6]).T for weights in (model.get_weights(), runs[2]))
    assert (before != after).any() and sorted(map(tuple, before)) == sorted(map(tuple, after))


def grids(elements, least=1):
    return hnp.arrays(np.float32, st.tuples(st.just(3), st.integers(least, 5), st.integers(2, 5)), elements=elements)


HEAT = grids(st.integers(0, 4).map(np.float32))  # few values: many ties, and maps of one value
SCORES = [explain.pointing, explain.heat_inside, explain.overlap]


@given(HEAT, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_rank_correlation_is_that_of_scipy_and_0_where_there_is_no_order(maps, rng):
    others = np.array([[[rng.randint(-3, 3) for _ in row] for row in one] for one in maps])
    found = explain.rank_correlation(maps, others)
    for value, one, other in zip(found, maps, others):
        flat = np.ptp(one) == 0 or np.ptp(other) == 0
        assert value == pytest.approx(0 if flat else spearmanr(one.ravel(), other.ravel()).statistic, abs=1e-12)
    np.testing.assert_allclose(explain.rank_correlation(others, maps), found, atol=1e-12)
    varied = np.ptp(maps, axis=(1, 2)) > 0
    np.testing.assert_allclose(explain.rank_correlation(maps, maps**3 + maps), varied, atol=1e-12)
    np.testing.assert_allclose(explain.rank_correlation(maps, -maps), -1.0 * varied, atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
@given(HEAT, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_scores_lie_between_0_and_1_whatever_the_unit_and_a_perfect_map_has_1(score, maps, rng):
    masks = np.array([[[rng.random() < 0.4 for _ in row] for row in one] for one in maps])
    found = score(maps, masks)
    assert found.dtype == np.float64 and found.shape == (3,)
    assert ((found >= 0) & (found <= 1)).all() and (found[maps.max(axis=(1, 2)) == 0] == 0).all()
    np.testing.assert_array_equal(score(maps * np.float32(0.25), masks), found)
    np.testing.assert_array_equal(score(np.float32(masks) * (1 + maps), masks), masks.any(axis=(1, 2)))
    np.testing.assert_array_equal(score(np.float32(~masks), masks), np.zeros(3))
    warm = maps.max(axis=(1, 2)) > 0
    np.testing.assert_array_equal(score(maps, np.ones_like(masks))[warm], (maps > 0).mean(axis=(1, 2))[warm]
                                  if score is explain.overlap else np.ones(warm.sum()))  # fmt: skip


@given(hnp.arrays(bool, (3, 4, 5)), st.floats(0.01, 100))
def test_a_map_that_is_the_same_everywhere_finds_as_much_as_the_mask_is_large(masks, value):
    maps, share = np.full(masks.shape, value), masks.mean(axis=(1, 2))
    np.testing.assert_allclose(explain.pointing(maps, masks), share)
    np.testing.assert_allclose(explain.heat_inside(maps, masks), share)
    np.testing.assert_allclose(explain.overlap(maps, masks), share / (2 - share))  # share² of both, of 2 share - share²


def test_localisation_by_hand():
    maps = np.array([[[9, 9, 1], [0, 3, 2]], [[0, 0, 5], [5, 5, 5]], [[0, 0, 0], [0, 0, 0]]], np.float32)
    masks = np.array([[[0, 1, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]], [[1, 1, 1], [0, 0, 0]]], bool)
    np.testing.assert_array_equal(explain.pointing(maps, masks), [1 / 2, 2 / 4, 0])
    np.testing.assert_allclose(explain.heat_inside(maps, masks), [12 / 24, 10 / 20, 0])
    # Three hottest pixels of the first map: 9, 9, 3, one in the mask. Of four equal ones in the second: two, one of them in it.
    np.testing.assert_allclose(explain.overlap(maps, masks), [1 / 5, 1 / 3, 0])


@pytest.mark.parametrize("score", [*SCORES, explain.rank_correlation])
def test_masks_of_another_size_are_refused(score):
    maps = np.ones((2, 8, 8))
    for shape in ((2, 16, 16), (1, 8, 8), (2, 8, 8, 1), (8, 8)):
        with pytest.raises(CourseError, match=r"one shape .*got \(2, 8, 8\) and .*size of the prepared images"):
            score(maps, np.ones(shape, bool))
    with pytest.raises(CourseError, match="one shape"):
        score(np.ones((8, 8)), np.ones((8, 8), bool))


def test_nothing_that_speaks_for_a_class_is_a_map_of_zeros():
    model, pixels = filled(flat(chain())), noise(2, SIDE, SIDE, 1)
    head = model.get_layer("probability")
    head.set_weights([-np.abs(head.get_weights()[0]), np.float32([50, 0, 0])])
    found = explain.grad_cam(model, pixels)
    assert found.classes.tolist() == [0, 0]
    np.testing.assert_array_equal(found.maps, np.zeros((2, SIDE, SIDE)))
    assert explain.pointing(found.maps, np.ones((2, SIDE, SIDE), bool)).tolist() == [0, 0]


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_image_of_one_grey_value_has_a_map_of_numbers(value):
    model, pixels = small(members=2), np.full((1, SIDE, SIDE, 1), value, np.uint8)
    found = explain.grad_cam(model, pixels)
    assert np.isfinite(found.maps).all() and (found.maps >= 0).all()
    assert np.isfinite(explain.gradients(model, pixels)).all()
    np.testing.assert_allclose(explain.occlusion(model, pixels, patch=8, step=8), 0, atol=1e-5)


def test_maps_are_listed_in_the_order_of_the_network_from_its_first_convolution_on():
    expected = {"conv1": (32, 24, 4), "pool1": (16, 12, 4), "conv1_bn": (16, 12, 4), "conv1_relu": (16, 12, 4),
                "conv2": (16, 12, 8), "pool2": (8, 6, 8), "conv2_bn": (8, 6, 8), "conv2_relu": (8, 6, 8)}  # fmt: skip
    model = models.small_cnn((64, 48, 1), seed=1, widths=(4, 8))
    assert list(explain.layers_with_maps(model).items()) == list(expected.items())
    pixels = noise(3, 64, 48, 1)
    found = explain.feature_maps(filled(model), pixels, ["conv2", "pool1"])
    assert list(found) == ["conv2", "pool1"]
    for name, maps in found.items():
        assert maps.shape == (3, *expected[name]) and maps.dtype == np.float32
        close(maps, keras.Model(model.input, model.get_layer(name).output)(pixels, training=False))
    nested = list(explain.layers_with_maps(extractor("PhantomNet", True)).items())
    assert nested[0] == ("conv1", (32, 24, 16)) and nested[-1] == ("trunk", (2, 2, 320))
    assert explain.layers_with_maps(one_place(0, 0)) == {}


def test_by_default_the_last_maps_that_still_have_places_are_used():
    model, pixels = filled(models.small_cnn((SIDE, SIDE, 1), seed=1, widths=(4, 5, 6, 7))), noise(2, SIDE, SIDE, 1)
    assert model.get_layer("conv3_relu").output.shape[1:3] == (1, 1)
    name, size = list(explain.layers_with_maps(model).items())[-1]
    assert (name, size) == ("conv3", (2, 2, 6))
    close(signed(model, pixels), signed(model, pixels, layer=name))


def test_a_model_without_convolution_has_no_maps_but_gradients():
    model, pixels = one_place(2, 3), noise(1, 10, 9, 2)
    with pytest.raises(CourseError, match=f"{model.name} has no convolution"):
        explain.grad_cam(model, pixels)
    with pytest.raises(CourseError, match="no convolution"):
        explain.feature_maps(model, pixels, ["conv1"])
    assert np.argwhere(explain.gradients(model, pixels)).tolist() == [[0, 2, 3, 0]]
    with pytest.raises(CourseError, match=f"a ReLU passes gradients; {model.name} has none"):
        explain.gradients(model, pixels, guided=True)


@pytest.fixture(scope="module")
def model():
    return flat(chain())


@pytest.mark.parametrize("name, near", [("conv_2", "conv2"), ("Conv1", "conv1"), ("reluu1", "relu1")])
def test_a_layer_that_does_not_exist_gets_the_nearest_one_offered(model, name, near):
    pixels = noise(1, SIDE, SIDE, 1)
    message = f"layer={name} is not known; it can be: conv1, norm, .*Did you mean {near}"
    with pytest.raises(CourseError, match=message):
        explain.grad_cam(model, pixels, layer=name)
    with pytest.raises(CourseError, match=message):
        explain.feature_maps(model, pixels, ["conv1", name])


@pytest.mark.parametrize("name", ["scale", "average", "probability"])
def test_a_layer_without_maps_is_refused(model, name):
    with pytest.raises(CourseError, match=f"layer={name} is not known; it can be: conv1"):
        explain.grad_cam(model, noise(1, SIDE, SIDE, 1), layer=name)


ASKING = [explain.grad_cam, explain.gradients, lambda *a, **k: explain.occlusion(*a, patch=8, step=8, **k)]


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize("classes, wrong", [(3, 3), (-1, -1), ([0, 7], 7), ([-2, 0], -2)])
def test_a_class_that_does_not_exist_is_refused(model, ask, classes, wrong):
    with pytest.raises(CourseError, match=f"has the classes 0 to 2; asked was for {wrong}"):
        ask(model, noise(2, SIDE, SIDE, 1), classes=classes)


@pytest.mark.parametrize("ask", ASKING)
@pytest.mark.parametrize("classes", [[0, 1, 2], [[0], [1]], 0.7, [0.0, 1.0], "Normal"])
def test_classes_are_whole_numbers_one_for_all_or_one_an_image(model, ask, classes):
    with pytest.raises(CourseError, match="number of a class, or one for each of 2 images; got"):
        ask(model, noise(2, SIDE, SIDE, 1), classes=classes)


def test_a_binary_model_has_two_classes():
    with pytest.raises(CourseError, match="has the classes 0 to 1; asked was for 2"):
        explain.grad_cam(small(), noise(2, SIDE, SIDE, 1), classes=2)


@pytest.mark.parametrize("pixels, got", [
    (np.zeros((2, SIDE, SIDE, 1), np.float32), "float32 of "), (np.zeros((2, SIDE, 8, 1), np.uint8), "uint8 of "),
    (np.zeros((SIDE, SIDE, 1), np.uint8), r"uint8 of \(16, 16, 1\)"),
    (np.zeros((2, SIDE, SIDE), np.uint8), "uint8 of "),
    (np.zeros((0, SIDE, SIDE, 1), np.uint8), r"uint8 of \(0, "), (np.uint8(3), "uint8"), ([[1, 2]], "list"),
])  # fmt: skip
def test_anything_but_images_that_the_model_takes_is_refused(model, pixels, got):
    for ask in (*ASKING, explain.scores, lambda *a: explain.feature_maps(*a, ["conv1"])):
        with pytest.raises(CourseError, match=rf"uint8 images of \(images, 16, 16, 1\), one or more; got {got}"):
            ask(model, pixels)


def test_where_no_gradient_passes_what_lies_behind_has_maps_and_what_lies_before_is_said():
    steps = chain()
    model = flat([*steps[:5], keras.ops.stop_gradient, *steps[5:]])
    with pytest.raises(CourseError, match=f"score of {model.name} does not depend on layer relu1"):
        explain.grad_cam(model, noise(1, SIDE, SIDE, 1), layer="relu1")
    weights, expected, _ = of_the_flat_one()
    model.set_weights(weights)
    close(explain.grad_cam(model, noise(3, SIDE, SIDE, 1), classes=[0, 1, 2]).maps, expected)


class OfOnesOwn(keras.Model):
    """A model whose layers nobody can list."""

    def __init__(self):
        super().__init__(name="own")
        self.inside = flat(chain())

    def call(self, x):
        return self.inside(x)


def test_a_model_whose_layers_are_not_known_is_refused():
    own = OfOnesOwn()
    with pytest.raises(CourseError, match="own is neither a Functional nor a Sequential model"):
        explain.grad_cam(flat([own]), noise(1, SIDE, SIDE, 1))
