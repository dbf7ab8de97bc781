"""One preprocessing: real files in, the same bytes out; what cannot be read is listed with its reason."""

import io
import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from utils import images
from utils.errors import CourseError
from utils.files import sha256

GREYS = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, min_side=32, max_side=90))


def radiograph(height=120, width=100):
    """A smooth picture with something to see, uint8."""
    y, x = np.mgrid[0:height, 0:width]
    return np.uint8(60 + 50 * np.sin(x / 9) + 50 * np.cos(y / 13) + (x + y) % 40)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
def test_lossless_formats_give_the_pixels(tmp_path, suffix):
    Image.fromarray(radiograph()).save(tmp_path / f"a.{suffix}")
    assert (images.read_grey(tmp_path / f"a.{suffix}") == radiograph()).all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "LA", "1"])
def test_every_mode_becomes_grey(tmp_path, mode):
    picture = radiograph() if mode != "1" else np.where(radiograph() > 100, 255, 0).astype(np.uint8)
    Image.fromarray(picture).convert(mode).save(tmp_path / "a.png")
    grey = images.read_grey(tmp_path / "a.png")
    assert grey.dtype == np.uint8 and np.abs(grey.astype(int) - picture).max() <= 1


def test_sixteen_bits_are_scaled_not_cut(tmp_path):
    deep = radiograph().astype(np.uint16) * 200
    Image.fromarray(deep).save(tmp_path / "a.png")
    grey = images.read_grey(tmp_path / "a.png")
    assert grey.min() == 0 and grey.max() == 255
    assert np.corrcoef(grey.ravel(), deep.ravel())[0, 1] > 0.999


def test_content_decides_not_the_name(tmp_path):
    Image.fromarray(radiograph()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "scan, final.v2.JPG")
    assert (images.read_grey(tmp_path / "scan, final.v2.JPG") == radiograph()).all()


