"""What a file is that Pillow cannot read as an image, and what to do with it."""

from __future__ import annotations

import struct
import warnings
from typing import IO, Any

from PIL import Image, TiffImagePlugin, UnidentifiedImageError

__all__ = ["NPY", "describe_unreadable", "has_more_pages"]

NPY = 'save its array as a .npy file, (H, W) or (H, W, C), for INPUT.FORMAT "BANDS"'
_TO_PNG = "convert it to PNG or JPEG"
_START = 512  # bytes that are read of a file
# Beginning of a file (or its bytes from a position) -> what it is, and the way out.
_KINDS: list[tuple[int, tuple[bytes, ...], str, str]] = [
    (0, (b"%!PS", b"\xc5\xd0\xd3\xc6"), "PostScript is a program, which psf does not execute", _TO_PNG),
    (0, (b"%PDF",), "a PDF document", "convert its pages to PNG"),
    (
        0,
        (b"version https://git-lfs",),
        "a Git LFS pointer in place of the image",
        "run `git lfs pull` in its repository",
    ),
    (0, (b"<!doctype html", b"<html"), "an HTML page in place of the image", "download the image again"),
    (0, (b"<svg", b"<?xml"), "an XML text, perhaps an SVG drawing", "draw it as PNG"),
    (0, (b"\x93NUMPY",), "a NumPy array", 'name it *.npy, for INPUT.FORMAT "BANDS"'),
    (0, (b"\x89HDF",), "an HDF5 or MATLAB file", NPY),
    (128, (b"DICM",), "a DICOM file", f"{_TO_PNG}, or {NPY}"),
    (0, (b"v/1\x01",), "an OpenEXR image", f"{_TO_PNG}, or {NPY}"),
    (0, (b"\xff\x0a", b"\0\0\0\x0cJXL "), "a JPEG XL image", _TO_PNG),
    (4, (b"ftyphei", b"ftyphev", b"ftypmif1", b"ftypmsf1"), "a HEIC (HEIF) image, as phones take them", _TO_PNG),
    (4, (b"ftypavif",), "an AVIF image, for which this Pillow has no decoder", _TO_PNG),
    (4, (b"ftyp",), "a video", "psf predict reads videos; for other uses extract its frames as PNG"),
    (0, (b"PK\x03\x04", b"\x1f\x8b"), "a compressed archive", "unpack it"),
]
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags of TIFF, and what their values mean.
_SUBFILE, _WIDTH, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _FORMAT = 254, 256, 258, 259, 262, 277, 284, 339
_FORMATS = {1: "unsigned integers", 2: "signed integers", 3: "floating point", 5: "complex integers", 6: "complex"}
_PHOTOMETRICS = {0: "gray", 1: "gray", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab"}
_REDUCED = 1  # of _SUBFILE: an overview of another page
_MOST_OVERVIEWS = 32  # that are passed over
_TIFF_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, KeyError, struct.error)  # of damaged directories


def describe_unreadable(file: IO[bytes], error: Exception) -> str:
    """What was found in a file, what is expected, and how to convert it, as one line without its name.

    Args:
        file: opened, at its beginning; Pillow has raised `error` for it.
        error: the error.
    """
    start = file.read(_START)
    if not start:
        return "empty, corrupt or not an image (it has 0 bytes)"
    is_unknown = isinstance(error, UnidentifiedImageError)
    if start.startswith(_TIFF) and (is_unknown or "decoder" in str(error)):
        file.seek(0)
        if kind := _describe_tiff(file):
            return (
                f"a TIFF with {kind}, which Pillow cannot decode; expected 8 bits per channel (gray: up to 32), "
                f"uncompressed or with a common compression such as LZW: convert it, or {NPY}"
            )
    if not is_unknown:
        return f"empty, corrupt or not an image ({error})"
    for position, beginnings, kind, way_out in _KINDS:
        if start[position:].lower().startswith(tuple(one.lower() for one in beginnings)):
            return f"not an image that psf reads, but {kind}: {way_out}"
    return "empty, corrupt or not an image (Pillow does not recognize its format); expected PNG, JPEG, TIFF or the like"


def _describe_tiff(file: IO[bytes]) -> str:
    """Channels, type and compression of the first page of a TIFF; "" if its directory is damaged."""
    try:
        header = file.read(8)
        if header[2:3] == b"+" or header[3:4] == b"+":  # BigTIFF
            header += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged entries
            tags.load(file)
        if any(tag not in tags for tag in (_WIDTH, _PHOTOMETRIC)):
            return ""
        samples, bits = int(_first(tags, _SAMPLES, 1)), int(_first(tags, _BITS, 1))
        photometric, code = int(_first(tags, _PHOTOMETRIC, 0)), int(_first(tags, _COMPRESSION, 1))
        number = _FORMATS.get(int(_first(tags, _FORMAT, 1)), "unknown numbers")
        planar = ", one plane after the other" if samples > 1 and _first(tags, _PLANAR, 1) == 2 else ""
    except _TIFF_ERRORS:
        return ""
    color = _PHOTOMETRICS.get(photometric, f"photometric {photometric}")
    names = {**TiffImagePlugin.COMPRESSION_INFO, 1: "none"}
    return (
        f"{samples} channel{'s' * (samples > 1)} ({color}) of {bits} bits, {number}{planar}, "
        f"compression {names.get(code, f'number {code}')}"
    )


def _first(tags: Any, tag: int, default: int) -> Any:
    """The value of a tag, or the first of its values."""
    value = tags.get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def has_more_pages(image: Any) -> bool:
    """Whether a TIFF opened by Pillow has other pages than overviews of the first one. It stays at the first page."""
    if image.format != "TIFF":
        return False
    try:
        for page in range(1, _MOST_OVERVIEWS):
            image.seek(page)
            if not int(_first(image.tag_v2, _SUBFILE, 0)) & _REDUCED:
                return True
        return False
    except (*_TIFF_ERRORS, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return False  # no further page, or a damaged one
    finally:
        image.seek(0)
