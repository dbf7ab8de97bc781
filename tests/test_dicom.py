"""DICOM files, written here: grey as a viewer shows it first, or one line that says why not."""

import io
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

from utils import images
from utils.errors import CourseError

SHAPE = (48, 40)
Y, X = np.mgrid[: SHAPE[0], : SHAPE[1]]
PICTURE = np.uint8(60 + 50 * np.sin(X / 9) + 50 * np.cos(Y / 13) + (X + Y) % 40)
DEEP = PICTURE.astype(np.uint16) * 16  # 12 bits
SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"


def dataset(pixels=PICTURE, *, stored=None, syntax=uid.ExplicitVRLittleEndian, data=None, **elements):
    """Return a radiograph as a data set; `data` replaces the pixels, None for an element leaves it out."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    whole = FileDataset(
        "",
        {},
        file_meta=meta,
        preamble=bytes(128),
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
    )
    whole.SOPClassUID, whole.SOPInstanceUID, whole.Modality = meta.MediaStorageSOPClassUID, "1.2.3", "DX"
    whole.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    whole.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        whole.PlanarConfiguration = 0
    whole.Rows, whole.Columns = pixels.shape[:2]
    whole.BitsAllocated = 8 * pixels.itemsize
    whole.BitsStored = stored or whole.BitsAllocated
    whole.HighBit = whole.BitsStored - 1
    whole.PixelRepresentation = int(pixels.dtype.kind == "i")
    whole.add_new(
        "PixelData",
        "OB" if pixels.itemsize == 1 or syntax.is_encapsulated else "OW",
        pixels.tobytes() if data is None else data,
    )
    whole["PixelData"].is_undefined_length = syntax.is_encapsulated
    for name, value in elements.items():
        if value is None:
            delattr(whole, name)
        else:
            setattr(whole, name, value)
    return whole


def content(whole):
    """Return a data set as the bytes of a file."""
    file = io.BytesIO()
    whole.save_as(file, enforce_file_format=True)
    return file.getvalue()


def grey(*arguments, **elements):
    """Return what is read of a data set."""
    return images.decode(content(dataset(*arguments, **elements)))


def shares(values, low, high):
    """Return values from `low` to `high` as grey from 0 to 255."""
    return np.uint8(np.rint(255 * np.clip((values.astype(float) - low) / (high - low), 0, 1)))


def table(data, first=0, bits=16, *, big=False):
    """Return an item of a sequence of look-up tables."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(data) % 2**16, first, bits])
    item.add_new("LUTData", "OW", np.asarray(data, "u1" if bits <= 8 and not big else "<u2").tobytes())
    return item


# ---------------------------------------------------------------- grey values


def test_eight_bits_are_the_pixels(tmp_path):
    assert np.array_equal(grey(), PICTURE)
    (tmp_path / "radiograph.png").write_bytes(content(dataset()))  # a name that lies
    assert np.array_equal(images.read_grey(tmp_path / "radiograph.png"), PICTURE)


def test_the_free_bytes_before_the_mark_may_be_a_tiff_but_no_png():
    assert np.array_equal(images.decode(b"II*\0" + content(dataset())[4:]), PICTURE)
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    text = bytes(128 - 41) + b"DICM"
    chunk = len(text).to_bytes(4, "big") + b"dICm" + text + zlib.crc32(b"dICm" + text).to_bytes(4, "big")
    both = file.getvalue()[:33] + chunk + file.getvalue()[33:]
    assert both[128:132] == b"DICM" and images.kind(both) == "PNG"
    assert np.array_equal(images.decode(both), PICTURE)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_other_encodings_of_the_header_give_the_same(syntax):
    pixels = DEEP.byteswap() if syntax == uid.ExplicitVRBigEndian else DEEP
    window = {"WindowCenter": "1000", "WindowWidth": "900"}
    shown = grey(DEEP, stored=12, syntax=syntax, data=pixels.tobytes(), **window)
    assert np.array_equal(shown, grey(DEEP, stored=12, **window))


@pytest.mark.parametrize("pixels, stored", [
    (DEEP, 12), (DEEP, 16), (DEEP.astype(np.uint32), 12), (DEEP.astype(np.uint32) << 12, 32),
    (DEEP.astype(np.int16) - 2000, 16), (DEEP.astype(np.int16) - 2000, 12), (PICTURE.view(np.int8), 8),
])  # fmt: skip
def test_without_a_window_deep_images_are_scaled_by_their_own_range(pixels, stored):
    values = pixels.astype(np.int64)
    assert np.array_equal(grey(pixels, stored=stored), shares(values, values.min(), values.max()))


