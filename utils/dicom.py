"""A DICOM file becomes one uint8 array, as a viewer would show it first. `utils.images` calls this by the content."""

import io
import logging
import math
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image

from utils import kinds
from utils.errors import CourseError, ImageError, one_line

MAX_ITEMS = 100_000  # of sequences and of compressed pixels: pydicom needs 20 microseconds for each
BAND = 256  # rows worked on at a time: as floating-point numbers a whole radiograph would take eight times its memory

_PALETTES = [f"{colour}PaletteColorLookupTable" for colour in ("Red", "Green", "Blue")]
_REQUIRED = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored"),
    "PixelRepresentation",
)
# Nothing else is read: names, dates and private elements are no business of ours, and may be damaged.
_ELEMENTS = [
    *_REQUIRED,
    *("SOPClassUID", "NumberOfFrames", "PlanarConfiguration", "PixelData"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction", "PresentationLUTShape"),
    *(palette + part for palette in _PALETTES for part in ("Descriptor", "Data")),
]
_GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")  # one number a pixel
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def decode(data, *, check_shape):
    """Decode a DICOM file to grey.

    Grey values go through the modality LUT (or rescale slope and intercept), then through the VOI LUT or the window,
    the first where there are several, whose full range becomes 0 to 255. Without one, 8-bit images stay as they are and
    others are scaled by their own range. MONOCHROME1 is inverted, so that air is dark. Padding is black and does not
    count for the range. Colours become grey. Aspect ratio, overlays and shutters are ignored.

    Parameters
    ----------
    data : bytes
        A whole file, with DICM at offset 128.
    check_shape : callable
        Takes height and width from the header, before pixels are decoded; raises an ImageError.

    Returns
    -------
    numpy.ndarray
        uint8, (height, width).

    Raises
    ------
    ImageError
        No pixels, several frames, a transfer syntax that cannot be decoded.
    CourseError
        pydicom is not installed.
    Exception
        Anything that a damaged file makes pydicom and its decoders raise.
    """
    dataset = _read(data)
    _check_header(dataset)
    check_shape(dataset.Rows, dataset.Columns)
    pixels, form = _pixels(dataset)
    bands = [pixels[start : start + BAND] for start in range(0, len(pixels), BAND)]
    with np.errstate(all="ignore"):  # absurd slopes and windows overflow, and are clipped
        shade = _shade(dataset, form, bands)
        return np.concatenate([shade(band) for band in bands])


def _check_header(dataset):
    if "PixelData" not in dataset:
        about = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
        name = one_line(getattr(about, "name", ""))
        damaged = not name or "Image" in name
        raise ImageError("corrupt or truncated (DICOM without pixels)" if damaged else f"DICOM without pixels: {name}")
    for name in _REQUIRED:
        if dataset.get(name) is None:
            raise ImageError(f"corrupt or truncated (DICOM header without {name})")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ImageError(f"{frames} frames: expected one radiograph, not a film or a stack of slices")
    form = dataset.PhotometricInterpretation
    if form not in (*_GREYS, *_COLOURS):
        raise ImageError(f"DICOM with the photometric interpretation {one_line(form)}, which the course does not read")
    if dataset.SamplesPerPixel != (3 if form in _COLOURS else 1):
        raise ImageError(f"corrupt or truncated ({form} with {dataset.SamplesPerPixel} samples a pixel)")


def _pydicom():
    """Import pydicom where it is used (it takes a second), and keep it from talking: files end in a list of reasons."""
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise CourseError(
            "Reading a DICOM file needs pydicom, which is not installed. Build the environment again "
            "(README), or: pip install pydicom pylibjpeg[libjpeg,openjpeg]"
        ) from None
    warnings.filterwarnings("ignore", module="pydicom")
    for name in ("pydicom", "pylibjpeg", "libjpeg", "openjpeg"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pydicom


def _read(data):
    pydicom = _pydicom()
    if data.count(b"\xfe\xff\x00\xe0") > MAX_ITEMS:
        raise ImageError(f"corrupt or truncated (DICOM of more than {MAX_ITEMS:,} items)")
    file = io.BytesIO(data)
    pydicom.filereader.read_preamble(file, False)
    # pydicom's own way to the transfer syntax: dcmread would have inflated a deflated file, of any size, by then.
    syntax = pydicom.filereader._read_file_meta_info(file).get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("corrupt or truncated (its header names no transfer syntax)")
    if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
        raise _unread(syntax)
    file.seek(0)
    return pydicom.dcmread(file, specific_tags=_ELEMENTS)


def _unread(syntax):
    return ImageError(
        f"DICOM in the transfer syntax {one_line(syntax.name)}, which the course does not read: export it uncompressed"
    )


def _pixels(dataset):
    """Return pixels, (height, width) or (height, width, 3), and their photometric interpretation."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import RLELossless

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if not (decoder and decoder.is_available):
        raise _unread(syntax)
    plugin = ""
    if decoder.is_encapsulated:
        _check_compressed(dataset, syntax)
        plugin = "pydicom" if syntax == RLELossless else "pylibjpeg"  # the same everywhere, whatever is installed
    try:
        pixels, form = decoder.as_array(dataset, index=0, raw=True, decoding_plugin=plugin, allow_excess_frames=False)
    except RuntimeError as error:  # the decoders' own words come last
        raise ImageError(f"corrupt or truncated ({one_line(str(error).splitlines()[-1])})") from None
    return pixels, form["photometric_interpretation"]


def _check_compressed(dataset, syntax):
    """Refuse what a decoder would spend any amount of memory or time on, whatever the DICOM header says."""
    from pydicom import encaps, uid

    frame = encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    shape = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel
    if syntax == uid.RLELossless:
        if len(frame) > 2 * np.prod(shape, dtype=np.int64) * dataset.BitsAllocated // 8 + 1024:
            raise ImageError("corrupt or truncated (more compressed than uncompressed data)")
        return
    is_jpeg = syntax in (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes)
    if is_jpeg:
        kinds.check_scans(frame)
    sizes = kinds.jpeg_sizes(frame) if is_jpeg else kinds.jpeg2000_sizes(frame)
    if sizes != {shape}:
        raise ImageError(
            f"corrupt or truncated (header: height, width, channels {shape}; compressed: "
            f"{', '.join(map(str, sizes)) or 'none'})"
        )


def _shade(dataset, form, bands):
    """Return the function that turns a band of pixels into grey, uint8."""
    if form.startswith("MONOCHROME"):
        return _monochrome(dataset, bands)
    if form == "PALETTE COLOR":
        return lambda band: _grey(np.stack([_look_up(dataset, dataset, name, band) for name in _PALETTES], axis=-1))
    full = 2.0**dataset.BitsStored - 1
    if form == "RGB":
        return lambda band: _grey(band / full)
    return lambda band: _eight_bit(band[..., 0] / full)  # Y is the very grey that Pillow makes of RGB


def _monochrome(dataset, bands):
    padding = _padding(dataset)
    window = _window(dataset) or _own_range(dataset, bands, padding)
    # Both say that low values are bright; a file that says both means it once.
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE"

    def shade(band):
        grey = _eight_bit(window(_modality(dataset, band)))
        return np.where(_inside(band, padding), np.uint8(0), 255 - grey if inverted else grey)

    return shade


def _eight_bit(shares):
    return np.uint8(np.rint(255 * np.clip(np.nan_to_num(shares), 0, 1)))


def _grey(colours):
    return np.asarray(Image.fromarray(_eight_bit(colours)).convert("L"))


def _padding(dataset):
    """Return the lowest and the highest pixel value that mean: nothing here. None where no value does."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    size = 2**dataset.BitsStored
    ends = [end % size for end in (value, value if limit is None else limit)]  # some headers give -2000 as 63536
    if dataset.PixelRepresentation:
        ends = [end - size if end >= size // 2 else end for end in ends]
    return min(ends), max(ends)


def _inside(pixels, ends):
    return (pixels >= ends[0]) & (pixels <= ends[1]) if ends else np.zeros(pixels.shape, bool)


def _modality(dataset, pixels):
    """Return what pixel values stand for (Hounsfield units, optical density, ...), float64."""
    if dataset.get("ModalityLUTSequence"):
        return _look_up(dataset, dataset.ModalityLUTSequence[0], "LUT", pixels, share=False)
    return pixels * _number(dataset, "RescaleSlope", 1.0) + _number(dataset, "RescaleIntercept", 0.0)


def _number(dataset, name, otherwise):
    value = dataset.get(name)
    if isinstance(value, Sequence) and not isinstance(value, str):  # the first of several windows
        value = value[0] if value else None
    if value in (None, ""):
        return otherwise
    if not math.isfinite(value):
        raise ImageError(f"corrupt or truncated ({name} is {value})")
    return float(value)


def _window(dataset):
    """Return the VOI LUT or window as a function, modality values -> 0 black to 1 white; None where there is none."""
    table = (dataset.get("VOILUTSequence") or [()])[0]
    if "LUTDescriptor" in table and "LUTData" in table:
        return lambda values: _look_up(dataset, table, "LUT", np.rint(values))
    centre, width = _number(dataset, "WindowCenter", None), _number(dataset, "WindowWidth", 0)
    if centre is None or width <= 0:
        return None
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return lambda values: 1 / (1 + np.exp(-4 * (values - centre) / width))
    if function == "LINEAR" and width >= 1:  # PS3.3 C.11.2.1.2; LINEAR_EXACT does without
        centre, width = centre - 0.5, width - 1
    return lambda values: (values - (centre - width / 2)) / max(width, 1e-9)  # of width 1: a threshold


def _own_range(dataset, bands, padding):
    """Return what stands for a window where the file has none."""
    plain = not (dataset.get("ModalityLUTSequence") or dataset.PixelRepresentation)
    plain = plain and _number(dataset, "RescaleSlope", 1) == 1 and _number(dataset, "RescaleIntercept", 0) == 0
    if plain and dataset.BitsStored <= 8:
        low, high = 0, 2**dataset.BitsStored - 1
    else:
        values = (_modality(dataset, band[~_inside(band, padding)]) for band in bands)
        ends = [end for band in values if band.size for end in (band.min(), band.max())]
        low, high = min(ends, default=0), max(ends, default=0)
    return lambda values: (values - low) / ((high - low) or 1)


def _look_up(dataset, item, name, values, *, share=True):
    """Return the entries of a look-up table at `values`, float64; with `share` as shares of the highest possible.

    PS3.3 C.11.1.1: `item` has <name>Descriptor (number of entries, first value mapped, bits) and <name>Data.
    """
    entries, first, bits = item[f"{name}Descriptor"].value
    entries = entries or 2**16
    if first + entries > 2**16:  # the header may give a negative number as an unsigned one
        first -= 2**16
    data = item[f"{name}Data"].value
    order = "<" if dataset.original_encoding[1] or not isinstance(data, bytes) else ">"
    data = data if isinstance(data, bytes) else np.array(data, "<u2").tobytes()
    table = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * entries else "u1")[:entries]  # 8 bits may lie packed
    index = np.clip(np.nan_to_num(values.astype(np.float64)) - first, 0, len(table) - 1).astype(np.intp)
    full = max(2**bits - 1 if table.itemsize == 2 else 255, table.max()) if share else 1
    return table[index] / full
