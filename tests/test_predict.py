"""The command line answers each file with a row, whatever its content, name or place, and as the notebooks would."""

import csv
import hashlib
import inspect
import io
import json
import os
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import bad_files
import cv2
import numpy as np
import pandas as pd
import pytest
from bad_files import encoded, png
from PIL import Image
from test_dicom import content, dataset
from test_export import lively

from conftest import SHARED
from utils import calibration, classifier, config, export, images, manifest, models, phantom, predict, refusal

COLUMNS = ["path", "sha256", "model", "p_Normal", "p_COVID-19", "decision", "refused", "error"]
COMMAND = [sys.executable, "-m", "utils.predict"]
CLEAN = {**os.environ, "PYTHONPATH": str(config.ROOT)}
QUIET = {"cwd": config.ROOT, "env": CLEAN, "timeout": 240}


def call(*arguments, stdin=b"", **options):
    """Run the real command in a pipe."""
    options = {**QUIET, "input": stdin, **options}
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, **options)


def table(data):
    """Read what the command wrote."""
    return list(csv.DictReader(io.StringIO(data.decode("utf-8"), newline="")))


@pytest.fixture(scope="module")
def xrays(tmp_path_factory):
    """Files of six simulated patients, two labels, all hospitals."""
    folder = tmp_path_factory.mktemp("set") / "phantoms"
    found = phantom.write(folder, patients=12, seed=99, images=1)
    chosen = found[found["label"].isin(manifest.BINARY)]
    return [folder / path for path in chosen["path"]]


@pytest.fixture(scope="module")
def shipped():
    """The classifier that the command uses when no model is named."""
    return classifier.Classifier()


def ask(model, *paths):
    """Answer within this process."""
    return [row for row, _ in predict.predictions(model, predict.Files([str(path) for path in paths]))]


# ---------------------------------------------------------------- every kind of bad input: one row each, and in order


class Bad(NamedTuple):
    """One kind of bad input: `make` takes an empty folder and returns what the command gets.

    `outcome`: "error" or "refused", whose columns hold `words`, a regular expression; "answered" as the plain PNG is;
    or "read".
    """

    name: str
    make: Callable
    outcome: str
    words: str = ""
    rows: int = 1


XRAY = phantom.take_radiograph(phantom.make_patient(20_000, seed=99), 0).image
PNG = encoded(XRAY, "PNG")
WINDOW = {"WindowCenter": "2040", "WindowWidth": "4080", "VOILUTFunction": "LINEAR_EXACT"}
DEEP = dataset(XRAY.astype(np.uint16) * 16, stored=12, **WINDOW)


def shared_row(row):
    """Take over a row of the table for sets: there it lies among others, here it is asked about by name."""

    def make(folder):
        (folder / bad_files.FOLDER).mkdir(parents=True)
        (folder / bad_files.LAST).write_bytes(PNG)
        row.disturb(SimpleNamespace(root=folder, tmp_path=folder, pictures={bad_files.LAST: XRAY}))
        if row.outcome == "skipped":
            (folder / bad_files.LAST).unlink()
        return next(folder / bad_files.FOLDER / name for name in os.listdir(folder / bad_files.FOLDER))

    # In a set these two are passed over for their names; a file that somebody names is read.
    by_name = row.name in ("hidden file", "name that is not UTF-8")
    outcome = "read" if by_name else {"skipped": "error", "read": "answered"}[row.outcome]
    return Bad(row.name, make, outcome, "" if by_name else row.words)


def file(data, name="x.png"):
    """Return a maker of one file; `data`: bytes."""

    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def place(change, name="x.png"):
    """Return a maker of something else called so; `change` takes its path."""

    def make(folder):
        change(folder / name)
        return folder / name

    return make


def socket_at(path):
    """Leave a socket: its address may not be longer than 107 bytes, so it is made from within."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name)
    finally:
        os.chdir(before)


def folder_with(**files):
    """Return a change: a folder with files in it."""

    def change(path):
        path.mkdir()
        for name, data in files.items():
            (path / name.replace("_", ".")).write_bytes(data)

    return change


def looping(path):
    """A folder with an X-ray and two links back to itself: followed without end, they double with each step."""
    folder_with(a_png=PNG)(path)
    for name in ("again", "once more"):
        (path / name).symlink_to(path)


def unreadable(path):
    """A file that may not be opened."""
    path.write_bytes(PNG)
    path.chmod(0)


def with_text_bomb():
    """A PNG whose comment unpacks to 100 MB."""
    data = b"zTXtComment\0\0" + zlib.compress(bytes(100_000_000), 9)
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    return PNG[:33] + chunk + PNG[33:]


def jpeg_said_to_be(side):
    """A JPEG whose header says another size."""
    data = bytearray(encoded(XRAY, "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def packed_bmp(side):
    """A run-length BMP of a few bytes that is said to be large."""
    colours = bytes(1024)
    head = struct.pack("<IIIIiiHHIIiiII", 1080, 0, 1078, 40, side, side, 1, 8, 1, 2, 0, 0, 256, 0)
    return b"BM" + head + colours + b"\0\1"


def circular_tiff():
    """A TIFF whose second page is its first."""
    data = bytearray(encoded(XRAY, "TIFF"))
    first = struct.unpack_from("<I", data, 4)[0]
    struct.pack_into("<I", data, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], first)
    return bytes(data)


def pages(form, **options):
    """The X-ray, and behind it noise as a second page or frame."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, XRAY.shape, np.uint8))
    return encoded(XRAY, form, save_all=True, append_images=[noise], **options)


def as_float(**odd):
    """The X-ray as numbers, some of them none."""
    values = XRAY.astype(np.float32)
    values[0, :3] = 0, 255, 0
    if odd:
        values[5, 5] = odd["value"]
    return encoded(values, "TIFF")


