"""Backbones scale as Keras does, share one trunk, open without our code, and take whole weights or none."""

import functools
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from test_models import blobs

from conftest import SHARED
from utils import backbones, config, images, models, training
from utils.backend import keras
from utils.errors import CourseError

SIDE = 76
SMALL = ("MobileNet", "MobileNetV2", "PhantomNet")
FEATURES = {
    "MobileNet": 256,
    "MobileNetV2": 1280,
    "EfficientNetV2B0": 1280,
    "ResNet50V2": 2048,
    "DenseNet121": 1024,
    "Xception": 2048,
    "InceptionResNetV2": 1536,
    "PhantomNet": 320,
}
KERAS_HOME = SHARED.parent / "keras_home"


@functools.cache
def built(name, channels=2, side=SIDE):
    """One network a name for all tests; a test that changes its weights builds its own."""
    return backbones.build(name, (side, side, channels), weights="none", seed=3)


def as_keras_does(name, grey):
    """Scale pixels by the function that Keras keeps beside each network."""
    make = backbones.BACKBONES[name].make
    if make is None:  # ours
        return grey / 127.5 - 1
    return sys.modules[getattr(make, "func", make).__module__].preprocess_input(grey)


def noise(count, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def outputs(model, pixels):
    return np.asarray(model(pixels, training=False))


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4 * np.abs(other).max())


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_pixels_are_scaled_as_keras_does_and_a_saved_model_answers_the_same(name, tmp_path):
    channels = 1 if name == "InceptionResNetV2" else 2  # it takes seconds a channel
    model, pixels = built(name, channels), noise(2, SIDE, SIDE, channels)
    assert model.name == name and model.inputs[0].dtype == "uint8"
    expected = []
    for channel in range(channels):
        grey = np.repeat(pixels[..., channel : channel + 1], backbones.BACKBONES[name].channels, axis=-1)
        maps = model.get_layer("trunk")(as_keras_does(name, grey.astype("float32")), training=False)
        expected.append(np.asarray(maps).mean(axis=(1, 2)))
    features, count = outputs(model, pixels), FEATURES.get(name) or np.shape(expected)[-1]
    assert features.shape == (2, channels * count) and features.dtype == np.float32
    assert np.abs(features).max() > 0
    close(features, np.concatenate(expected, axis=1))

    model.save(tmp_path / "model.keras")
    opened = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(opened, pixels), features)
    assert backbones._structure(opened) == backbones._structure(model)
    assert opened.get_layer("trunk").output.shape[-1] == count


@pytest.mark.parametrize("name", SMALL)
def test_one_channel_and_images_of_any_shape(name):
    assert built(name, 1).output_shape == (None, FEATURES[name])
    assert outputs(backbones.build(name, (50, 40, 1), weights="none"), noise(1, 50, 40, 1)).shape == (1, FEATURES[name])


