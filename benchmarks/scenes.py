"""Synthetic images, ground truth and candidate masks with realistic sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psf.structures import Candidates

__all__ = ["blob_candidates", "training_input"]


def blob_candidates(
    size: tuple[int, int], *, num_things: int = 100, num_stuff: int = 53, device: str = "cpu"
) -> Candidates:
    """Candidates like those of the released model for an image: its 100 best pairs, and all stuff classes.

    Things are ellipses from three cells to half the image, with soft and wavy borders. Every fourth thing repeats an
    earlier mask, because a query may occur with several classes. A third of the things is confident. Eight stuff
    classes divide the image into smooth regions; the others have low scores everywhere.

    Args:
        size: height and width of the masks, 1/8 of the image's.
        num_things: things among the candidates.
        num_stuff: stuff classes.
        device: of the tensors, which are made on the CPU.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    things = _ellipses(size, num_things, generator)
    copies = torch.arange(3, num_things, 4)
    things[copies] = things[(uniform(len(copies)) * (copies - 1)).long()]
    present = min(8, num_stuff)
    regions = (6 * _waves(size, present, 5, generator)).softmax(0) * uniform(present, 1, 1, low=0.7, high=1.1)
    faint = 0.3 * _waves(size, num_stuff - present, 12, generator).clamp(min=0)
    stuff = torch.cat((regions, faint))[torch.randperm(num_stuff, generator=generator)]
    is_thing = torch.arange(num_things + num_stuff) < num_things
    sure = torch.where(is_thing, uniform(len(is_thing)) < 1 / 3, torch.cat((things, stuff)).flatten(1).amax(1) > 0.5)
    class_scores = torch.where(
        sure, uniform(len(is_thing), low=0.5, high=0.95), uniform(len(is_thing), low=0.02, high=0.3)
    )
    class_indices = torch.cat((torch.randint(0, 80, (num_things,), generator=generator), torch.arange(num_stuff)))
    boxes = uniform(len(is_thing), 4) * is_thing[:, None]
    tensors = (class_scores, class_indices, is_thing, torch.cat((things, stuff)), boxes)
    return Candidates(*(x.to(device) for x in tensors))


def _ellipses(size: tuple[int, int], number: int, generator: torch.Generator) -> Tensor:
    """(number, h, w) scores: about 1 inside, 0 outside."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    random = torch.rand(number, 6, 1, 1, generator=generator)
    dy, dx = y - random[:, 0] * height, x - random[:, 1] * width
    angle, radius = 3.14 * random[:, 2], 1.5 * (height / 6) ** random[:, 3]  # 1.5 cells to a quarter of the height
    along, across = dx * angle.cos() + dy * angle.sin(), dy * angle.cos() - dx * angle.sin()
    distance = ((along / (radius * (1 + random[:, 4]))) ** 2 + (across / radius) ** 2).sqrt()
    distance = distance + 0.2 * _waves(size, number, 20, generator)
    # A ReLU gives exact zeros in most places.
    return ((0.7 + 0.4 * random[:, 5]) * (1.1 * torch.sigmoid(6 * (1 - distance)) - 0.1)).clamp(min=0)


def _waves(size: tuple[int, int], number: int, cells: int, generator: torch.Generator) -> Tensor:
    """(number, h, w) smooth noise with deviation about 1, from a grid of cells x cells."""
    noise = torch.randn(1, number, cells, cells, generator=generator)
    return F.interpolate(noise, size=size, mode="bicubic", align_corners=False)[0]


def training_input(height: int, width: int, *, things: int = 7, stuff: int = 8) -> dict[str, Any]:
    """An image of smooth noise with ground truth in the format of psf's mapper: stuff in cells, boxes of things on top.

    Ids follow COCO's panoptic metadata: things from 0, stuff from 80.
    """
    generator = torch.Generator().manual_seed(0)
    image = 128 + 60 * _waves((height, width), 3, 24, generator) + 10 * torch.randn(3, 1, 1, generator=generator)
    labels = 1 + _waves((height, width), stuff, 4, generator).argmax(0)
    for number in range(things):
        top, left = (int(x * y) for x, y in zip(torch.rand(2, generator=generator), (height, width), strict=True))
        labels[top : top + height // 5 + 1, left : left + width // 8 + 1] = stuff + number + 1
    category_ids = [*range(80, 80 + stuff), *range(things)]
    return {
        "image": image.clamp(0, 255).to(torch.uint8),
        "height": height,
        "width": width,
        "panoptic_labels": labels.to(torch.uint8),
        "segments_info": [
            {"id": i, "category_id": category, "isthing": category < 80, "iscrowd": False}
            for i, category in enumerate(category_ids, start=1)
        ],
    }
