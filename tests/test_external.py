"""The external sets, Actualmed and Figure 1: made here as they are published, with every oddity of their tables."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bad_files import make_table_set
from PIL import Image

from utils import config
from utils.errors import CourseError
from utils.sources import actualmed, figure1, ieee8023

MODULES = {"ieee8023": ieee8023, "actualmed": actualmed, "figure1": figure1}
PINS = Path(ieee8023.__file__).with_name("pins")
HEADERS = {
    "actualmed": "patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,imagename,"
    "artifacts/distortion,notes",
    "figure1": "patientid,offset,sex,age,finding,survival,temperature,pO2 saturation,view,modality,"
    "artifacts/distortion,notes",
}
# patientid, finding, view, modality, imagename
ACTUALMED = [
    ("ANON1", "COVID-19", "PA", "X-ray", "CR.1.2.840.png"),
    ("ANON1", "No finding", "AP", "X-ray", "CR.1.2.841.png"),
    ("ANON2", "Pneumonia", "PA", "X-Ray", "DX.1.png"),
    ("ANON3", "", "PA", "X-ray", "inconclusive.png"),
    ("ANON4", "COVID-19", "L", "X-ray", "lateral.png"),
    ("ANON5", "COVID-19", "", "X-ray", "blank.png"),
    ("ANON6", "COVID-19", "PA", "CT", "ct.png"),
    ("ANON7", "COVID-19", "PA", "X-ray", "gone.png"),
    ("ANON8", "COVID-19", "PA", "X-ray", "empty.png"),
    ("ANON9", "Martian flu", "PA", "X-ray", "martian.png"),
    ("ANON10", "COVID-19", "PA", "X-ray", "twice.png"),
    ("ANON11", "COVID-19", "PA", "X-ray", "twice.png"),
    ("ANON12", "COVID-19", "PA", "X-ray", "quarrel.png"),
    ("ANON12", "No finding", "PA", "X-ray", "quarrel.png"),
]
# patientid, age, finding, view, modality, and the ending of the image
FIGURE1 = [
    ("COVID-00001", "33", "COVID-19", "AP erect", "X-ray", ".jpg"),
    ("COVID-00003a", "28", "COVID-19", "PA", "X-ray", ".jpg"),
    ("COVID-00003b", "28", "COVID-19", "", "X-ray", ".JPG"),
    ("COVID-00015a", "67+", "No finding", "", "X-ray", ".png"),
    ("COVID-00031", "early 40s", "Pneumonia", "AP", "X-Ray", ".jpg"),
    ("COVID-00007", "73", "", "", "X-ray", ".jpg"),
    ("COVID-00008", "47", "COVID-19", "L", "X-ray", ".jpg"),
    ("COVID-00009", "", "COVID-19", "Axial", "CT", ".jpg"),
    ("COVID-00010", "50+", "COVID-19", "AP", "X-ray", ""),
    ("COVID-00011", "35", "Martian flu", "PA", "X-ray", ".png"),
]


def write_images(root, names):
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        pixels = np.full((6, 6), number, np.uint8)
        Image.fromarray(pixels).save(root / "images" / name)


def write_table(root, name, rows, *, encoding, end):
    columns = HEADERS[name].split(",")
    text = io.StringIO()
    csv.writer(text, lineterminator=end).writerows([columns, *([row.get(key, "") for key in columns] for row in rows)])
    (root / "metadata.csv").write_bytes(text.getvalue().encode(encoding))


def make_actualmed(root, rows=ACTUALMED):
    keys = ("patientid", "finding", "view", "modality", "imagename")
    write_images(root, {row[-1] for row in rows if row[-1] != "gone.png"} | {"orphan.png"})
    (root / "images" / "empty.png").write_bytes(b"")
    rows = [dict(zip(keys, row), notes="Inconclusive, date taken (YYYYMMDD): 20200313") for row in rows]
    write_table(root, "actualmed", rows, encoding="utf-8", end="\r\n")
    return root


def make_figure1(root, rows=FIGURE1):
    keys = ("patientid", "age", "finding", "view", "modality")
    write_images(root, [row[0] + row[-1] for row in rows if row[-1]] + ["COVID-00001.png"])
    rows = [dict(zip(keys, row), sex="F", notes='Fièvre 38° + toux, "grave"') for row in rows]
    write_table(root, "figure1", rows, encoding="latin-1", end="\n")
    return root


def make_ieee8023(root):
    root.mkdir()
    make_table_set(root)
    return root


def dropped(selection):
    steps, skipped = selection.records()
    assert len(skipped) == steps.dropped.sum() and steps.left.iloc[-1] == len(selection.rows)
    return {row.step: row.dropped for row in steps.itertuples() if row.dropped}


def test_actualmed(tmp_path):
    selection = actualmed.select(make_actualmed(tmp_path))
    assert dropped(selection) == {
        "files without a row": 1,
        "no X-ray": 1,
        "rows without a file": 1,
        "files that hold no image": 1,
        "view unknown": 1,
        "other views": 1,
        "finding not filled in": 1,
        "no label fits": 1,
        "rows that contradict each other": 2,
        "second rows of a file": 1,
    }
    rows = selection.manifest().set_index("path")
    assert rows.label.to_dict() == {
        "images/CR.1.2.840.png": "COVID-19",
        "images/CR.1.2.841.png": "Normal",
        "images/DX.1.png": "Pneumonia",
        "images/twice.png": "COVID-19",
    }
    assert list(rows.patient) == ["actualmed/ANON1", "actualmed/ANON1", "actualmed/ANON2", "actualmed/ANON10+ANON11"]
    assert set(rows.source) == {"actualmed"} and list(rows["view"]) == ["PA", "AP", "PA", "PA"]
    assert rows[["sex", "age", "lung_mask", "lesion_mask"]].isna().all(axis=None)


def test_figure1(tmp_path):
    selection = figure1.select(make_figure1(tmp_path))
    assert dropped(selection) == {
        "files without a row": 1,
        "no X-ray": 1,
        "rows without a file": 1,
        "other views": 1,
        "finding not filled in": 1,
        "no label fits": 1,
    }
    skipped = dict(selection.records()[1].itertuples(index=False))
    assert skipped["images/COVID-00001.png"] == "no row in metadata.csv", "a row has one image"
    assert skipped["images/COVID-00010.jpg or .png"] == "in metadata.csv, but no such file"
    rows = selection.manifest().set_index("path")
    assert rows.label.to_dict() == {
        "images/COVID-00001.jpg": "COVID-19",
        "images/COVID-00003a.jpg": "COVID-19",
        "images/COVID-00003b.JPG": "COVID-19",
        "images/COVID-00015a.png": "Normal",
        "images/COVID-00031.jpg": "Pneumonia",
    }
    assert list(rows.patient) == [f"figure1/COVID-{number}" for number in ("00001", "00003", "00003", "00015", "00031")]
    assert set(rows.source) == {"figure1"} and set(rows.sex) == {"F"}
    assert rows["view"].fillna("").to_list() == ["AP", "PA", "", "", "AP"], "the table names hardly any view"
    assert rows.age.fillna(0).to_list() == [33, 28, 28, 0, 0]


@pytest.mark.parametrize("name, make", [("actualmed", make_actualmed), ("figure1", make_figure1)])
def test_views_can_be_chosen(tmp_path, name, make):
    rows = MODULES[name].select(make(tmp_path), views=("PA",)).manifest()
    assert set(rows["view"].dropna()) == {"PA"}


CHANGES = {
    "as published": lambda data: data,
    "BOM": lambda data: b"\xef\xbb\xbf" + data.decode("latin-1").encode(),
    "CRLF": lambda data: re.sub(b"\r?\n", b"\r\n", data),
    "latin-1 in the header": lambda data: data.replace(b"notes", b"r\xe9marques", 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_each_module_recognises_its_own_set_alone(tmp_path, change):
    roots = {
        "ieee8023": make_ieee8023(tmp_path / "a"),
        "actualmed": make_actualmed(tmp_path / "b"),
        "figure1": make_figure1(tmp_path / "c"),
    }
    for root in roots.values():
        table = root / "metadata.csv"
        table.write_bytes(CHANGES[change](table.read_bytes()))
    for name, module in MODULES.items():
        assert [known for known, root in roots.items() if module.is_root(root)] == [name]
        assert module.find(config.Run(name, "fast", tmp_path, 7)) == roots[name]
        assert len(module.select(roots[name]).manifest()) in (3, 4, 5)
        (roots[name] / "images").rename(tmp_path / name)
        assert not module.is_root(roots[name])


@pytest.mark.parametrize("name, other", [("actualmed", make_figure1), ("figure1", make_actualmed)])
def test_what_is_looked_for_is_said(tmp_path, name, other):
    other(tmp_path / "other")
    run = config.Run(name, "fast", tmp_path, 7)
    with pytest.raises(CourseError, match=f"metadata.csv that has the column.*{MODULES[name].SOURCE.address}"):
        MODULES[name].find(run)
    assert MODULES[name].find(run, required=False) is None


@pytest.mark.parametrize("name, make", [("actualmed", make_actualmed), ("figure1", make_figure1)])
def test_a_missing_column_is_named(tmp_path, name, make):
    table = make(tmp_path) / "metadata.csv"
    table.write_bytes(table.read_bytes().replace(b",modality,", b",kind,", 1))
    words = "lacks modality: expected the columns finding, .*; it has patientid, offset, .*Take it from "
    with pytest.raises(CourseError, match=words + MODULES[name].SOURCE.address):
        MODULES[name].select(tmp_path)


@pytest.mark.parametrize("damage", [b"," * 99, b'ANON99,,"never closed'])
@pytest.mark.parametrize("name, make", [("actualmed", make_actualmed), ("figure1", make_figure1)])
def test_a_damaged_table_is_refused(tmp_path, name, make, damage):
    with open(make(tmp_path) / "metadata.csv", "ab") as file:
        file.write(damage)
    with pytest.raises(CourseError, match=f"metadata.csv is damaged.*{MODULES[name].SOURCE.address}"):
        MODULES[name].select(tmp_path)


@pytest.mark.skipif(not PINS.is_dir(), reason="needs the lists of the original repositories' files")
@pytest.mark.parametrize("name, images, patients", [("actualmed", 238, 238), ("figure1", 55, 48)])
def test_every_published_image_finds_its_row(tmp_path, name, images, patients):
    paths = pd.read_csv(PINS / f"{name}.csv", comment="#").path
    files = [Path(path) for path in paths if path != "metadata.csv"]
    write_images(tmp_path, [path.name for path in files])
    common = {"finding": "COVID-19", "view": "PA", "modality": "X-ray"}
    rows = [dict(patientid=path.stem, imagename=path.name, **common) for path in files]
    write_table(tmp_path, name, rows, encoding="utf-8", end="\n")
    selection = MODULES[name].select(tmp_path)
    assert dropped(selection) == {} and len(selection.rows) == images
    assert selection.rows.patient.nunique() == patients


def test_external_sets_say_what_is_known():
    for module in (actualmed, figure1):
        assert all(module.SOURCE[:5]) and all(text.endswith(".") for text in module.SOURCE.problems)
        assert "An external set: the course never trains on it" in module.__doc__