NAMES = {
    "double quotes": 'a "quoted" one.png', "single quotes": "it's.png", "newline": "two\nlines.png",
    "only newlines": "\n\n", "carriage return": "car\rriage.png", "CR LF": "car\r\nriage.png", "tab": "tab\there.png",
    "commas": "a,b;c,.png",
    "leading dash": "-rf.png", "two dashes": "--help", "blanks at both ends": "  x.png  ", "only blanks": "   ",
    "shell": "$(reboot) `id` && %s %n ;.png", "formula": "=1+1.png", "brackets": "x[1].png", "a star": "*.png",
    "question mark": "?.png", "backslash": "a\\n\\x41.png", "255 bytes": "x" * 251 + ".png",
    "wide letters": "胸" * 83 + "x.png", "emoji": "🫁.png", "right to left": "\u202egnp.x",
    "escape codes": "\x1b[31mred\x07.png", "only a dot": "a.", "no ending": "x",
    "not UTF-8": os.fsdecode(b"\xff\xfe\xf6.png"), "broken surrogate": os.fsdecode(b"\xed\xa0\x80.png"),
}  # fmt: skip

OWN = [
    *(Bad(f"name: {name}", file(PNG, called), "answered") for name, called in NAMES.items()),
    *(Bad(f"as {form}", file(encoded(XRAY, form, **options), f"x.{ending}"), "answered")
      for form, ending, options in (("PNG", "png", {}), ("TIFF", "tif", {}),
                                    ("TIFF", "tiff", {"compression": "tiff_lzw"}),
                                    ("BMP", "bmp", {}), ("WEBP", "webp", {"lossless": True}), ("GIF", "gif", {}))),
    Bad("as DICOM of 8 bits", file(content(dataset(XRAY)), "x.dcm"), "answered"),
    Bad("as DICOM of 12 bits", file(content(DEEP), "IM000001"), "answered"),
    Bad("DICOM that begins like a TIFF", file(b"II*\0" + content(DEEP)[4:], "x.tif"), "answered"),
    Bad("RGB", file(encoded(Image.fromarray(XRAY).convert("RGB"), "PNG")), "answered"),
    Bad("grey and opaque", file(encoded(Image.fromarray(XRAY).convert("LA"), "PNG")), "answered"),
    Bad("float TIFF", file(as_float(), "x.tif"), "answered"),
    Bad("float TIFF with NaN", file(as_float(value=np.nan), "x.tif"), "read"),
    Bad("float TIFF with infinity", file(as_float(value=np.inf), "x.tif"), "read"),
    Bad("two pages", file(pages("TIFF"), "x.tif"), "answered"),
    Bad("animated PNG", file(pages("PNG")), "answered"),
    Bad("animated GIF", file(pages("GIF"), "x.gif"), "answered"),
    Bad("animated WebP", file(pages("WEBP", lossless=True), "x.webp"), "answered"),
    Bad("TIFF in a circle", file(circular_tiff(), "x.tif"), "answered"),
    Bad("JPEG with a page behind it", file(encoded(XRAY, "JPEG", quality=100) + b"<script>alert(1)</script>"), "read"),
    Bad("zip before a PNG", file(b"PK\x03\x04" + PNG), "error", "zip archive"),
    Bad("PDF before a PNG", file(b"%PDF-1.4\n" + PNG), "error", "PDF"),
    Bad("HTML named .png", file(b"<html><body>Sign in</body></html>"), "error", "HTML page"),
    Bad("SVG with a script", file(b'<svg xmlns="x"><script>1</script></svg>'), "error", "SVG drawing"),
    Bad("SVG behind a comment", file(b"<!-- " + b"x" * 99 + b' --><svg width="9"/>'), "error", "SVG drawing"),
    Bad("nothing but a signature", file(PNG[:8]), "error", "corrupt or truncated"),
    Bad("a PNG without pixels", file(png(224, 224, b"")), "error", "corrupt or truncated"),
    Bad("zeros", file(bytes(1_000_000)), "error", "not an image"),
    Bad("noise", file(np.random.default_rng(1).bytes(100_000)), "error", "not an image"),
    Bad("PNG, 9,000 a side, few bytes", file(png(9_000, 9_000, bytes(99))), "error", "corrupt or truncated"),
    Bad("JPEG, 9,000 a side, few bytes", file(jpeg_said_to_be(9_000), "x.jpg"), "refused", "no frontal chest X-ray"),
    Bad("JPEG, 65,000 a side, few bytes", file(jpeg_said_to_be(65_000), "x.jpg"), "error", "more than 100 million"),
    Bad("run-length BMP, 5,000 a side", file(packed_bmp(5_000), "x.bmp"), "error", "BMP of more than 20 million"),
    Bad("bomb in a comment", file(with_text_bomb()), "error", "corrupt or truncated"),
    Bad("bomb of pixels", file(png(9_000, 9_000, bytes(9_000 * 9_001))), "refused", "no frontal chest X-ray"),
    Bad("black", file(encoded(np.zeros((224, 224), np.uint8), "PNG")), "refused", r"\(\d+\.\d\d times as far"),
    Bad("white", file(encoded(np.full((224, 224), 255, np.uint8), "PNG")), "refused", "no frontal chest X-ray"),
    Bad("one bit", file(encoded(Image.fromarray(XRAY).convert("1"), "PNG")), "read"),
    Bad("a folder named x.png", place(folder_with(a_png=PNG, b_png=PNG)), "answered", rows=2),
    Bad("an empty folder named x.png", place(folder_with()), "error", "no image in this folder"),
    Bad("a folder of other things", place(folder_with(a_txt=b"hello", b_csv=b"1,2"), "notes"), "error", "no image in"),
    Bad("a folder with links to itself", place(looping, "folder"), "answered"),
    Bad("a link to itself", place(lambda path: path.symlink_to(path)), "error", r"cannot be read \(Too many levels"),
    Bad("two links to each other", place(lambda path: (path.symlink_to(path.with_name("y")),
                                                       path.with_name("y").symlink_to(path))), "error", "Too many"),
    Bad("a link to an X-ray", place(lambda path: (file(PNG, "y")(path.parent), path.symlink_to("y"))), "answered"),
    Bad("a pipe named x.png", place(os.mkfifo), "error", "not a file that can be opened"),
    Bad("a pipe in a folder", place(lambda path: (path.mkdir(), os.mkfifo(path / "a.png"), os.mkfifo(path / "b"))),
        "error", "not a file that can be opened"),
    Bad("a socket named x.png", place(socket_at), "error", "not a file that can be opened"),
    Bad("no such file", lambda folder: folder / "none.png", "error", r"cannot be read \(No such file"),
    Bad("below a file", lambda folder: file(PNG)(folder) / "x.png", "error", r"cannot be read \(Not a directory"),
    Bad("a name too long", lambda folder: folder / ("x" * 300), "error", r"cannot be read \(File name too long"),
    Bad("no name", lambda folder: "", "error", r"cannot be read \(No such file"),
    Bad("a device", lambda folder: "/dev/zero", "error", "not a file that can be opened"),
    Bad("a pattern for nothing", lambda folder: folder / "*.dcm", "error", "no file is called like this pattern"),
    Bad("a pattern", lambda folder: (folder_with(a_png=PNG, b_png=PNG, c_txt=b"")(folder / "f"),
                                     folder / "f" / "*.p?g")[1], "answered", rows=2),
    Bad("a pattern through all folders", lambda folder: (looping(folder / "f"), folder / "**")[1], "answered"),
]  # fmt: skip
TABLE = [*map(shared_row, bad_files.ROWS), *OWN]
OF_LISTS = [b"nul\0in the name.png", b"x" * 5_000, b" " * 9, b"\xff"]  # paths that only a list can hold


