"""Mask scores from the padded 1/8 map to the pixels of the output, in one step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from psf.precision import at_least_float32

__all__ = ["Frame", "resize_in_chunks", "resize_masks"]

# Resized pixels, padding included, that are held as floats at a time: on a CPU few enough to stay in its cache.
CHUNK_PIXELS = {"cpu": 2**20, "cuda": 2**26}
OTHER_CHUNK_PIXELS = 2**24


class Frame(NamedTuple):
    """The three sizes (height, width) that an image has on its way."""

    padded_size: tuple[int, int]  # of the batch it was run in
    image_size: tuple[int, int]  # its own in that batch
    output_size: tuple[int, int]  # of the results


def resize_masks(mask_scores: Tensor, frame: Frame) -> Tensor:
    """(N, h, w) scores of the padded image -> (N, H, W) at the output size, bilinear, padding cropped away.

    In float32 at least: in half precision, interpolating may exceed the highest score.
    """
    height, width = frame.output_size
    scores = at_least_float32(mask_scores[:, None])
    return F.interpolate(scores, size=_uncropped_size(frame), mode="bilinear", align_corners=False)[
        :, 0, :height, :width
    ]


def resize_in_chunks(mask_scores: Tensor, frame: Frame) -> Iterator[Tensor]:
    """`resize_masks` a few masks at a time, so that memory stays bounded; at least one chunk, which may be empty."""
    height, width = _uncropped_size(frame)
    pixels = CHUNK_PIXELS.get(mask_scores.device.type, OTHER_CHUNK_PIXELS)
    for chunk in mask_scores.split(max(1, pixels // (height * width))):
        yield resize_masks(chunk, frame)


def _uncropped_size(frame: Frame) -> list[int]:
    """Height and width of the output with the padding still there."""
    return [
        max(out, round(padded * out / own))
        for padded, own, out in zip(frame.padded_size, frame.image_size, frame.output_size, strict=True)
    ]
