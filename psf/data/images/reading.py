"""Read image files of any common format as (H, W, C) in INPUT.FORMAT."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import log_first_n
from PIL import Image, ImageOps

from psf.data.files import check_regular
from psf.data.images.unreadable import NPY, describe_unreadable, has_more_pages
from psf.errors import UserError, printable

__all__ = [
    "ImageTooLarge",
    "as_image_array",
    "as_picture",
    "check_pixels",
    "convert_image",
    "image_bands",
    "image_size",
    "image_suffixes",
    "in_format",
    "is_deep",
    "is_turned",
    "limit_pixels",
    "load_array",
    "open_image",
    "opencv_bands",
    "read_image",
    "read_picture",
]

# Formats that Pillow does not decode itself: it gives EPS to Ghostscript, a program that executes the file, and the
# others to handlers that no one registers.
_REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
_ROWS = 256  # converted at a time, so that intermediate results stay small

# `check_pixels` refuses such images with a message of its own.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageTooLarge(UserError):
    """An image has more pixels than `limit_pixels` allows."""


def limit_pixels(number: int) -> None:
    """Set the largest number of pixels of an image in this process: INPUT.PSF_MAX_PIXELS, --max-pixels.

    It is Pillow's own limit, which Pillow also applies to images inside of other files (icons).

    Raises:
        UserError: if the number is below 1.
    """
    if number < 1:
        raise UserError(f"INPUT.PSF_MAX_PIXELS (--max-pixels) is {number}: expected 1 or more")
    Image.MAX_IMAGE_PIXELS = number


def check_pixels(place: str, height: int, width: int) -> None:
    """Raise ImageTooLarge, beginning with `place`, if an image is larger than the limit, before memory is taken."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and height * width > limit:
        raise _too_large(place, f"{width} x {height} pixels, ", height * width)


def _too_large(place: str, size: str, number: int) -> ImageTooLarge:
    limit = Image.MAX_IMAGE_PIXELS or 0
    return ImageTooLarge(
        f"{place}: {size}{number / 1e6:.1f} megapixels, the limit is {limit / 1e6:.1f}; cut the image into parts, or "
        f"raise INPUT.PSF_MAX_PIXELS (--max-pixels of psf validate and convert-dataset) to {number} or more; "
        "MODEL.PSF.TEST.TILES.SIZE then segments it in tiles"
    )


def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that psf reads, in lower case: all of Pillow's but `_REFUSED_FORMATS`."""
    formats = set(_formats())
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _formats() -> list[str]:
    Image.init()
    return [name for name in Image.ID if name not in _REFUSED_FORMATS]


def read_image(
    path: str, format: str = "BGR", num_channels: int | None = None, data: bytes | None = None
) -> np.ndarray:
    """Read an image in INPUT.FORMAT, rotated by its EXIF orientation.

    "BGR", "RGB" and "L" (gray) have 8 bits: gray, palette, 1-bit and CMYK images become colour, colour becomes gray.
    Transparency is dropped, not composited (as in Detectron2). 16-bit gray is rescaled from 0..65535, and 32-bit
    integers from 0..max(65535, their maximum). Floating-point images are rescaled from 0..1 if all values are in it,
    unchanged if all are in 0..255, and otherwise rescaled from their minimum..maximum.

    "BANDS" are the file's channels in their order, with unchanged values: of .npy arrays, (H, W) or (H, W, C), and of
    images such as RGBA and 16-bit PNG. Transparency is a channel; palette images give the colours of the palette.

    Args:
        path: anything that Detectron2's PathManager opens.
        format: "BGR", "RGB", "L" or "BANDS".
        num_channels: expected number of channels of "BANDS"; None: any. The other formats have 3, 3 and 1.
        data: content of an image file in memory, for which `path` is only its name in messages.

    Returns:
        (H, W, C), contiguous and writable: uint8, or float32 for "BANDS" of any other type.

    Raises:
        UserError: naming the file, if it is missing, empty, corrupt, contains non-finite values, or has another
            number of channels; or naming INPUT.FORMAT, if it is invalid.
    """
    if format == "BANDS":
        return _with_channels(_read_bands(path, data), path, num_channels)
    with open_image(path, data) as image:
        return convert_image(image, path, format)