class Answers(NamedTuple):
    """What one call with all of `TABLE` gave."""

    done: subprocess.CompletedProcess
    rows: list
    of: dict  # number in the table -> its rows
    listed: list


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """All of `TABLE` in one call of the real command, and `OF_LISTS` on its standard input."""
    root, arguments, special = tmp_path_factory.mktemp("bad"), [], {}
    for number, bad in enumerate(TABLE):
        folder = root / f"{number:03d}"
        folder.mkdir()
        argument = os.fsencode(bad.make(folder)).replace(os.fsencode(root) + b"/", b"")
        arguments.append(argument)
        if not argument.startswith(os.fsencode(folder.name)):
            special[argument.decode()] = number
    command = [*COMMAND, "--", *arguments, "-"]
    done = subprocess.run(command, **{**QUIET, "cwd": root}, input=b"\n".join(OF_LISTS), capture_output=True)
    assert done.returncode == 3, done.stderr.decode()
    rows, of = table(done.stdout), {number: [] for number in range(len(TABLE))}
    for row in rows[: len(rows) - len(OF_LISTS)]:
        of[special.get(row["path"], -1) if row["path"] in special else int(row["path"][:3])].append(row)
    return Answers(done, rows, of, rows[len(rows) - len(OF_LISTS) :])


def test_the_table_is_long_and_its_names_differ():
    assert len(TABLE) >= 100 and len({bad.name for bad in TABLE}) >= len(TABLE) - 1  # two kinds of TIFF


@pytest.mark.parametrize("number", range(len(TABLE)), ids=[bad.name for bad in TABLE])
def test_bad_input_is_a_row_in_words(answers, number):
    bad, rows = TABLE[number], answers.of[number]
    assert len(rows) == bad.rows
    plain = answers.of[next(k for k, one in enumerate(TABLE) if one.name == "as PNG")][0]
    for row in rows:
        shares = [row[name] for name in COLUMNS if name.startswith("p_")]
        if bad.outcome == "answered":
            assert not row["error"] and not row["refused"] and row["decision"] == plain["decision"]
            expected = [float(plain[name]) for name in COLUMNS[3:5]]
            np.testing.assert_allclose([float(share) for share in shares], expected, atol=1e-6)
        elif bad.outcome == "read":
            assert not row["error"] and bool(row["decision"]) != bool(row["refused"])
        else:
            assert shares == ["", ""] and row["decision"] == "" and re.search(bad.words, row[bad.outcome])
            assert not row["error" if bad.outcome == "refused" else "refused"] and "\n" not in row[bad.outcome]


def test_rows_come_in_the_order_of_the_arguments_whatever_each_takes_to_read(answers):
    numbers = [number for number, rows in answers.of.items() for _ in rows]
    place_of = {id(row): number for number, rows in answers.of.items() for row in rows}
    assert [place_of[id(row)] for row in answers.rows[: len(numbers)]] == numbers
    assert [os.fsencode(row["path"]) for row in answers.listed[:3]] == OF_LISTS[:3]
    assert answers.listed[3]["path"] == "\\xff"
    assert [row["error"] for row in answers.listed] == [
        "cannot be read (embedded null byte)", "cannot be read (File name too long)",
        *["cannot be read (No such file or directory)"] * 2]  # fmt: skip


