"""What the course relies on when it calls a phantom's truth known."""

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import phantom
from utils.errors import CourseError

ROOT = Path(__file__).resolve().parents[1]
SMALL = 96  # pixels: enough to see where lungs and lesions lie


@pytest.fixture(scope="module")
def shots():
    """Thirty patients of each label, one image each."""
    patients = [phantom.make_patient(i, seed=7) for i in range(120)]
    taken = [(p, phantom.take_radiograph(p, 0, size=SMALL)) for p in patients]
    return {label: [(p, s) for p, s in taken if p.label == label] for label in phantom.LABELS}


def contents(folder):
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


# ---------------------------------------------------------------- one image


@settings(max_examples=25, deadline=None)
@given(
    index=st.integers(0, 10**6),
    seed=st.integers(0, 2**40),
    number=st.integers(0, 5),
    label=st.sampled_from(phantom.LABELS),
    size=st.sampled_from((64, 97, 128)),
)
def test_any_image_has_its_shape_and_its_lesions_inside_the_lungs(index, seed, number, label, size):
    patient = phantom.make_patient(index, seed=seed, label=label)
    shot = phantom.take_radiograph(patient, number, size=size)
    assert shot.image.dtype == np.uint8 and shot.lung_mask.dtype == shot.lesion_mask.dtype == bool
    assert shot.image.shape == shot.lung_mask.shape == shot.lesion_mask.shape == (size, size)
    assert shot.view in ("PA", "AP Supine")
    assert 0.06 < shot.lung_mask.mean() < 0.6
    assert not (shot.lesion_mask & ~shot.lung_mask).any()
    assert shot.lesion_mask.any() == (label != "Normal")
    assert shot.image.std() > 20, "a picture without contrast"


@settings(max_examples=10, deadline=None)
@given(index=st.integers(0, 10**5), seed=st.integers(0, 10**6), number=st.integers(0, 3))
def test_same_seed_same_pixels(index, seed, number):
    first, second = (
        phantom.take_radiograph(phantom.make_patient(index, seed=seed), number, size=SMALL) for _ in range(2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first[:3], second[:3]))
    other = phantom.take_radiograph(phantom.make_patient(index, seed=seed), number + 1, size=SMALL)
    assert not np.array_equal(first.image, other.image)


@pytest.mark.parametrize("label", phantom.LABELS[1:])
def test_without_severity_a_patient_is_the_healthy_twin_bit_for_bit(label):
    # Nothing but the lesion may tell the label: not the pose, not the exposure, not the noise.
    for index in range(4):
        healthy = phantom.make_patient(index, seed=3, label="Normal", hospital="B")
        ill = phantom.make_patient(index, seed=3, label=label, hospital="B")
        expected = phantom.take_radiograph(healthy, 1, size=SMALL)
        got = phantom.take_radiograph(ill, 1, size=SMALL, severity=0)
        assert np.array_equal(got.image, expected.image) and not got.lesion_mask.any()
        assert np.array_equal(got.lung_mask, expected.lung_mask)


@pytest.mark.parametrize("label", phantom.LABELS[1:])
def test_a_lesion_is_brighter_and_grows_with_severity(label):
    for index in (2, 5, 8):
        patient = phantom.make_patient(index, seed=4, label=label)
        none, mild, severe = (phantom.take_radiograph(patient, 0, size=128, severity=s) for s in (0, 0.3, 0.9))
        grey = [shot.image[severe.lesion_mask].mean() for shot in (none, mild, severe)]
        assert grey[0] < grey[1] < grey[2] and grey[2] > grey[0] + 12
        assert mild.lesion_mask.sum() <= severe.lesion_mask.sum()


def test_lungs_are_darker_than_what_lies_between_them(shots):
    for patient, shot in shots["Normal"]:
        lungs = shot.lung_mask
        span = np.maximum.accumulate(lungs, axis=1) & np.maximum.accumulate(lungs[:, ::-1], axis=1)[:, ::-1]
        assert np.median(shot.image[lungs]) < np.median(shot.image[span & ~lungs]) - 10, patient.id


@pytest.mark.parametrize("arguments", [{"number": -1}, {"size": 8}, {"severity": 1.5}])
def test_take_radiograph_refuses_what_it_cannot_do(arguments):
    with pytest.raises(CourseError, match="Expected"):
        phantom.take_radiograph(phantom.make_patient(0, seed=1), **{"number": 0, **arguments})


# ---------------------------------------------------------------- patients


