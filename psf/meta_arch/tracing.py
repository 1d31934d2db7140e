"""A model inside torch.jit.trace and Detectron2's TracingAdapter: one image size, which the trace enforces.

A trace stores every number that Python computes from the example. Here these are the sizes alone, and a trace that gets
an image of another size raises an error. What needs other numbers of the example is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.structures import ImageList
from torch import Tensor

from psf.errors import UserError
from psf.inference.candidates import as_numbers

__all__ = ["check_traceable", "of_fixed_size", "with_numbers"]


def of_fixed_size(image: Tensor) -> Tensor:
    """The image; during a trace, with an operation that fails if the trace gets an image of another size."""
    return image.expand(as_numbers(image.shape)) if torch.jit.is_tracing() else image


def with_numbers(images: ImageList) -> ImageList:
    """The batch with sizes as int."""
    return ImageList(images.tensor, [as_numbers(size) for size in images.image_sizes])


def check_traceable(x: Mapping[str, Any], obstacles: Mapping[str, bool]) -> None:
    """Refuse a trace that would store other numbers of the example than sizes.

    Args:
        x: the input dict of an image.
        obstacles: text -> whether the model's results depend on such numbers.

    Raises:
        UserError: naming the first obstacle.
    """
    if not torch.jit.is_tracing():
        return
    if any(isinstance(x.get(key), Tensor) for key in ("height", "width")):
        raise UserError("a trace has one output size: give height and width as int, or leave them out")
    for text, is_present in obstacles.items():
        if is_present:
            raise UserError(f"a trace would repeat the result of its example for other images: {text}")
