"""Rows of the bad-input table: image files, and the metadata.csv of a set.

A "skipped" row adds a file, so nothing else may change. A "read" row replaces the last image of the set by another form
of the same pixels; where that changes its name, the name keeps its place in the order.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from bad_input import Row, picture
from PIL import Image

from utils.errors import CourseError
from utils.sources import ieee8023

FOLDER = "X-Ray Image DataSet/Pneumonia"
LAST = f"{FOLDER}/00000005_000.png"


def encoded(image, form, **options):
    """Return an image, or pixels, as the bytes of a file."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def flipped(data, place):
    """Return bytes with all bits of one byte turned over."""
    data = bytearray(data)
    data[place] ^= 255
    return bytes(data)


def png(width, height, rows, *, interlaced=False):
    """Return an 8-bit grey PNG put together by hand: Pillow writes no interlaced ones, and none without pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def huge(form, side=60_000):
    """Return a file of a few bytes whose header says that the image is gigantic."""
    if form == "PNG":
        return png(side, side, b"")
    if form == "GIF":
        return b"GIF89a" + struct.pack("<HHBBB", side, side, 0, 0, 0) + b",\0\0\0\0\1\0\1\0\0\2\2D\1\0;"
    if form == "BMP":
        return b"BM" + struct.pack("<IIIIiiHHIIiiII", 58, 0, 54, 40, side, side, 1, 24, 0, 4, 0, 0, 0, 0) + bytes(4)
    if form == "TIFF":  # width, height, bits, compression, black is 0, where the pixels are, their rows and bytes
        tags = {256: side, 257: side, 258: 8, 259: 1, 262: 1, 273: 8, 278: side, 279: 4}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    data = encoded(picture(99), "WEBP", lossless=True)  # behind 21 bytes 14 bits each: width, height, less one
    return data[:21] + struct.pack("<I", side - 1 | side - 1 << 14) + data[25:]


def dicom(pixels, *, side=None, frames=1, syntax="1.2.840.10008.1.2.1", deflated=False):
    """Return 8-bit grey pixels as a DICOM file put together by hand; `side` and `frames` are only said."""

    def element(group, number, kind, value):
        value = struct.pack("<H", value) if isinstance(value, int) else value + bytes(len(value) % 2)
        length = struct.pack("<HI", 0, len(value)) if kind == b"OB" else struct.pack("<H", len(value))
        return struct.pack("<HH", group, number) + kind + length + value

    height, width = (side, side) if side else pixels.shape
    meta = element(2, 0x10, b"UI", syntax.encode())
    image = [(2, b"US", 1), (4, b"CS", b"MONOCHROME2 "), (8, b"IS", str(frames).encode() + b" "),
             (0x10, b"US", height), (0x11, b"US", width), (0x100, b"US", 8), (0x101, b"US", 8), (0x102, b"US", 7),
             (0x103, b"US", 0)]  # fmt: skip
    body = b"".join(element(0x28, *row) for row in image) + element(0x7FE0, 0x10, b"OB", pixels.tobytes())
    return bytes(128) + b"DICM" + meta + (zlib.compress(body, wbits=-15) if deflated else body)


def in_scans(data, count):
    """Return a progressive JPEG with its last scan repeated."""
    scan = data.rindex(b"\xff\xda")
    return data[:-2] + data[scan:-2] * count + data[-2:]


def overflowing(pixels):
    """Return pixels as a PNG whose compressed data holds 8 MB more than its header says."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], rows + bytes(8_000_000))


def interlaced(pixels):
    """Return pixels as a PNG in Adam7's seven passes, each line after its filter byte (0: none)."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = [b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]]
    return png(pixels.shape[1], pixels.shape[0], b"".join(rows), interlaced=True)


def cmyk(pixels):
    """Return a CMYK image whose black ink alone makes the picture."""
    no_ink = Image.new("L", pixels.shape[::-1])
    return Image.merge("CMYK", (no_ink, no_ink, no_ink, Image.fromarray(255 - pixels)))


def turned(pixels):
    """Return a camera's lying picture, and the EXIF block that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    return {"image": Image.fromarray(np.rot90(pixels)), "exif": exif}


def added(name, data):
    """Return a disturbance: a file more."""
    return lambda case: (case.root / FOLDER / name).write_bytes(data)


def form(encode):
    """Return a disturbance: the last image in another form, under its old name."""
    return lambda case: (case.root / LAST).write_bytes(encode(case.pictures[LAST]))


def renamed(name):
    """Return a disturbance: the last image under another name."""
    return lambda case: (case.root / LAST).rename(case.root / FOLDER / name)


def not_utf8(case):
    """Add an image whose name was written on a system of the 1990s."""
    try:
        added(os.fsdecode(b"R\xf6ntgen.png"), SOUND)(case)
    except OSError:
        pytest.skip("this system writes no such names")