@pytest.mark.parametrize("hospital", phantom.HOSPITALS)
@pytest.mark.parametrize("size", [SMALL, 128])
def test_a_hospitals_marker_lies_in_its_place(hospital, size, monkeypatch):
    patients = [phantom.make_patient(index, seed=11, hospital=hospital) for index in range(12)]
    marked = [phantom.take_radiograph(patient, 0, size=size) for patient in patients]
    stamp = phantom._stamp
    monkeypatch.setattr(phantom, "_stamp", lambda *ink: stamp(*ink) * 0)
    changed = np.zeros((size, size), bool)
    for patient, shot in zip(patients, marked):
        if shot.view == "PA":  # bedside pictures carry a text besides
            changed |= shot.image != phantom.take_radiograph(patient, 0, size=size).image
    monkeypatch.undo()
    place = phantom.marker_place(hospital, size)
    assert changed.any() and not (changed & ~place).any() and place.mean() < 0.05


def test_labels_are_balanced_in_every_prefix_and_ids_are_unique():
    patients = [phantom.make_patient(i, seed=1) for i in range(40)]
    for n in (4, 12, 40):
        assert pd.Series([p.label for p in patients[:n]]).value_counts().to_dict() == dict.fromkeys(
            phantom.LABELS, n // 4
        )
    assert len({p.id for p in patients}) == 40 and patients[3].id == "1-00003"
    assert {p.n_images for p in patients} == {1, 2, 3, 4}
    assert all(p.severity >= 0.15 for p in patients if p.label != "Normal")


def test_nothing_about_a_patient_depends_on_the_label():
    patients = pd.DataFrame([phantom.make_patient(i, seed=2)._asdict() for i in range(4000)])
    for column in ("hospital", "sex", "n_images"):
        table = pd.crosstab(patients.label, patients[column], normalize="index")
        assert (table.max() - table.min()).max() < 0.08, column
    assert patients.groupby("label").age.mean().agg(np.ptp) < 3
    assert patients.groupby("label").bedside.mean().agg(np.ptp) < 0.06
    assert (patients.age < 16).mean() == pytest.approx(0.17, abs=0.04)


def test_a_full_shortcut_ties_the_hospital_to_the_label():
    tied = pd.DataFrame([phantom.make_patient(i, seed=2, shortcut=1.0)._asdict() for i in range(80)])
    assert (tied.groupby("label").hospital.nunique() == 1).all()
    assert tied.groupby("label").hospital.first()[["Normal", "COVID-19"]].tolist() == ["A", "B"]
    only = {phantom.make_patient(i, seed=2, hospitals=("C",)).hospital for i in range(20)}
    assert only == {"C"}


def test_a_shortcut_changes_the_hospital_and_nothing_else():
    for index in range(40):
        free, tied = (phantom.make_patient(index, seed=2, shortcut=s) for s in (0.0, 1.0))
        assert free._replace(hospital=tied.hospital) == tied


@pytest.mark.parametrize(
    "arguments",
    [
        {"label": "Flu"},
        {"hospital": "D"},
        {"hospitals": ()},
        {"shortcut": 2},
        {"images": 0},
        {"seed": -1},
        {"hospitals": "AD"},
    ],
)
def test_make_patient_refuses_what_does_not_exist(arguments):
    with pytest.raises(CourseError, match="Expected"):
        phantom.make_patient(0, **{"seed": 1, **arguments})


# ---------------------------------------------------------------- anatomy and disease


def halves(mask, lungs):
    """Where a mask lies: share image-left, height (0 top, 1 bottom), distance from the middle (0..1)."""
    rows, columns = np.nonzero(mask)
    lung_rows, lung_columns = np.nonzero(lungs)
    middle = (lung_columns.min() + lung_columns.max()) / 2
    height = (rows.mean() - lung_rows.min()) / np.ptp(lung_rows)
    away = np.abs(columns - middle).mean() / np.abs(lung_columns - middle).max()
    return (columns < middle).mean(), height, away


def test_right_diaphragm_stands_higher(shots):
    lower = []
    for cases in shots.values():
        for _, shot in cases:
            bottom = SMALL - 1 - np.argmax(shot.lung_mask[::-1], axis=0)[shot.lung_mask.any(axis=0)]
            n = len(bottom)
            # A quarter of the way in from either side: the domes, clear of heart and rib angle.
            lower.append(bottom[int(0.72 * n) : int(0.85 * n)].mean() - bottom[int(0.15 * n) : int(0.28 * n)].mean())
    assert np.mean(lower) > 1