def convert_image(image: Image.Image, name: str, format: str = "BGR", num_channels: int | None = None) -> np.ndarray:
    """A decoded image of Pillow in INPUT.FORMAT, as `read_image`: rotated by its EXIF orientation.

    Args:
        image: of any mode; for "BANDS", of at most 8 bits in each of several channels, as Pillow has it.
        name: of the image, for messages.
        format, num_channels: as for `read_image`.

    Raises:
        UserError: as `read_image`.
    """
    check_pixels(name, image.height, image.width)
    image = _upright(image, name)
    if format == "BANDS":
        return _with_channels(as_image_array(image_bands(image, name), name), name, num_channels)
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bit(np.asarray(image), name))
    if image.mode != "RGB":
        # A palette may store transparency as bytes, which Pillow converts without a warning only to RGBA.
        image = image.convert("RGBA" if image.mode == "P" else "RGB")
    pixels = np.asarray(image)[..., :3]
    return in_format(pixels, format)


def _with_channels(bands: np.ndarray, name: str, num_channels: int | None) -> np.ndarray:
    if num_channels not in (None, bands.shape[2]):
        raise UserError(
            f"{name}: has {bands.shape[2]} channels, the model takes {num_channels}, the length of "
            'MODEL.PIXEL_MEAN (INPUT.FORMAT is "BANDS")'
        )
    return bands


def in_format(pixels: np.ndarray, format: str) -> np.ndarray:
    """(H, W, 3) in RGB -> a copy in "RGB" or "BGR", or (H, W, 1) in "L"; a UserError naming INPUT.FORMAT otherwise."""
    if format not in ("BGR", "RGB", "L"):
        raise UserError(f"INPUT.FORMAT is {format!r}, expected 'BGR', 'RGB' or 'L' for a picture of 3 channels")
    if format == "L":
        return np.array(Image.fromarray(pixels).convert("L"))[..., None]
    return (pixels if format == "RGB" else pixels[..., ::-1]).copy()


