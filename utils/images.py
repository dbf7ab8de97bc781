"""A file becomes one uint8 array. THE preprocessing: training, evaluation, command line and web app all call it."""

import hashlib
import io
import json
import logging
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError

from utils import dicom
from utils.errors import CourseError, ImageError, one_line
from utils.files import write_text, written
from utils.kinds import check_chunks, check_scans, kind, not_an_image

VERSION = 1  # raise it when any pixel of `preprocess` changes: caches and bundles carry it
MAX_PIXELS = 100_000_000  # a radiograph has some 10 million; far beyond that it is a mistake or an attack
TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} million pixels"
MAX_BYTES = 512_000_000
TOO_MANY_BYTES = f"more than {MAX_BYTES // 1_000_000} MB"
# Never Pillow's other formats: it hands PostScript, for one, to another program.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")
# Pillow needs 20 bytes a pixel for WebP and unpacks run-length BMP in Python: 100 million take 2 GB, or half a minute.
MAX_SLOW_PIXELS = 20_000_000
THUMBNAIL = 48  # side of what twins are compared by
MIN_SIDE = 32  # smaller than this nobody can see a lung
MAX_ASPECT = 4  # of the public sets no radiograph's long side is more than 2.4 times the short one

# A file that cannot be used is listed with its reason; Pillow's remarks on the way would only stain the notebooks.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True)
class Options:
    """How an image is prepared. A model's card stores these, so that it always sees what it was trained on.

    Attributes
    ----------
    size : int
        Side of the square result in pixels.
    channels : tuple of str
        A name of `CHANNELS` for each channel of the result.
    crop_border : bool
        Cut away uniform borders (black bars, collimation) first.
    fit : str
        "pad" or "crop", see `fit_square`.
    """

    size: int = 128
    channels: tuple = ("plain",)
    crop_border: bool = True
    fit: str = "pad"

    def __post_init__(self):
        unknown = set(self.channels) - set(CHANNELS)
        if unknown or not self.channels:
            raise ValueError(f"channels: expected some of {', '.join(CHANNELS)}; got {self.channels}.")
        if self.fit not in FITS:
            raise ValueError(f"fit: expected one of {', '.join(FITS)}; got {self.fit!r}.")

    def key(self):
        """Return 12 hex digits that stand for these options and this version of the preprocessing."""
        text = json.dumps({"version": VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_grey(path):
    """Decode an image file to grey.

    Parameters
    ----------
    path : path-like
        A file as `decode` takes it; its name does not matter.

    Returns
    -------
    numpy.ndarray
        uint8, (height, width), 0 black to 255 white.

    Raises
    ------
    ImageError
        As for `decode`.
    CourseError
        The file cannot be read at all (gone, no permission): that says nothing about the image.
    """
    try:
        if Path(path).stat().st_size > MAX_BYTES:
            raise ImageError(TOO_MANY_BYTES)
        data = Path(path).read_bytes()
    except OSError as error:
        raise CourseError(f"{path} cannot be read ({error.strerror}). Mend that, and run again.") from None
    return decode(data)


def decode(data):
    """Decode an image file's content to grey.

    Parameters
    ----------
    data : bytes
        PNG, JPEG, BMP, TIFF, GIF, WebP or DICOM. The first bytes decide which; what follows the image does not
        matter. Of an animation or of several pages, the first counts; a DICOM file must hold one frame.

    Returns
    -------
    numpy.ndarray
        uint8, (height, width), 0 black to 255 white. 16-bit and float images are scaled by their own range,
        transparent pixels become black, a camera's rotation is undone; for DICOM see `utils.dicom.decode`.

    Raises
    ------
    ImageError
        Not an image, truncated or corrupt, smaller than 32 pixels, larger than 100 million or 512 MB, a long thin
        strip. The message is one line.
    CourseError
        DICOM, and pydicom is not installed.
    """
    if len(data) > MAX_BYTES:
        raise ImageError(TOO_MANY_BYTES)
    reason = not_an_image(data)
    if reason:
        raise ImageError(reason)
    try:
        return dicom.decode(data, check_shape=_check_shape) if kind(data) == "DICOM" else _decode(data)
    except (CourseError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise ImageError(TOO_LARGE) from None
    except UnidentifiedImageError:
        raise ImageError("corrupt or truncated (its header cannot be read)") from None
    except Exception as error:  # a damaged header makes the decoders raise nearly anything
        raise ImageError(f"corrupt or truncated ({one_line(error) or type(error).__name__})") from None


def _decode(data):
    if kind(data) == "JPEG":
        check_scans(data)
    elif kind(data) == "PNG":
        check_chunks(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        # Known from the header alone: a gigantic picture is refused before it takes memory.
        _check_shape(image.height, image.width)
        slow = image.format == "WEBP" or any(tile.codec_name == "bmp_rle" for tile in image.tile)
        if slow and image.height * image.width > MAX_SLOW_PIXELS:
            raise ImageError(f"{image.format} of more than {MAX_SLOW_PIXELS // 1_000_000} million pixels: use PNG")
        image.verify()  # a PNG's checksums: decoding does not look at them, and would give wrong pixels
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith(("I", "F")):
            return _eight_bit(np.asarray(image), stretch=image.mode == "F")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        return np.asarray(image.convert("L"))


def _check_shape(height, width):
    if height * width > MAX_PIXELS:
        raise ImageError(TOO_LARGE)
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{width} x {height} pixels: too small to show a chest")
    if max(height, width) > MAX_ASPECT * min(height, width):  # squared with bars, nearly nothing of it would be left
        raise ImageError(f"{width} x {height} pixels: too long and thin to show a chest")


def _eight_bit(values, *, stretch):
    values = np.nan_to_num(values.astype(np.float32))
    low, high = float(values.min()), float(values.max())
    if not stretch and low >= 0 and high <= 255:  # eight bits in a wider file
        return values.astype(np.uint8)
    return np.uint8(np.round((values - low) * (255.0 / max(high - low, 1e-6))))


def crop_border(grey, *, tolerance=12, most=0.25):
    """Cut away uniform borders: rows and columns at the edge whose pixels hardly differ.

    Parameters
    ----------
    grey : numpy.ndarray
        uint8, (height, width).
    tolerance, most
        As for `frame`.

    Returns
    -------
    numpy.ndarray
        A view of `grey`, never smaller than half of it in each direction.
    """
    return grey[frame(grey, tolerance=tolerance, most=most)]


def frame(grey, *, tolerance=12, most=0.25):
    """Find what is inside the uniform borders, to cut a mask as its radiograph is cut.

    Parameters
    ----------
    grey : numpy.ndarray
        uint8, (height, width).
    tolerance : int
        Grey values between the 2nd and the 98th percentile of a line that still count as uniform.
    most : float
        Never more than this share of a side, at each end.

    Returns
    -------
    tuple of slice
        Rows and columns inside.
    """
    height, width = grey.shape
    rows = _uniform(grey, tolerance)
    columns = _uniform(grey.T, tolerance)
    top, bottom = _ends(rows, int(height * most))
    left, right = _ends(columns, int(width * most))
    return slice(top, height - bottom), slice(left, width - right)


def _uniform(lines, tolerance):
    # A marker or a letter in a black bar covers little of a line: percentiles look past it.
    sample = np.sort(lines[:, :: max(1, lines.shape[1] // 128)], axis=1, kind="stable")  # radix sort: five times faster
    low, high = sample[:, int(0.02 * sample.shape[1])], sample[:, int(0.98 * sample.shape[1]) - 1]
    return high.astype(int) - low <= tolerance


def _ends(uniform, most):
    first = int(np.argmin(uniform)) if not uniform.all() else 0
    last = int(np.argmin(uniform[::-1])) if not uniform.all() else 0
    return min(first, most), min(last, most)


def fit_square(grey, size, *, fit="pad"):
    """Resize to (size, size), keeping the aspect ratio.

    Parameters
    ----------
    grey : numpy.ndarray
        uint8, (height, width).
    size : int
        Side of the result in pixels.
    fit : str
        "pad": two sides are filled with black. "crop": the longer side is cut at both ends. Squashing, the third way,
        makes hearts wide and ribs steep.

    Returns
    -------
    numpy.ndarray
        uint8, (size, size).
    """
    if fit == "crop":
        side = min(grey.shape)
        top, left = (grey.shape[0] - side) // 2, (grey.shape[1] - side) // 2
        grey = grey[top : top + side, left : left + side]
    height, width = grey.shape
    scale = size / max(height, width)
    shape = max(1, round(width * scale)), max(1, round(height * scale))
    small = cv2.resize(grey, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    square = np.zeros((size, size), np.uint8)
    top, left = (size - shape[1]) // 2, (size - shape[0]) // 2
    square[top : top + shape[1], left : left + shape[0]] = small
    return square


def clahe(grey, *, clip=2.0, tiles=8):
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994): local contrast, without amplified noise.

    Parameters
    ----------
    grey : numpy.ndarray
        uint8, (height, width).
    clip : float
        How far a grey value's count may exceed the average before it is cut.
    tiles : int
        The image is divided into tiles x tiles regions.

    Returns
    -------
    numpy.ndarray
        uint8, same shape.
    """
    return cv2.createCLAHE(clipLimit=clip, tileGridSize=(tiles, tiles)).apply(grey)


def unsharp(grey, *, sigma=2.0, amount=1.0):
    """Unsharp mask: the image plus `amount` times what a Gaussian blur of `sigma` pixels takes from it.

    Takes and returns uint8, (height, width).
    """
    blurred = cv2.GaussianBlur(grey, (0, 0), sigma)
    return cv2.addWeighted(grey, 1.0 + amount, blurred, -amount, 0)


FITS = ("pad", "crop")
# Equalised: the histogram as a whole, so that every image gets the same spread of grey values.
CHANNELS = {"plain": lambda grey: grey, "clahe": clahe, "equalised": cv2.equalizeHist, "unsharp": unsharp}


def preprocess(grey, options=Options()):
    """Turn a grey radiograph into what a model sees.

    Parameters
    ----------
    grey : numpy.ndarray
        uint8, (height, width).
    options : Options

    Returns
    -------
    numpy.ndarray
        uint8, (size, size, channels).
    """
    square = fit_square(crop_border(grey) if options.crop_border else grey, options.size, fit=options.fit)
    return np.stack([CHANNELS[name](square) for name in options.channels], axis=-1)


def load(path, options=Options()):
    """Read and prepare one file: `preprocess` of `read_grey`."""
    return preprocess(read_grey(path), options)


def describe(pixels):
    """Describe a set of images, a few at a time: as floating-point numbers they would fill the memory.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8, (images, size, size, channels); the first channel counts.

    Returns
    -------
    mean, deviation : numpy.ndarray
        float64, (size, size), grey values.
    counts : numpy.ndarray
        int64, (256,): how often each grey value occurs.
    """
    total, squares, counts = 0.0, 0.0, np.zeros(256, np.int64)
    for start in range(0, len(pixels), 200):
        block = pixels[start : start + 200, :, :, 0]
        counts += np.bincount(block.ravel(), minlength=256)
        values = block.astype(np.float64)
        total, squares = total + values.sum(axis=0), squares + (values**2).sum(axis=0)
    mean = total / len(pixels)
    return mean, np.sqrt(np.maximum(squares / len(pixels) - mean**2, 0)), counts


class Cache(NamedTuple):
    """Every readable image of a manifest, in its order.

    Attributes
    ----------
    pixels : numpy.ndarray or None
        uint8, (images, size, size, channels), mapped from the file, read-only. None where no options were given.
    digests : numpy.ndarray
        uint64, (images,): a hash of the decoded grey image, the same for the same pixels in another kind of file.
    thumbnails : numpy.ndarray
        uint8, (images, 48, 48): the whole image squashed to a square, for finding twins.
    readable : numpy.ndarray
        bool, (rows,): False where the file could not be used.
    skipped : pandas.DataFrame
        `path` and `reason` of these.
    key : str
        Stands for the files' content, in this order, and for the options.
    """

    pixels: np.ndarray | None
    digests: np.ndarray
    thumbnails: np.ndarray
    readable: np.ndarray
    skipped: pd.DataFrame
    key: str


def cached(root, manifest, options, folder, *, complete=False):
    """Prepare every image of a manifest once, as one uint8 array on disk.

    Parameters
    ----------
    root : path-like
        Folder that the manifest's paths start from.
    manifest : pandas.DataFrame
        With `path` and `sha256`.
    options : Options or None
        None: digests and thumbnails alone, for finding twins.
    folder : path-like
        Where caches are kept. The file is named by a hash of the options and of every file's content, so a
        changed file or option makes a new cache, and an interrupted run leaves none.
    complete : bool
        Every file has been read before: one that cannot be used now is an error, since arrays and manifest must stay
        in step.

    Returns
    -------
    Cache

    Raises
    ------
    CourseError
        A file cannot be read at all, or with `complete` cannot be used.
    """
    content = hashlib.sha256("\n".join(manifest["sha256"]).encode()).hexdigest()[:16]
    place = Path(folder) / f"{content}-{options.key() if options else f'thumbnails-v{VERSION}'}"
    place.mkdir(parents=True, exist_ok=True)
    names = ["pixels"] * bool(options) + ["digests", "thumbnails"]
    with FileLock(place / ".lock"):  # two runs at once: the second waits, then reads
        if not all((place / name).exists() for name in (*(f"{name}.npy" for name in names), "skipped.json")):
            for left_over in place.glob(".part-*"):  # of a killed run
                left_over.unlink()
            _fill_cache(Path(root), manifest["path"], options, place)
    bad = json.loads((place / "skipped.json").read_text(encoding="utf-8"))
    readable = np.array([str(index) not in bad for index in range(len(manifest))])
    skipped = pd.DataFrame({"path": manifest["path"][~readable].to_numpy(), "reason": list(bad.values())}, dtype=object)
    if complete and not readable.all():
        raise CourseError(
            f"{len(skipped)} images can no longer be used, {skipped['path'][0]} among them ({skipped['reason'][0]}). "
            "Run notebook 01 again: it leaves them out and lists them."
        )
    arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in names}
    return Cache(**{"pixels": None, **arrays}, readable=readable, skipped=skipped, key=place.name)


def _fill_cache(root, paths, options, place):
    kinds = {"digests": ((), np.uint64), "thumbnails": ((THUMBNAIL, THUMBNAIL), np.uint8)}
    if options:
        kinds["pixels"] = ((options.size, options.size, len(options.channels)), np.uint8)
    arrays = {name: np.zeros((len(paths), *shape), dtype) for name, (shape, dtype) in kinds.items()}

    def one(row, path):
        try:
            grey = read_grey(root / path)
        except ImageError as error:
            return str(error)
        if options:
            arrays["pixels"][row] = preprocess(grey, options)
        arrays["digests"][row] = _digest(grey)
        arrays["thumbnails"][row] = cv2.resize(grey, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reasons = list(pool.map(one, range(len(paths)), paths))
    good = np.array([reason is None for reason in reasons], bool)
    for name, array in arrays.items():
        with written(place / f"{name}.npy") as part:
            np.save(part, array if good.all() else array[good])
    bad = {row: reason for row, reason in enumerate(reasons) if reason}
    write_text(place / "skipped.json", json.dumps(bad))  # last: its presence says that all is whole


def _digest(grey):
    return int.from_bytes(hashlib.blake2b(bytes(str(grey.shape), "ascii") + grey.tobytes(), digest_size=8).digest())