def test_standard_output_is_nothing_but_the_table_and_standard_error_one_line(answers):
    done, wrong = answers.done, sum(bool(row["error"]) for row in answers.rows)
    assert list(answers.rows[0]) == COLUMNS and None not in {key for row in answers.rows for key in row}
    assert done.stderr.decode().splitlines() == [
        f"Files that could not be read: {wrong}; see the column error.",
        "Files in folders that are no images, and were passed over: 3.",
    ]
    read_by_pandas = pd.read_csv(io.BytesIO(done.stdout), keep_default_na=False, dtype=str)
    assert read_by_pandas.to_dict("records") == answers.rows
    for name, called in NAMES.items():
        row = answers.of[next(k for k, bad in enumerate(TABLE) if bad.name == f"name: {name}")][0]
        assert row["path"][4:] == os.fsencode(called).decode("utf-8", "backslashreplace")
        assert row["sha256"] == hashlib.sha256(PNG).hexdigest()


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable to root")
def test_a_file_that_may_not_be_opened_is_a_row(shipped, tmp_path):
    unreadable(tmp_path / "x.png")
    (row,) = ask(shipped, tmp_path / "x.png")
    assert row["error"] == "cannot be read (Permission denied)" and row["sha256"] == ""


def test_a_file_that_vanishes_while_it_waits_is_a_row(shipped, xrays, tmp_path):
    (tmp_path / "x.png").write_bytes(PNG)

    def vanishing():
        for path, problem in predict.Files([str(tmp_path / "x.png"), str(xrays[0])]):
            (tmp_path / "x.png").unlink(missing_ok=True)
            yield path, problem

    rows = [row for row, _ in predict.predictions(shipped, vanishing())]
    assert [row["error"] for row in rows] == ["cannot be read (No such file or directory)", ""]


def test_a_file_too_large_is_never_read(shipped, tmp_path):
    with open(tmp_path / "x.png", "wb") as large:
        large.truncate(600_000_000)
    (row,) = ask(shipped, tmp_path / "x.png")
    assert row["error"] == "more than 512 MB" and row["sha256"] == ""


def test_a_file_for_which_memory_lacks_is_a_row(shipped, xrays, monkeypatch):
    plain, decode = ask(shipped, xrays[1])[0], images.decode
    large = xrays[0].read_bytes()
    monkeypatch.setattr(images, "decode", lambda data: bytearray(1 << 60) if data == large else decode(data))
    rows = ask(shipped, xrays[0], xrays[1])
    assert rows[0]["error"] == "too large for the memory of this computer" and rows[1] == plain


def test_folders_are_gone_through_in_order_and_other_files_passed_over(xrays, tmp_path):
    seen = ("b/2.png", "b/10.PNG", "a.png", "c/IM0001", "d.jpeg")
    for name in (*seen, "c/.hidden.png", "c/__MACOSX/x.png", "c/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"notes" if name.endswith("txt") else PNG)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "same.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "f").symlink_to(tmp_path / "b")  # a second way to the same folder: once is enough
    files = predict.Files([str(tmp_path)])
    found = [os.path.relpath(path, tmp_path) for path, problem in files if not problem]
    assert found == ["a.png", "b/10.PNG", "b/2.png", "c/IM0001", "d.jpeg", "e/same.png"] and files.passed_over == 1
    deep = [os.path.relpath(path, tmp_path) for path, _ in predict.Files([f"{tmp_path}/**/*.png"])]
    assert deep == ["a.png", "b/2.png", "e/same.png"]
    twice = [path for path, _ in predict.Files([str(tmp_path / "b"), str(tmp_path / "b")])]
    assert len(twice) == 4, "who names a folder twice gets it twice"


def test_folders_may_lie_deeper_than_python_calls(tmp_path):
    below = tmp_path / "/".join(["d"] * 400)
    below.mkdir(parents=True)
    (below / "x.png").write_bytes(PNG)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        found = list(predict.Files([str(tmp_path)]))
    finally:
        sys.setrecursionlimit(before)
    assert found == [(str(below / "x.png"), "")]


# ---------------------------------------------------------------- the command


