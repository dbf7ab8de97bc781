"""The shipped backbone is what its card says, and none of its patients is in the course's data."""

import json

import cv2
import numpy as np
import pytest

from utils import backbones, config, images, phantom, pretrain, sources
from utils.files import sha256

CARD = json.loads(backbones.PHANTOM_WEIGHTS.with_name("phantomnet.json").read_text())


def test_the_weights_are_small_and_those_of_the_card():
    assert backbones.PHANTOM_WEIGHTS.stat().st_size <= 3_000_000
    assert sha256(backbones.PHANTOM_WEIGHTS) == CARD["sha256"]
    assert CARD["simulator"] == phantom.VERSION and CARD["preprocessing"] == images.VERSION
    assert CARD["seed"] == pretrain.SEED and CARD["hospital"] == pretrain.HOSPITAL
    for hospital in phantom.HOSPITALS:
        name = f"hospital_{hospital}.accuracy"
        assert CARD["scores"][f"{name}.lo"] < CARD["scores"][name] and CARD["scores"][f"{name}.n"] == pretrain.TESTED


def test_none_of_its_patients_is_in_the_courses_data(work_dir):
    run = config.start()
    loaded = sources.load(run)
    theirs = {f"{pretrain.SEED}-{index:05d}" for index in range(pretrain.TRAINED + pretrain.TESTED)}
    assert phantom.make_patient(0, seed=pretrain.SEED).id in theirs  # this is how patients are called
    assert len(set(loaded.manifest["patient"])) > 500 and not theirs & set(loaded.manifest["patient"])
    # Nor under another name: no picture of the course is one that was trained on.
    course = {images.load(loaded.root / path).tobytes() for path in loaded.manifest["path"][:200]}
    trained = [images.preprocess(take(index, "A")).tobytes() for index in range(200)]
    assert not course & set(trained) and len(course) > 190 and len(set(trained)) == 200


def take(index, hospital):
    return phantom.take_radiograph(phantom.make_patient(index, seed=pretrain.SEED, hospital=hospital), 0).image


def test_looks_change_grey_values_and_pose_and_repeat_with_their_seed():
    pixels, _ = pretrain.prepared(range(6), "A")
    looks = pretrain.Looks()
    one, again, other = (np.asarray(looks(pixels, seed=seed)) for seed in ((1, 2), (1, 2), (1, 3)))
    assert one.shape == (6, 128, 128, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, again)
    assert (one[..., 0] != other[..., 0]).mean() > 0.5 and all(image.std() > 2 for image in one[..., 0])
    # Masks move with their radiograph, and nothing else happens to them.
    np.testing.assert_array_equal(one[..., 1:], looks.moved(pixels[..., 1:], seed=(1, 2)))


def test_what_is_asked_is_what_the_simulator_knows():
    pixels, facts = pretrain.prepared(range(8), "A")
    patients = [phantom.make_patient(index, seed=pretrain.SEED, hospital="A") for index in range(8)]
    assert [phantom.LABELS[int(number)] for number in facts[:, 0]] == [patient.label for patient in patients]
    assert (facts[:, 2] == [patient.sex == "F" for patient in patients]).all()
    np.testing.assert_allclose(facts[:, 3] * 50 + 50, [patient.age for patient in patients], rtol=1e-6)
    assert 0 < facts[:, 1].mean() < 1 and set(np.unique(facts[:, 1])) == {0, 1}
    image, lungs, lesions = np.moveaxis(pixels.astype(int), -1, 0)
    assert not lesions[facts[:, 0] == 0].any() and all(lesions[facts[:, 0] != 0].any(axis=(1, 2)))
    assert ((0.1 < (lungs > 127).mean(axis=(1, 2))) & ((lungs > 127).mean(axis=(1, 2)) < 0.6)).all()
    for one, lung in zip(image[::4], lungs[::4]):  # cut alike: healthy lungs are darker than what is around them
        around = cv2.dilate((lung > 127).astype(np.uint8), np.ones((9, 9))) > (lung > 0)
        assert one[lung > 127].mean() < one[around].mean() - 20
    assert (lungs[lesions > 200] > 120).all()

    extractor = backbones.build("PhantomNet", (128, 128, 1), weights="none", seed=1)
    model = pretrain.questioned(extractor)
    seen, answers = next(iter(pretrain.lessons(model, np.tile(pixels, (4, 1, 1, 1)), np.tile(facts, (4, 1)))))
    assert seen.shape == (32, 128, 128, 1) and set(answers) == set(model.output)
    for name, answer in answers.items():
        expected = model.output[name].shape[1:] if name != "label" else ()
        assert answer.shape == (32, *expected), name
        assert float(np.min(answer)) >= -1 and float(np.max(answer)) <= 3
    where = answers["where2"].numpy()
    assert 0.1 < where[..., 0].mean() < 0.6 and where[..., 1].mean() < where[..., 0].mean()


def test_masks_are_cut_like_their_radiographs():
    pixels, _ = pretrain.prepared(range(100), "B")  # B shows the collimator most often
    differs = 0
    for index, lungs in enumerate(pixels[..., 1] / 255):
        taken = phantom.take_radiograph(phantom.make_patient(index, seed=pretrain.SEED, hospital="B"), 0)
        inside = taken.lung_mask[images.frame(taken.image)]
        share = inside.sum() / max(inside.shape) ** 2  # the rest of the square is padding
        assert abs(lungs.mean() - share) < 0.01
        differs += abs(share - taken.lung_mask.mean()) > 0.02
    assert differs >= 3


def test_the_whole_way_leaves_weights_and_a_card_that_fit(tmp_path, monkeypatch):
    path = tmp_path / "weights" / "phantomnet.weights.h5"
    monkeypatch.setattr(backbones, "PHANTOM_WEIGHTS", path)
    for name, value in (("TRAINED", 64), ("TESTED", 8), ("EPOCHS", 1)):
        monkeypatch.setattr(pretrain, name, value)
    pretrain.main()
    card = json.loads(path.with_name("phantomnet.json").read_text())
    assert card["sha256"] == sha256(path) and card["scores"]["hospital_A.accuracy.n"] == 8
    assert sorted(file.name for file in path.parent.iterdir()) == ["phantomnet.json", "phantomnet.weights.h5"]
    trunk = backbones.build("PhantomNet", (64, 64, 1), weights="phantom").get_layer("trunk")
    shipped = backbones.phantom_net(seed=1)
    assert [w.shape for w in trunk.get_weights()] == [w.shape for w in shipped.get_weights()]


@pytest.mark.parametrize("index", [0, 5])
def test_patients_of_training_and_test_are_the_same_whatever_runs_beside_them(index):
    np.testing.assert_array_equal(pretrain.prepared([index, index + 1], "B")[0][0, :, :, :1],
                                  images.preprocess(take(index, "B"), pretrain.OPTIONS))  # fmt: skip
