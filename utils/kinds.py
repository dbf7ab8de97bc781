"""What a file is: its content says so, never its name (17 .jpg files of ieee8023 are PNG inside)."""

import re
import struct

from utils.errors import ImageError

MAX_SCANS = 100  # of a JPEG, about ten times what progressive ones have: decoding passes over all pixels for each
# Pillow and pydicom go through a file's pieces in Python: millions of empty ones would keep them busy for minutes.
MAX_SEGMENTS = 10_000  # of a JPEG: what it holds besides pixels comes in pieces of 64 KB
MAX_CHUNKS = 100_000  # of a PNG: usually of 8 KB each
HEAD = 1024  # bytes that tell the kind; a comment may stand before the <svg> or <html>

_IMAGES = {
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "JPEG": (b"\xff\xd8\xff",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),  # two wrong ones that exist; two of BigTIFF
}
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # their lengths: the two letters BM alone could begin a text
_OTHER_IMAGES = (
    (0, b"8BPS", "Photoshop"),
    (0, b"%!PS", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\0\0\x01\0", "icon"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypavif", "AVIF"),
)
_NO_IMAGES = (
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "zip archive or Office file"),
    (b"\x1f\x8b", "gzip archive"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!", "RAR archive"),
)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")

# Between these, a JPEG holds pixels: there FF is followed by 00 to 7F, or by a restart marker (D0 to D7).
_MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")
_SIZE = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start of frame; F7 is that of JPEG-LS
_SCAN, _END = 0xDA, 0xD9


def kind(head):
    """Return what kind of image a file is, by its first bytes.

    Parameters
    ----------
    head : bytes
        The first `HEAD` bytes, or more.

    Returns
    -------
    str or None
        "PNG", "JPEG", "TIFF", "GIF", "WebP", "BMP" or "DICOM"; None for what the course does not read. A file that is
        two things at once is what its first bytes say.
    """
    if head[128:132] == b"DICM" and not head.startswith(_IMAGES["PNG"] + _IMAGES["JPEG"] + _IMAGES["GIF"]):
        return "DICOM"  # its first 128 bytes are free, and some writers put the beginning of a TIFF there
    found = next((name for name, magics in _IMAGES.items() if head.startswith(magics)), None)
    if found:
        return found
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    return None


def not_an_image(head):
    """Return why a file is evidently not an image that the course reads, or None.

    Parameters
    ----------
    head : bytes
        The first `HEAD` bytes, or more.

    Returns
    -------
    str or None
        A reason, fit for a list of skipped files. None says that the file begins like an image, not that it is whole.
    """
    head = bytes(head[:HEAD])
    if not head:
        return "empty file"
    if kind(head):
        return None
    for at, magic, name in _OTHER_IMAGES:
        if head.startswith(magic, at):
            return f"not an image that the course reads ({name}: convert it to PNG first)"
    other = next((name for magic, name in _NO_IMAGES if head.startswith(magic)), None)
    return f"not an image ({other or _page(head) or 'unknown kind of file'})"


def _page(head):
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()  # a byte order mark
    if start.startswith(b"<"):
        if b"<!doctype html" in start or b"<html" in start:
            return "HTML page"
        if b"<svg" in start:
            return "SVG drawing"
    return "text" if min(head) >= 9 or head.startswith(_UTF16) else None


def _segments(jpeg):
    """Yield marker and content of each segment, up to the end of the image: what follows it does not count."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(jpeg, place)
        if not found or found[1][0] == _END:
            return
        length = int.from_bytes(jpeg[found.end() : found.end() + 2], "big")
        yield found[1][0], jpeg[found.end() + 2 : found.end() + length]
        place = found.end() + length
    raise ImageError(f"a JPEG of more than {MAX_SEGMENTS:,} segments: save it again")


def check_scans(jpeg):
    """Raise an ImageError for a JPEG (bytes) that brings its pixels in too many scans: few bytes, hours of decoding."""
    if sum(marker == _SCAN for marker, _ in _segments(jpeg)) > MAX_SCANS:
        raise ImageError(f"a JPEG in more than {MAX_SCANS} scans: save it again as an ordinary JPEG or PNG")


def check_chunks(png):
    """Raise an ImageError for a PNG (bytes) in too many pieces."""
    place = 8
    for _ in range(MAX_CHUNKS):
        if place >= len(png):
            return
        place += 12 + int.from_bytes(png[place : place + 4], "big")
    raise ImageError(f"a PNG of more than {MAX_CHUNKS:,} chunks: save it again")


def jpeg_sizes(jpeg):
    """Return each (height, width, channels) that a JPEG or JPEG-LS (bytes) says it has; there should be one."""
    frames = [content for marker, content in _segments(jpeg) if marker in _SIZE]
    return {(*(int.from_bytes(frame[at : at + 2], "big") for at in (1, 3)), *frame[5:6]) for frame in frames}


def jpeg2000_sizes(codestream):
    """Return the (height, width, channels) that a bare JPEG 2000 (bytes) says it has, in a set; empty where it is none.

    One in the boxes of a .jp2 file, which DICOM does not admit, is none: damaged boxes keep OpenJPEG busy for ever.
    """
    if not codestream.startswith(b"\xff\x4f\xff\x51") or len(codestream) < 42:
        return set()
    right, bottom, left, top = struct.unpack_from(">4I", codestream, 8)
    return {(bottom - top, right - left, *struct.unpack_from(">H", codestream, 40))}
