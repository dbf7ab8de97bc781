"""LungNet finds the lungs of phantoms that it has never seen, draws nothing absurd, and says when weights are gone."""

import functools

import cv2
import numpy as np
import pytest

from utils import images, lungs, phantom
from utils.backend import keras
from utils.errors import CourseError

SEED = 4242  # neither of the course's patients nor of those that the network was trained on
SIDE = 128


@functools.cache
def fresh(side=SIDE, count=24):
    """Radiographs of all hospitals and their lungs, cut and sized alike: uint8 and bool, (images, side, side, 1)."""
    found = []
    for index in range(count):
        patient = phantom.make_patient(index, seed=SEED, hospital=phantom.HOSPITALS[index % 3])
        taken = phantom.take_radiograph(patient, 0)
        mask = taken.lung_mask[images.frame(taken.image)] * np.uint8(255)
        found.append((images.preprocess(taken.image, images.Options(size=side)), images.fit_square(mask, side)))
    pixels, masks = zip(*found)
    return np.stack(pixels), np.stack(masks)[..., None] > 127


@functools.cache
def drawn():
    return lungs.draw(fresh()[0])


def test_lungs_of_fresh_phantoms_are_found():
    found = drawn()
    assert found.shape == (24, SIDE, SIDE, 1) and found.dtype == bool
    scores = lungs.dice(found, fresh()[1])
    assert scores.mean() >= 0.95 and scores.min() >= 0.8


@pytest.mark.parametrize("side", [96, 224])
def test_other_sizes_of_image_get_masks_of_their_size(side, monkeypatch):
    monkeypatch.setattr(lungs, "BLOCK", 4)  # and more of them than are drawn at once
    pixels, masks = (array[:9] for array in fresh(side))
    found = lungs.draw(pixels)
    assert found.shape == pixels.shape and lungs.dice(found, masks).mean() >= 0.95


def test_brightness_and_contrast_hardly_matter():
    pixels, masks = fresh()
    faint = np.uint8(np.round(pixels * 0.4 + 120))
    assert lungs.dice(lungs.draw(faint), masks).mean() >= 0.94
    assert lungs.dice(lungs.draw(faint), drawn()).mean() >= 0.97


def test_one_at_a_time_is_the_same_as_all_at_once():
    pixels, _ = fresh()
    alone = np.concatenate([lungs.draw(pixels[row : row + 1]) for row in range(4)])
    # Convolutions round differently in batches of other sizes: a pixel on the very edge may fall either way.
    assert (alone != drawn()[:4]).mean() < 1e-4
    order = np.arange(24)[::-1]
    assert (lungs.draw(pixels[order]) != drawn()[order]).mean() < 1e-4


def test_at_most_two_areas_and_the_largest_ones():
    mask = np.zeros((60, 60), bool)
    for top, left, side in ((2, 2, 20), (30, 30, 25), (2, 40, 8), (50, 5, 6)):
        mask[top : top + side, left : left + side] = True
    kept = lungs._two_largest(mask)
    assert kept.sum() == 20**2 + 25**2 and (mask & kept).sum() == kept.sum()
    assert all(cv2.connectedComponents(one[..., 0].astype(np.uint8))[0] <= 3 for one in drawn())  # and the background


@pytest.mark.parametrize("side", [32, 128, 130])
def test_images_that_show_nothing_get_little_or_no_lung(side):
    rng = np.random.default_rng(1)
    odd = [np.full((side, side, 1), value, np.uint8) for value in (0, 90, 255)]
    odd.append(rng.integers(0, 256, (side, side, 1), np.uint8))
    found = lungs.draw(np.stack(odd))
    assert found.shape == (4, side, side, 1)
    assert (found.mean(axis=(1, 2, 3)) < 0.6).all() and (found[:3].mean(axis=(1, 2, 3)) < 0.3).all()


def test_no_image_no_mask():
    assert lungs.draw(np.zeros((0, 64, 64, 1), np.uint8)).shape == (0, 64, 64, 1)


@pytest.mark.parametrize("pixels", [
    np.zeros((2, 64, 64, 1), np.float32), np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 64, 48, 1), np.uint8),
    np.zeros((64, 64, 1), np.uint8),
])  # fmt: skip
def test_anything_but_plain_grey_bytes_is_refused(pixels):
    with pytest.raises(CourseError, match="uint8 images of .* prepare them with utils.images"):
        lungs.draw(pixels)


def test_masks_turn_with_their_radiographs():
    pixels, _ = fresh()
    mirrored = lungs.draw(np.ascontiguousarray(pixels[:, :, ::-1]))[:, :, ::-1]
    assert lungs.dice(mirrored, drawn()).mean() >= 0.97
    moved = np.roll(pixels, 6, axis=2)
    assert lungs.dice(np.roll(lungs.draw(moved), -6, axis=2), drawn()).mean() >= 0.95


def test_dice_by_hand():
    one, other = np.zeros((3, 2, 4, 1), bool), np.zeros((3, 2, 4, 1), bool)
    one[0, 0, :3], other[0, 0, 1:] = True, True  # 3 and 3 pixels, 2 in common
    one[1] = True
    np.testing.assert_allclose(lungs.dice(one, other), [4 / 6, 0, 1])


def test_missing_or_damaged_weights_say_what_to_do(tmp_path, monkeypatch):
    path, whole = tmp_path / "lungnet.weights.h5", lungs.WEIGHTS.read_bytes()
    monkeypatch.setattr(lungs, "WEIGHTS", path)
    pixels = fresh()[0][:1]
    with pytest.raises(CourseError, match="no file .*lungnet.weights.h5 .*download the course again"):
        lungs.draw(pixels)
    other = lungs.WEIGHTS.with_name("other.weights.h5")
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(other)
    for damaged in (whole[: len(whole) // 2], b"not weights", other.read_bytes()):
        path.write_bytes(damaged)
        with pytest.raises(CourseError, match="damaged, or not of LungNet.*download the course again"):
            lungs.draw(pixels)
    path.write_bytes(whole)
    np.testing.assert_array_equal(lungs.draw(pixels), drawn()[:1])


def test_the_same_seed_gives_the_same_network_and_no_two_kernels_are_alike():
    network, again, other = (lungs.lung_net(seed=seed) for seed in (3, 3, 4))
    for one, same, else_ in zip(network.get_weights(), again.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, same)
        assert one.ndim < 4 or (one != else_).any()
    kernels = [weight.ravel()[0] for weight in network.get_weights() if weight.ndim == 4]
    assert len(set(kernels)) == len(kernels) > 10
    assert network.input_shape == network.output_shape == (None, SIDE, SIDE, 1)


def test_an_untrained_network_can_be_asked_instead():
    pixels, masks = fresh()
    untrained = lungs.draw(pixels, network=lungs.lung_net(seed=1))
    assert lungs.dice(untrained, masks).mean() < 0.8 < lungs.dice(drawn(), masks).mean()
