"""The readers of data sets: small sets made here in every published layout, and the real ones if there."""

import csv
import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bad_files import dicom
from bad_input import picture
from PIL import Image

from conftest import SHARED
from utils import config, download, phantom, sources
from utils.errors import CourseError
from utils.sources import darkcovidnet, folder, ieee8023

NESTINGS = (".", "download", "Downloads/archive (1)/COVID-19-master")
COLUMNS_OF_2020 = """patientid offset sex age finding survival intubated intubation_present went_icu in_icu
    needed_supplemental_O2 extubated temperature pO2_saturation leukocyte_count neutrophil_count
    lymphocyte_count view modality date location folder filename doi url license clinical_notes
    other_notes""".split()

real = pytest.mark.skipif(not SHARED.is_dir(), reason="the copies of the real sets are not on this computer")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keep every test away from a user's own data folders."""
    monkeypatch.setenv("CXR_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.delenv("CXR_DATA_DIR", raising=False)


def image(path, *, form=None):
    """Write a small grey image that differs from file name to file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format=form)
    return path


def images(root, *names):
    for name in names:
        image(root / name)
    return root


def load(dataset, raw="", profile="full"):
    loaded = sources.load(config.start(str(dataset), profile, str(raw)))
    whole(loaded)
    return loaded


def whole(loaded):
    """Check what holds for every set: nothing lost, nothing that is not there."""
    manifest, steps = loaded.manifest, loaded.steps
    assert tuple(manifest.columns) == sources.COLUMNS
    assert list(manifest.path) == sorted(manifest.path) and not manifest.path.duplicated().any()
    assert isinstance(manifest.index, pd.RangeIndex)
    dtypes = {**dict.fromkeys(sources.COLUMNS, "str"), "age": "float64"}
    assert manifest.dtypes.astype("str").to_dict() == dtypes
    assert len(loaded.skipped) == steps.dropped.sum() and loaded.skipped.notna().all(axis=None)
    assert list(steps.left) == list(steps.left[0] - steps.dropped.cumsum())
    assert steps.left.iloc[-1] == len(manifest)
    for column in ("path", "lung_mask", "lesion_mask"):
        assert all((loaded.root / path).is_file() for path in manifest[column].dropna())
    assert manifest.sha256[0] == hashlib.sha256((loaded.root / manifest.path[0]).read_bytes()).hexdigest()
    assert set(manifest["view"].dropna()) <= {"PA", "AP", "AP Supine", "L"}


def dropped(loaded):
    return {row.step: row.dropped for row in loaded.steps.itertuples() if row.dropped}


def reasons(loaded):
    return dict(zip(loaded.skipped.path, loaded.skipped.reason))


# ---------------------------------------------------------------- small copies of the published layouts


def make_darkcovidnet(root):
    return images(
        root / "X-Ray Image DataSet",
        "Covid-19/01E392EE-69F9-4E33-BFCE-E5C968654078.jpeg",
        "Covid-19/never seen.jpg",
        "No_findings/00001697_000.png",
        "No_findings/00001697_001.png",
        "Pneumonia/00001697_002.png",
        "Pneumonia/00000032_012.png",
    )


def make_kermany(root):
    return images(
        root / "chest_xray",
        "train/NORMAL/IM-0640-0001-0002.jpeg",
        "train/NORMAL/IM-0115-0001.jpeg",
        "train/PNEUMONIA/person90_bacteria_443.jpeg",
        "train/PNEUMONIA/person90_virus_169.jpeg",
        "test/NORMAL/NORMAL2-IM-0640-0001.jpeg",
        "test/PNEUMONIA/person90_bacteria_442.jpeg",
        "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
        "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    )


def make_ieee8023(root, rows, *, new=False, files=None):
    """rows: (patientid, sex, age, finding, view, modality, filename)."""
    header, end = COLUMNS_OF_2020, [""]  # the older table ends every line with a comma
    if new:
        header, end = header[:5] + ["RT_PCR_positive"] + header[5:], []
    lines = [header + end]
    for patient, sex, age, finding, view, modality, name in rows:
        known = dict(
            patientid=patient,
            sex=sex,
            age=age,
            finding=finding,
            view=view,
            modality=modality,
            filename=name,
            folder="images",
            location="Hanoi, Vietnam",
        )
        lines.append([known.get(column, "") for column in header] + end)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return images(root, *(f"images/{name}" for name in dict.fromkeys(files or [row[-1] for row in rows])))


ROWS = [
    (2, "M", 65, "COVID-19", "PA", "X-ray", "a.b.jpeg"),
    (2, "M", 65, "COVID-19, ARDS", "AP Supine", "X-ray", "c, d.PNG"),
    (3, "", "", "SARS", "AP", "X-ray", "e.png"),
    (4, "F", 30, "No Finding", "PA", "X-ray", "f.png"),
    (5, "F", 30, "COVID-19", "L", "X-ray", "lateral.png"),
    (5, "F", 30, "COVID-19", "?", "X-ray", "question.png"),
    (6, "F", 30, "COVID-19", "Axial", "CT", "ct.png"),
    (7, "F", 30, "todo", "PA", "X-ray", "todo.png"),
    (8, "F", 30, "ARDS", "PA", "X-ray", "ards.png"),
    (285, "F", 64, "Pneumonia", "PA", "X-ray", "twice.jpg"),
    (285, "F", 64, "Pneumonia", "PA", "X-ray", "other.jpg"),
    (39, "F", 64, "Pneumonia", "PA", "X-ray", "twice.jpg"),
    (10, "M", 50, "Legionella", "PA", "X-ray", "quarrel.jpg"),
    (11, "M", 50, "SARS", "PA", "X-ray", "quarrel.jpg"),
    (12, "M", 50, "Martian flu", "PA", "X-ray", "martian.png"),
]


def make_cohen(root, **options):
    make_ieee8023(root / "covid-chestxray-dataset-master", ROWS, **options)
    make_kermany(root / "kaggle")
    return root


def make_radiography(root, *, four=False, old=False):
    classes = ["COVID-19" if old else "COVID", "NORMAL" if old else "Normal", "Viral Pneumonia"]
    for name in classes + ["Lung_Opacity"] * four:
        inner = root / name if old else root / name / "images"
        images(inner, f"{name}-1.png", f"{name}-2.png")
        (root / f"{name}.metadata.xlsx").write_bytes(b"PK\x03\x04")
        if four:
            image(root / name / "masks" / f"{name}-1.png")
    return root


MAKERS = {"darkcovidnet": (make_darkcovidnet, 6), "cohen": (make_cohen, 14), "radiography": (make_radiography, 6)}


# ---------------------------------------------------------------- finding the folder


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("dataset", MAKERS)
def test_found_at_any_nesting(tmp_path, dataset, nesting):
    maker, count = MAKERS[dataset]
    maker(tmp_path / "raw" / nesting)
    image(tmp_path / "raw" / "holiday.jpg")
    sources.fetch(config.start(dataset, "full", str(tmp_path / "raw")))
    assert len(load(dataset, tmp_path / "raw").manifest) == count


@pytest.mark.parametrize("dataset", MAKERS)
def test_default_places(tmp_path, monkeypatch, dataset):
    monkeypatch.setattr(download, "LIMITS", download.Limits(tries=1))
    said = []
    with pytest.raises(CourseError, match="(?s)cannot be downloaded.*reached|cannot be downloaded.*Kaggle") as error:
        sources.fetch(config.start(dataset, "full"), say=said.append)
    assert said and all(re.search(r"downloading (\d+ files, )?(about|at least) \d", text) for text in said)
    assert str(tmp_path / "work" / "raw" / dataset) in str(error.value) and "RAW=" in str(error.value)
    assert "https://" in str(error.value)
    maker, count = MAKERS[dataset]
    maker(tmp_path / "work" / "raw" / dataset / "by hand")
    assert len(load(dataset).manifest) == count
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path / "shared"))
    maker(tmp_path / "shared" / dataset)
    assert tmp_path / "shared" in load(dataset).root.parents


@pytest.mark.parametrize("dataset", MAKERS)
def test_wrong_layout_says_what_is_there(tmp_path, dataset):
    images(tmp_path / "raw", "pictures/a.png", "b.png")
    run = config.start(dataset, "full", str(tmp_path / "raw"))
    for function in (sources.fetch, sources.load):
        with pytest.raises(CourseError) as error:
            function(run)
        for words in ("not found", "Looked for a folder", "1 folder (pictures/)", "1 file (b.png)", "RAW"):
            assert words in str(error.value)


def test_a_missing_class_folder_is_a_wrong_layout(tmp_path):
    shutil.rmtree(make_darkcovidnet(tmp_path) / "Pneumonia")
    with pytest.raises(CourseError, match="Covid-19, No_findings, Pneumonia.*DataSet/No_findings/"):
        sources.fetch(config.start("darkcovidnet", raw=str(tmp_path)))


def test_cohen_names_the_set_that_is_missing(tmp_path):
    make_ieee8023(tmp_path / "one", ROWS)
    with pytest.raises(CourseError, match="Kermany"):
        sources.fetch(config.start("cohen", raw=str(tmp_path)))


def test_two_copies_are_refused_and_a_copy_inside_is_not(tmp_path):
    outer = make_kermany(make_cohen(tmp_path / "raw") / "kaggle")
    shutil.copytree(outer, tmp_path / "copy")
    shutil.move(tmp_path / "copy", outer / "chest_xray")
    shutil.copytree(outer, outer / "__MACOSX" / "chest_xray")
    assert load("cohen", tmp_path / "raw").manifest.source.value_counts()["kermany"] == 8
    make_kermany(tmp_path / "raw" / "again")
    with pytest.raises(CourseError, match="2 times.*kaggle.*again|2 times.*again.*kaggle"):
        load("cohen", tmp_path / "raw")


def test_links_are_followed_and_loops_end(tmp_path):
    make_darkcovidnet(tmp_path / "elsewhere")
    raw = tmp_path / "raw"
    raw.mkdir()
    try:
        (raw / "set").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
        (raw / "loop").symlink_to(raw, target_is_directory=True)
    except OSError:
        pytest.skip("this system lets users make no symbolic links")
    assert len(load("darkcovidnet", raw).manifest) == 6


# ---------------------------------------------------------------- files that are no images


def test_what_is_no_image_is_listed(tmp_path):
    root = make_darkcovidnet(tmp_path)
    junk = {
        "empty.png": b"",
        "page.jpg": b"<html>404</html>",
        "list.csv": b"a,b\n",
        "BMI.txt": b"BMI of patients",
        ".DS_Store": b"\0\0",
        "._00000032_012.png": b"\0\5\x16\7",
        "Thumbs.db": b"\xd0\xcf",
        "sheet.xlsx": b"PK\x03\x04..",
        "noise.png": b"\0\1\2\3",
        "paper.pdf": b"%PDF-1.5",
    }
    for name, content in junk.items():
        (root / "Pneumonia" / name).write_bytes(content)
    image(root / "Pneumonia" / ".ipynb_checkpoints" / "00000032_012-checkpoint.png")
    loaded = load("darkcovidnet", tmp_path)
    found = {path.removeprefix("Pneumonia/"): reason for path, reason in reasons(loaded).items()}
    assert found == {
        "empty.png": "empty file",
        "page.jpg": "not an image (HTML page)",
        "list.csv": "not an image (text)",
        "BMI.txt": "not an image (text)",
        "sheet.xlsx": "not an image (zip archive or Office file)",
        "noise.png": "not an image (unknown kind of file)",
        "paper.pdf": "not an image (PDF)",
        **dict.fromkeys((".DS_Store", "._00000032_012.png", "Thumbs.db"), "hidden file of the operating system"),
    }
    assert len(loaded.manifest) == 6


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "DICOM"])
def test_the_content_counts_not_the_name(tmp_path, form):
    root = make_darkcovidnet(tmp_path)
    if form == "DICOM":
        (root / "Pneumonia" / "00000001_000.dat").write_bytes(dicom(picture(1)))
    else:
        image(root / "Pneumonia" / "00000001_000.dat", form=form)
    assert len(load("darkcovidnet", tmp_path).manifest) == 7


def test_files_that_the_course_cannot_use_say_why(tmp_path):
    root = make_darkcovidnet(tmp_path)
    (root / "Pneumonia" / "00000002_000").write_bytes(b"\0\0\0\x1cftypheic" + bytes(9))
    name = os.fsdecode(b"R\xf6ntgen.png")
    try:
        shutil.copy(next((root / "Pneumonia").glob("*.png")), root / "Pneumonia" / name)
    except OSError:
        pytest.skip("this system writes no such names")
    found = reasons(load("darkcovidnet", tmp_path))
    assert "HEIC: convert it to PNG" in found["Pneumonia/00000002_000"]
    assert found[f"Pneumonia/{name}"] == "its name is not UTF-8 text: rename it"


def test_a_file_that_cannot_be_opened_is_listed(tmp_path):
    root = make_darkcovidnet(tmp_path)
    try:
        (root / "Pneumonia" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("this system lets users make no symbolic links")
    assert "cannot be read" in reasons(load("darkcovidnet", tmp_path))["Pneumonia/gone.png"]


@pytest.mark.parametrize("left", [{}, {"a.png": b"", "notes.txt": b"to do"}])
def test_a_class_without_images_is_refused_by_name(tmp_path, left):
    root = make_darkcovidnet(tmp_path)
    shutil.rmtree(root / "No_findings")
    (root / "No_findings").mkdir()
    for name, content in left.items():
        (root / "No_findings" / name).write_bytes(content)
    with pytest.raises(CourseError, match=f"No_findings holds no image.*{len(left)} other files"):
        load("darkcovidnet", tmp_path)


# ---------------------------------------------------------------- what each set tells


def test_darkcovidnet_patients_and_the_shipped_table(tmp_path):
    make_darkcovidnet(tmp_path)
    manifest = load("darkcovidnet", tmp_path).manifest.set_index("path")
    known = manifest.loc["Covid-19/01E392EE-69F9-4E33-BFCE-E5C968654078.jpeg"]
    assert tuple(known[["label", "patient", "source", "view", "sex", "age"]]) == (
        "COVID-19",
        "ieee8023/46",
        "ieee8023",
        "PA",
        "F",
        55.0,
    )
    unknown = manifest.loc["Covid-19/never seen.jpg"]
    assert unknown[["patient", "view", "sex", "age"]].isna().all() and unknown.label == "COVID-19"
    nih = manifest[manifest.source == "nih"]
    assert list(nih.patient) == ["nih/00001697"] * 2 + ["nih/00000032", "nih/00001697"]
    assert list(nih.label) == ["Normal"] * 2 + ["Pneumonia"] * 2 and nih["view"].isna().all()


def test_darkcovidnet_leaves_laterals_out(tmp_path, monkeypatch):
    make_darkcovidnet(tmp_path)
    (tmp_path / "table.csv").write_text("filename,patient,view,sex,age\nnever seen.jpg,ieee8023/1,L,,\n")
    monkeypatch.setattr(darkcovidnet, "TABLE", tmp_path / "table.csv")
    assert reasons(load("darkcovidnet", tmp_path)) == {"Covid-19/never seen.jpg": "view L"}


@pytest.mark.parametrize("new", [False, True], ids=["28 columns", "29 columns"])
def test_ieee8023_steps(tmp_path, new):
    files = [row[-1] for row in ROWS if row[-1] != "f.png"] + ["orphan.png"]
    make_cohen(tmp_path, new=new, files=files)
    (tmp_path / "covid-chestxray-dataset-master" / "images" / "e.png").write_bytes(b"")
    loaded = load("cohen", tmp_path)
    assert dropped(loaded) == {
        "ieee8023: files without a row": 1,
        "ieee8023: no X-ray": 1,
        "ieee8023: rows without a file": 1,
        "ieee8023: files that hold no image": 1,
        "ieee8023: view unknown": 1,
        "ieee8023: other views": 1,
        "ieee8023: finding not filled in": 1,
        "ieee8023: no label fits": 2,
        "ieee8023: rows that contradict each other": 2,
        "ieee8023: second rows of a file": 1,
    }
    why = {Path(path).name: reason for path, reason in reasons(loaded).items()}
    assert why["martian.png"] == "finding Martian flu" and why["ct.png"] == "modality CT"
    assert why["f.png"] == "in metadata.csv, but no such file" and why["question.png"] == "view unknown"
    ours = loaded.manifest[loaded.manifest.source == "ieee8023"]
    assert {Path(path).name for path in ours.path} == {"a.b.jpeg", "c, d.PNG", "twice.jpg", "other.jpg"}
    assert set(ours.patient) == {"ieee8023/2", "ieee8023/39+285"}, "who shares a file becomes one patient"


def test_ieee8023_metadata_masks_and_views(tmp_path):
    root = make_ieee8023(tmp_path, ROWS)
    images(root, "annotations/lungVAE-masks/a.b_mask.png", "annotations/lungVAE-masks/c, d_mask.png.png")
    selection = ieee8023.select(root)
    rows = selection.manifest().set_index("path")
    assert rows.lung_mask.dropna().to_dict() == {
        "images/a.b.jpeg": "annotations/lungVAE-masks/a.b_mask.png",
        "images/c, d.PNG": "annotations/lungVAE-masks/c, d_mask.png.png",
    }
    assert tuple(rows.loc["images/a.b.jpeg", ["sex", "age", "view"]]) == ("M", 65.0, "PA")
    assert rows.loc["images/e.png", ["sex", "age"]].isna().all()
    assert set(ieee8023.select(root, views=("PA",)).manifest()["view"]) == {"PA"}


def test_ieee8023_damaged_table(tmp_path):
    root = make_ieee8023(tmp_path, ROWS)
    with open(root / "metadata.csv", "a", encoding="utf-8") as file:
        file.write("," * 99 + "\n")
    with pytest.raises(CourseError, match="metadata.csv is damaged.*https://github.com/ieee8023"):
        ieee8023.select(root)


def test_ieee8023_rows_without_name_or_patient(tmp_path):
    root = make_ieee8023(tmp_path, ROWS)
    with open(root / "metadata.csv", "a", encoding="utf-8") as file:
        file.write("77" + "," * 28 + "\n")
    image(root / "images" / "a.b.jpeg")
    selection = ieee8023.select(root)
    steps, skipped = selection.records()
    assert steps.left[0] == len(ROWS) + 1 and len(skipped) == steps.dropped.sum()
    assert skipped.path.str.startswith("metadata.csv, row").sum() == 1


@pytest.mark.parametrize(
    "finding, label",
    [
        ("COVID-19", "COVID-19"),
        ("COVID-19, ARDS", "COVID-19"),
        ("Pneumonia/Viral/COVID-19", "COVID-19"),
        ("Pneumonia/Viral/SARS", "Viral Pneumonia"),
        ("Pneumonia/Viral/MERS-CoV", "Viral Pneumonia"),
        ("Pneumonia/Viral/New virus", "Viral Pneumonia"),
        ("Pneumonia/Viral/Herpes ", "Viral Pneumonia"),
        ("Pneumonia/Bacterial/Staphylococcus/MRSA", "Bacterial Pneumonia"),
        ("E.Coli", "Bacterial Pneumonia"),
        ("Mycoplasma Bacterial Pneumonia", "Bacterial Pneumonia"),
        ("Bacterial", "Bacterial Pneumonia"),
        ("Pneumonia/Fungal/Pneumocystis", "Pneumonia"),
        ("Pneumonia", "Pneumonia"),
        ("Lipoid", "Pneumonia"),
        ("Pneumonia/Aspiration", "Pneumonia"),
        ("Streptococcus, Influenza", "Pneumonia"),
        ("No Finding", "Normal"),
        ("No Finding, SARS", None),
        ("ARDS", None),
        ("Tuberculosis", None),
        ("todo", None),
        ("Martian, SARS", None),
    ],
)
def test_findings(finding, label):
    assert ieee8023.label_of(finding) == label


def test_kermany_names(tmp_path):
    make_cohen(tmp_path)
    image(tmp_path / "kaggle" / "chest_xray" / "train" / "PNEUMONIA" / "scan.jpeg")
    loaded = load("cohen", tmp_path)
    ours = loaded.manifest[loaded.manifest.source == "kermany"]
    assert set(ours.label) == {"Normal", "Bacterial Pneumonia", "Viral Pneumonia"}
    assert set(ours["view"]) == {"AP"}
    patients = ours.groupby("patient").size().to_dict()
    assert patients["kermany/normal-0640"] == 2 and patients["kermany/person90-bacteria"] == 2
    assert patients["kermany/person90-virus"] == 1 and ours.age.isna().all()
    assert dropped(loaded)["kermany: file names that do not tell the kind"] == 1


def test_cohen_raises_when_one_set_is_empty(tmp_path):
    make_ieee8023(tmp_path / "a", [row for row in ROWS if row[3] == "todo"])
    make_kermany(tmp_path / "b")
    with pytest.raises(CourseError, match="No image of .*a is left.*finding not filled in: 1"):
        load("cohen", tmp_path)


@pytest.mark.parametrize("four, old", [(False, False), (True, False), (False, True)])
def test_radiography_layouts(tmp_path, four, old):
    make_radiography(tmp_path / "COVID-19_Radiography_Dataset", four=four, old=old)
    loaded = load("radiography", tmp_path)
    manifest = loaded.manifest
    labels = {"COVID-19", "Normal", "Viral Pneumonia"} | ({"Lung Opacity"} if four else set())
    assert set(manifest.label) == labels and len(manifest) == 2 * len(labels) and loaded.skipped.empty
    assert manifest.lung_mask.notna().sum() == (len(labels) if four else 0)
    assert manifest[["patient", "view", "sex", "age"]].isna().all(axis=None)
    assert not manifest.path.str.contains("masks").any()


# ---------------------------------------------------------------- a user's folder


def test_folder_labels_depths_and_strays(tmp_path):
    root = images(
        tmp_path / "mine",
        "No Findings/a.png",
        "COVID19/2021/may/b.png",
        "Edema/c.png",
        "stray.png",
        "Edema/masks/c.png",
        "masks/a.png",
    )
    (root / "COVID19" / "notes.txt").write_text("hello")
    loaded = load(root)
    assert dict(zip(loaded.manifest.path, loaded.manifest.label)) == {
        "No Findings/a.png": "Normal",
        "COVID19/2021/may/b.png": "COVID-19",
        "Edema/c.png": "Edema",
    }
    assert reasons(loaded) == {
        "stray.png": "lies beside the class folders",
        "COVID19/notes.txt": "not an image (text)",
        "Edema/masks/c.png": "lies in a folder of masks",
        "masks/a.png": "lies in a folder of masks",
    }
    assert set(loaded.manifest.source) == {"mine"} and loaded.sources[0].address == str(root)


def test_folder_divided_into_train_and_test(tmp_path):
    root = images(
        tmp_path / "mine",
        "train/normal/a.png",
        "train/covid/b.png",
        "Test/normal/a.png",
        "Test/viral pneumonia/b.png",
        "readme.png",
    )
    loaded = load(root)
    counts = loaded.manifest.label.value_counts()
    assert counts.to_dict() == {"Normal": 2, "COVID-19": 1, "Viral Pneumonia": 1}
    assert "Test, train joined" in loaded.steps.why[0] and len(loaded.skipped) == 1


@pytest.mark.parametrize(
    "names, words",
    [
        (["covid/a.png", "pneumonia/b.png"], "no negative class.*normal, healthy.*covid/, pneumonia/"),
        (["normal/a.png"], "one class only"),
        (["normal/a.png", "Healthy/b.png"], "one class only"),
        (["a.png"], "no negative class.*no folder.*1 file"),
        (["train/normal/a.png", "train/covid/b.png", "docs/c.png"], "docs/ beside train/"),
    ],
)
def test_folder_refused(tmp_path, names, words):
    root = images(tmp_path / "mine", *names)
    for function in (sources.fetch, sources.load):
        with pytest.raises(CourseError, match=words):
            function(config.start(str(root)))


def test_folder_with_an_empty_class(tmp_path):
    root = images(tmp_path / "mine", "normal/a.png", "covid/b.png")
    (root / "flu").mkdir()
    with pytest.raises(CourseError, match="flu holds no image"):
        load(root)


@pytest.mark.parametrize(
    "name, label",
    [
        ("NORMAL", "Normal"),
        ("no_findings", "Normal"),
        ("No Finding", "Normal"),
        ("healthy", "Normal"),
        ("covid", "COVID-19"),
        ("COVID-19", "COVID-19"),
        ("Lung_Opacity", "Lung Opacity"),
        ("viral-pneumonia", "Viral Pneumonia"),
        ("BacterialPneumonia", "Bacterial Pneumonia"),
        ("正常", "正常"),
    ],
)
def test_folder_names(name, label):
    assert folder.label_of(name) == label


# ---------------------------------------------------------------- the fast profile


def big(root, normal=90):
    """Patients of one to four images, some in both classes; two images without a patient."""
    for number in range(normal):
        for scan in range(1 + number % 4):
            image(root / "data" / "No_findings" / f"{number:08d}_{scan:03d}.png")
        image(root / "data" / "Pneumonia" / f"{number if number % 15 == 0 else 1000 + number:08d}_900.png")
    return images(root / "data", "Covid-19/x.png", "Covid-19/y.png")


def test_drawing_keeps_patients_whole_and_small_labels(tmp_path):
    big(tmp_path)
    full, fast = load("darkcovidnet", tmp_path), load("darkcovidnet", tmp_path, "fast")
    counts = fast.manifest.label.value_counts()
    assert counts["COVID-19"] == 2 and 80 <= counts["Normal"] <= 90 and 80 <= counts["Pneumonia"] <= 90
    before, after = (loaded.manifest.groupby("patient").size() for loaded in (full, fast))
    assert (after == before[after.index]).all(), "a patient is taken with all images or not at all"
    assert set(fast.skipped.reason) == {"not drawn for the fast profile"}
    assert fast.steps.step.iloc[-1] == "whole patients drawn for the fast profile"
    kept = full.manifest[full.manifest.path.isin(fast.manifest.path)]
    assert fast.manifest.equals(kept.reset_index(drop=True))


def test_drawing_is_the_same_wherever_the_folder_lies(tmp_path):
    big(tmp_path / "here")
    shutil.copytree(tmp_path / "here" / "data", tmp_path / "far" / "away" / "other name")
    first, second = (load("darkcovidnet", tmp_path / place, "fast").manifest for place in ("here", "far"))
    other_seed = sources.load(config.start("darkcovidnet", "fast", str(tmp_path / "here"), 99)).manifest
    assert first.equals(second) and first.equals(other_seed)


def test_drawing_without_patients(tmp_path, monkeypatch):
    root = make_radiography(tmp_path / "a" / "db")
    monkeypatch.setitem(config.PROFILES, "fast", config.PROFILES["fast"]._replace(images_per_label=1))
    fast = load("radiography", root, "fast")
    assert fast.manifest.label.value_counts().to_dict() == {"COVID-19": 1, "Normal": 1, "Viral Pneumonia": 1}
    assert fast.manifest.equals(load("radiography", tmp_path, "fast").manifest)


def test_drawing_in_cohen_does_not_depend_on_the_other_folder(tmp_path, monkeypatch):
    monkeypatch.setitem(config.PROFILES, "fast", config.PROFILES["fast"]._replace(images_per_label=1))
    make_cohen(tmp_path / "a")
    make_ieee8023(tmp_path / "b" / "x" / "y", ROWS)
    make_kermany(tmp_path / "b" / "z")
    first, second = (load("cohen", tmp_path / name, "fast").manifest.path for name in "ab")
    assert sorted(Path(path).name for path in first) == sorted(Path(path).name for path in second)
    assert len(first) < 14


# ---------------------------------------------------------------- phantoms


def test_phantoms_are_written_once_and_read_like_any_set(tmp_path, monkeypatch):
    monkeypatch.setitem(
        config.PROFILES, "fast", config.PROFILES["fast"]._replace(phantom_patients=8, images_per_label=1)
    )
    loaded = load("phantom", profile="fast")
    assert loaded.root == tmp_path / "work" / "raw" / f"phantom-8-v{phantom.VERSION}"
    assert set(loaded.manifest.label) == set(phantom.LABELS) and loaded.manifest.patient.nunique() == 8
    assert not loaded.manifest.drop(columns="lesion_mask").isna().any(axis=None) and loaded.skipped.empty
    stamps = {path: os.stat(loaded.root / path).st_mtime_ns for path in loaded.manifest.path}
    again = load("phantom", profile="fast")
    assert again.manifest.equals(loaded.manifest)
    assert stamps == {path: os.stat(loaded.root / path).st_mtime_ns for path in loaded.manifest.path}


def test_check_of_the_phantoms_writes_nothing(tmp_path):
    sources.fetch(config.start("phantom"))
    assert not (tmp_path / "work").exists()


def test_sources_say_where_they_come_from():
    for source in (*(module.SOURCE for module in (darkcovidnet, ieee8023)), folder.source(Path("/x/mine"))):
        assert all(source[:5]) and source.problems and all(text.endswith(".") for text in source.problems)


# ---------------------------------------------------------------- the real sets


@real
def test_real_darkcovidnet():
    loaded = load("darkcovidnet", SHARED)
    manifest = loaded.manifest
    assert manifest.label.value_counts().to_dict() == {"COVID-19": 124, "Normal": 500, "Pneumonia": 500}
    nih = manifest[manifest.source == "nih"]
    assert nih.patient.nunique() == 682 and nih.groupby("patient").size().max() == 12
    assert (nih.groupby("patient").label.nunique() == 2).sum() == 21
    covid = manifest[manifest.source == "ieee8023"]
    assert covid.patient.notna().sum() == 120 and covid.patient.nunique() == 79 and loaded.skipped.empty
    assert covid["view"].value_counts().to_dict() == {"PA": 91, "AP Supine": 16, "AP": 13}
    assert load("darkcovidnet", SHARED, "fast").manifest.label.value_counts().to_dict() == {
        "COVID-19": 81,
        "Normal": 80,
        "Pneumonia": 81,
    }


@real
def test_real_darkcovidnet_table_is_what_ieee8023_says():
    pins = pd.read_csv(SHARED / "pins" / "darkcovidnet.csv", comment="#").path
    names = {Path(path).name for path in pins if "/Covid-19/" in path}
    table = ieee8023.read_table(SHARED / "ieee8023")
    table = table.assign(filename=table.path.str.removeprefix("images/"))
    table = table[table.filename.isin(names)].drop_duplicates("filename")
    table = table.sort_values("filename", ignore_index=True)
    shipped = pd.read_csv(darkcovidnet.TABLE, dtype={"sex": "str"}).astype({"age": float})
    assert len(names) == 125 and len(shipped) == 120
    pd.testing.assert_frame_equal(shipped, table[list(shipped.columns)])


@real
def test_real_cohen():
    loaded = load("cohen", SHARED)
    assert loaded.root == SHARED and loaded.steps.left[0] == 716 + 13 + 1440
    assert dropped(loaded) == {
        "ieee8023: files without a row": 13,
        "ieee8023: no X-ray": 63,
        "ieee8023: view unknown": 39,
        "ieee8023: other views": 55,
        "ieee8023: finding not filled in": 28,
        "ieee8023: no label fits": 4,
        "ieee8023: second rows of a file": 4,
    }
    manifest = loaded.manifest
    assert manifest.groupby(["source", "label"]).size().to_dict() == {
        ("ieee8023", "Bacterial Pneumonia"): 31,
        ("ieee8023", "COVID-19"): 427,
        ("ieee8023", "Normal"): 19,
        ("ieee8023", "Pneumonia"): 25,
        ("ieee8023", "Viral Pneumonia"): 21,
        ("kermany", "Normal"): 642,
        ("kermany", "Bacterial Pneumonia"): 500,
        ("kermany", "Viral Pneumonia"): 298,
    }
    assert {"ieee8023/285+339", "ieee8023/287+340"} <= set(manifest.patient)
    assert not manifest.patient.isna().any() and manifest.lung_mask.notna().sum() == 188
    kermany = manifest[manifest.source == "kermany"]
    assert (kermany.groupby("patient").label.nunique() == 1).all()


@real
def test_real_cohen_fast():
    counts = load("cohen", SHARED, "fast").manifest.label.value_counts()
    assert counts["Pneumonia"] == 25 and counts["Viral Pneumonia"] == 319, "what has fewer is kept whole"
    assert all(400 <= counts[label] <= 408 for label in ("COVID-19", "Normal", "Bacterial Pneumonia"))


@real
def test_real_radiography():
    loaded = load("radiography", SHARED)
    counts = loaded.manifest.label.value_counts()
    assert counts.to_dict() == {"COVID-19": 400, "Normal": 400, "Viral Pneumonia": 400}
    assert loaded.skipped.empty and loaded.manifest.patient.isna().all()