def test_a_rotated_camera_picture_is_turned_back(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(radiograph()).save(tmp_path / "a.png", exif=exif)
    assert images.read_grey(tmp_path / "a.png").shape == (100, 120)


def broken(folder):
    """Write files that cannot be used; return the reason expected for each."""
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(radiograph(300, 300)).save(folder / name)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    Image.fromarray(radiograph()).save(folder / "hole.png")
    data = bytearray((folder / "hole.png").read_bytes())
    data[len(data) // 2] ^= 255
    (folder / "hole.png").write_bytes(data)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    Image.new("L", (1, 1)).save(folder / "dot.png")
    return {
        "cut.png": "corrupt or truncated",
        "cut.jpg": "corrupt or truncated",
        "hole.png": "corrupt or truncated",
        "empty.png": "empty file",
        "text.png": r"not an image \(text\)",
        "dot.png": "too small",
    }


def test_broken_files_are_named_with_a_reason(tmp_path):
    for name, reason in broken(tmp_path).items():
        with pytest.raises(images.ImageError, match=reason):
            images.read_grey(tmp_path / name)


def test_a_gigantic_header_is_refused_before_it_takes_memory(tmp_path, monkeypatch):
    Image.fromarray(radiograph()).save(tmp_path / "a.png")
    pixels = radiograph().size
    monkeypatch.setattr(images, "MAX_PIXELS", pixels)
    assert images.read_grey(tmp_path / "a.png").size == pixels
    monkeypatch.setattr(images, "MAX_PIXELS", pixels - 1)
    with pytest.raises(images.ImageError, match="million pixels"):
        images.read_grey(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own refusal says the same
    with pytest.raises(images.ImageError, match="million pixels"):
        images.read_grey(tmp_path / "a.png")


def test_a_gigantic_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    Image.fromarray(radiograph()).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(images, "MAX_BYTES", len(data))
    assert np.array_equal(images.decode(data), radiograph())
    monkeypatch.setattr(images, "MAX_BYTES", len(data) - 1)
    with pytest.raises(images.ImageError, match="more than 512 MB"):
        images.decode(data)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read"))
    with pytest.raises(images.ImageError, match="more than 512 MB"):
        images.read_grey(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["WEBP", "BMP"])
def test_what_pillow_unpacks_slowly_may_not_be_as_large(form, monkeypatch):
    data = encoded(Image.fromarray(radiograph()), form, **({"lossless": True} if form == "WEBP" else {}))
    if form == "BMP":  # Pillow writes none in run lengths; here each line has two bytes for a pixel
        lines = [b"".join(bytes([1, value]) for value in line) + b"\0\0" for line in radiograph()[::-1]]
        data = data[:30] + bytes([1]) + data[31:1078] + b"".join(lines) + b"\0\1"
    monkeypatch.setattr(images, "MAX_SLOW_PIXELS", radiograph().size)
    assert np.array_equal(images.decode(data), radiograph())
    monkeypatch.setattr(images, "MAX_SLOW_PIXELS", radiograph().size - 1)
    with pytest.raises(images.ImageError, match=f"{form} of more than . million pixels: use PNG"):
        images.decode(data)


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP", "MPO"])
def test_of_several_pictures_the_first_counts(form):
    one, other = Image.fromarray(radiograph()), Image.fromarray(255 - radiograph())
    options = {"quality": 95} if form == "MPO" else {"lossless": True} if form == "WEBP" else {}
    data = encoded(one, form, save_all=True, append_images=[other], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert np.abs(images.decode(data).astype(int) - radiograph()).max() <= (20 if form == "MPO" else 1)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
def test_what_follows_the_image_does_not_matter(form):
    data = encoded(Image.fromarray(radiograph()), form)
    assert np.array_equal(images.decode(data + b"PK\x03\x04" + bytes(999) + b"\xff\xda" * 999), images.decode(data))


@pytest.mark.parametrize("scans, words", [(90, None), (101, "more than 100 scans")])
def test_scans_without_end_are_refused(scans, words):
    data = encoded(Image.fromarray(radiograph()), "JPEG", progressive=True)
    own = data.count(b"\xff\xda")
    scan = data.rindex(b"\xff\xda")
    data = data[:-2] + data[scan:-2] * (scans - own) + data[-2:]
    if words is None:
        assert images.decode(data).shape == radiograph().shape
    else:
        with pytest.raises(images.ImageError, match=words):
            images.decode(data)


def test_a_jpeg_of_crumbs_is_refused():
    data = encoded(Image.fromarray(radiograph()), "JPEG")
    assert images.decode(data[:2] + b"\xff\xfe\0\2" * 9_000 + data[2:]).shape == radiograph().shape
    with pytest.raises(images.ImageError, match="more than 10,000 segments"):
        images.decode(data[:2] + b"\xff\xfe\0\2" * 10_000 + data[2:])


def test_a_png_of_crumbs_is_refused():
    data = encoded(Image.fromarray(radiograph()), "PNG")
    crumb = bytes(4) + b"IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    place = data.index(b"IDAT") - 4
    assert np.array_equal(images.decode(data[:place] + crumb * 90_000 + data[place:]), radiograph())
    with pytest.raises(images.ImageError, match="more than 100,000 chunks"):
        images.decode(data[:place] + crumb * 100_000 + data[place:])


def test_other_formats_of_pillow_are_never_opened(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    for form in ("EPS", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI", "PDF", "DDS"):
        image = Image.fromarray(radiograph()).convert("RGB")
        with pytest.raises(images.ImageError, match="not an image"):
            images.decode(encoded(image, form))
    monkeypatch.undo()
    monkeypatch.setattr(images, "not_an_image", lambda data: None)  # Pillow itself is told too
    with pytest.raises(images.ImageError, match="its header cannot be read"):
        images.decode(encoded(image, "PPM"))


@pytest.mark.parametrize("head, words", [
    (b"\xef\xbb\xbf <?xml version='1.0'?><!-- drawn --><svg xmlns=", "SVG drawing"), (b"<svg>", "SVG drawing"),
    (b"\n<!DOCTYPE html><html><svg>", "HTML page"), (b"<html>", "HTML page"), (b"%PDF-1.7\n\xb5", "PDF"),
    (b"PK\x03\x04\0\0", "zip archive"), (b"\x1f\x8b\0\0", "gzip archive"), (b'{"a": 1}', "text"),
    ("Röntgen".encode("utf-16"), "text"), (b"BMI,age\n", "text"), (b"\0\1\2", "unknown kind of file"),
    (b"\0\0\0\x1cftypheic\0", "HEIC: convert it to PNG"), (b"8BPS\0\1", "Photoshop: convert it to PNG"),
    (b"<?" * 500, "text"), (b"", "empty file"),
])  # fmt: skip
def test_what_is_no_image_is_called_by_its_name(head, words):
    assert words in images.not_an_image(head) and images.kind(head) is None
    with pytest.raises(images.ImageError, match=words):
        images.decode(head)


def test_float_images_are_stretched_not_blackened(tmp_path):
    Image.fromarray((radiograph() / 255).astype(np.float32)).save(tmp_path / "a.tif")
    grey = images.read_grey(tmp_path / "a.tif")
    assert np.corrcoef(grey.ravel(), radiograph().ravel())[0, 1] > 0.999 and grey.max() == 255


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_whatever_is_damaged_in_a_file_the_error_is_ours(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if suffix == "tif" else {"exif": exif}
    Image.fromarray(radiograph(64, 64)).save(tmp_path / f"a.{suffix}", **options)
    whole = (tmp_path / f"a.{suffix}").read_bytes()
    rng = np.random.default_rng(4)
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 400), 3):
            data[place] = rng.integers(256)
        (tmp_path / "b").write_bytes(data)
        try:
            grey = images.read_grey(tmp_path / "b")
            assert grey.dtype == np.uint8 and grey.ndim == 2
        except images.ImageError as error:
            assert str(error)


def test_a_file_that_cannot_be_read_is_no_verdict_on_the_image(tmp_path):
    with pytest.raises(CourseError, match="cannot be read") as raised:
        images.read_grey(tmp_path / "gone.png")
    assert not isinstance(raised.value, images.ImageError)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="expected some of plain, clahe, equalised, unsharp"):
        images.Options(channels=("sharp",))
    with pytest.raises(ValueError, match="expected one of pad, crop"):
        images.Options(fit="squash")


@given(GREYS)
@settings(max_examples=60, deadline=None)
def test_cropping_only_cuts_and_never_more_than_half(grey):
    cropped = images.crop_border(grey)
    assert cropped.base is not None or cropped.shape == grey.shape
    assert all(small >= big / 2 for small, big in zip(cropped.shape, grey.shape))


def test_cropping_finds_a_border_in_spite_of_a_letter():
    framed = np.zeros((160, 160), np.uint8)
    framed[20:140, 30:130] = radiograph()
    framed[5:9, 60:62] = 255
    assert np.array_equal(images.crop_border(framed), radiograph())
    assert images.frame(framed) == (slice(20, 140), slice(30, 130))  # a mask is cut alike
    assert images.crop_border(np.full((64, 64), 7, np.uint8)).size  # nothing but border: kept


@given(GREYS, st.sampled_from([32, 48, 64]))
@settings(max_examples=60, deadline=None)
def test_preprocessing_gives_the_promised_shape_and_type(grey, size):
    result = images.preprocess(grey, images.Options(size=size, channels=tuple(images.CHANNELS)))
    assert result.shape == (size, size, 4) and result.dtype == np.uint8


@given(st.integers(40, 200), st.integers(40, 200))
@settings(max_examples=40, deadline=None)
def test_the_aspect_ratio_survives(height, width):
    square = images.fit_square(np.full((height, width), 200, np.uint8), 64)
    rows, columns = (square.max(axis=1) > 0).sum(), (square.max(axis=0) > 0).sum()
    assert max(rows, columns) == 64
    assert abs(rows / columns - height / width) < 0.06 * max(1, height / width) ** 2


def test_golden_pixels():
    """What a trained model has seen must never change unnoticed: raise images.VERSION with it."""
    prepared = images.preprocess(radiograph(), images.Options(size=32, channels=("plain", "clahe")))
    assert images.VERSION == 1
    assert prepared[::8, ::8, 0].tolist() == GOLDEN_PLAIN
    assert np.abs(prepared[::8, ::8, 1].astype(int) - GOLDEN_CLAHE).max() <= 1


def test_equalised_images_differ_in_neither_brightness_nor_contrast():
    grey = radiograph()
    faint = np.uint8(np.round(grey * 0.4 + 90))
    options = images.Options(size=64, channels=("plain", "equalised"), fit="crop")
    plain, one = np.moveaxis(images.preprocess(grey, options).astype(int), -1, 0)
    other = images.preprocess(faint, options)[..., 1].astype(int)
    shares = np.histogram(one, bins=4, range=(0, 256))[0] / one.size
    assert one.min() == 0 and one.max() == 255 and np.abs(shares - 0.25).max() < 0.05
    assert np.abs(one - other).mean() < 4 < np.abs(one - plain).mean()


GOLDEN_PLAIN = [[0, 159, 106, 124], [0, 62, 19, 67], [0, 90, 77, 95], [0, 156, 103, 121]]
GOLDEN_CLAHE = [[32, 176, 152, 120], [32, 108, 40, 64], [32, 104, 128, 143], [32, 163, 164, 140]]


def manifest_of(folder):
    paths = sorted(path.name for path in folder.iterdir())
    return pd.DataFrame({"path": paths, "sha256": [sha256(folder / path) for path in paths]})


def test_the_cache_keeps_order_and_lists_what_it_skipped(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    reasons = broken(folder)
    for number in range(5):
        Image.fromarray(np.roll(radiograph(), number * 7, axis=1)).save(folder / f"good{number}.png")
    manifest = manifest_of(folder)
    options = images.Options(size=64)
    for _ in range(2):  # the second time it is read, not made
        cache = images.cached(folder, manifest, options, tmp_path / "cache")
        assert set(cache.skipped["path"]) == set(reasons)
        assert all(re.search(reasons[row.path], row.reason) for row in cache.skipped.itertuples())
        good = manifest[cache.readable]
        assert [images.load(folder / path, options).tolist() for path in good["path"]] == cache.pixels.tolist()
    assert cache.thumbnails.shape == (5, 48, 48)
    assert not cache.pixels.flags.writeable


def test_description_agrees_with_numpy():
    pixels = np.random.default_rng(0).integers(0, 256, (450, 32, 32, 2)).astype(np.uint8)
    mean, deviation, counts = images.describe(pixels)
    np.testing.assert_allclose(mean, pixels[..., 0].mean(axis=0))
    np.testing.assert_allclose(deviation, pixels[..., 0].std(axis=0))
    assert counts.tolist() == np.bincount(pixels[..., 0].ravel(), minlength=256).tolist()


def test_arrays_and_manifest_stay_in_step(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(4):
        Image.fromarray(np.roll(radiograph(), number * 9, axis=1)).save(folder / f"{number}.png")
    manifest, options = manifest_of(folder), images.Options(size=64)
    (folder / "1.png").rename(tmp_path / "elsewhere.png")
    with pytest.raises(CourseError, match="1.png cannot be read"):
        images.cached(folder, manifest, options, tmp_path / "cache")
    (folder / "1.png").write_text("damaged")
    manifest = manifest_of(folder)
    assert images.cached(folder, manifest, options, tmp_path / "cache").readable.tolist() == [
        True,
        False,
        True,
        True,
    ]
    with pytest.raises(CourseError, match="Run notebook 01 again"):
        images.cached(folder, manifest, options, tmp_path / "cache", complete=True)


def test_a_cache_with_a_part_missing_is_made_again(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    Image.fromarray(radiograph()).save(folder / "0.png")
    first = images.cached(folder, manifest_of(folder), images.Options(size=64), tmp_path / "cache").pixels.copy()
    (next((tmp_path / "cache").iterdir()) / "pixels.npy").unlink()
    again = images.cached(folder, manifest_of(folder), images.Options(size=64), tmp_path / "cache")
    assert np.array_equal(again.pixels, first)


def test_another_file_or_option_makes_another_cache(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(radiograph(100 + number)).save(folder / f"{number}.png")
    for options in (images.Options(size=64), images.Options(size=64, crop_border=False)):
        images.cached(folder, manifest_of(folder), options, tmp_path / "cache")
    Image.fromarray(radiograph(200)).save(folder / "2.png")
    images.cached(folder, manifest_of(folder), options, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_a_run_killed_while_caching_starts_again_to_the_same_pixels(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for number in range(300):
        Image.fromarray(np.roll(radiograph(400, 400), number, axis=1)).save(
            folder / f"{number:03d}.png", compress_level=1
        )
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']\n"
        "from pathlib import Path; from test_images import manifest_of; from utils import images\n"
        "folder = Path(sys.argv[2]); manifest = manifest_of(folder); print('ready', flush=True)\n"
        "images.cached(folder, manifest, images.Options(size=64), sys.argv[3])\n"
    )
    root = str(Path(__file__).resolve().parents[1])
    for delay in (0.05, 0.2, 0.4):
        command = [sys.executable, "-c", script, root, str(folder), str(tmp_path / "cache")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        try:
            child.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
        child.wait()
    resumed = images.cached(folder, manifest_of(folder), images.Options(size=64), tmp_path / "cache")
    undisturbed = images.cached(folder, manifest_of(folder), images.Options(size=64), tmp_path / "other")
    assert np.array_equal(resumed.pixels, undisturbed.pixels) and resumed.readable.all()
    assert not list((tmp_path / "cache").rglob(".part-*")), "what the killed runs had begun is cleared away"
