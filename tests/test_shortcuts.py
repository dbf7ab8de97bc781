"""Sources left out stay out, weights count sources alike, the crop is the crop, thresholds come from where they should."""

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from utils import backbones, images, models, shortcuts, training

RULES = {"seed": 1, "resamples": 200}


def hospitals(seed=0, each=20):
    """Four sources; only A and B have both classes."""
    source = np.repeat(list("ABCD"), each)
    target = np.concatenate([np.arange(2 * each) % 2 == 0, np.ones(each, bool), np.zeros(each, bool)])
    order = np.random.default_rng(seed).permutation(len(source))
    return target[order], source[order]


rows_of_a_set = st.lists(st.tuples(st.booleans(), st.sampled_from("ABCD")), min_size=1, max_size=80)


@given(rows_of_a_set, st.integers(1, 4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_no_source_is_fitted_on_and_tested_on(rows, least, together):
    target, source = (np.array(column) for column in zip(*rows))
    among = np.arange(0, len(rows), 1 if len(rows) < 40 else 2)
    pairs, _ = shortcuts.left_out(target, source, among, together=together, least=least)
    for pair in pairs:
        assert not {pair.positive, pair.negative} & set(source[pair.fit])
        assert set(pair.fit) | set(pair.test) <= set(among)
        assert set(source[pair.test[target[pair.test]]]) == {pair.positive}
        assert set(source[pair.test[~target[pair.test]]]) == {pair.negative}
        counts = [np.sum(target[some] == answer) for some in (pair.fit, pair.test) for answer in (True, False)]
        assert min(counts) >= least


def test_pairs_are_complete_and_what_cannot_be_judged_is_named():
    target, source = hospitals()
    pairs, skipped = shortcuts.left_out(target, source, np.arange(len(target)))
    named = {pair[:2] for pair in pairs} | {tuple(line.split(":")[0].split(" with ")) for line in skipped}
    assert named == {(one, other) for one in "ABC" for other in "ABD"} and len(pairs) + len(skipped) == 9
    assert skipped == []  # whichever two are away, the others show both classes
    inside = np.isin(source, ("A", "C"))  # with A away only C is left, which has one class
    pairs, skipped = shortcuts.left_out(target, source, np.flatnonzero(inside))
    assert pairs == [] and len(skipped) == 2 and "both classes" in skipped[0]


def test_every_image_of_the_two_classes_is_tested_on_and_every_other_source_fitted_on():
    target, source = hospitals()
    pair = next(p for p in shortcuts.left_out(target, source, np.arange(80))[0] if p[:2] == ("C", "A"))
    assert set(pair.test) == set(np.flatnonzero((source == "C") | ((source == "A") & ~target)))
    assert set(pair.fit) == set(np.flatnonzero(np.isin(source, ("B", "D"))))


def test_one_at_a_time_leaves_out_single_sources():
    target, source = hospitals()
    pairs, _ = shortcuts.left_out(target, source, np.arange(len(target)), together=False)
    assert [pair[:2] for pair in pairs] == [("A", "A"), ("B", "B")]


def test_a_single_source_gives_no_pair():
    target = np.arange(40) % 2 == 0
    pairs, skipped = shortcuts.left_out(target, np.full(40, "A"), np.arange(40))
    assert pairs == [] and len(skipped) == 1 and "no other source" in skipped[0]


def test_one_source_each_takes_two_different_sources_where_it_can():
    target, source = hospitals()
    ways = shortcuts.one_source_each(target, source, np.flatnonzero(source != "A"))
    found = {(*set(source[way[target[way]]]), *set(source[way[~target[way]]])) for way in ways}
    assert found == {("B", "D"), ("C", "B"), ("C", "D")}
    alone = shortcuts.one_source_each(target, source, np.flatnonzero(source == "A"))
    assert len(alone) == 1 and len(alone[0]) == 20
    # No source shows ten images of a class, but all together do: then all are learned from, and no row stays empty.
    few = np.repeat([True, False], [12, 12]), np.tile(["E", "F"], 12)
    assert [list(way) for way in shortcuts.one_source_each(*few, np.arange(24))] == [list(range(24))]


@given(rows_of_a_set)
@settings(max_examples=100, deadline=None)
def test_weights_count_classes_alike_and_within_a_class_sources(rows):
    target, source = (np.array(column) for column in zip(*rows))
    weights = shortcuts.equal_weights(target, source)
    total = pd.Series(weights).groupby([target, source]).sum()
    assert np.isclose(weights.mean(), 1) and (weights > 0).all()
    for answer in set(target):
        assert np.allclose(total[answer], len(rows) / len(set(target)) / len(total[answer]))


def test_a_heavy_image_is_as_good_as_several_in_the_head_and_in_its_scaling():
    rng = np.random.default_rng(0)
    features, target = rng.normal(size=(60, 5)), np.arange(60) % 2
    times = rng.integers(1, 4, 60)
    weighted = training.linear_head(features, target, C=0.1, weights=times.astype(float))
    repeated = training.linear_head(np.repeat(features, times, axis=0), np.repeat(target, times), C=0.1)
    assert np.allclose(weighted.predict_proba(features), repeated.predict_proba(features), atol=1e-4)
    plain = LogisticRegression(C=0.01, max_iter=1000).fit(StandardScaler().fit_transform(features), target)
    assert np.allclose(training.linear_head(features, target)[-1].coef_, plain.coef_)


@pytest.mark.parametrize("C", [1.0, 1e-6])
def test_a_head_keeps_one_scale_however_strongly_it_is_restrained(C):
    rng = np.random.default_rng(0)
    target, source = hospitals()
    features = rng.normal(size=(80, 6)) + target[:, None]
    weights = shortcuts.equal_weights(target, source)
    head = shortcuts.head(features, target, C=C, weights=weights, sharpness=2.0)
    odds = head.decision_function(features)
    mean = np.average(odds, weights=weights)
    assert abs(mean) < 1e-6 and np.isclose(np.sqrt(np.average((odds - mean) ** 2, weights=weights)), 2.0)
    plain = training.linear_head(features, target, C=C, weights=weights).decision_function(features)
    assert np.array_equal(np.argsort(plain), np.argsort(odds))  # the order, and so the AUC, is untouched


@given(st.integers(32, 300), st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_the_crop_leaves_the_middle(side, share):
    pixels = np.zeros((1, side, side, 1), np.uint8)
    edge = shortcuts.margin(side, share)
    shortcuts.central(pixels, share)[:] = 1
    kept = pixels[0, :, side // 2, 0]
    assert kept.sum() == side - 2 * edge and abs(edge - share * side / 2) <= 0.5
    assert not kept[:edge].any() and not kept[side - edge :].any()


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_nothing_is_refused(share):
    with pytest.raises(ValueError, match="share"):
        shortcuts.central(np.zeros((1, 8, 8, 1)), share)


def test_the_crop_is_part_of_the_model(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 1), dtype=np.uint8)
    model = shortcuts.extractor(["PhantomNet"], 64, weights="phantom", crop=0.3)
    outside = pixels.copy()
    outside[:, :9] = 255
    assert np.array_equal(models.predict(model, pixels), models.predict(model, outside))
    inner = np.ascontiguousarray(shortcuts.central(pixels, 0.3))
    plain = backbones.build("PhantomNet", inner.shape[1:], weights="phantom")
    assert np.allclose(models.predict(model, pixels), models.predict(plain, inner), atol=1e-5)
    head = shortcuts.head(models.predict(model, pixels), np.array([0, 1, 1]))
    whole = backbones.with_head(model, head)
    card = {"task": "abnormal", "classes": ["Normal", "abnormal"]}
    models.save_bundle(tmp_path / "b", whole, options=images.Options(size=64, channels=("clahe",)), card=card)
    opened, options, _ = models.open_bundle(tmp_path / "b", task="abnormal")
    expected = head.predict_proba(models.predict(model, pixels))[:, 1]
    assert np.allclose(models.predict(opened, pixels), expected, atol=1e-4) and options.channels == ("clahe",)


def test_foreign_looks_keep_the_middles_shape_and_swap_the_rest():
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 120, (6, 40, 40, 1), dtype=np.uint8)
    pixels[:, :6] = (np.arange(6) * 10 + 200)[:, None, None, None]
    before = pixels.copy()
    mixed = shortcuts.foreign_looks(pixels, 0.3, rng=rng)
    assert np.array_equal(pixels, before) and mixed.shape == pixels.shape and mixed.dtype == np.uint8
    assert set(mixed[:, 0, 0, 0]) == set(pixels[:, 0, 0, 0])  # every border is used once, mostly by another
    for one, other in zip(shortcuts.central(pixels, 0.3), shortcuts.central(mixed, 0.3)):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def test_masks_are_cut_like_their_radiographs(tmp_path):
    grey = np.zeros((200, 300), np.uint8)
    grey[20:180, 40:260] = np.random.default_rng(0).integers(60, 250, (160, 220))
    mask = np.zeros((400, 600), np.uint8)  # twice as large as its radiograph, and of ones
    mask[2 * 60 : 2 * 120, 2 * 100 : 2 * 200] = 1
    cv2.imwrite(str(tmp_path / "x.png"), grey)
    cv2.imwrite(str(tmp_path / "m.png"), mask)
    table = pd.DataFrame({"path": ["x.png"], "lung_mask": ["m.png"]})
    got = shortcuts.masks(tmp_path, table, 64)[0, :, :, 0]
    marked = np.where(np.arange(300) // 100 == 1, 255, 0) * (np.arange(200) // 60 == 1)[:, None]
    wanted = images.fit_square(marked.astype(np.uint8)[images.frame(grey)], 64) > 127
    assert got.dtype == bool and (got == wanted).mean() > 0.98 and got.any()


def test_image_sizes_come_from_the_files(tmp_path):
    for name, size in (("a.png", (40, 50)), ("b.jpg", (70, 33))):
        Image.new("L", size).save(tmp_path / name)
    assert shortcuts.image_sizes(tmp_path, ["a.png", "b.jpg"]).tolist() == [[40, 50], [70, 33]]
    assert shortcuts.image_sizes(tmp_path, []).shape == (0, 2)


def test_mean_over_pairs_is_the_mean_of_scikit_learns_scores_and_paired():
    rng = np.random.default_rng(3)
    target, source = hospitals()
    patients = np.arange(len(target)).astype(str)
    pairs, _ = shortcuts.left_out(target, source, np.arange(len(target)))
    shift = dict(zip("ABCD", range(4)))
    score = target + rng.normal(size=len(target)) + np.array([shift[name] for name in source])
    outputs = [score[pair.test] for pair in pairs]
    got = shortcuts.mean_over(pairs, outputs, target, patients, **RULES)
    assert got.value == pytest.approx(np.mean([roc_auc_score(target[p.test], score[p.test]) for p in pairs]))
    assert got.lo < got.value < got.hi and got.n == len(target)
    none = shortcuts.mean_over(pairs, outputs, target, patients, minus=outputs, **RULES)
    assert (none.value, none.lo, none.hi) == (0, 0, 0)
    two = [np.stack([one, -one]) for one in outputs]  # of several models the mean counts
    assert shortcuts.mean_over(pairs, two, target, patients, **RULES).value == pytest.approx(0.5)
    calls = [one >= 2 for one in outputs]
    sensitivity = shortcuts.mean_over(pairs, calls, target, patients, score="sensitivity", **RULES).value
    assert sensitivity == pytest.approx(np.mean([call[target[p.test]].mean() for p, call in zip(pairs, calls)]))
    weaker = shortcuts.mean_over(pairs, calls, target, patients, score="the weaker of both", **RULES).value
    both = [((call == target[p.test])[target[p.test]].mean(), (call == target[p.test])[~target[p.test]].mean())
            for p, call in zip(pairs, calls)]  # fmt: skip
    assert weaker == pytest.approx(np.mean([min(pair) for pair in both]))


def test_a_remembered_recipe_fits_once_for_each_set_of_sources():
    target, source = hospitals()
    pairs, _ = shortcuts.left_out(target, source, np.arange(len(target)))
    fits = []

    def recipe(rows):
        fits.append(frozenset(source[rows]))
        return lambda rows: rows * 1.0

    recipe = shortcuts.remembered(recipe)
    outputs = shortcuts.ask(pairs, recipe)
    assert all(np.array_equal(one, other) for one, other in zip(outputs, shortcuts.ask(pairs, recipe)))
    assert len(fits) == len(set(fits)) == len({frozenset(pair[:2]) for pair in pairs}) < len(pairs)
    assert all(np.array_equal(output, pair.test) for output, pair in zip(outputs, pairs))


def test_the_compromise_meets_what_is_wanted_where_it_can():
    target = np.arange(200) % 2 == 0
    pair = shortcuts.Pair("A", "B", np.arange(0), np.arange(200))
    output = np.where(target, 1.0, -1.0) + np.random.default_rng(0).normal(size=200)
    threshold = shortcuts.compromise([pair], [output], target, sensitivity=0.8, specificity=0.6)
    assert (output[target] >= threshold).mean() >= 0.8 and (output[~target] < threshold).mean() >= 0.6
    useless = np.random.default_rng(1).normal(size=200)
    threshold = shortcuts.compromise([pair], [useless], target, sensitivity=0.8, specificity=0.6)
    short = 0.8 - (useless[target] >= threshold).mean(), 0.6 - (useless[~target] < threshold).mean()
    assert short[0] == pytest.approx(short[1], abs=0.06)


def test_sharpness_finds_the_temperature_of_log_odds():
    rng = np.random.default_rng(0)
    odds = rng.normal(scale=2, size=20000)
    target = rng.random(20000) < 1 / (1 + np.exp(-odds))
    pair = shortcuts.Pair("A", "B", np.arange(0), np.arange(20000))
    assert shortcuts.sharpness([pair], [odds / 4], target) == pytest.approx(4, rel=0.06)
    assert shortcuts.sharpness([pair], [-odds], target) == 0.1  # upside down: no use, but no mirror image either


def test_nobody_of_the_local_sample_is_tested_on():
    rng = np.random.default_rng(0)
    target = np.arange(60) % 3 == 0
    patients = np.array([f"p{i // 2}" for i in range(60)])
    sample, rest = shortcuts.local_sample(target, patients, images_a_class=5, rng=rng)
    assert target[sample].sum() == 5 and len(sample) == 10
    assert not set(patients[sample]) & set(patients[rest])
    assert set(patients) == set(patients[sample]) | set(patients[rest])


def test_planted_phantoms_follow_the_label_as_far_as_they_are_told(tmp_path):
    linked = shortcuts.planted(tmp_path, patients=12, seed=3, shortcut=1.0, hospitals=("A", "B"), size=64)
    assert linked.pixels.shape == linked.lungs.shape == (12, 64, 64, 1)
    assert ((linked.hospital == "hospital B") == linked.abnormal).all()
    free = shortcuts.planted(tmp_path, patients=12, seed=3, shortcut=0.0, hospitals=("A", "B"), size=64)
    assert np.array_equal(free.abnormal, linked.abnormal) and (free.hospital != linked.hospital).any()
    again = shortcuts.planted(tmp_path, patients=12, seed=3, shortcut=1.0, hospitals=("A", "B"), size=64)
    assert np.array_equal(again.pixels, linked.pixels) and len(set(again.patient)) == 12