def test_lesions_lie_where_the_disease_puts_them(shots):
    where = {
        label: np.array([halves(s.lesion_mask, s.lung_mask) for _, s in shots[label]]) for label in phantom.LABELS[1:]
    }
    balance = {label: np.minimum(w[:, 0], 1 - w[:, 0]) for label, w in where.items()}
    assert (balance["COVID-19"] > 0.1).mean() > 0.8, "COVID-19 affects both lungs"
    assert (balance["Viral Pneumonia"] > 0.2).mean() > 0.8, "viral pneumonia is diffuse"
    assert (balance["Lung Opacity"] < 0.02).mean() > 0.7, "an opacity usually affects one lung"
    assert where["COVID-19"][:, 1].mean() > 0.55, "COVID-19 prefers the lower zones"
    assert where["COVID-19"][:, 2].mean() > where["Viral Pneumonia"][:, 2].mean() + 0.1, "and the periphery"


def test_bedside_pictures_show_a_larger_heart_and_a_poorer_breath():
    height = {"PA": [], "AP Supine": []}
    for index in range(60):
        shot = phantom.take_radiograph(phantom.make_patient(index, seed=9), 0, size=SMALL)
        rows, columns = np.nonzero(shot.lung_mask)
        height[shot.view].append(np.ptp(rows) / np.ptp(columns))
    assert np.mean(height["AP Supine"]) < np.mean(height["PA"]) - 0.02


def test_landmarks_lie_where_their_names_say():
    for index in range(12):
        patient = phantom.make_patient(index, seed=3, label="Normal")
        shot, at = phantom.take_radiograph(patient, 0, size=256), phantom.landmarks(patient, 0, size=256)
        lungs, middle = shot.lung_mask, at["spine"][0]
        inside = [name for name, (x, y) in at.items() if 0 <= x < 255 and 0 <= y < 255 and lungs[round(y), round(x)]]
        assert "heart" not in inside and "spine" not in inside and "trachea" not in inside
        assert at["right heart border"][0] < at["heart"][0] < at["left heart border"][0]
        assert at["trachea"][1] < at["aortic arch"][1] < at["left hilum"][1] < at["heart"][1]
        assert at["right diaphragm"][1] < at["left diaphragm"][1] + 6, "the right dome stands higher, or nearly so"
        for side in ("right", "left"):
            apex, corner = at[f"{side} apex"], at[f"{side} costophrenic angle"]
            assert (apex[0] < middle) == (corner[0] < middle) == (side == "right"), "the right lung is at the left"
            assert apex[1] < at[f"{side} hilum"][1] < corner[1] and abs(corner[0] - middle) > abs(apex[0] - middle)


def test_landmarks_take_another_size_and_leave_the_picture_alone():
    patient = phantom.make_patient(5, seed=3)
    before = phantom.take_radiograph(patient, 1, size=SMALL)
    small, large = (phantom.landmarks(patient, 1, size=size) for size in (SMALL, 2 * SMALL))
    assert all(np.allclose(2 * np.array(small[name]), large[name], atol=5) for name in small)
    assert np.array_equal(phantom.take_radiograph(patient, 1, size=SMALL).image, before.image)
    with pytest.raises(CourseError, match="Expected"):
        phantom.landmarks(patient, 0, size=8)


def test_the_heart_looks_larger_from_front_to_back():
    for index in range(6):
        share = {}
        for bedside in (0, 1):
            patient = phantom.make_patient(index, seed=3, label="Normal")._replace(bedside=bedside)
            shot, at = phantom.take_radiograph(patient, 0, size=256), phantom.landmarks(patient, 0, size=256)
            chest = np.ptp(np.flatnonzero(shot.lung_mask.any(axis=0)))
            share[shot.view] = (at["left heart border"][0] - at["right heart border"][0]) / chest
        assert share["AP Supine"] > share["PA"] + 0.02


# ---------------------------------------------------------------- the folder


