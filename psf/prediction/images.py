"""Images in any form that users have, as the input of a model and as a picture."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from psf.data import as_picture
from psf.data.images import check_pixels, convert_image
from psf.engine import Predictor as EnginePredictor
from psf.errors import UserError, printable

__all__ = ["CHANNEL_ORDERS", "ImageSource", "LoadedImage", "is_single", "load_image", "name_of"]

ImageSource = str | os.PathLike[str] | bytes | np.ndarray | torch.Tensor | Image.Image
CHANNEL_ORDERS = ("RGB", "BGR")
_SINGLE = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, torch.Tensor, Image.Image)


class LoadedImage(NamedTuple):
    """One image."""

    model_input: dict[str, Any]  # Detectron2's dict, resized for the model
    picture: np.ndarray  # (H, W, 3) uint8 RGB, to draw on


def is_single(images: Any) -> bool:
    """Whether this is one image, and not several."""
    return isinstance(images, _SINGLE)


def name_of(source: Any) -> str:
    """An image's name for messages: its path, or its kind."""
    if isinstance(source, (str, os.PathLike)):
        return printable(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"the image ({len(source)} bytes)"
    return f"the image ({type(source).__name__})"


def load_image(source: Any, predictor: EnginePredictor, channel_order: str) -> LoadedImage:
    """Read an image for a model.

    Args:
        source: a path; the bytes of an image file; an image of Pillow, rotated by its EXIF orientation; an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) with values 0 to 255; a tensor (C, H, W) of such values. For
            INPUT.FORMAT "BANDS": an array (H, W, C) or tensor (C, H, W) with the model's channels, of any numbers.
        predictor: of the model.
        channel_order: "RGB" or "BGR", of arrays and tensors; has no effect on files, images of Pillow and "BANDS".

    Raises:
        UserError: that names the image, if it cannot be used.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise UserError(f"channel_order is {channel_order!r}: expected one of {', '.join(CHANNEL_ORDERS)}")
    if isinstance(source, (bytes, bytearray, memoryview)):
        pixels, picture = predictor.read(name_of(source), bytes(source))  # in memory alone
    elif isinstance(source, (str, os.PathLike)):
        path = os.path.expanduser(os.fspath(source))
        if "://" in path:
            raise UserError(f"{printable(path)} is an address: download it, and give the file or its bytes")
        pixels, picture = predictor.read(path)
    elif isinstance(source, Image.Image):
        try:
            pixels, picture = _from_pillow(source, predictor)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow reads a file not before it is needed
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name_of(source)} cannot be read: {error}") from error
    elif isinstance(source, (np.ndarray, torch.Tensor)):
        array = _as_array(source) if isinstance(source, torch.Tensor) else source
        pixels, picture = _from_array(array, predictor, channel_order, name_of(source))
        picture = picture.copy()  # the caller may change the array, such as the buffer of a camera
    else:
        raise UserError(
            f"an image is of type {type(source).__name__}: expected a path, bytes, an array, a tensor or an image of "
            "Pillow"
        )
    return LoadedImage(predictor.prepare(pixels), np.ascontiguousarray(picture))


def _from_pillow(image: Image.Image, predictor: EnginePredictor) -> tuple[np.ndarray, np.ndarray]:
    name, own = name_of(image), predictor.input_format
    if own in CHANNEL_ORDERS:  # a call takes BGR
        pixels = convert_image(image, name, "BGR")
        return pixels, pixels[..., ::-1]
    pixels = convert_image(image, name, own, len(predictor.cfg.MODEL.PIXEL_MEAN))
    return pixels, as_picture(pixels, own)


def _as_array(tensor: torch.Tensor) -> np.ndarray:
    """(C, H, W) or (H, W) -> (H, W, C) or (H, W)."""
    if tensor.dim() == 3 and tensor.shape[0] > 4 >= tensor.shape[2]:
        raise UserError(
            f"the image is a tensor of shape {tuple(tensor.shape)}: expected (channels, height, width); use "
            "image.permute(2, 0, 1)"
        )
    array: np.ndarray = tensor.detach().cpu().float().numpy() if tensor.is_floating_point() else tensor.cpu().numpy()
    return array.transpose(1, 2, 0) if array.ndim == 3 else array


def _from_array(
    array: np.ndarray, predictor: EnginePredictor, channel_order: str, name: str
) -> tuple[np.ndarray, np.ndarray]:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(f"{name} has the shape {array.shape}: expected (height, width, channels)")
    check_pixels(name, *array.shape[:2])
    if array.dtype.kind not in "buif":
        raise UserError(f"{name} is of {array.dtype}: expected numbers")
    if predictor.input_format == "BANDS":
        bands = np.atleast_3d(array)
        if not np.isfinite(bands).all():
            raise UserError(f"{name} has NaN or infinite values; expected finite numbers")
        return bands, as_picture(bands, "BANDS")
    picture = _as_rgb(_as_8_bit(array, name), channel_order, name)
    return predictor.take_frame(picture), picture


def _as_8_bit(array: np.ndarray, name: str) -> np.ndarray:
    """Values 0 to 255 of any type as uint8; a UserError for values of another range."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise UserError(f"{name} has NaN or infinite values; expected finite numbers")
    hint = ""
    if array.dtype.kind == "f" and low >= 0 and 0 < high <= 1:
        hint = "multiply it by 255"
    elif low < 0 or high > 255:
        hint = "divide it by 257" if array.dtype == np.uint16 else "scale it"
    if hint:
        raise UserError(f"{name} has values from {low:g} to {high:g}: expected 0 to 255; {hint}")
    return array.round().astype(np.uint8) if array.dtype.kind == "f" else array.astype(np.uint8)


def _as_rgb(array: np.ndarray, channel_order: str, name: str) -> np.ndarray:
    """(H, W, 3) in RGB order of gray, colour, or colour with transparency, which is dropped."""
    array = np.atleast_3d(array)
    num_channels = array.shape[2]
    if num_channels not in (1, 3, 4):
        raise UserError(
            f"{name} has the shape {array.shape}: expected (height, width, channels) with 1, 3 or 4 channels"
        )
    if num_channels == 1:
        return array.repeat(3, axis=2)
    return array[..., 2::-1] if channel_order == "BGR" else array[..., :3]
