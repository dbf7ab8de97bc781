"""Models take bytes, training repeats exactly, bundles answer the same or refuse; scores are right."""

import json
import shutil

import numpy as np
import pytest
from sklearn import metrics as sk

from utils import images, metrics, models, pipeline, splits, training
from utils.backend import keras, tf
from utils.errors import CourseError


def blobs(count, *, seed, size=32):
    """Noise, with a bright spot somewhere in every second image: uint8 pixels and targets."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(100, 20, (count, size, size, 1))
    targets = np.arange(count) % 2
    for index in np.flatnonzero(targets):
        y, x = rng.integers(2, size - 8, 2)
        pixels[index, y : y + 6, x : x + 6] += 90
    return np.clip(pixels, 0, 255).astype(np.uint8), targets.astype("float32")


@pytest.fixture(scope="module")
def trained():
    model = models.small_cnn((32, 32, 1), seed=3, widths=(8, 16))
    history = training.fit(model, blobs(256, seed=1), blobs(64, seed=2), epochs=8, seed=3)
    return model, history


def test_it_learns_what_can_be_learned(trained):
    model, history = trained
    pixels, targets = blobs(200, seed=5)
    assert ((model.predict(pixels, verbose=0)[:, 0] > 0.5) == targets).mean() > 0.9
    assert list(history.columns) == ["accuracy", "loss", "val_accuracy", "val_loss"] and history.index[0] == 1


def test_pixels_are_scaled_inside_the_model(trained):
    """Bytes go in; the first convolution sees numbers from -1 to 1."""
    model, _ = trained
    assert model.inputs[0].dtype == "uint8"
    first = next(layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D))
    before = keras.Model(model.inputs, first.input)
    ends = np.array([0, 255], np.uint8).reshape(2, 1, 1, 1) * np.ones((1, 32, 32, 1), np.uint8)
    seen = before.predict(ends, verbose=0)
    assert seen[0].max() == pytest.approx(-1) and seen[1].min() == pytest.approx(1)


def test_the_same_seed_trains_to_the_same_weights_whatever_was_drawn_before(trained):
    keras.utils.set_random_seed(99)
    tf.random.normal((5,))
    model = models.small_cnn((32, 32, 1), seed=3, widths=(8, 16))
    training.fit(model, blobs(256, seed=1), blobs(64, seed=2), epochs=8, seed=3)
    for one, other in zip(trained[0].get_weights(), model.get_weights()):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_training_is_traced_once(classes, monkeypatch):
    """A variable that is made inside the first step makes TensorFlow trace it a second time."""
    traced, step = [], keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda model, data: traced.append(model) or step(model, data))
    pixels, _ = blobs(66, seed=1)
    model = models.small_cnn((32, 32, 1), seed=3, classes=classes, widths=(4, 8))
    training.fit(model, (pixels, np.arange(66) % classes), epochs=2, seed=3, balanced=True)
    assert traced == [model]


def test_a_recipe_is_judged_on_each_row_once_a_seed_and_never_on_what_it_saw():
    labels, patients = np.arange(60) % 2, np.arange(60) // 3
    seen = []

    def recipe(rows, held, seed):
        assert not set(patients[rows]) & set(patients[held])
        seen.append(seed)
        return held + seed

    rounds = lambda seed: splits.rounds(labels, patients, None, count=5, seed=seed)  # noqa: E731
    rows, probability = training.held_out(recipe, rounds, seeds=(1, 2))
    assert rows.tolist() == list(range(60)) and seen == [1] * 5 + [2] * 5
    np.testing.assert_array_equal(probability, [rows + 1, rows + 2])
    part = np.where(patients < 15, "train", np.where(patients < 17, "validation", "test"))
    rounds = lambda seed: splits.rounds(labels, patients, part, count=1, seed=seed)  # noqa: E731
    rows, probability = training.held_out(recipe, rounds, seeds=(4,))
    assert rows.tolist() == np.flatnonzero(part == "test").tolist() and (probability == rows + 4).all()
    some = np.arange(60)[labels == 1]
    for count in (1, 5):
        made = splits.rounds(labels, patients, part, count=count, seed=1, rows=some)
        assert all(set(fit) | set(held) == set(some) and not set(fit) & set(held) for fit, held in made)


def test_several_classes_add_up_to_one():
    model = models.small_cnn((32, 32, 2), seed=3, classes=4)
    assert model.predict(np.zeros((2, 32, 32, 2), np.uint8), verbose=0).sum(axis=1) == pytest.approx([1, 1])


def test_a_rare_class_counts_as_much_when_balanced():
    assert training.class_weights([0] * 9 + [1] * 3) == {0: 12 / 18, 1: 2.0}
    pixels, targets = blobs(300, seed=4)
    rare = np.flatnonzero((targets == 0) | (np.arange(300) % 20 == 1))
    called = {}
    for balanced in (False, True):
        model = models.small_cnn((32, 32, 1), seed=3, widths=(8, 16))
        training.fit(model, (pixels[rare], targets[rare]), epochs=8, seed=3, balanced=balanced)
        called[balanced] = models.predict(model, pixels[targets == 1]).mean()
    assert called[True] > called[False] + 0.1


def test_training_stops_when_it_gets_no_better_and_keeps_the_best():
    train, validation = blobs(40, seed=1), blobs(40, seed=2)
    noise = np.random.default_rng(0).permutation(validation[1])
    model = models.small_cnn((32, 32, 1), seed=3, widths=(8,))
    history = training.fit(model, train, (validation[0], noise), epochs=30, seed=3, patience=2)
    best = history["val_loss"].idxmin()
    assert len(history) == best + 2 < 30
    kept = model.evaluate(validation[0], noise, verbose=0, return_dict=True)
    assert kept["loss"] == pytest.approx(history["val_loss"].min(), rel=1e-4)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_class_that_is_missing_in_a_part_is_said(part):
    good, (pixels, targets) = blobs(20, seed=1), blobs(20, seed=2)
    parts = {"training": good, "validation": good, part: (pixels[targets == 0], targets[targets == 0])}
    with pytest.raises(CourseError, match=f"The {part} images should show all 2 classes; class number 1 is missing"):
        training.fit(models.small_cnn((32, 32, 1), seed=3), parts["training"], parts["validation"], epochs=1, seed=1)


def test_a_loss_that_is_no_number_stops_with_advice():
    with pytest.raises(CourseError, match="no longer a number.*a tenth"):
        training.fit(
            models.small_cnn((32, 32, 1), seed=3, widths=(8,)), blobs(64, seed=1), epochs=9, seed=3, rate=np.nan
        )


def test_fewer_images_than_a_batch_are_one_batch():
    history = training.fit(models.small_cnn((32, 32, 1), seed=3, widths=(8,)), blobs(6, seed=1), epochs=2, seed=3)
    assert len(history) == 2 and history["loss"].notna().all()


def test_a_progress_bar_for_a_person_and_none_for_a_machine(capfd, monkeypatch):
    for quiet, shown in (("1", False), ("", True)):
        monkeypatch.setenv("CXR_QUIET", quiet)
        training.fit(models.small_cnn((32, 32, 1), seed=3, widths=(8,)), blobs(6, seed=1), epochs=2, seed=3)
        assert ("epoch" in capfd.readouterr().err) == shown


def test_shear_leans_upright_lines_and_keeps_level_ones():
    cross = np.zeros((60, 65, 65, 1), np.uint8)
    cross[:, :, 31:34], cross[:, 31:34, :] = 255, 255
    leaning = pipeline.Augmentation(degrees=0, zoom=0, shift=0, shear=20, mirror=False)(tf.constant(cross), seed=(1, 1))
    upright, level = leaning.numpy()[:, 4, :, 0].argmax(axis=1), leaning.numpy()[:, :, 4, 0].argmax(axis=1)
    assert np.ptp(upright) > 8 and np.ptp(level) == 0


def batch(seed, count=1, **options):
    pixels, targets = blobs(64, seed=1)
    stream = pipeline.batches(pixels, targets, seed=seed, size=16, **options)
    return [(images_.numpy(), targets_.numpy()) for images_, targets_ in stream.take(count)]


def test_batches_repeat_exactly_and_go_through_every_image():
    options = {"augmentation": pipeline.Augmentation(), "count": 6}
    for one, other in zip(batch(4, **options), batch(4, **options)):
        np.testing.assert_array_equal(one[0], other[0])
    assert any((one[0] != other[0]).any() for one, other in zip(batch(4, **options), batch(5, **options)))
    seen = np.concatenate([images_ for images_, _ in batch(4, count=4)])
    pixels, _ = blobs(64, seed=1)
    assert sorted(map(bytes, seen)) == sorted(map(bytes, pixels))


def test_nobody_waits_for_the_input_tuner():
    assert pipeline.batches(*blobs(16, seed=1), seed=1, size=4).options().autotune.enabled is False


def test_targets_stay_with_their_images():
    pixels, targets = blobs(64, seed=1)
    where = {bytes(image): target for image, target in zip(pixels, targets)}
    assert all(where[bytes(image)] == target for im, ta in batch(4, count=4) for image, target in zip(im, ta))


def test_augmentation_without_range_changes_nothing_and_a_mirror_mirrors():
    pixels = tf.constant(blobs(32, seed=1)[0])
    still = pipeline.Augmentation(degrees=0, zoom=0, shift=0, mirror=False)(pixels, seed=(1, 1))
    np.testing.assert_array_equal(still, pixels)
    flipped = pipeline.Augmentation(degrees=0, zoom=0, shift=0)(pixels, seed=(1, 1)).numpy()
    kept = [(one == other).all() for one, other in zip(flipped, pixels.numpy())]
    mirrored = [(one == other[:, ::-1]).all() for one, other in zip(flipped, pixels.numpy())]
    assert all(a or b for a, b in zip(kept, mirrored)) and 6 < sum(mirrored) < 26


def test_augmentation_keeps_the_centre_where_it_is():
    dot = np.zeros((200, 33, 33, 1), np.uint8)
    dot[:, 15:18, 15:18] = 255
    turned = pipeline.Augmentation(degrees=30, zoom=0.1, shift=0)(tf.constant(dot), seed=(1, 1))
    assert turned.numpy()[:, 16, 16, 0].min() > 200


OPTIONS = images.Options(size=32, channels=("plain",))
CARD = {"task": "binary", "classes": ["Normal", "COVID-19"], "split": "abc"}


def test_a_bundle_answers_the_same(trained, tmp_path):
    pixels, _ = blobs(20, seed=9)
    for _ in range(2):  # a second time replaces the first
        models.save_bundle(tmp_path / "run.small", trained[0], options=OPTIONS, card=CARD)
    opened, options, card = models.open_bundle(tmp_path / "run.small")
    np.testing.assert_array_equal(opened.predict(pixels, verbose=0), trained[0].predict(pixels, verbose=0))
    assert options == OPTIONS and card["task"] == "binary" and "diagnosis" in card["purpose"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run.small"]


def test_a_bundle_survives_a_replacement_that_fails(trained, tmp_path, monkeypatch):
    folder = tmp_path / "run.small"
    models.save_bundle(folder, trained[0], options=OPTIONS, card={**CARD, "seed": 1})
    rename = type(folder).rename

    def fails(path, target):
        if path.name.startswith(".part-"):
            raise OSError("on purpose")
        return rename(path, target)

    monkeypatch.setattr(type(folder), "rename", fails)
    with pytest.raises(OSError, match="on purpose"):
        models.save_bundle(folder, trained[0], options=OPTIONS, card={**CARD, "seed": 2})
    assert models.open_bundle(folder)[2]["seed"] == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run.small"]


def test_a_bundle_that_does_not_fit_is_refused(trained, tmp_path):
    with pytest.raises(CourseError, match="not a model bundle"):
        models.open_bundle(tmp_path / "nothing")
    folder = tmp_path / "run.small"
    models.save_bundle(folder, trained[0], options=OPTIONS, card=CARD)
    models.save_bundle(tmp_path / "other", models.small_cnn((32, 32, 1), seed=8), options=OPTIONS, card=CARD)
    shutil.copy(tmp_path / "other" / "model.keras", folder / "model.keras")
    with pytest.raises(CourseError, match="weights are not those"):
        models.open_bundle(folder)
    card = json.loads((folder / "card.json").read_text())
    for damaged in ("{", "[]", "{}", json.dumps({**card, "preprocessing": {"version": 1, "sizes": 3}})):
        (folder / "card.json").write_text(damaged)
        with pytest.raises(CourseError, match="card.json is damaged"):
            models.open_bundle(folder)
    card["preprocessing"]["version"] = 0
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(CourseError, match="another version of the preprocessing"):
        models.open_bundle(folder)


def change_card(folder, **changes):
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("changes", "asked", "message"),
    [
        ({}, {"task": "multiclass"}, "should be of task multiclass, but its card says binary"),
        ({}, {"split": "xyz"}, "should be of split xyz, but its card says abc"),
        ({"classes": ["Normal", "COVID-19", "Lung Opacity"]}, {}, "answers 2 classes, card.json names 3"),
        ({"preprocessing": {"version": 1, "size": 64, "channels": ["plain"]}}, {}, r"describes \(64, 64, 1\)"),
        ({"preprocessing": {"version": 1, "size": 32, "channels": ["plain", "clahe"]}}, {}, r"\(32, 32, 2\)"),
        ({"weights": "0" * 16}, {}, "weights are not those that card.json describes"),
    ],
)
def test_a_bundle_whose_card_and_model_disagree_is_refused(trained, tmp_path, changes, asked, message):
    models.save_bundle(tmp_path / "run.small", trained[0], options=OPTIONS, card=CARD)
    models.open_bundle(tmp_path / "run.small", task="binary", split="abc")
    change_card(tmp_path / "run.small", **changes)
    with pytest.raises(CourseError, match=message):
        models.open_bundle(tmp_path / "run.small", **asked)


def test_a_truncated_model_is_refused_and_an_unknown_task_is_not_saved(trained, tmp_path):
    models.save_bundle(tmp_path / "run.small", trained[0], options=OPTIONS, card=CARD)
    path = tmp_path / "run.small" / "model.keras"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CourseError, match=r"model\.keras is damaged\. Run"):
        models.open_bundle(tmp_path / "run.small")
    change_card(tmp_path / "run.small", versions={"keras": "99.0"})
    with pytest.raises(CourseError, match="is damaged, or comes from Keras 99.0, which Keras .* here cannot read. Run"):
        models.open_bundle(tmp_path / "run.small")
    with pytest.raises(CourseError, match="task=binry is not known.*Did you mean binary"):
        models.save_bundle(tmp_path / "run.other", trained[0], options=OPTIONS, card={**CARD, "task": "binry"})


def test_a_mirrored_answer_is_the_mean_over_both_images(trained):
    pixels, _ = blobs(70, seed=9)  # more than one batch
    one, other = models.predict(trained[0], pixels), models.predict(trained[0], pixels[:, :, ::-1])
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(models.predict(trained[0], pixels, mirrored=True), (one + other) / 2, atol=1e-6)


def test_a_rate_that_falls_ends_in_rest_and_one_that_stays_does_not():
    def moved(falling):
        model = models.small_cnn((32, 32, 1), seed=3, widths=(4, 8))
        training.fit(model, blobs(64, seed=1), epochs=10, seed=3, falling=falling)
        return float(model.optimizer.learning_rate)

    assert moved(True) < 1e-4 and moved(False) == pytest.approx(3e-3)


def test_an_ensemble_is_the_weighted_mean_and_a_bundle_like_any_model(trained, tmp_path):
    other = models.small_cnn((32, 32, 1), seed=8)
    pixels, _ = blobs(20, seed=9)
    both = models.ensemble([trained[0], other], [3, 1])
    expected = 0.75 * models.predict(trained[0], pixels) + 0.25 * models.predict(other, pixels)
    np.testing.assert_allclose(models.predict(both, pixels), expected, atol=1e-6)
    models.save_bundle(tmp_path / "run.ensemble", both, options=OPTIONS, card=CARD)
    opened = models.open_bundle(tmp_path / "run.ensemble")[0]
    np.testing.assert_allclose(models.predict(opened, pixels), expected, atol=1e-6)
    with pytest.raises(CourseError, match=r"same pixels .* got .*32, 32, 1.* and .*40, 40, 1"):
        models.ensemble([other, models.small_cnn((40, 40, 1), seed=8)], [1, 1])
    for weights in ([1], [0, 0], [2, -1], [np.nan, 1]):
        with pytest.raises(CourseError, match="Expected 2 weights"):
            models.ensemble([trained[0], other], weights)


RULES = {"seed": 1, "resamples": 400}


def test_scores_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    probability = np.clip(0.3 * truth + rng.normal(0.35, 0.2, 300), 0, 1)
    scores = metrics.binary_scores(truth, probability, np.arange(300), threshold=0.45, **RULES)
    called = probability >= 0.45
    assert scores["accuracy"].value == pytest.approx(sk.accuracy_score(truth, called))
    assert scores["sensitivity"].value == pytest.approx(sk.recall_score(truth, called))
    assert scores["specificity"].value == pytest.approx(sk.recall_score(~truth, ~called))
    assert scores["auroc"].value == pytest.approx(sk.roc_auc_score(truth, probability))
    assert scores["sensitivity"].n == truth.sum() and scores["specificity"].n == (~truth).sum()
    assert all(score.lo < score.value < score.hi for score in scores.values())


def test_scores_over_several_seeds_are_the_mean_of_each():
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    runs = np.clip(0.3 * truth + rng.normal(0.35, 0.2, (3, 300)), 0, 1)
    scores = metrics.binary_scores(truth, runs, np.arange(300), threshold=0.45, **RULES)
    alone = [metrics.binary_scores(truth, one, np.arange(300), threshold=0.45, **RULES) for one in runs]
    for name, score in scores.items():
        assert score.value == pytest.approx(np.mean([one[name].value for one in alone]))
        assert score.lo < score.value < score.hi and score.n == alone[0][name].n


def test_balanced_accuracy_and_its_paired_difference():
    rng = np.random.default_rng(0)
    truth = rng.choice(["a", "b", "c"], 300, p=[0.7, 0.2, 0.1])
    guess = np.where(rng.random((2, 300)) < 0.6, truth, "a")
    score = metrics.balanced_accuracy(truth, guess, np.arange(300), **RULES)
    expected = [sk.balanced_accuracy_score(truth, one) for one in guess]
    assert score.value == pytest.approx(np.mean(expected)) and score.lo < score.value < score.hi
    gain = metrics.difference(guess[0] == truth, guess[1] == truth, np.arange(300), truth=truth, **RULES)
    assert gain.value == pytest.approx(expected[0] - expected[1])


def test_a_hand_computed_case():
    # Four COVID-19 images, three of them called; two normal ones, one of them called.
    scores = metrics.binary_scores(
        [1, 1, 1, 1, 0, 0], [0.9, 0.8, 0.7, 0.2, 0.6, 0.1], list("abcdef"), threshold=0.5, **RULES
    )
    assert scores["sensitivity"].value == 3 / 4 and scores["specificity"].value == 1 / 2
    assert scores["accuracy"].value == pytest.approx(4 / 6)
    assert scores["auroc"].value == 7 / 8  # of 4 x 2 pairs one is the wrong way round


def test_intervals_cover_the_truth_and_know_that_images_of_a_patient_are_alike():
    rng = np.random.default_rng(5)
    covered = wide = 0
    for _ in range(150):
        skill = np.repeat(rng.random(60) < 0.8, 4)  # a patient is got right on all four images, or on none
        who = np.repeat(np.arange(60), 4)
        score = metrics.accuracy(np.ones(240), skill, who, seed=1, resamples=300)
        alone = metrics.accuracy(np.ones(240), skill, np.arange(240), seed=1, resamples=300)
        covered += score.lo <= 0.8 <= score.hi
        wide += score.hi - score.lo > 1.5 * (alone.hi - alone.lo)
    assert 0.88 <= covered / 150 <= 0.99 and wide / 150 > 0.9


def test_no_mistake_on_few_patients_is_no_proof():
    all_right = metrics.accuracy(np.ones(80), np.ones(80), np.repeat(np.arange(40), 2), **RULES)
    assert all_right.value == all_right.hi == 1 and all_right.lo == pytest.approx(0.025 ** (1 / 40))
    sick = [1] * 5 + [0] * 5  # one patient with five images, five healthy ones
    scores = metrics.binary_scores(sick, [0.9] * 4 + [0.1] * 6, list("aaaaabcdef"), threshold=0.5, **RULES)
    assert scores["sensitivity"].value == 0.8 and np.isnan(scores["sensitivity"].lo)
    assert scores["specificity"].value == 1 and scores["specificity"].lo == pytest.approx(0.025 ** (1 / 5))


def test_scores_of_odd_sets_are_missing_not_wrong():
    one_class = metrics.binary_scores([1, 1, 1], [0.9, 0.4, 0.8], list("abc"), threshold=0.5, **RULES)
    assert np.isnan(one_class["auroc"].value) and np.isnan(one_class["specificity"].value)
    one_patient = metrics.accuracy([1, 0], [1, 1], ["a", "a"], **RULES)
    assert one_patient.value == 0.5 and np.isnan(one_patient.lo)
    constant = metrics.binary_scores([1, 0, 1, 0], [0.5] * 4, list("abcd"), threshold=0.5, **RULES)
    assert constant["auroc"].value == 0.5


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(2)
    worse = rng.random(200) < 0.7
    better = worse | (rng.random(200) < 0.2)
    gain = metrics.difference(better, worse, np.arange(200), **RULES)
    assert gain.lo > 0 and gain.value == pytest.approx(better.mean() - worse.mean())