@contextmanager
def open_image(path: str, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open and decode an image file, or its content `data`, with Pillow, or raise a UserError that names it.

    No program is started (see `_REFUSED_FORMATS`), and an image above `limit_pixels` is not decoded.
    """
    with _reported(path, data), _open(path, data) as file:
        image = Image.open(file, formats=_formats())
        check_pixels(path, image.height, image.width)
        if has_more_pages(image):
            message = f"{printable(path)}: a TIFF with several pages; psf reads the first"
            log_first_n(logging.WARNING, message, name=__name__, key="message")
        image.load()
    yield image


def image_size(path: str) -> tuple[int, int]:
    """(height, width) of an image file as `read_image` reads it; its pixels are decoded only if its EXIF needs it."""
    if path.lower().endswith(".npy"):
        return load_array(path).shape[:2]
    with _reported(path), PathManager.open(path, "rb") as file:
        image = Image.open(file, formats=_formats())
        check_pixels(path, image.height, image.width)
        if image.format == "TIFF" and _orientation(image, path) != 1:
            image.load()  # Pillow turns it, and removes the orientation
        is_tilted = _orientation(image, path) > 4  # by 90 degrees, mirrored or not
        return (image.width, image.height) if is_tilted else (image.height, image.width)


def _open(path: str, data: bytes | None) -> IO[bytes]:
    file: IO[bytes] = PathManager.open(path, "rb") if data is None else io.BytesIO(data)
    return file


@contextmanager
def _reported(path: str, data: bytes | None = None) -> Iterator[None]:
    """Raise what happens while an image file is opened or decoded as a UserError that names it."""
    if data is None:
        check_regular(path)
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's check comes first: above the limit a warning, above twice the limit an error.
        raise _too_large(path, "", int(re.findall(r"\d+", str(error))[0])) from error
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to decode the image") from error
    except Exception as error:  # Pillow may raise any error for a damaged file
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from error
        with _open(path, data) as file:
            raise UserError(f"{path}: {describe_unreadable(file, error)}") from error


def is_turned(path: str) -> bool:
    """Whether the EXIF block of an image file has an orientation; psf turns or mirrors the image by it."""
    if path.lower().endswith(".npy"):
        return False
    with PathManager.open(path, "rb") as file:
        return _orientation(Image.open(file, formats=_formats()), path) != 1


def _read_bands(path: str, data: bytes | None) -> np.ndarray:
    if data is None and path.lower().endswith(".npy"):
        return as_image_array(load_array(path), path)
    with open_image(path, data) as image:
        if is_deep(image, path, data):
            bands = opencv_bands(image, path, data)
        else:
            bands = image_bands(_upright(image, path), path)
    return as_image_array(bands, path)


def _orientation(image: Image.Image, path: str) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none, or a broken one."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # cameras write broken EXIF blocks; the pixels are still valid
        logging.getLogger(__name__).warning("%s: broken EXIF block, orientation ignored", printable(path))
        return 1
    return orientation if orientation in range(1, 9) else 1


def _upright(image: Image.Image, path: str) -> Image.Image:
    if _orientation(image, path) == 1:
        return image  # `exif_transpose` would copy it
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        logging.getLogger(__name__).warning("%s: broken EXIF block, orientation ignored", printable(path))
        return image


def _to_8_bit(values: np.ndarray, path: str) -> np.ndarray:
    """(H, W) integers or floats -> uint8, over the range that `read_image` documents."""
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise UserError(f"{path}: the image has values that are not finite")
    if values.dtype.kind in "iu":
        low, high = 0.0, max(high, 65535.0)
    elif low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scale = 255.0 / max(high - low, 1e-12)
    pixels: np.ndarray = np.empty(values.shape, dtype=np.uint8)
    for top in range(0, len(values), _ROWS):
        scaled = (values[top : top + _ROWS].astype(np.float64) - low) * scale
        pixels[top : top + _ROWS] = scaled.clip(0, 255).round()
    return pixels


# Pillow's modes whose channels are those of the file.
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F")
# PNG: byte 24 is the bit depth, byte 25 the colour type. Colour type -> OpenCV's channels in the file's order.
_PNG_KINDS = {2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA = 258, 262, 277, 284, 338
_RGB_PHOTOMETRIC, _CONTIGUOUS, _PREMULTIPLIED = 2, 1, 1
_ORIENTATION = 0x0112  # of EXIF


def load_array(path: str) -> np.ndarray:
    """Read a .npy file of (H, W) or (H, W, C) as (H, W, C) of the same type."""
    check_regular(path)
    try:
        array = np.load(PathManager.get_local_path(path), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image file") from error
    except Exception as error:  # numpy evaluates the header, and may raise any error for a damaged one
        raise UserError(f"{path}: empty, corrupt or not an array of numbers ({error})") from error
    if array.ndim not in (2, 3) or not array.size:
        raise UserError(f"{path}: the array has shape {array.shape}, expected a non-empty (H, W) or (H, W, C)")
    check_pixels(path, *array.shape[:2])
    return np.atleast_3d(np.array(array))


def is_deep(image: Image.Image, path: str, data: bytes | None = None) -> bool:
    """Whether Pillow changes the numbers of this file's channels and OpenCV does not; `data` as for `open_image`.

    Raises:
        UserError: naming the file, if both change the numbers.
    """
    if image.format == "PNG":
        with _open(path, data) as file:
            depth, kind = file.read(26)[24:]
        return depth == 16 and kind in _PNG_KINDS
    if image.format != "TIFF":
        return False
    tags = image.tag_v2  # type: ignore[attr-defined]  # of Pillow's TIFF images alone
    samples, extra = tags.get(_SAMPLES, 1), tags.get(_EXTRA, ())
    is_same = samples == 1 or (len(image.getbands()) == samples and max(tags[_BITS]) == 8)
    if is_same and _PREMULTIPLIED not in extra:
        return False
    layout = (tags.get(_PHOTOMETRIC), tags.get(_PLANAR, _CONTIGUOUS))
    if layout != (_RGB_PHOTOMETRIC, _CONTIGUOUS) or samples not in (3, 4):
        raise UserError(f"{path}: neither Pillow nor OpenCV reads the {samples} channels of this TIFF; {NPY}")
    return True


def opencv_bands(image: Image.Image, path: str, data: bytes | None = None) -> np.ndarray:
    """(H, W, C) of a file for which `is_deep` is True, in the file's order."""
    if _orientation(image, path) != 1:
        raise UserError(f"{path}: 16-bit images with an EXIF rotation are not supported; {NPY}")
    with _open(path, data) as file:
        content = np.frombuffer(file.read(), np.uint8)
    try:
        pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise UserError(f"{path}: OpenCV cannot decode it ({error}); {NPY}") from error
    if pixels is None:
        raise UserError(f"{path}: OpenCV cannot decode it; {NPY}")
    kind = content[25] if image.format == "PNG" else {3: 2, 4: 6}[pixels.shape[2]]
    return pixels[..., _PNG_KINDS[int(kind)]]


def image_bands(image: Image.Image, path: str) -> np.ndarray:
    """(H, W, C) of an image read by Pillow; 0 and 255 for 1-bit images, colours for a palette."""
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "P":  # transparency is not a band
        return np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode not in _PLAIN_MODES and not image.mode.startswith("I;16"):
        raise UserError(f"{path}: Pillow reads it as {image.mode}, whose channels are not the file's; {NPY}")
    return np.atleast_3d(np.asarray(image))


def as_image_array(bands: np.ndarray, path: str) -> np.ndarray:
    """(H, W, C) numbers of any type -> uint8 unchanged, all others as float32; contiguous and writable."""
    if bands.dtype.kind not in "buif":
        raise UserError(f"{path}: the array is of {bands.dtype}, expected real numbers")
    with np.errstate(over="ignore"):  # such a number becomes infinite and is refused below
        numbers = np.array(bands, np.uint8 if bands.dtype in (np.uint8, np.bool_) else np.float32, order="C")
    if not np.isfinite(numbers).all():
        raise UserError(f"{path}: the image has values that are not finite as 32-bit floats")
    return numbers


def as_picture(image: np.ndarray, format: str) -> np.ndarray:
    """Convert an image to an RGB picture.

    The first three "BANDS" become red, green and blue; with one or two bands, the first becomes gray. Bands that are
    not uint8 are rescaled, each from its minimum..maximum to 0..255.

    Args:
        image: (H, W, C), as `read_image` gives it.
        format: its INPUT.FORMAT.

    Returns:
        (H, W, 3) uint8 in RGB order, contiguous.
    """
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if format == "BGR":
        shown = shown[..., ::-1]
    if format == "BANDS" and shown.dtype != np.uint8:
        numbers = shown.astype(np.float64)
        low, high = numbers.min(axis=(0, 1)), numbers.max(axis=(0, 1))
        shown = ((numbers - low) / np.where(high > low, high - low, 1) * 255).round()
    return np.ascontiguousarray(shown, dtype=np.uint8)


def read_picture(path: str) -> np.ndarray:
    """Read an image file as an (H, W, 3) uint8 picture in RGB order; a .npy array is converted by `as_picture`.

    Raises:
        UserError: as `read_image`.
    """
    if path.lower().endswith(".npy"):
        return as_picture(read_image(path, "BANDS"), "BANDS")
    return read_image(path, "RGB")