def test_unused_bits_do_not_count():
    noisy = DEEP | np.uint16(0xF000) * (X % 2 == 0)
    assert np.array_equal(grey(noisy.astype(np.uint16), stored=12), grey(DEEP, stored=12))


def test_a_signed_image_with_rescale_is_seen_through_its_window():
    pixels = DEEP.astype(np.int16) - 1024
    shown = grey(pixels, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="500", WindowWidth="1001")
    # PS3.3 C.11.2.1.2: from centre - 0.5 - (width - 1) / 2 on black, to centre - 0.5 + (width - 1) / 2 white
    assert np.array_equal(shown, shares(pixels * 2.0 - 100, -0.5, 999.5))
    assert shown.min() == 0 and shown.max() == 255 and len(np.unique(shown)) > 20


@pytest.mark.parametrize("elements", [
    {"WindowCenter": "1500", "WindowWidth": "800"}, {"WindowCenter": ["1500", "9"], "WindowWidth": ["800", "1"]},
    {"WindowCenter": "1500", "WindowWidth": "800", "VOILUTFunction": "LINEAR_EXACT"},
    {"WindowCenter": "1500", "WindowWidth": "800", "VOILUTFunction": "SIGMOID"},
    {"WindowCenter": "1500.5", "WindowWidth": "1"}, {"RescaleSlope": "-1", "RescaleIntercept": "4095"},
])  # fmt: skip
def test_windows_are_those_of_pydicom(elements):
    whole = dataset(DEEP, stored=12, **{"WindowCenter": "2000", "WindowWidth": "1500", **elements})
    theirs = pydicom.pixels.apply_voi_lut(pydicom.pixels.apply_modality_lut(DEEP, whole), whole)
    ends = (4095, 0) if "RescaleSlope" in elements else (0, 4095)  # pydicom turns the range with the slope
    assert np.abs(images.decode(content(whole)).astype(int) - shares(theirs, *ends)).max() <= 1


@pytest.mark.parametrize("width", ["0", "-5"])
def test_a_window_that_is_none_does_not_count(width):
    assert np.array_equal(grey(DEEP, stored=12, WindowCenter="1000", WindowWidth=width), grey(DEEP, stored=12))


def test_a_look_up_table_comes_before_a_window():
    entries = (np.arange(4096) ** 2 / 4095).astype(np.uint16)
    window = {"WindowCenter": "100", "WindowWidth": "10"}
    shown = grey(DEEP, stored=12, VOILUTSequence=[table(entries, bits=12), table([0])], **window)
    assert np.array_equal(shown, shares(entries[DEEP], 0, 4095))
    late = grey(DEEP, stored=12, VOILUTSequence=[table(entries[:2000], first=1000, bits=12)])
    assert np.array_equal(late, shares(entries[np.clip(DEEP.astype(int) - 1000, 0, 1999)], 0, 4095))


def test_a_table_may_begin_below_zero():
    item = table(np.arange(4096) * 16, first=64512)  # -1024 in 16 bits: a file of unsigned pixels has no other way
    shown = grey(DEEP, stored=12, RescaleSlope="1", RescaleIntercept="-1024", VOILUTSequence=[item])
    assert np.array_equal(shown, shares(DEEP.astype(int) * 16, 0, 65535))


def test_a_table_in_big_endian():
    entries = (np.arange(4096, dtype=np.uint16) ** 2 // 300).astype(np.uint16)
    item = table(entries)
    item.LUTData = entries.byteswap().tobytes()
    shown = grey(DEEP, stored=12, syntax=uid.ExplicitVRBigEndian, data=DEEP.byteswap().tobytes(), VOILUTSequence=[item])
    assert np.array_equal(shown, grey(DEEP, stored=12, VOILUTSequence=[table(entries)]))


@pytest.mark.parametrize("big", [True, False])
def test_eight_bit_tables_may_lie_packed(big):
    entries = np.arange(4096) // 16
    assert np.array_equal(grey(DEEP, stored=12, VOILUTSequence=[table(entries, bits=8, big=big)]), entries[DEEP])


def test_a_modality_table_is_looked_up_before_the_window():
    entries = (4095 - np.arange(4096)).astype(np.uint16)
    shown = grey(DEEP, stored=12, ModalityLUTSequence=[table(entries)], WindowCenter="2000", WindowWidth="1001")
    assert np.array_equal(shown, shares(4095 - DEEP.astype(int), 1499.5, 2499.5))


@pytest.mark.parametrize("elements", [{}, {"WindowCenter": "1500", "WindowWidth": "800"}])
def test_air_is_dark_in_monochrome_1_too(elements):
    plain = grey(DEEP, stored=12, **elements)
    for turned in (
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"PresentationLUTShape": "INVERSE"},
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ):
        assert np.array_equal(grey(DEEP, stored=12, **elements, **turned), 255 - plain)
    assert np.array_equal(grey(DEEP, stored=12, PresentationLUTShape="IDENTITY", **elements), plain)