def test_small_images_are_enlarged_inside_and_keep_their_aspect():
    model = backbones.build("PhantomNet", (12, 8, 1), weights="none")
    assert model.get_layer("enlarge").output.shape == (None, 24, 16, 1)
    assert outputs(model, noise(2, 12, 8, 1)).shape == (2, FEATURES["PhantomNet"])
    with pytest.raises(ValueError, match="enlarge"):
        built("PhantomNet").get_layer("enlarge")
    model = backbones.build("Xception", (36, 36, 1), weights="none")
    assert model.get_layer("enlarge").output.shape == (None, 71, 71, 3)


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_gives_the_same_weights_and_leaves_other_dice_alone(name):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    again = backbones.build(name, (SIDE, SIDE, 2), weights="none", seed=3)
    assert random.random() == expected
    for one, other in zip(built(name).get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    other = backbones.build(name, (SIDE, SIDE, 2), weights="none", seed=4)
    assert any((a != b).any() for a, b in zip(again.get_weights(), other.get_weights()))


def test_phantom_net_shows_what_four_depths_see():
    trunk, pixels = backbones.phantom_net(seed=1), noise(1, 128, 96, 1) / np.float32(127.5) - 1
    maps = np.asarray(trunk(pixels))
    assert maps.shape == (1, 4, 3, 32 + 64 + 96 + 128)
    chain = keras.Model(trunk.input, [trunk.get_layer(f"conv{depth}_relu").output for depth in (2, 3, 4, 5)])
    for depth, part in zip(chain(pixels), np.split(maps, [32, 96, 192], axis=-1), strict=True):
        close(part.mean(axis=(1, 2)), np.asarray(depth).mean(axis=(1, 2)))
    np.testing.assert_array_equal(trunk.get_weights()[0], models.small_cnn((64, 64, 1), seed=1).get_weights()[0])


def classifier(name, *, size=32, classes=2):
    backbone = backbones.build(name, (size, size, 1), weights="none", seed=3)
    return backbones.classifier(backbone, classes=classes, seed=3)


@pytest.fixture(scope="module")
def short_sighted():
    return backbones.short_sighted((128, 128, 1), weights="none", seed=2)


def test_a_short_sighted_network_sees_59_pixels_a_place(short_sighted):
    look = keras.Model(short_sighted.inputs, short_sighted.get_layer("look_relu").output)
    image = noise(1, 128, 128, 1)
    before = outputs(look, image)[0, 8, 8]
    seen = []
    for row in range(128):
        other = image.copy()
        other[:, row] = 255 * (other[:, row] < 128)
        seen.append((outputs(look, other)[0, 8, 8] != before).any())
    rows = np.flatnonzero(seen)
    assert outputs(look, image).shape == (1, 16, 16, 64)
    assert (rows[0], rows[-1]) == (35, 93) and len(rows) > 50  # the place itself covers rows 64 to 71


def test_a_short_sighted_network_adds_up_what_it_sees(short_sighted):
    image = noise(3, 128, 128, 1)
    seen = outputs(keras.Model(short_sighted.inputs, short_sighted.get_layer("look_relu").output), image)
    slope, offset = short_sighted.get_layer("probability").get_weights()
    sums = (seen @ slope[:, 0]).mean(axis=(1, 2)) + offset[0]
    np.testing.assert_allclose(outputs(short_sighted, image)[:, 0], 1 / (1 + np.exp(-sums)), atol=1e-6)


def test_a_short_sighted_network_learns_and_fits_into_a_bundle(tmp_path):
    model = backbones.short_sighted((32, 32, 1), weights="none", seed=2)
    training.fit(model, blobs(256, seed=1), epochs=6, seed=3)
    pixels, targets = blobs(100, seed=5)
    assert ((models.predict(model, pixels) > 0.5) == targets).mean() > 0.8
    card = {"task": "binary", "classes": ["Normal", "COVID-19"]}
    models.save_bundle(tmp_path / "b", model, options=images.Options(size=32), card=card)
    opened, _, _ = models.open_bundle(tmp_path / "b")
    np.testing.assert_array_equal(models.predict(opened, pixels), models.predict(model, pixels))


def test_a_short_sighted_network_starts_from_phantom_nets_weights():
    start = backbones.short_sighted((64, 64, 1), weights="phantom", seed=2).get_layer("trunk")
    whole = backbones.build("PhantomNet", (64, 64, 1), weights="phantom").get_layer("trunk")
    for name in ("conv1", "conv2", "conv3"):
        np.testing.assert_array_equal(start.get_layer(name).get_weights()[0], whole.get_layer(name).get_weights()[0])


def test_it_learns_what_can_be_learned():
    model = classifier("PhantomNet")
    training.fit(model, blobs(256, seed=1), epochs=6, seed=3)
    pixels, targets = blobs(100, seed=5)
    assert ((models.predict(model, pixels) > 0.5) == targets).mean() > 0.9


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2"])
def test_it_can_be_trained(name):
    model, (pixels, targets) = classifier(name), blobs(64, seed=1)
    # Eagerly: for a few steps, compiling these deep networks takes longer than training them.
    model.compile(keras.optimizers.Adam(3e-3), loss="binary_crossentropy", run_eagerly=True)
    losses = [float(model.train_on_batch(pixels, targets[:, None])) for _ in range(8)]
    assert losses[0] > 0.5 and losses[-1] < 0.2


def test_frozen_nothing_of_the_trunk_changes_and_freed_all_but_batch_normalisation():
    model = classifier("PhantomNet")
    trunk = model.get_layer("trunk")
    for frozen in (True, False):
        backbones.freeze(model, frozen=frozen)
        before = {weight.path: weight.numpy() for weight in trunk.weights}
        training.fit(model, blobs(32, seed=1), epochs=2, seed=3)
        changed = {weight.path for weight in trunk.weights if (weight.numpy() != before[weight.path]).any()}
        kernels = {weight.path for weight in trunk.weights if weight.path.endswith("kernel")}
        assert len(kernels) == 5 and changed == (set() if frozen else kernels)
    backbones.freeze(model, frozen=True)
    assert not trunk.trainable_weights and len(model.trainable_weights) == 2


@pytest.mark.parametrize("name", [*SMALL, "Xception"])  # Xception is large: it takes the other way
def test_features_are_those_of_the_model_whatever_the_batch(name):
    model = built(name, 1 if name != "Xception" else 2)
    pixels = noise(5, *model.input_shape[1:])
    features = models.predict(model, pixels, batch_size=3)
    assert features.dtype == np.float32
    close(features, outputs(model, pixels))
    assert models.predict(model, pixels[:0]).shape == (0, model.output_shape[1])


def test_what_is_scaled_already_or_of_another_shape_is_refused():
    model, pixels = built("PhantomNet", 1), noise(2, SIDE, SIDE, 1)
    with pytest.raises(CourseError, match=r"takes uint8 images of \(76, 76, 1\), got float64.*leave the scaling"):
        models.predict(model, pixels / 255)
    with pytest.raises(CourseError, match=r"got uint8 of \(76, 70, 1\)"):
        models.predict(model, pixels[:, :, :70])


def test_features_are_computed_once(tmp_path, monkeypatch):
    pixels, calls = noise(4, SIDE, SIDE, 1), []
    monkeypatch.setattr(backbones, "predict", lambda *args: calls.append(1) or models.predict(*args))

    def cached(model, content="abc", pixels=pixels):
        calls.clear()
        features = backbones.cached_features(model, pixels, content, tmp_path / "features")
        return features, len(calls)

    model = built("PhantomNet", 1)
    first, count = cached(model)
    assert count == 1
    again = backbones.build("PhantomNet", (SIDE, SIDE, 1), weights="none", seed=8)
    again.set_weights(model.get_weights())
    backbones.freeze(again, frozen=True)
    for same in (model, again):  # the same weights in a network built later, under other running numbers
        features, count = cached(same)
        assert count == 0
        np.testing.assert_array_equal(features, first)
    assert cached(model, "abd")[1] == 1 and cached(built("MobileNet", 1))[1] == 1
    assert cached(backbones.build("PhantomNet", (SIDE, SIDE, 1), weights="none", seed=4))[1] == 1
    assert {path.name.split("-")[0] for path in (tmp_path / "features").iterdir()} == {"MobileNet", "PhantomNet"}


def test_damaged_features_are_computed_anew(tmp_path):
    model, pixels = built("PhantomNet", 1), noise(4, SIDE, SIDE, 1)
    first = backbones.cached_features(model, pixels, "abc", tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    for _ in range(2):
        np.testing.assert_array_equal(backbones.cached_features(model, pixels, "abc", tmp_path), first)
    np.testing.assert_array_equal(np.load(path), first)


def test_channels_can_be_left_out_and_mirror_images_averaged():
    pixels = noise(3, SIDE, SIDE, 2)
    alone = outputs(built("PhantomNet", 1), pixels[..., 1:])
    second = backbones.build("PhantomNet", (SIDE, SIDE, 2), weights="none", seed=3, seen=[1])
    close(outputs(second, pixels), alone)
    both = backbones.build("PhantomNet", (SIDE, SIDE, 1), weights="none", seed=3, mirrored=True)
    close(outputs(both, pixels[..., 1:]), (alone + outputs(built("PhantomNet", 1), pixels[:, :, ::-1, 1:])) / 2)
    close(outputs(both, pixels[:, :, ::-1, 1:]), outputs(both, pixels[..., 1:]))


@pytest.mark.parametrize("classes", [2, 3])
def test_a_linear_head_moves_into_the_model_and_into_a_bundle(classes, tmp_path):
    pixels, labels = noise(40, SIDE, SIDE, 1), np.arange(40) % classes
    extractor = backbones.join([built("PhantomNet", 1), built("MobileNet", 1)])
    features = models.predict(extractor, pixels)
    assert features.shape == (40, 320 + 256)
    close(features[:, 320:], outputs(built("MobileNet", 1), pixels))
    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(features, labels)
    model = backbones.with_head(extractor, head)
    expected = head.predict_proba(features)[:, 1] if classes == 2 else head.predict_proba(features)
    np.testing.assert_allclose(models.predict(model, pixels), expected, atol=1e-5)
    card = {"task": "multiclass", "classes": list("abc")[:classes]}
    models.save_bundle(tmp_path / "b", model, options=images.Options(size=SIDE), card=card)
    opened = models.open_bundle(tmp_path / "b", task="multiclass")[0]
    np.testing.assert_allclose(models.predict(opened, pixels), expected, atol=1e-5)


def test_phantoms_take_our_backbone_and_real_sets_that_of_imagenet_where_it_loads(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    real = config.start("darkcovidnet")
    assert backbones.choose(real)[:2] == (("PhantomNet",), "phantom")
    assert "not at" in backbones.choose(real).why
    loads = lambda name, seed: backbones.phantom_net(seed=0)  # noqa: E731
    monkeypatch.setattr(backbones, "_from_imagenet", loads)
    assert backbones.choose(real)[:2] == (backbones.LAPTOP, "imagenet")
    assert backbones.choose(config.start("phantom"))[:2] == (("PhantomNet",), "phantom")


def test_an_unknown_name_gets_the_nearest_one_offered():
    with pytest.raises(CourseError, match="backbone=resnet50v2 is not known.*PhantomNet.*Did you mean ResNet50V2"):
        backbones.build("resnet50v2", (SIDE, SIDE, 1), weights="none")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The weights of three networks, as `trunk.save_weights` leaves them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in SMALL:
        built(name).get_layer("trunk").save_weights(folder / f"{name}.weights.h5")
    return folder


def load(name, path, side=SIDE):
    return backbones.build(name, (side, side, 1), weights=path, seed=99)


@pytest.mark.parametrize("name", SMALL)
def test_weights_come_from_a_file(name, weights):
    model = load(name, weights / f"{name}.weights.h5", side=64)  # another size of image fits as well
    for one, other in zip(model.get_weights(), built(name).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name, of", list(zip(SMALL, SMALL[1:] + SMALL[:1])))
def test_weights_of_another_network_are_refused(name, of, weights):
    with pytest.raises(CourseError, match=f"{of}.weights.h5 is damaged, or not of {name}"):
        load(name, weights / f"{of}.weights.h5")


def test_damaged_or_partial_weights_are_refused(weights, tmp_path):
    whole = (weights / "PhantomNet.weights.h5").read_bytes()
    path = tmp_path / "net.weights.h5"
    for damaged in (whole[: len(whole) // 2], b"not weights", b""):
        path.write_bytes(damaged)
        with pytest.raises(CourseError, match="net.weights.h5 is damaged, or not of PhantomNet"):
            load("PhantomNet", path)
    trunk = backbones.phantom_net(seed=1)
    part = keras.Model(trunk.input, trunk.get_layer("conv3_relu").output)
    part.save_weights(path)
    with pytest.raises(CourseError, match="is damaged, or not of PhantomNet"):
        load("PhantomNet", path)
    trunk.layers[1].set_weights([np.full((5, 5, 1, 16), np.nan)])
    trunk.save_weights(path)
    with pytest.raises(CourseError, match="some weights are missing or not numbers"):
        load("PhantomNet", path)


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(CourseError, match=r'no file .*imagnet.*"imagenet", "phantom", "none", or a file'):
        load("MobileNet", "imagnet")
    with pytest.raises(CourseError, match="no file"):
        load("MobileNet", tmp_path)
    with pytest.raises(CourseError, match='"phantom" are those of PhantomNet: MobileNet takes "imagenet"'):
        load("MobileNet", "phantom")
    with pytest.raises(CourseError, match='PhantomNet has never seen ImageNet: it takes weights="phantom"'):
        load("PhantomNet", "imagenet")
    monkeypatch.setattr(backbones, "PHANTOM_WEIGHTS", tmp_path / "phantomnet.weights.h5")
    with pytest.raises(CourseError, match="no file .*phantomnet.weights.h5.*download the course again"):
        load("PhantomNet", "phantom")


def test_phantom_weights_are_taken_from_their_file(weights, monkeypatch):
    monkeypatch.setattr(backbones, "PHANTOM_WEIGHTS", weights / "PhantomNet.weights.h5")
    np.testing.assert_array_equal(load("PhantomNet", "phantom").get_weights()[0], built("PhantomNet").get_weights()[0])


OFFLINE = """
import contextlib, io, json, os, socket, urllib.request
from utils import backbones
silent = socket.create_server(("127.0.0.1", 0))
backbones.TIMEOUT = 1
told, messages = io.StringIO(), []
with contextlib.redirect_stdout(told):
    for name, port in (("MobileNet", 9), ("MobileNetV2", silent.getsockname()[1])):
        os.environ["https_proxy"] = f"http://127.0.0.1:{port}"
        urllib.request.install_opener(None)
        try:
            backbones.build(name, (64, 64, 1))
        except backbones.CourseError as error:
            messages.append(str(error))
print(json.dumps([messages, told.getvalue(), socket.getdefaulttimeout()]))
"""


def test_offline_without_imagenet_weights_the_ways_out_are_named(tmp_path):
    """Nobody answers, or nobody even refuses: one line, nothing printed, and no time-out left behind."""
    env = {**os.environ, "KERAS_HOME": str(tmp_path), "no_proxy": "", "NO_PROXY": ""}
    env.pop("HTTPS_PROXY", None)
    done = subprocess.run([sys.executable, "-c", OFFLINE], cwd=config.ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    messages, told, timeout = json.loads(done.stdout)
    assert len(messages) == 2 and told == "" and timeout is None
    for name, message in zip(("MobileNet", "MobileNetV2"), messages):
        path = tmp_path / "models" / backbones.BACKBONES[name].file
        assert f"ImageNet weights of {name} are not at {path}" in message
        assert f"/{path.name}: " in message  # Keras wanted that very file
        assert "KERAS_HOME" in message and 'PhantomNet with weights="phantom"' in message
    assert "timed out" in messages[1]


@pytest.fixture
def keras_home(monkeypatch):
    if not KERAS_HOME.is_dir():
        pytest.skip("needs ImageNet weights in ../shared/keras_home, which are not part of the project")
    monkeypatch.setenv("KERAS_HOME", str(KERAS_HOME))
    return KERAS_HOME


@pytest.mark.parametrize("side", [128, 224])
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2"])
def test_imagenet_weights_come_from_the_cache_at_any_size(name, side, keras_home, recwarn):
    model = backbones.build(name, (side, side, 1))
    assert not [warning for warning in recwarn if "input_shape" in str(warning.message)]
    features = outputs(model, noise(3, side, side, 1))
    assert np.isfinite(features).all() and features.std() > 0.1
    same = load(name, keras_home / "models" / backbones.BACKBONES[name].file)
    np.testing.assert_array_equal(same.get_weights()[0], model.get_weights()[0])


def test_a_damaged_cache_says_what_to_delete(tmp_path, monkeypatch):
    path = tmp_path / "models" / backbones.BACKBONES["MobileNet"].file
    path.parent.mkdir()
    path.write_bytes(b"half a download")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(CourseError, match="is damaged, or not of MobileNet.*Delete it"):
        backbones.build("MobileNet", (64, 64, 1))
    assert path.exists()
