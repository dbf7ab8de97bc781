"""The shipped networks are what their cards say, and none of their patients is in the course's data."""

import json

import cv2
import numpy as np
import pytest

from utils import backbones, config, images, lungs, phantom, pretrain, sources
from utils.backend import tf
from utils.files import sha256

PATHS = {"PhantomNet": backbones.PHANTOM_WEIGHTS, "LungNet": lungs.WEIGHTS}
SCORES = {"PhantomNet": "accuracy", "LungNet": "dice"}
SIZES = {"PhantomNet": 3_000_000, "LungNet": 700_000}  # bytes
NETWORKS = pytest.mark.parametrize("name", PATHS)


def card_of(path):
    return json.loads(path.with_name(path.name.replace(".weights.h5", ".json")).read_text())


@NETWORKS
def test_the_weights_are_small_and_those_of_the_card(name):
    card, trained = card_of(PATHS[name]), {"PhantomNet": pretrain.TRAINED, "LungNet": pretrain.LUNG_TRAINED}[name]
    assert PATHS[name].stat().st_size <= SIZES[name]
    assert sha256(PATHS[name]) == card["sha256"] and card["what"].startswith(name)
    assert card["simulator"] == phantom.VERSION and card["preprocessing"] == images.VERSION
    assert card["seed"] == pretrain.SEED and card["hospital"] == pretrain.HOSPITAL
    assert card["patients"] == pretrain.named(trained) and card["command"] == f"python -m utils.pretrain {name}"
    for hospital in phantom.HOSPITALS:
        score = f"hospital_{hospital}.{SCORES[name]}"
        assert 0.95 < card["scores"][f"{score}.lo"] < card["scores"][score]
        assert card["scores"][f"{score}.n"] == pretrain.TESTED


@NETWORKS
def test_none_of_its_patients_is_in_the_courses_data(name, work_dir):
    run = config.start()
    loaded = sources.load(run)
    ids = [phantom.make_patient(index, seed=pretrain.SEED).id for index in (0, pretrain.TRAINED + pretrain.TESTED - 1)]
    seed, last = (int(part) for part in ids[1].split("-"))
    theirs = {f"{seed}-{index:05d}" for index in range(last + 1)}
    # This is how patients are called, and the card's are among them.
    assert ids[0] in theirs and set(card_of(PATHS[name])["patients"].split(" to ")) <= theirs
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
    image, masks, lesions = np.moveaxis(pixels.astype(int), -1, 0)
    assert not lesions[facts[:, 0] == 0].any() and all(lesions[facts[:, 0] != 0].any(axis=(1, 2)))
    assert ((0.1 < (masks > 127).mean(axis=(1, 2))) & ((masks > 127).mean(axis=(1, 2)) < 0.6)).all()
    for one, lung in zip(image[::4], masks[::4]):  # cut alike: healthy lungs are darker than what is around them
        around = cv2.dilate((lung > 127).astype(np.uint8), np.ones((9, 9))) > (lung > 0)
        assert one[lung > 127].mean() < one[around].mean() - 20
    assert (masks[lesions > 200] > 120).all()

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
    for index, mask in enumerate(pixels[..., 1] / 255):
        taken = phantom.take_radiograph(phantom.make_patient(index, seed=pretrain.SEED, hospital="B"), 0)
        inside = taken.lung_mask[images.frame(taken.image)]
        share = inside.sum() / max(inside.shape) ** 2  # the rest of the square is padding
        assert abs(mask.mean() - share) < 0.01
        differs += abs(share - taken.lung_mask.mean()) > 0.02
    assert differs >= 3


def test_lungs_are_taught_equalised_and_with_the_mask_of_the_same_pose():
    pixels, _ = pretrain.prepared(range(40), "A")
    seen, masks = (values.numpy() for values in next(iter(pretrain.lung_lessons(pixels[..., :2]))))
    assert seen.shape == masks.shape == (32, 128, 128, 1) and seen.dtype == np.uint8 and masks.dtype == np.float32
    assert masks.min() == 0 and masks.max() == 1 and (0.05 < masks.mean(axis=(1, 2, 3))).all()
    for one, mask in zip(seen[..., 0], masks[..., 0]):
        assert np.abs(one.astype(int) - cv2.equalizeHist(one)).max() <= 2  # twice changes next to nothing
        around = cv2.dilate((mask > 0.5).astype(np.uint8), np.ones((9, 9))) > (mask > 0)
        # A picture's own lungs are darker than what is around them; hardly ever those of another one.
        assert one[mask > 0.5].mean() < one[around].mean()


def test_the_loss_is_dice_and_cross_entropy_by_hand():
    masks, found = np.zeros((2, 1, 2, 1), np.float32), np.full((2, 1, 2, 1), 0.5, np.float32)
    masks[0, 0, 0] = 1
    expected = [1 - 2 / 3 + np.log(2), 1 - 1 / 2 + np.log(2)]  # of one pixel in two, and of none
    np.testing.assert_allclose(pretrain.lung_loss(tf.constant(masks), tf.constant(found)), expected, rtol=1e-5)


@NETWORKS
def test_the_whole_way_leaves_weights_and_a_card_that_fit(name, tmp_path, monkeypatch):
    path = tmp_path / "weights" / PATHS[name].name
    monkeypatch.setattr(*{"PhantomNet": (backbones, "PHANTOM_WEIGHTS"), "LungNet": (lungs, "WEIGHTS")}[name], path)
    for number, value in (("TRAINED", 64), ("LUNG_TRAINED", 64), ("TESTED", 8), ("EPOCHS", 1), ("LUNG_EPOCHS", 1)):
        monkeypatch.setattr(pretrain, number, value)
    pretrain.main([name])
    card = card_of(path)
    assert card["sha256"] == sha256(path) and card["scores"][f"hospital_A.{SCORES[name]}.n"] == 8
    assert set(card) == set(card_of(PATHS[name])) and card["patients"] == "99-00000 to 99-00063"
    assert sorted(file.name for file in path.parent.iterdir()) == [f"{name.lower()}.json", path.name]
    build = {"PhantomNet": lambda: backbones.build("PhantomNet", (64, 64, 1), weights="phantom").get_layer("trunk"),
             "LungNet": lambda: backbones.load_weights(lungs.lung_net(seed=1), path, name, mend="")}[name]  # fmt: skip
    shipped = {"PhantomNet": backbones.phantom_net, "LungNet": lungs.lung_net}[name](seed=1)
    assert [w.shape for w in build().get_weights()] == [w.shape for w in shipped.get_weights()]
    assert path.stat().st_size <= SIZES[name]  # nothing in it but the network


def test_a_network_must_be_named(capsys):
    for arguments in ([], ["LungNets"]):
        with pytest.raises(SystemExit) as raised:
            pretrain.main(arguments)
        assert raised.value.code == 2 and "PhantomNet" in capsys.readouterr().err


@pytest.mark.parametrize("index", [0, 5])
def test_patients_of_training_and_test_are_the_same_whatever_runs_beside_them(index):
    np.testing.assert_array_equal(pretrain.prepared([index, index + 1], "B")[0][0, :, :, :1],
                                  images.preprocess(take(index, "B"), pretrain.OPTIONS))  # fmt: skip