def test_good_files_in_a_pipe_say_nothing_but_their_rows(xrays, tmp_path):
    (tmp_path / "-x.png").write_bytes(PNG)
    listed = b"\0".join([b"two\nlines.png", os.fsencode(xrays[0]), b""])
    (tmp_path / "two\nlines.png").write_bytes(PNG)
    done = call("-0", "-", "--", "-x.png", xrays[1], stdin=listed, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    rows = table(done.stdout)
    assert [row["path"] for row in rows] == ["two\nlines.png", str(xrays[0]), "-x.png", str(xrays[1])]
    card = json.loads((config.SHIPPED / "card.json").read_text())
    expected = f"phantom.shipped@{card['weights']} (simulated; for teaching, not for diagnosis)"
    assert {row["model"] for row in rows} == {expected}


MEASURED = """import resource, sys
from utils import predict
answer, before = predict.predictions, []
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def predictions(classifier, files):
    before.append(peak())
    return answer(classifier, files)
predict.predictions = predictions
code = predict.main(["-"])
print(code, peak() - before[0], file=sys.stderr)"""


def test_a_hundred_thousand_paths_on_standard_input_fill_no_memory(xrays):
    paths = [f"/nowhere/{number}.png" for number in range(100_000)]
    for number in range(0, 100_000, 5_000):
        paths[number] = str(xrays[number // 5_000 % 6])
    listed = "\n".join(paths).encode()
    done = subprocess.run([sys.executable, "-c", MEASURED], **QUIET, input=listed, capture_output=True)
    code, grown = done.stderr.decode().splitlines()[-1].split()
    assert code == "3" and int(grown) < 400_000, "kilobytes"
    rows = table(done.stdout)
    assert [row["path"] for row in rows] == paths
    assert all(bool(row["error"]) == bool(number % 5_000) for number, row in enumerate(rows))


def test_a_reader_that_has_seen_enough_ends_it_without_a_word():
    listed = subprocess.Popen(["yes", "/nowhere"], stdout=subprocess.PIPE)
    with subprocess.Popen([*COMMAND, "-"], cwd=config.ROOT, env=CLEAN, stdin=listed.stdout, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as process:  # fmt: skip
        listed.stdout.close()
        assert process.stdout.readline().decode().split(",") == [*COLUMNS[:-1], "error\n"]
        process.stdout.close()
        assert (process.wait(120), process.stderr.read()) == (141, b"")
    listed.wait()


def killed(number, folder):
    """Start the command, send it a signal in the middle of its work, and return its exit code and what it had begun."""
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [*COMMAND, "-", "--out", str(folder / "out.csv")]
    with subprocess.Popen(command, cwd=config.ROOT, env=CLEAN, **pipes) as process:
        process.stdin.write(b"/nowhere\n" * 60_000)  # far more than a pipe holds: when this ends, it has begun to read
        begun = sorted(path.name for path in folder.iterdir())
        process.send_signal(number)
        process.stdin.close()
        return process.wait(120), begun, process.stderr.read()


def test_a_killed_run_leaves_nothing(tmp_path):
    code, begun, said = killed(signal.SIGTERM, tmp_path)
    assert len(begun) == 1 and begun[0].startswith(".part-")
    assert (code, said) == (130, b"") and not list(tmp_path.iterdir())


def on_terminal(*arguments, rows_too=False):
    """Run the command with a terminal for standard error; return what the terminal showed."""
    ours, theirs = os.openpty()
    options = {"stdin": subprocess.DEVNULL, "stdout": theirs if rows_too else subprocess.DEVNULL, "stderr": theirs}
    with subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=config.ROOT, env=CLEAN, **options) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # so Linux says that the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    return shown.decode()


def test_a_terminal_shows_a_bar_that_stays_out_of_the_rows(xrays):
    shown = on_terminal(*xrays, rows_too=True)
    assert f"100%|{'█' * 9}" in shown and f"{len(xrays)}/{len(xrays)}" in shown
    assert shown.splitlines()[-1] == f"{len(xrays)} answered, 0 refused, 0 unreadable; for teaching, not for diagnosis."
    for line in re.split(r"[\r\n]+", shown):
        assert not ("images/s" in line and ".png" in line), "a row in the same line as the bar"


LIGHT = """import sys
from utils import predict
try:
    code = predict.main(sys.argv[1:])
except SystemExit as end:
    code = end.code
assert not {"tensorflow", "keras", "numpy", "cv2", "PIL", "pandas"} & set(sys.modules)
sys.exit(code)"""


@pytest.mark.parametrize("arguments, code, message", [
    (["--help"], 0, "For teaching, not for diagnosis"), ([], 2, "name files or folders"), (["x", "--hep"], 2, "--hep"),
    (["--model", "bundle", "x.png"], 2, "before --model or after --"),
    (["x", "--threshold", "high"], 2, "invalid float"),
])  # fmt: skip
def test_help_and_usage_errors_wait_for_no_library(arguments, code, message):
    done = subprocess.run([sys.executable, "-c", LIGHT, *arguments], cwd=config.ROOT, capture_output=True, text=True)
    assert done.returncode == code and message in done.stdout + done.stderr and "Traceback" not in done.stderr


# ---------------------------------------------------------------- options, in this process


@pytest.fixture
def main(shipped, monkeypatch, capfd):
    """The command in this process, with the shipped model opened once; returns code, output, errors."""
    opened, real = shipped, classifier.Classifier
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(classifier, "Classifier", lambda folders, threshold: (
        real(folders, threshold=threshold) if folders or threshold is not None else opened))  # fmt: skip

    def run(*arguments):
        code = predict.main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return run


def test_csv_and_json_lines_hold_the_same(main, xrays, tmp_path):
    bad = tmp_path / 'odd "name",\nümlaut.png'
    bad.write_bytes(b"text")
    black = tmp_path / "black.png"
    black.write_bytes(encoded(np.zeros((99, 99), np.uint8), "PNG"))
    for name in ("out.csv", "deeper/out.JSONL"):
        code, out, err = main(*xrays, bad, black, "--out", tmp_path / name)
        assert (code, out, err) == (3, "", "Files that could not be read: 1; see the column error.\n")
    lines = (tmp_path / "deeper/out.JSONL").read_text(encoding="utf-8").splitlines()
    rows, asked = table((tmp_path / "out.csv").read_bytes()), [json.loads(line) for line in lines]
    assert len(rows) == len(asked) == len(xrays) + 2 and "ümlaut" in lines[-2]
    for row, other in zip(rows, asked):
        assert list(other) == list(row) == COLUMNS
        assert {key: "" if value is None else str(value) for key, value in other.items()} == row
    assert isinstance(asked[0]["p_Normal"], float) and asked[-1]["p_Normal"] is None is asked[-2]["p_COVID-19"]
    assert not list(tmp_path.rglob(".part-*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_the_earlier_results(main, xrays, tmp_path, monkeypatch, number):
    monkeypatch.undo()
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    (tmp_path / "out.csv").write_text("earlier")

    class Listed(io.BytesIO):
        def read1(self, size=-1):
            block = super().read1(size)
            return block or signal.raise_signal(number)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Listed(b"/nowhere\n" * 999)))
    try:
        assert main("-", "--out", tmp_path / "out.csv")[0] == 130
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"] and (tmp_path / "out.csv").read_text() == "earlier"


@pytest.mark.parametrize("option", ["--out", "--gradcam"])
def test_an_xray_is_never_written_over(xrays, tmp_path, option):
    mine = tmp_path / "mine.png"
    mine.write_bytes(Path(xrays[0]).read_bytes())
    done = call(mine, option, mine)
    assert done.returncode == 2 and str(mine).encode() in done.stderr
    assert mine.read_bytes() == Path(xrays[0]).read_bytes()


def test_results_that_cannot_be_written_are_one_line_and_leave_nothing(main, xrays, tmp_path):
    (tmp_path / "file").write_text("mine")
    for place_, why in ((tmp_path / "file" / "out.csv", "(Not a directory|File exists)"), (tmp_path, "Is a directory")):
        code, out, err = main(xrays[0], "--out", place_)
        assert code == 1 and out == "" and re.fullmatch(rf"The results cannot be written: .*: {why}\.\n", err)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        code, out, err = main(*["/nowhere"] * 99, "--out", tmp_path / "out.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1 and out == "" and re.fullmatch(r"The results cannot be written: .*: File too large\.\n", err)
    code, out, err = main(xrays[0], "--gradcam", tmp_path / "file" / "heat")
    assert code == 1 and re.fullmatch(r"The results cannot be written: .*: (File exists|Not a directory)\.\n", err)
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_pipe_for_the_results_is_written_to_and_never_replaced(main, xrays, tmp_path):
    os.mkfifo(tmp_path / "out.jsonl")
    reader = os.open(tmp_path / "out.jsonl", os.O_RDONLY | os.O_NONBLOCK)
    assert main(xrays[0], "--out", tmp_path / "out.jsonl")[0] == 0
    assert json.loads(os.read(reader, 9999))["decision"] and (tmp_path / "out.jsonl").is_fifo()
    os.close(reader)


def test_overlays_are_drawn_for_answers_alone(main, shipped, xrays, tmp_path):
    names = {"胸" * 83 + ".png": xrays[0].read_bytes(), 'a/b "c"\n.png': xrays[1].read_bytes()}
    names |= {"black.png": encoded(np.zeros((99, 99), np.uint8), "PNG"), "text.png": b"x"}
    for name, data in names.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    code, out, err = main(tmp_path / "in", "--gradcam", tmp_path / "heat")
    assert code == 3
    rows = [row for row in table(out.encode()) if row["decision"]]
    drawn = {path.name.rsplit("-", 1)[1]: path for path in (tmp_path / "heat").iterdir()}
    assert len(rows) == 2 and set(drawn) == {f"{row['sha256'][:12]}.png" for row in rows}
    assert all(len(os.fsencode(path.name)) < 200 for path in drawn.values())
    for row in rows:
        seen = cv2.imread(str(drawn[f"{row['sha256'][:12]}.png"]))
        height, width = seen.shape[:2]
        side = width // 2
        grey, heated = seen[:side, :side].astype(int), seen[:side, side:].astype(int)
        assert height > side and np.ptp(grey, axis=2).max() == 0 and np.ptp(heated, axis=2).max() > 60
        heat = cv2.resize(shipped.heat(shipped.look(Path(row_file(tmp_path, row)).read_bytes())), (side, side))
        changed = np.abs(heated - grey).max(axis=2)
        assert changed[heat < 0.05].max(initial=0) < 10 < changed[heat > 0.9].mean(), "heat lies where it should"


def row_file(folder, row):
    """Find the file of a row."""
    digest = row["sha256"]
    return next(path for path in folder.rglob("*.png") if path.parent.name != "heat" and refusal.sha256(path) == digest)


def test_heat_is_that_of_the_class_that_is_called(shipped, xrays):
    look = shipped.look(xrays[0].read_bytes())
    both = [shipped.heat(look, name) for name in shipped.classes]
    assert np.abs(both[0] - both[1]).max() > 0.5
    own = max((0, 1), key=lambda number: shipped.ask([look.views])[0][0][number])
    np.testing.assert_array_equal(shipped.heat(look), both[own])
    drawn = [predict.overlay(shipped, look, name) for name in shipped.classes]
    assert (drawn[0][:320, 320:] != drawn[1][:320, 320:]).any()


def test_a_threshold_moves_decisions_and_nothing_else(main, bundles, xrays):
    model = ("--model", bundles.two)  # its probabilities lie close together
    plain = table(main(*xrays, *model)[1].encode())
    shares = sorted(float(row["p_COVID-19"]) for row in plain)
    middle = sum(max(zip(shares, shares[1:]), key=np.ptp)) / 2
    own = ["COVID-19" if float(row["p_COVID-19"]) >= 0.4 else "Normal" for row in plain]
    assert [row["decision"] for row in plain] == own
    assert shares[0] < middle < shares[-1] and abs(middle - 0.4) > 1e-3
    for threshold in (0, middle, 1):
        rows = table(main(*xrays, *model, "--threshold", threshold)[1].encode())
        assert [row["decision"] for row in rows] == [
            "COVID-19" if float(row["p_COVID-19"]) >= threshold else "Normal" for row in plain]  # fmt: skip
        assert [row["p_Normal"] for row in rows] == [row["p_Normal"] for row in plain]
    for odd in ("1.01", "nan"):
        code, out, err = main(*xrays, "--threshold", odd)
        assert (code, out) == (2, "") and err == f"A threshold is a probability, from 0 to 1; got {float(odd)}.\n"


# ---------------------------------------------------------------- bundles


def small_bundle(folder, *, classes, seed=1, channels=("plain",), **card):
    """A small network that has learned nothing, with statistics that accept everything."""
    model = lively(models.small_cnn((32, 32, len(channels)), seed=seed, widths=(8, 16), classes=len(classes)))
    pixels = np.random.default_rng(1).integers(0, 256, (8, 32, 32, len(channels)), np.uint8)
    watch = refusal.fit(model, pixels, range(8), seed=1)._replace(limit=np.array(np.inf))
    card = {"task": "binary", "classes": list(classes), "temperature": 1.5, "threshold": 0.4, **card}
    models.save_bundle(folder, model, options=images.Options(size=32, channels=channels), card=card, refusal=watch)
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """One of the shipped model's classes, one of three classes."""
    folder = tmp_path_factory.mktemp("bundles")
    three = ("Normal", "COVID-19", "Pneumonia")
    return SimpleNamespace(
        two=small_bundle(folder / "run.two", classes=manifest.BINARY, channels=("plain", "clahe")),
        three=small_bundle(folder / "run.three", classes=three, task="multiclass", threshold=None),
    )


def by_hand(folder, paths):
    """Calibrated probabilities as a notebook gets them."""
    model, options, card = models.open_bundle(folder)
    said = models.predict(model, np.stack([images.load(path, options) for path in paths]))
    return calibration.calibrated(calibration.columns(said), card["temperature"]), card


def test_probabilities_of_several_models_are_averaged(main, bundles, xrays):
    code, out, err = main(*xrays, "--model", config.SHIPPED, "--model", bundles.two)
    assert (code, err) == (0, "")
    (one, card), (other, second) = (by_hand(folder, xrays) for folder in (config.SHIPPED, bundles.two))
    assert np.abs(one - other).max() > 0.1
    rows = table(out.encode())
    found = np.array([[float(row["p_Normal"]), float(row["p_COVID-19"])] for row in rows])
    np.testing.assert_allclose(found, (one + other) / 2, atol=1e-5)
    threshold = (card["threshold"] + second["threshold"]) / 2
    assert [row["decision"] for row in rows] == ["COVID-19" if p >= threshold else "Normal" for p in found[:, 1]]
    assert rows[0]["model"].startswith(f"phantom.shipped@{card['weights']} + run.two@{second['weights']} (simulated; ")


def test_of_several_models_half_must_find_an_image_odd(shipped, xrays):
    view = shipped.look(xrays[0].read_bytes()).views
    (member,) = shipped.members
    odd = member._replace(watch=member.watch._replace(limit=np.array(1e-9)))
    for members, refused in (([member, odd], True), ([member, odd, member], False), ([odd, odd, member], True)):
        several = classifier.Classifier.__new__(classifier.Classifier)
        several.members = members
        shares, reasons = several.ask([view * len(members)])
        assert bool(reasons[0]) == refused and shares.sum() == pytest.approx(1)


def test_of_more_than_two_classes_the_most_probable_is_called(main, bundles, xrays):
    code, out, _ = main(*xrays, "--model", bundles.three)
    expected, _ = by_hand(bundles.three, xrays)
    rows = table(out.encode())
    assert code == 0 and list(rows[0])[3:6] == ["p_Normal", "p_COVID-19", "p_Pneumonia"]
    found = [[float(row[name]) for name in list(row)[3:6]] for row in rows]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    classes = ("Normal", "COVID-19", "Pneumonia")
    assert [row["decision"] for row in rows] == [classes[number] for number in expected.argmax(axis=1)]
    assert rows[0]["model"].endswith(" (for teaching, not for diagnosis)")
    code, out, err = main(*xrays, "--model", bundles.three, "--threshold", "0.5")
    assert (code, out) == (2, "") and err.startswith("A threshold needs two classes; this model has 3")


def changed(name, change):
    """Return a change of a bundle's file; `change` takes its bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def card_with(**values):
    """Return a change of a bundle's card."""
    return changed("card.json", lambda data: json.dumps({**json.loads(data), **values}).encode())


BROKEN = {
    "nothing there": (shutil.rmtree, "is not a model bundle"),
    "no card": (lambda folder: (folder / "card.json").unlink(), "is not a model bundle"),
    "card cut off": (changed("card.json", lambda data: data[:99]), r"card\.json is damaged"),
    "no temperature": (card_with(temperature=None), "should name a temperature above 0; it says None"),
    "temperature in words": (card_with(temperature="warm"), "should name a temperature above 0; it says warm"),
    "odd threshold": (card_with(threshold=7), "should name a threshold, 0 to 1, or null; it says 7"),
    "no task": (card_with(task=None), "should name a task and classes"),
    "weights cut off": (changed("model.keras", lambda data: data[:-200]), r"model\.keras is damaged"),
    "no refusal.npz": (lambda folder: (folder / "refusal.npz").unlink(), r"has no refusal\.npz"),
    "refusal.npz cut off": (changed("refusal.npz", lambda data: data[:-99]), r"refusal\.npz is damaged"),
    "refusal.npz empty": (changed("refusal.npz", lambda data: b""), r"refusal\.npz is damaged"),
    "refusal.npz of another model": (lambda folder: shutil.copy(config.SHIPPED / "refusal.npz", folder),
                                     "does not fit its model"),
    "refusal.npz damaged inside": (changed("refusal.npz", lambda data: data[:20_000] + bytes(99) + data[20_099:]),
                                   r"refusal\.npz is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_bundle_is_one_line_and_exit_2(main, bundles, xrays, tmp_path, name):
    broken = shutil.copytree(
        config.SHIPPED if name == "refusal.npz damaged inside" else bundles.two, tmp_path / "broken"
    )
    change, message = BROKEN[name]
    change(broken)
    code, out, err = main(xrays[0], "--model", broken, "--out", tmp_path / "out.csv")
    assert (code, out) == (2, "") and re.search(message, err) and err.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_models_that_do_not_fit_together_are_not_averaged(main, bundles, xrays, tmp_path):
    code, out, err = main(xrays[0], "--model", config.SHIPPED, bundles.three)
    told = "binary, Normal, COVID-19 and run.three: multiclass, Normal, COVID-19, Pneumonia."
    assert (code, out) == (2, "") and told in err
    other = shutil.copytree(bundles.two, tmp_path / "run.other")
    card_with(task="abnormal")(other)
    code, out, err = main(xrays[0], "--model", bundles.two, other)
    told = "run.two: binary, Normal, COVID-19 and run.other: abnormal, Normal, COVID-19."
    assert (code, out) == (2, "") and told in err


# ---------------------------------------------------------------- golden: pixels and probabilities


def test_the_command_sees_the_pixels_that_notebooks_see(shipped, xrays, tmp_path):
    options = shipped.members[0].options
    for path in xrays:
        (view,) = shipped.look(path.read_bytes()).views
        np.testing.assert_array_equal(view, images.load(path, options))
    table_ = pd.DataFrame({"path": [path.name for path in xrays], "sha256": [refusal.sha256(path) for path in xrays]})
    cache = images.cached(xrays[0].parent, table_, options, tmp_path)
    np.testing.assert_array_equal(cache.pixels, [shipped.look(path.read_bytes()).views[0] for path in xrays])


def test_pixels_are_those_of_the_steps_written_down_here(shipped, tmp_path):
    """Black bars away, each four pixels to their mean, black beside a tall image."""
    inside = np.kron(np.random.default_rng(1).integers(40, 256, (128, 96)), np.ones((2, 2))).astype(np.uint8)
    inside[::2] -= 20
    Image.fromarray(np.pad(inside, ((10, 10), (25, 15)))).save(tmp_path / "x.png")
    (view,) = shipped.look((tmp_path / "x.png").read_bytes()).views
    means = inside.reshape(128, 2, 96, 2).mean(axis=(1, 3))
    assert view.shape == (128, 128, 1) and view.dtype == np.uint8 and not view[:, :16].any() and not view[:, 112:].any()
    assert np.abs(view[:, 16:112, 0] - means).max() <= 1


# The phantom of patient 20000 as the shipped model sees it, as means of 8 x 8 pixels.
GOLDEN = """
0503000000002b5363501f0000000000070500000319405c6c5d4226150c0c04
010e22303c4a58747d7a5c5253534e3b243b525d6260679097926863686d675d
4a51677c74565a99aca762546d989380534c7e946b494b88b2ab6742578c9b69
452b68815638427ab0a05f3b486d8d34380a4c6441303e78b6ad6e343f5a7f2b
220142513e303986b8b7984a3351742d12003c4b352c4393bcc1a580384a7154
08003b43352e4196c0cbb49b624b788901003a4338333f7ec5d3bda5724e7ea7
00003b4f6794b1c1d6dbc4ac7f8baebb00003b6993bccdd8e5e9d7c7ced1d8cc
00003b6a9bcee1e7ede5d4d2dae2e2d500003b699fd5e8ecf0ecdfe7e8e8e7d9
"""


def test_a_phantom_looks_as_it_always_did(shipped):
    (view,) = shipped.look(PNG).views
    means = view[..., 0].reshape(16, 8, 16, 8).mean(axis=(1, 3))
    expected = np.frombuffer(bytes.fromhex(GOLDEN), np.uint8).reshape(16, 16)
    assert np.abs(means - expected).max() <= 1.5, "one grey value, and half of one as these are whole numbers"


def test_notebook_command_and_exported_model_agree(shipped, xrays, tmp_path):
    expected, card = by_hand(config.SHIPPED, xrays)
    rows = ask(shipped, *xrays)
    found = np.array([[row["p_Normal"], row["p_COVID-19"]] for row in rows])
    assert np.ptp(expected[:, 1]) > 0.9 and card["temperature"] != 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    export.export(config.SHIPPED, tmp_path / "out")
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    of_it = about["preprocessing"]
    options = images.Options(of_it["size"], tuple(of_it["channels"]), of_it["crop_border"], of_it["fit"])
    pixels = np.stack([images.load(path, options) for path in xrays])
    for form in export.FORMATS.values():
        exported = export.open_exported(tmp_path / "out" / form.file)(pixels)
        np.testing.assert_allclose(exported, found, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- fuzz


def originals(more=()):
    """Real images in every form, as bytes."""
    forms = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
    made = [encoded(XRAY, form) for form in forms] + [encoded(XRAY, "TIFF", compression="tiff_lzw"), content(DEEP)]
    return [*made, encoded(Image.fromarray(XRAY).convert("RGBA"), "PNG"), content(dataset(XRAY)), *more]


def mutated(data, rng):
    """Return damaged bytes: some bits turned, a part lost, zeroed or made up, most often near the beginning."""
    data, how = bytearray(data), rng.integers(6)
    at = int(rng.integers(min(len(data), 400) if rng.random() < 0.6 else len(data)))
    length = int(rng.integers(1, 64))
    if how == 0:
        for place_ in rng.integers(at, min(at + 200, len(data)), 8):
            data[place_] ^= 1 << rng.integers(8)
    elif how == 1:
        del data[at:]
    elif how == 2:
        del data[at : at + length]
    elif how == 3:
        data[at:at] = rng.bytes(length)
    elif how == 4:
        data[at : at + length] = bytes([rng.choice([0, 255])]) * length
    else:
        number = int(rng.choice([0, 1, 65_535, 2**31 - 1, 2**31, 2**32 - 1]))
        data[at : at + 4] = struct.pack(rng.choice(["<I", ">I"]), number)
    return bytes(data)


def test_damaged_images_are_rows_and_never_a_word_or_a_crash(tmp_path):
    more = [path.read_bytes() for path in sorted((SHARED / "ieee8023" / "images").glob("*"))[:6]]
    rng, count = np.random.default_rng(7), 500
    files = originals(more)
    for number in range(count):
        (tmp_path / f"{number:04d}.png").write_bytes(mutated(files[number % len(files)], rng))
    done = call(tmp_path)
    rows = table(done.stdout)
    assert [row["path"] for row in rows] == [str(tmp_path / f"{number:04d}.png") for number in range(count)]
    wrong = sum(bool(row["error"]) for row in rows)
    said = f"Files that could not be read: {wrong}; see the column error.\n"
    assert (done.returncode, done.stderr.decode()) == (3, said)
    assert count // 4 < wrong < count, "else they were hardly damaged, or nothing else was tried"
    for row in rows:
        assert bool(row["error"]) + bool(row["refused"]) + bool(row["decision"]) == 1
        assert row["error"].isprintable() and len(row["error"]) < 250
