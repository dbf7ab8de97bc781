"""DATASET=all: every known set found by its content, the same picture counted once, external sets never trained on."""

import csv

import numpy as np
import pandas as pd
import pytest
from bad_input import picture
from PIL import Image

from conftest import SHARED
from utils import config, download, sources
from utils.errors import CourseError
from utils.sources import _fetch, darkcovidnet

real = pytest.mark.skipif(not SHARED.is_dir(), reason="the copies of the real sets are not on this computer")
HEADER = "patientid,offset,sex,age,finding,view,modality,folder,filename,notes"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keep every test away from a user's own data folders."""
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)


def save(root, pictures):
    for path, pixels in pictures.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)


def table(root, header, rows, **options):
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "metadata.csv", "w", newline="", **{"encoding": "utf-8", **options}) as file:
        writer = csv.writer(file)
        writer.writerow(header.split(","))
        writer.writerows(rows)


def make_raw(raw, *, external=False):
    """Five sets in folders whose names say nothing, with twins between them; picture numbers tell what is the same."""
    collection = raw / "a" / "b"
    names = {"one.png": 1, "two.png": 2, "three.png": 3, "lateral.png": 4, "own.png": 5, "open.png": 6}
    save(collection / "images", {name: picture(number) for name, number in names.items()})
    rows = [(k, "", "M", 60, "todo" if name == "open.png" else "COVID-19", "L" if name == "lateral.png" else "PA",
             "X-ray", "images", name, "") for k, name in enumerate(names)]  # fmt: skip
    table(collection, HEADER, rows)
    covid = {"one.png": picture(1)[6:, 4:], "renamed.png": picture(2), "new.png": picture(20)}
    dark = {f"Covid-19/{name}": pixels for name, pixels in covid.items()}
    dark |= {f"No_findings/{k:08d}_000.png": picture(k) for k in (30, 31, 32)}
    dark |= {f"Pneumonia/{k:08d}_000.png": picture(k) for k in (40, 41, 42)}
    save(raw / "c", dark)
    children = {f"train/NORMAL/IM-{k:04d}-0001.jpeg": picture(k) for k in (50, 51, 52)}
    children |= {f"test/NORMAL/IM-{k:04d}-0001.jpeg": picture(k) for k in (53,)}
    children |= {f"{part}/PNEUMONIA/person{k}_virus_1.jpeg": picture(k) for part, k in (("train", 60), ("test", 61))}
    save(raw / "d", children)
    # COVID/3 is three.png, COVID/4 the lateral that is filtered out there; Normal/40 a pneumonia of the other set.
    radiography = {f"COVID/images/COVID-{k}.png": picture(k) for k in (3, 4, 6, 70)}
    radiography |= {f"Normal/images/Normal-{k}.png": picture(k) for k in (30, 40, 50, 71)}
    radiography |= {f"Viral Pneumonia/images/Viral Pneumonia-{k}.png": picture(k) for k in (60, 72)}
    save(raw / "e", radiography)
    if external:
        save(raw / "f" / "images", {"x1.png": picture(1), "x2.png": picture(90), "x3.png": picture(91)})
        header = ("patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,imagename,"
                  "artifacts/distortion,notes")  # fmt: skip
        rows = [(k, "", "", "", finding, "", "", "", "PA", "X-ray", f"x{k}.png", "", "")
                for k, finding in ((1, "COVID-19"), (2, "COVID-19"), (3, "No finding"))]  # fmt: skip
        table(raw / "f", header, rows)
    return raw


def load(raw, profile="full"):
    return sources.load(config.start("all", profile, str(raw)))


def test_the_same_picture_counts_once_and_stays_where_it_comes_from(tmp_path):
    data = load(make_raw(tmp_path / "raw"))
    left = {path.rsplit("/", 1)[-1] for path in data.manifest.path}
    gone = {row.path.rsplit("/", 1)[-1]: row.reason for row in data.skipped.itertuples()}
    assert {"one.png", "two.png", "three.png", "own.png", "new.png"} <= left
    assert set(gone) == {"one.png", "renamed.png", "lateral.png", "open.png", "COVID-3.png", "COVID-4.png", "Normal-30.png",
                         "Normal-40.png", "Normal-50.png", "Viral Pneumonia-60.png"}  # fmt: skip
    assert gone["COVID-3.png"].endswith("three.png (pixels)") and gone["one.png"].endswith("one.png (file name)")
    assert gone["COVID-4.png"].endswith("lateral.png (pixels)"), "known there to be no frontal view"
    assert "COVID-6.png" in left, "its twin has no label there: nobody contradicts this one"
    assert len(data.skipped) == data.steps.dropped.sum() and data.steps.left.iloc[-1] == len(data.manifest)
    assert data.steps.set_index("step").dropped["twins across sets"] == 8


