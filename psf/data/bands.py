"""The channels of a file as they are: no colours made of them, nothing rescaled, nothing multiplied by transparency."""

from __future__ import annotations

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

__all__ = ["as_numbers", "image_bands", "is_deep", "load_array", "opencv_bands"]

# Pillow's modes whose channels are those of the file.
_PLAIN_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "F")
# In PNG: byte 24 is the depth, byte 25 the kind of pixel; OpenCV's channels in the file's order, by kind.
_PNG_KINDS = {2: [2, 1, 0], 4: [0, 3], 6: [2, 1, 0, 3]}
# Tags of TIFF.
_BITS, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA = 258, 262, 277, 284, 338
_RGB_PHOTOMETRIC, _CONTIGUOUS, _PREMULTIPLIED = 2, 1, 1
_ORIENTATION = 0x0112  # of EXIF
_WAY_OUT = 'save its array as a .npy file, (H, W) or (H, W, C), for INPUT.FORMAT "BANDS"'


def load_array(path: str) -> np.ndarray:
    """(H, W) or (H, W, C) of a .npy file -> (H, W, C), of the file's type."""
    try:
        array = np.load(PathManager.get_local_path(path), mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such image file") from error
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path}: empty, corrupt or not an array of numbers ({error})") from error
    if array.ndim not in (2, 3) or not array.size:
        raise ValueError(f"{path}: the array has shape {array.shape}, expected (H, W) or (H, W, C), and none empty")
    return np.atleast_3d(np.array(array))


def is_deep(image: Image.Image, path: str) -> bool:
    """Whether Pillow's channels of this file are other numbers than the file's, and OpenCV's are not.

    Raises:
        ValueError: naming the file, if those of both are.
    """
    if image.format == "PNG":
        with PathManager.open(path, "rb") as file:
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
        raise ValueError(f"{path}: neither Pillow nor OpenCV reads the {samples} channels of this TIFF; {_WAY_OUT}")
    return True


def opencv_bands(image: Image.Image, path: str) -> np.ndarray:
    """(H, W, C) of a file that is deep, in the file's order."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        raise ValueError(f"{path}: an image of 16 bits to be turned by its EXIF orientation; {_WAY_OUT}")
    with PathManager.open(path, "rb") as file:
        data = np.frombuffer(file.read(), np.uint8)
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error}); {_WAY_OUT}") from error
    if pixels is None:
        raise ValueError(f"{path}: OpenCV cannot decode it; {_WAY_OUT}")
    kind = data[25] if image.format == "PNG" else {3: 2, 4: 6}[pixels.shape[2]]
    return pixels[..., _PNG_KINDS[int(kind)]]


def image_bands(image: Image.Image, path: str) -> np.ndarray:
    """(H, W, C) of what Pillow has read; 0 and 255 of 1-bit images, the colours of a palette."""
    if image.mode == "1":
        image = image.convert("L")
    if image.mode == "P":  # the transparency is no band
        return np.asarray(image.convert("RGBA"))[..., :3]
    if image.mode not in _PLAIN_MODES and not image.mode.startswith("I;16"):
        raise ValueError(f"{path}: Pillow reads it as {image.mode}, whose channels are not the file's; {_WAY_OUT}")
    return np.atleast_3d(np.asarray(image))


def as_numbers(bands: np.ndarray, path: str) -> np.ndarray:
    """(H, W, C) numbers of any type -> uint8 as they are, all others as float32; contiguous and writable."""
    if bands.dtype.kind not in "buif":
        raise ValueError(f"{path}: the array is of {bands.dtype}, expected real numbers")
    with np.errstate(over="ignore"):  # such a number is not finite in float32, and refused as that
        numbers = np.array(bands, np.uint8 if bands.dtype in (np.uint8, np.bool_) else np.float32, order="C")
    if not np.isfinite(numbers).all():
        raise ValueError(f"{path}: the image holds values that are not finite, as 32-bit floats")
    return numbers