def test_write_makes_what_the_table_says(tmp_path):
    table = phantom.write(tmp_path / "set", patients=5, seed=1, size=SMALL)
    assert list(table) == ["path", "label", "patient", "source", "view", "sex", "age", "lung_mask", "lesion_mask"]
    drawn = [phantom.make_patient(i, seed=1) for i in range(5)]
    assert len(table) == sum(p.n_images for p in drawn)
    pd.testing.assert_frame_equal(table, pd.read_csv(tmp_path / "set" / "metadata.csv"))
    for row, (patient, k) in zip(table.itertuples(), [(p, k) for p in drawn for k in range(p.n_images)]):
        shot = phantom.take_radiograph(patient, k, size=SMALL)
        assert (row.patient, row.source, row.view) == (patient.id, f"hospital {patient.hospital}", shot.view)
        for path, pixels in (
            (row.path, shot.image),
            (row.lung_mask, shot.lung_mask * 255),
            (row.lesion_mask, shot.lesion_mask * 255),
        ):
            stored = cv2.imread(str(tmp_path / "set" / path), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(stored, pixels)
    assert not (tmp_path / ".set.partial").exists()


def test_a_smaller_set_is_a_prefix_and_workers_change_nothing(tmp_path):
    small = phantom.write(tmp_path / "a", patients=2, seed=5, size=SMALL, workers=1)
    phantom.write(tmp_path / "b", patients=4, seed=5, size=SMALL, workers=3)
    few, many = contents(tmp_path / "a"), contents(tmp_path / "b")
    for row in small.itertuples():
        for path in (row.path, row.lung_mask, row.lesion_mask):
            assert few[path] == many[path]
    assert many["metadata.csv"].startswith(few["metadata.csv"])


def test_processes_write_what_threads_write(tmp_path, monkeypatch):
    phantom.write(tmp_path / "threads", patients=6, seed=5, size=SMALL, workers=2)
    monkeypatch.setattr(phantom, "ENOUGH_FOR_PROCESSES", 1)
    phantom.write(tmp_path / "processes", patients=6, seed=5, size=SMALL, workers=2)
    assert contents(tmp_path / "threads") == contents(tmp_path / "processes")


def test_a_killed_run_leaves_no_process_behind(tmp_path):
    code = (
        "import sys; from utils import phantom\n"
        f"phantom.write(sys.argv[1], patients=5000, seed=5, size={SMALL}, images=1, workers=2)"
    )
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "set")], cwd=ROOT)
    drawn = tmp_path / ".set.partial" / "images"
    deadline = time.monotonic() + 60
    while not (drawn.is_dir() and any(drawn.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    helpers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs(helpers, timeout=20)
    assert len(helpers) >= 2 and not alive
    assert not (tmp_path / "set").exists()
    phantom.write(tmp_path / "set", patients=2, seed=5, size=SMALL)  # the next run is not hindered
    assert not drawn.exists()


def test_a_written_set_is_only_read(tmp_path):
    first = phantom.write(tmp_path / "set", patients=2, seed=1, size=SMALL)
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "set").rglob("*")}
    second = phantom.write(tmp_path / "set", patients=2, seed=1, size=SMALL)
    pd.testing.assert_frame_equal(first, second)
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "set").rglob("*")}


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"patients": 3}, {"size": 100}, {"shortcut": 0.5}, {"images": 1}, {"hospitals": ("A",)}]
)
def test_another_recipe_is_refused(tmp_path, change):
    recipe = {"patients": 2, "seed": 1, "size": SMALL}
    phantom.write(tmp_path / "set", **recipe)
    before = contents(tmp_path / "set")
    with pytest.raises(CourseError, match="Name another folder, or delete"):
        phantom.write(tmp_path / "set", **{**recipe, **change})
    assert contents(tmp_path / "set") == before


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years of work")
    with pytest.raises(CourseError, match="not a set of phantoms"):
        phantom.write(tmp_path / "mine", patients=1, seed=1, size=SMALL)
    assert contents(tmp_path / "mine") == {"thesis.txt": b"three years of work"}
    (tmp_path / "empty").mkdir()
    assert len(phantom.write(tmp_path / "empty", patients=1, seed=1, size=SMALL)) >= 1


def writer(folder, patients):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from utils import phantom; "
        f"phantom.write({str(folder)!r}, patients={patients}, seed=6, size={SMALL}, images=1)"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path):
    run = writer(tmp_path / "set", 2000)
    images = tmp_path / ".set.partial" / "images"
    limit = time.monotonic() + 20
    while not (images.is_dir() and any(images.iterdir())):
        assert run.poll() is None and time.monotonic() < limit, run.communicate()[1].decode()
        time.sleep(0.01)
    run.kill()
    run.communicate()
    assert not (tmp_path / "set").exists()
    phantom.write(tmp_path / "set", patients=3, seed=6, size=SMALL, images=1)
    phantom.write(tmp_path / "fresh", patients=3, seed=6, size=SMALL, images=1)
    assert contents(tmp_path / "set") == contents(tmp_path / "fresh")
    assert not (tmp_path / ".set.partial").exists()


def test_two_writers_at_once_both_end_well(tmp_path):
    runs = [writer(tmp_path / "set", 8) for _ in range(2)]
    errors = [run.communicate()[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], errors
    assert len(list((tmp_path / "set" / "images").iterdir())) == 8
    assert json.loads((tmp_path / "set" / "recipe.json").read_text())["version"] == phantom.VERSION