def test_all_pairs_are_reported_with_their_labels(tmp_path):
    twins = load(make_raw(tmp_path / "raw")).twins
    pairs = twins.groupby(["set_first", "set_second", "by"]).size().to_dict()
    assert pairs == {("ieee8023", "darkcovidnet", "pixels"): 1, ("ieee8023", "darkcovidnet", "file name"): 1,
                     ("ieee8023", "radiography", "pixels"): 3, ("kermany", "radiography", "pixels"): 2,
                     ("darkcovidnet", "radiography", "pixels"): 2}  # fmt: skip
    quarrel = twins[twins.label_first.notna() & (twins.label_first != twins.label_second)]
    assert quarrel[["label_first", "label_second"]].to_numpy().tolist() == [["Pneumonia", "Normal"]]


def test_external_sets_are_read_and_never_trained_on(tmp_path):
    data = load(make_raw(tmp_path / "raw", external=True))
    assert set(data.external.source) == {"actualmed"} and "actualmed" not in set(data.manifest.source)
    assert sorted(data.external.label) == ["COVID-19", "Normal"], "its twin of one.png is dropped"
    assert not set(data.external.sha256) & set(data.manifest.sha256)
    assert tuple(data.external.columns) == sources.COLUMNS == tuple(data.manifest.columns)
    assert data.steps.set_index("step").dropped["external sets"] == 2
    assert set(data.skipped.reason[data.skipped.reason.str.startswith("external")]) == {"external set actualmed"}


def test_an_external_set_alone_is_nothing_to_train_on(tmp_path):
    raw = make_raw(tmp_path / "raw", external=True)
    (raw / "f").rename(tmp_path / "alone")
    with pytest.raises(CourseError, match="none of the known sets .*ieee8023, kermany, darkcovidnet, radiography"):
        load(tmp_path / "alone")


def test_the_download_folder_is_searched_without_raw(tmp_path, monkeypatch):
    make_raw(tmp_path / "work" / "raw" / "cohen")
    assert len(sources.load(config.start("all", "full")).sources) == 4
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path / "class"))
    make_raw(tmp_path / "class")
    assert tmp_path / "class" == sources.load(config.start("all", "full")).root


def test_the_fast_profile_draws_after_the_twins_are_gone(tmp_path, monkeypatch):
    monkeypatch.setitem(config.PROFILES, "fast", config.PROFILES["fast"]._replace(images_per_label=2))
    raw = make_raw(tmp_path / "raw")
    full, fast = load(raw), load(raw, "fast")
    assert fast.twins.equals(full.twins) and fast.manifest.label.value_counts().max() == 2
    assert set(fast.manifest.path) < set(full.manifest.path)


# ---------------------------------------------------------------- the real sets


@real
def test_real_twins_are_those_of_the_data_notes():
    data = load(SHARED)
    pixels = data.twins[data.twins["by"] == "pixels"]
    assert pixels.groupby(["set_first", "set_second"]).size().to_dict() == {
        ("ieee8023", "ieee8023"): 10, ("kermany", "kermany"): 6, ("darkcovidnet", "darkcovidnet"): 1,
        ("ieee8023", "darkcovidnet"): 62, ("ieee8023", "radiography"): 40, ("kermany", "radiography"): 36,
        ("darkcovidnet", "radiography"): 9}  # fmt: skip
    opposite = pixels[(pixels.set_first == "darkcovidnet") & (pixels.set_second == "radiography")]
    assert (opposite.label_first != opposite.label_second).sum() == 2
    assert not data.manifest.path.duplicated().any() and len(data.external) == 0


@real
def test_real_download_of_the_fast_profile_is_small_and_the_same_images():
    run = config.start("darkcovidnet", "fast")
    pins = download.read_pins(_fetch.PINS / "darkcovidnet.csv")
    paths = darkcovidnet.wanted(run, pins.files)
    sizes = [pins.files[path].size for path in paths]
    assert sum(size or 5_000_000 for size in sizes) < 100_000_000
    here = [path for path in pins.files if (SHARED / "darkcovidnet" / path).is_file()]  # one original is not
    from_disk = sources.load(config.start("darkcovidnet", "fast", str(SHARED))).manifest.path
    fetched = [path.removeprefix(f"{darkcovidnet.SOURCE.top}/") for path in darkcovidnet.wanted(run, here)]
    assert sorted(fetched) == list(from_disk)
    assert len(darkcovidnet.wanted(config.start("darkcovidnet", "full"), pins.files)) == 1125


def test_pins_are_whole():
    for name, count in (("darkcovidnet", 1125), ("ieee8023", 948), ("actualmed", 239), ("figure1", 56)):
        pins = download.read_pins(_fetch.PINS / f"{name}.csv")
        assert len(pins.files) == count and len(pins.commit) == 40, name
        assert pd.Series([pin.blob for pin in pins.files.values()]).str.fullmatch("[0-9a-f]{40}").all()
        assert np.mean([pin.size is None for pin in pins.files.values()]) < 0.9