def broken_link(case):
    """Add a link that leads nowhere."""
    try:
        (case.root / FOLDER / "00000099_000.png").symlink_to(case.tmp_path / "nowhere.png")
    except OSError:
        pytest.skip("this system lets users make no symbolic links")


SOUND = encoded(picture(99), "PNG")
JPEG = encoded(picture(99), "JPEG")
NEW = "00000099_000.png"
BLANK = bytes(20_000 * 40 + 40)

ROWS = [
    Row("zero bytes", added(NEW, b""), "skipped", "empty file"),
    Row("text named .png", added(NEW, b"to be scanned\n"), "skipped", r"not an image \(text\)"),
    Row("HTML", added("00000099_000.jpg", b"<!DOCTYPE html><html>404</html>\n"), "skipped", "HTML page"),
    Row("SVG", added(NEW, b'<?xml version="1.0"?>\n<svg width="99" height="99"/>\n'), "skipped", "SVG drawing"),
    Row("JSON", added(NEW, b'{"image": "iVBORw0KGgo="}\n'), "skipped", r"not an image \(text\)"),
    Row("UTF-16 text", added(NEW, "Röntgenbild fehlt\n".encode("utf-16")), "skipped", r"not an image \(text\)"),
    Row("zip", added(NEW, b"PK\x03\x04" + bytes(26)), "skipped", "zip archive"),
    Row("PDF", added(NEW, b"%PDF-1.5\n\xb5\xb5"), "skipped", r"not an image \(PDF\)"),
    Row("truncated PNG", added(NEW, SOUND[: len(SOUND) // 2]), "skipped", "corrupt or truncated"),
    Row("truncated JPEG", added("00000099_000.jpg", JPEG[:-20]), "skipped", "corrupt or truncated"),
    Row("PNG with a byte flipped", added(NEW, flipped(SOUND, len(SOUND) // 2)), "skipped", "corrupt or truncated"),
    # The last chunk has 12 bytes; before it lies the checksum of the pixels, which alone tells of some damage.
    Row("PNG with a wrong checksum", added(NEW, flipped(SOUND, -13)), "skipped", "corrupt or truncated"),
    Row("1 x 1", added(NEW, encoded(picture(99)[:1, :1], "PNG")), "skipped", "1 x 1 pixels: too small"),
    Row("20,000 x 20,000", added(NEW, png(20_000, 20_000, b"")), "skipped", "more than 100 million pixels"),
    Row("20,000 x 40", added(NEW, png(20_000, 40, BLANK)), "skipped", "20000 x 40 pixels: too long and thin"),
    *(
        Row(f"60,000 x 60,000, {form}", added(NEW, huge(form)), "skipped", "more than 100 million pixels")
        for form in ("BMP", "TIFF", "GIF")
    ),
    Row("16,000 x 16,000, WebP", added(NEW, huge("WEBP", 16_000)), "skipped", "more than 100 million pixels"),
    Row("60,000 x 60,000, DICOM", added(NEW, dicom(picture(99), side=60_000)), "skipped", "more than 100 million"),
    *(
        Row(f"truncated {form}", added(NEW, encoded(picture(99), form)[:-99]), "skipped", "corrupt or truncated")
        for form in ("WEBP", "TIFF", "GIF", "BMP")
    ),
    Row("truncated DICOM", added("1.dcm", dicom(picture(99))[:-400]), "skipped", "corrupt or truncated"),
    Row("DICOM of three frames", added("1.dcm", dicom(picture(99), frames=3)), "skipped", "3 frames: expected one"),
    Row(
        "deflated DICOM",
        added("1.dcm", dicom(picture(99), syntax="1.2.840.10008.1.2.1.99", deflated=True)),
        "skipped",
        "transfer syntax Deflated Explicit VR Little Endian",
    ),
    Row(
        "JPEG in 200 scans",
        added(NEW, in_scans(encoded(picture(99), "JPEG", progressive=True), 200)),
        "skipped",
        "more than 100 scans",
    ),
    *(
        Row(
            form,
            added(NEW, encoded(Image.fromarray(picture(99)).convert("RGB"), form)),
            "skipped",
            "not an image that the course reads .*convert it to PNG",
        )
        for form in ("EPS", "ICO", "JPEG2000")
    ),
    Row("Photoshop", added(NEW, b"8BPS\0\1" + bytes(20)), "skipped", "Photoshop: convert it to PNG"),
    Row("PPM", added(NEW, encoded(picture(99), "PPM")), "skipped", r"not an image \("),
    Row("name that is not UTF-8", not_utf8, "skipped", "its name is not UTF-8 text: rename it"),
    Row("hidden file", added("._00000099_000.png", SOUND), "skipped", "hidden file"),
    Row("broken link", broken_link, "skipped", "cannot be read"),
    # Values up to 255 are taken for eight bits in a wider file; others would be scaled by their own range.
    Row("16 bits", form(lambda pixels: encoded(pixels.astype(np.uint16), "PNG")), "read", ""),
    Row("RGBA", form(lambda pixels: encoded(Image.fromarray(pixels).convert("RGBA"), "PNG")), "read", ""),
    Row("palette", form(lambda pixels: encoded(Image.fromarray(pixels).convert("P"), "PNG")), "read", ""),
    Row("CMYK", form(lambda pixels: encoded(cmyk(pixels), "TIFF")), "read", ""),
    Row("turned by EXIF, PNG", form(lambda pixels: encoded(form="PNG", **turned(pixels))), "read", ""),
    Row("turned by EXIF, TIFF", form(lambda pixels: encoded(form="TIFF", **turned(pixels))), "read", ""),
    Row("interlaced", form(interlaced), "read", ""),
    Row("PNG with a zip behind it", form(lambda pixels: encoded(pixels, "PNG") + b"PK\x03\x04"), "read", ""),
    Row("GIF with a page behind it", form(lambda pixels: encoded(pixels, "GIF") + b"<html><script>"), "read", ""),
    Row("PNG with more than its header says", form(overflowing), "read", ""),
    Row("DICOM", form(dicom), "read", ""),
    Row("PNG named .jpg", renamed("00000005_000.jpg"), "read", ""),
    Row("upper-case ending", renamed("00000005_000.PNG"), "read", ""),
    Row("blanks, dots and commas", renamed("00000005_000 (copy), v1.2 final .png"), "read", ""),
    Row("name that is not ASCII", renamed("00000005_000 Röntgenbild 胸部.png"), "read", ""),
]


# ---------------------------------------------------------------- metadata.csv, by the example of ieee8023

TABLE = """patientid,sex,age,finding,view,modality,filename,clinical_notes
1,M,65,COVID-19,PA,X-ray,a.png,"Fièvre à 38°, toux"
2,F,30,No Finding,AP,X-ray,b.png,
3,,,SARS,PA,X-ray,c.png,
"""
PATIENTS = ["ieee8023/1", "ieee8023/2", "ieee8023/3"]


class TableRow(NamedTuple):
    """One way in which a table is bad: `change` and `expectation` take the set's folder."""

    name: str
    change: Callable
    expectation: Callable


def make_table_set(root):
    """Write a small ieee8023 in its published layout: three images of three patients."""
    (root / "images").mkdir()
    write_table(TABLE)(root)
    for number, name in enumerate("abc"):
        (root / "images" / f"{name}.png").write_bytes(encoded(picture(number), "PNG"))


def write_table(text, encoding="utf-8"):
    """Return a change: another table."""
    return lambda root: (root / "metadata.csv").write_bytes(text.encode(encoding))


def keeps(patients=PATIENTS, **dropped):
    """Return an expectation: patients of the images left, and how many each step of the filter leaves out."""

    def expectation(root):
        assert ieee8023.is_root(root)
        selection = ieee8023.select(root)
        steps, _ = selection.records()
        assert list(selection.manifest().patient) == patients
        assert {row.step.replace(" ", "_"): row.dropped for row in steps.itertuples() if row.dropped} == dropped

    return expectation


def refused(words):
    """Return an expectation: reading ends with an error in these words."""

    def expectation(root):
        with pytest.raises(CourseError, match=words):
            ieee8023.select(root)

    return expectation


TABLE_ROWS = [
    TableRow("as published", write_table(TABLE), keeps()),
    TableRow("latin-1", write_table(TABLE, "latin-1"), keeps()),
    TableRow("CRLF", write_table(TABLE.replace("\n", "\r\n")), keeps()),
    TableRow("BOM", write_table(TABLE, "utf-8-sig"), keeps()),
    TableRow("comma at each end", write_table(TABLE.replace("\n", ",\n")), keeps()),
    TableRow(
        "missing column",
        write_table(TABLE.replace("view", "angle")),
        refused("lacks view: expected the columns .*patientid, view; it has patientid, .*angle.*Take it from"),
    ),
    TableRow("row too long", write_table(TABLE + "," * 99 + "\n"), refused("is damaged: expected a table")),
    TableRow("empty table", write_table(""), refused("is damaged: expected a table")),
    TableRow(
        "row without file", lambda root: (root / "images/c.png").unlink(), keeps(PATIENTS[:2], rows_without_a_file=1)
    ),
    TableRow("file without row", lambda root: (root / "images/d.png").write_bytes(SOUND), keeps(files_without_a_row=1)),
    TableRow(
        "file in rows of two patients",
        write_table(TABLE + "9,M,65,COVID-19,PA,X-ray,a.png,\n"),
        keeps(["ieee8023/1+9", *PATIENTS[1:]], second_rows_of_a_file=1),
    ),
    TableRow(
        "file in rows of two labels",
        write_table(TABLE + "1,M,65,SARS,PA,X-ray,a.png,\n"),
        keeps(PATIENTS[1:], rows_that_contradict_each_other=2),
    ),
]