@pytest.mark.parametrize("form", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(form):
    signed = DEEP.astype(np.int16) - 1000
    bordered = signed.copy()
    bordered[:5], bordered[-5:] = -2000, -1995
    whole = dataset(bordered, PixelPaddingRangeLimit=-1990, PhotometricInterpretation=form)
    whole.add_new("PixelPaddingValue", "US", 2**16 - 2000)  # as some writers do
    shown = images.decode(content(whole))
    inner = shares(signed, signed[5:-5].min(), signed[5:-5].max())[5:-5]
    assert np.array_equal(shown[5:-5], inner if form == "MONOCHROME2" else 255 - inner)
    assert not shown[:5].any() and not shown[-5:].any()


def test_padding_may_be_given_as_a_negative_number():
    bordered = DEEP.copy()
    bordered[:5] = 65535
    whole = dataset(bordered)
    whole.add_new("PixelPaddingValue", "SS", -1)
    shown = images.decode(content(whole))
    assert np.array_equal(shown[5:], shares(DEEP, DEEP[5:].min(), DEEP[5:].max())[5:]) and not shown[:5].any()


def test_nothing_but_padding_and_one_value_alone_are_black():
    assert not grey(np.full(SHAPE, 7, np.uint16), PixelPaddingValue=7).any()
    assert not grey(np.full(SHAPE, 7, np.uint16)).any()


# ---------------------------------------------------------------- colours


def test_colours_become_the_grey_of_pillow():
    colours = np.stack([PICTURE, PICTURE[::-1], PICTURE[:, ::-1]], axis=-1)
    expected = np.asarray(Image.fromarray(colours).convert("L")).astype(int)
    assert np.array_equal(grey(colours), expected)
    deep = grey(colours.astype(np.uint16) * 16, stored=12)
    assert np.abs(deep - expected / 255 * 255 * 16 / 4095 * 255).max() <= 1
    planes = grey(colours, PlanarConfiguration=1, data=colours.transpose(2, 0, 1).tobytes())
    assert np.array_equal(planes, expected)
    ybr = np.asarray(Image.fromarray(colours).convert("YCbCr"))
    assert np.abs(grey(ybr, PhotometricInterpretation="YBR_FULL") - expected).max() <= 1


@pytest.mark.parametrize("bits, factor", [(8, 1), (16, 257)])
def test_a_palette_is_looked_up(bits, factor):
    inverse = ((255 - np.arange(256)) * factor).astype("u1" if bits == 8 else "<u2")
    elements = {}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        elements[f"{colour}PaletteColorLookupTableData"] = inverse.tobytes()
    assert np.array_equal(grey(PhotometricInterpretation="PALETTE COLOR", **elements), 255 - PICTURE)


# ---------------------------------------------------------------- compression


def frame(pixels, form="JPEG", **options):
    """Return pixels compressed by Pillow, as bytes."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def jpeg(pixels, form="JPEG", **options):
    """Return pixels compressed and in DICOM's capsule."""
    return encapsulate([frame(pixels, form, **options)])


def test_jpeg_baseline():
    data = frame(PICTURE, quality=95)
    plain = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(grey(data=encapsulate([data]), syntax=uid.JPEGBaseline8Bit).astype(int) - plain).max() <= 2
    assert np.abs(plain.astype(int) - PICTURE).max() < 20
    colours = np.stack([PICTURE, PICTURE[::-1], PICTURE[:, ::-1]], axis=-1)
    shown = grey(
        colours, data=jpeg(colours, quality=95), syntax=uid.JPEGBaseline8Bit, PhotometricInterpretation="YBR_FULL_422"
    )
    assert np.abs(shown.astype(int) - np.asarray(Image.fromarray(colours).convert("L"))).max() < 20


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("pixels, stored", [(PICTURE, 8), (DEEP, 12), (DEEP.astype(np.int16) - 1000, 16)])
def test_lossless_compression_loses_nothing(syntax, pixels, stored):
    whole = dataset(pixels, stored=stored)
    plain = images.decode(content(whole))
    whole.compress(syntax, generate_instance_uid=False)
    assert whole.file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(images.decode(content(whole)), plain)


@pytest.mark.parametrize("name, syntax, plain, most", [
    ("MR_small_RLE.dcm", uid.RLELossless, "MR_small.dcm", 0),
    ("MR_small_jp2klossless.dcm", uid.JPEG2000Lossless, "MR_small.dcm", 0),
    ("MR_small_jpeg_ls_lossless.dcm", uid.JPEGLSLossless, "MR_small.dcm", 0),
    ("SC_rgb_jpeg_gdcm.dcm", uid.JPEGLosslessSV1, "SC_rgb_rle.dcm", 0),
    ("SC_rgb_jls_lossy_line.dcm", uid.JPEGLSNearLossless, "SC_rgb_rle.dcm", 8),
    ("SC_rgb_dcmtk_+eb+cy+s4.dcm", uid.JPEGBaseline8Bit, "SC_rgb_rle.dcm", 8),
    ("MR_small_bigendian.dcm", uid.ExplicitVRBigEndian, "MR_small.dcm", 0),
])  # fmt: skip
def test_files_of_other_writers(name, syntax, plain, most):
    """Nothing installed here can write all of these."""
    if not (SAMPLES / name).exists():
        pytest.skip("pydicom's sample files are not installed")
    assert pydicom.dcmread(SAMPLES / name, stop_before_pixels=True).file_meta.TransferSyntaxUID == syntax
    shown, expected = images.read_grey(SAMPLES / name), images.read_grey(SAMPLES / plain)
    assert np.abs(shown.astype(int) - expected).max() <= most


# ---------------------------------------------------------------- refused


def deflated(size):
    """Return a file whose data set would inflate to `size` bytes."""
    whole = content(dataset(syntax=uid.ExplicitVRLittleEndian))
    meta = whole[: whole.index(b"\x08\x00\x16\x00")]
    meta = meta.replace(b"\x14\x001.2.840.10008.1.2.1\x00", b"\x16\x001.2.840.10008.1.2.1.99")
    squeeze = zlib.compressobj(9, zlib.DEFLATED, -15)
    return meta + b"".join(squeeze.compress(bytes(2**20)) for _ in range(size // 2**20)) + squeeze.flush()


def without_pixels(about):
    """Return a file that holds no image."""
    return content(dataset(PixelData=None, SOPClassUID=about))


LARGE = {"Rows": 60_000, "Columns": 60_000}
REFUSED = {
    "frames": (dataset(data=PICTURE.tobytes() * 3, NumberOfFrames=3), "3 frames: expected one radiograph"),
    "a report": (without_pixels("1.2.840.10008.5.1.4.1.1.88.11"), "DICOM without pixels: Basic Text SR Storage$"),
    "a document": (without_pixels("1.2.840.10008.5.1.4.1.1.104.1"), "DICOM without pixels: Encapsulated PDF"),
    "no pixels": (content(dataset(PixelData=None)), "corrupt or truncated .DICOM without pixels"),
    "deflated": (deflated(2**20), "transfer syntax Deflated Explicit VR Little Endian, which"),
    "MPEG": (dataset(syntax=uid.MPEG2MPML, data=encapsulate([b"film"])), "transfer syntax MPEG2 Main Profile"),
    "unknown": (content(dataset(data=jpeg(PICTURE), syntax=uid.JPEGBaseline8Bit)).replace(b".1.2.4.50", b".1.2.4.49"),
                "transfer syntax 1.2.840.10008.1.2.4.49, which"),
    "60000 x 60000": (dataset(**LARGE), "more than 100 million pixels"),
    "60000 x 60000 in JPEG": (dataset(**LARGE, data=jpeg(PICTURE), syntax=uid.JPEGBaseline8Bit), "more than 100 mil"),
    "another size in JPEG": (dataset(data=jpeg(PICTURE[:40]), syntax=uid.JPEGBaseline8Bit),
                             r"\(48, 40, 1\); compressed: \(40, 40, 1\)"),
    "another size in JPEG 2000": (dataset(data=jpeg(PICTURE[:40], "JPEG2000", no_jp2=True), syntax=uid.JPEG2000),
                                  r"compressed: \(40, 40, 1\)"),
    "boxes of a .jp2": (dataset(data=jpeg(PICTURE, "JPEG2000"), syntax=uid.JPEG2000Lossless), "compressed: none"),
    "run lengths without end": (dataset(data=encapsulate([bytes(90_000)]), syntax=uid.RLELossless), "more compressed"),
    "no rows": (dataset(Rows=0), "too small"),
    "no height": (dataset(Rows=None), "DICOM header without Rows"),
    "too short": (dataset(data=PICTURE.tobytes()[:-100]), "corrupt or truncated"),
    "too thin": (dataset(np.zeros((400, 40), np.uint8)), "too long and thin"),
    "not a number": (content(dataset(DEEP, RescaleSlope="777")).replace(b"777 ", b"nan "), "RescaleSlope is nan"),
    "HSV": (dataset(PhotometricInterpretation="HSV"), "photometric interpretation HSV"),
    "grey in three channels": (dataset(SamplesPerPixel=3, PlanarConfiguration=0), "3 samples a pixel"),
    "palette without a table": (dataset(PhotometricInterpretation="PALETTE COLOR"), "corrupt or truncated"),
    "table without entries": (dataset(DEEP, VOILUTSequence=[table([])]), "corrupt or truncated"),
    "no transfer syntax": (content(dataset()).replace(b"\x02\0\x10\0UI", b"\x02\0\x11\0UI"), "no transfer syntax"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_says_why(name, capfd):
    whole, reason = REFUSED[name]
    began = time.perf_counter()
    with pytest.raises(images.ImageError, match=reason) as raised:
        images.decode(whole if isinstance(whole, bytes) else content(whole))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250
    assert time.perf_counter() - began < 2
    assert capfd.readouterr() == ("", "")


def test_a_deflated_file_is_never_inflated(monkeypatch):
    bomb = deflated(2**26)
    monkeypatch.setattr(zlib, "decompress", lambda *_: pytest.fail("inflated"))
    with pytest.raises(images.ImageError, match="Deflated"):
        images.decode(bomb)


def test_a_jpeg_in_scans_without_end_is_refused():
    data = frame(PICTURE, progressive=True)
    scan = data.rindex(b"\xff\xda")
    data = data[:-2] + data[scan:-2] * 200 + data[-2:]
    with pytest.raises(images.ImageError, match="more than 100 scans"):
        grey(data=encapsulate([data]), syntax=uid.JPEGExtended12Bit)


def test_a_sequence_of_crumbs_is_refused():
    start = b"\x28\0\x10\x30SQ\0\0\xff\xff\xff\xff"
    with pytest.raises(images.ImageError, match="more than 100,000 items"):
        images.decode(content(dataset(PixelData=None)) + start + b"\xfe\xff\0\xe0\0\0\0\0" * 100_001)


def test_a_file_cut_off_anywhere_is_refused():
    for whole in (dataset(DEEP, stored=12), dataset(data=jpeg(PICTURE), syntax=uid.JPEGBaseline8Bit)):
        data = content(whole)
        for length in range(0, len(data) - 8, 61):
            with pytest.raises(images.ImageError):
                images.decode(data[:length])


def test_without_pydicom_the_error_says_what_to_install(monkeypatch):
    data = content(dataset())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(CourseError, match="pip install pydicom") as raised:
        images.decode(data)
    assert not isinstance(raised.value, images.ImageError), "no verdict on the image"


def test_importing_the_reader_does_not_import_pydicom():
    script = "import sys; from utils import images; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1]).returncode == 0


def test_whatever_is_damaged_the_error_is_ours_and_nothing_is_printed(capfd, recwarn, caplog):
    rng = np.random.default_rng(5)
    window = {"WindowCenter": "1500", "WindowWidth": "800", "PixelPaddingValue": 3}
    compressed = dataset(DEEP, stored=12, **window)
    compressed.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    files = [content(dataset(DEEP, stored=12, VOILUTSequence=[table(range(99))], **window)), content(compressed),
             content(dataset(data=jpeg(PICTURE), syntax=uid.JPEGBaseline8Bit))]  # fmt: skip
    read = 0
    for number in range(600):
        data = bytearray(files[number % len(files)])
        for place in rng.integers(132, min(len(data), 1000), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        try:
            shown = images.decode(bytes(data))
            assert shown.dtype == np.uint8 and shown.ndim == 2
            read += 1
        except CourseError as error:
            assert str(error) and "\n" not in str(error)
    assert 50 < read < 550, "some are read, some are refused"
    assert capfd.readouterr() == ("", "") and not caplog.records
    assert not [warning for warning in recwarn if "pydicom" in str(warning.filename)]
