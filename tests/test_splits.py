"""Patients never on both sides; twins found; the leak measured on equal terms."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import images, manifest, splits
from utils.config import Run
from utils.errors import CourseError


def make_manifest(patients, rng, *, labels=("Normal", "COVID-19"), most=4):
    """A manifest of so many patients with 1 to `most` images each, in random order."""
    rows = [
        {
            "path": f"images/{patient}_{k}.png",
            "label": labels[patient % len(labels)],
            "patient": f"p{patient:04d}",
        }
        for patient in range(patients)
        for k in range(rng.integers(1, most + 1))
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=int(rng.integers(1000))).reset_index(drop=True)
    return table.assign(sha256=[f"{index:064x}" for index in range(len(table))])


@given(st.integers(20, 80), st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_no_patient_is_on_two_sides_and_every_part_has_every_label(patients, seed, most):
    table = make_manifest(patients, np.random.default_rng(seed), most=most)
    part = splits.split_by_patient(table, seed=seed)
    assert splits.patients_on_both_sides(table, part) == 0
    assert table.groupby("patient").apply(lambda rows: len(set(part[rows.index]))).max() == 1
    assert set(part) == set(splits.PARTS)
    for name in splits.PARTS:
        assert set(table["label"][part == name]) == {"Normal", "COVID-19"}


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_the_same_seed_gives_the_same_split_and_hash_whatever_the_order(seed):
    table = make_manifest(40, np.random.default_rng(seed))
    part = splits.split_by_patient(table, seed=seed)
    assert (part == splits.split_by_patient(table, seed=seed)).all()
    digest = splits.split_hash(table, part)
    order = np.random.default_rng(seed).permutation(len(table))
    assert splits.split_hash(table.iloc[order], part[order]) == digest
    part[0] = "test" if part[0] != "test" else "train"
    assert splits.split_hash(table, part) != digest


@given(st.integers(0, 2000))
@settings(max_examples=60, deadline=None)
def test_uneven_patients_of_two_labels_are_split_or_refused(seed):
    rng = np.random.default_rng(seed)
    rows = [
        (f"p{p}", rng.choice(["Normal", "COVID-19"], p=[0.8, 0.2]))
        for p in range(30)
        for _ in range(rng.geometric(0.4))
    ]
    table = pd.DataFrame(rows, columns=["patient", "label"])
    try:
        part = splits.split_by_patient(table, seed=seed)
    except CourseError as error:
        assert "patients" in str(error)
    else:
        assert pd.crosstab(table["label"], part).to_numpy().all() and splits.patients_on_both_sides(table, part) == 0


@pytest.mark.parametrize("patients", [2, 4, 6, 40])
def test_folds_are_as_many_as_the_smallest_label_allows(patients):
    table = make_manifest(patients * 2, np.random.default_rng(0))
    folds = splits.folds(table["label"], table["patient"], seed=7)
    assert len(folds) == min(5, patients)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(len(table)))
    assert all(not set(table["patient"][fit]) & set(table["patient"][out]) for fit, out in folds)
    with pytest.raises(CourseError, match="at least 2 patients a label; COVID-19 has 1"):
        splits.folds(["Normal", "Normal", "COVID-19"], list("abc"), seed=7)


def test_shares_are_about_sixty_twenty_twenty():
    table = make_manifest(300, np.random.default_rng(0))
    shares = pd.Series(splits.split_by_patient(table, seed=7)).value_counts(normalize=True)
    assert shares["train"] == pytest.approx(0.6, abs=0.03) and shares["test"] == pytest.approx(0.2, abs=0.03)


def test_a_random_split_does_share_patients():
    table = make_manifest(100, np.random.default_rng(0))
    assert splits.patients_on_both_sides(table, splits.split_at_random(table, seed=7)) > 30


def test_too_few_patients_of_a_label_is_said():
    table = make_manifest(8, np.random.default_rng(0), labels=("Normal", "Normal", "Normal", "COVID-19"))
    with pytest.raises(CourseError, match="at least 5 patients a label; COVID-19 has 2"):
        splits.split_by_patient(table, seed=7)


@given(st.integers(10, 60), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_leaky_and_clean_differ_in_nothing_but_the_leak(patients, seed):
    table = make_manifest(patients, np.random.default_rng(seed))
    pair = splits.leaky_and_clean(table, seed=seed)
    who = table["patient"].to_numpy()
    assert len(pair.leaky) == len(pair.clean)
    assert len(set(who[pair.test])) == len(pair.test)
    assert not set(pair.test) & (set(pair.leaky) | set(pair.clean))
    assert not set(who[pair.test]) & set(who[pair.clean])
    assert set(who[pair.test]) <= set(who[pair.leaky]) or len(pair.clean) < len(pair.test)
    assert len(set(pair.leaky)) == len(pair.leaky)


def test_without_patients_of_several_images_there_is_nothing_to_measure():
    table = make_manifest(30, np.random.default_rng(0), most=1)
    assert len(splits.leaky_and_clean(table, seed=7).test) == 0


def pictures(count, rng):
    """Smooth random pictures, uint8 (count, 48, 48)."""
    coarse = rng.integers(0, 256, (count, 8, 8)).astype(np.uint8)
    return np.stack([images.fit_square(picture, 48) for picture in coarse])


def test_twins_are_found_through_noise_brightness_and_scale_and_nothing_else():
    rng = np.random.default_rng(3)
    thumbnails = pictures(600, rng)
    noisy = np.clip(thumbnails[5] * 0.8 + 20 + rng.normal(0, 3, (48, 48)), 0, 255).astype(np.uint8)
    twins = splits.find_twins(np.concatenate([thumbnails, [noisy, thumbnails[599]]]))
    assert set(zip(twins["first"], twins["second"])) == {(5, 600), (599, 601)}
    assert twins["correlation"].iloc[0] == pytest.approx(1)


def test_constant_pictures_are_no_twins_of_anything_and_none_is_fine():
    assert len(splits.find_twins(np.zeros((3, 48, 48), np.uint8))) == 0
    assert len(splits.find_twins(np.zeros((0, 48, 48), np.uint8))) == 0


def test_twins_and_known_patients_become_one_patient():
    table = pd.DataFrame(
        {"path": list("abcdefg"), "patient": ["p2", None, "p1", None, None, "p2", None], "label": "Normal"}
    )
    twins = pd.DataFrame({"first": [0, 3], "second": [1, 4]})
    assert splits.join_patients(table, twins)["patient"].tolist() == [
        "p2", "p2", "p1", "unknown/d", "unknown/d", "p2", "unknown/g",
    ]  # fmt: skip
    both = splits.join_patients(table, pd.DataFrame({"first": [2], "second": [5]}))
    assert both["patient"].tolist()[:3] == ["p1", "unknown/b", "p1"] and both["patient"][5] == "p1"


@given(st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_joining_never_parts_whom_it_should_keep_together(count, seed):
    rng = np.random.default_rng(seed)
    names = [None if rng.random() < 0.5 else f"p{rng.integers(5)}" for _ in range(count)]
    table = pd.DataFrame({"path": [f"{i:03d}" for i in range(count)], "patient": pd.array(names, dtype="string")})
    ends = np.sort(rng.integers(0, count, (4, 2)), axis=1)
    twins = pd.DataFrame({"first": ends[:, 0], "second": ends[:, 1]})
    joined = splits.join_patients(table, twins)["patient"]
    assert joined.notna().all()
    assert (joined[twins["first"]].to_numpy() == joined[twins["second"]].to_numpy()).all()
    assert joined[table["patient"].notna()].groupby(table["patient"]).nunique().le(1).all()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path))
    return Run("phantom", "fast", None, 7)


def test_manifest_and_split_come_back_as_they_were(run, tmp_path):
    table = make_manifest(30, np.random.default_rng(0))
    table = table.assign(source="NA", view=None, sex="F", age=40.0, lung_mask=None, lesion_mask=None)
    manifest.save(run, tmp_path, table)
    root, opened = manifest.open_saved(run)
    assert root == tmp_path and opened["path"].tolist() == table["path"].tolist()
    assert opened["age"].dtype == float and opened["view"].isna().all() and (opened["source"] == "NA").all()
    part = splits.split_by_patient(opened, seed=7)
    manifest.save_split(run, opened, part, "abc")
    again, digest = manifest.open_split(run, opened)
    assert (again == part).all() and digest == "abc"
    manifest.save(run, tmp_path, table)  # notebook 01 once more, while others read
    assert manifest.open_split(run, opened)[1] == "abc"
    manifest.save(run, tmp_path, table.iloc[1:])  # a new manifest: the old split must not be taken for its own
    with pytest.raises(CourseError, match="Run notebook 02"):
        manifest.open_split(run, opened)


def test_a_split_of_other_images_is_refused(run, tmp_path):
    table = make_manifest(30, np.random.default_rng(0))
    manifest.save(run, tmp_path, table)
    manifest.save_split(run, table, splits.split_by_patient(table, seed=7), "abc")
    with pytest.raises(CourseError, match="other images"):
        manifest.open_split(run, table.assign(label=table["label"].to_numpy()[::-1]))


def test_without_notebook_01_the_message_says_what_to_run(run):
    with pytest.raises(CourseError, match="Run notebook 01_data"):
        manifest.open_saved(run)
