"""The training loss in plain Python loops, pair by pair and pixel by pixel: slow, and hard to get wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from psf.losses.assignment import Assignment
from psf.structures import LocationLayer, PanopticTargets

__all__ = ["box_terms", "center_distance", "focal_sum", "mask_sum", "pairs_of"]

ALPHA, GAMMA = 0.4, 3.0  # other than the usual 0.25 and 2


def pairs_of(assignment: Assignment) -> list[tuple[int, int]]:
    """(query, thing), pair by pair."""
    return list(zip(assignment.queries.tolist(), assignment.things.tolist(), strict=True))


def focal_sum(logits: Tensor, wanted: set[tuple[int, ...]]) -> float:
    """Focal losses of all logits of an image; `wanted` holds the positions whose class is present."""
    total = 0.0
    for place in _places(logits):
        p = 1 / (1 + math.exp(-logits[place].item()))
        if place in wanted:
            total -= ALPHA * (1 - p) ** GAMMA * math.log(p)
        else:
            total -= (1 - ALPHA) * p**GAMMA * math.log(1 - p)
    return total


def _places(x: Tensor) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in x.shape:
        places = [(*place, i) for place in places for i in range(size)]
    return places


def box_terms(layer: LocationLayer, image: int, assignment: Assignment, target: PanopticTargets) -> tuple[float, float]:
    """L1 distance in units of the image, and 1 - GIoU in pixels, summed over an image's pairs."""
    height, width = target.image_size
    l1 = giou = 0.0
    for query, thing in pairs_of(assignment):
        x0, y0, x1, y1 = target.thing_boxes_xyxy_px[thing].tolist()
        box = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        found = layer.locations[image, query].tolist()
        l1 += sum(abs(a - b) for a, b in zip(found, box, strict=True))
        cx, cy, w, h = found[0] * width, found[1] * height, found[2] * width, found[3] * height
        giou += 1 - _giou((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), (x0, y0, x1, y1))
    return l1, giou


def _giou(a: Sequence[float], b: Sequence[float]) -> float:
    shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - shared
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return shared / union - (hull - union) / hull


def center_distance(layer: LocationLayer, image: int, assignment: Assignment, target: PanopticTargets) -> float:
    """L1 distance from the mean pixel center of each thing, in units of the image, summed over an image's pairs."""
    height, width = target.image_size
    total = 0.0
    for query, thing in pairs_of(assignment):
        pixels = target.thing_masks[thing].nonzero().tolist()  # row, column
        x = sum(column + 0.5 for _, column in pixels) / len(pixels) / width
        y = sum(row + 0.5 for row, _ in pixels) / len(pixels) / height
        found = layer.locations[image, query].tolist()
        total += abs(found[0] - x) + abs(found[1] - y)
    return total


def mask_sum(scores: Tensor, pairs: Sequence[tuple[int, int]], masks: Tensor, factor: int) -> float:
    """1 - dice of each pair of a predicted (N, h, w) and a true (G, H, W) mask, both at `factor` times h and w."""
    size = [factor * side for side in scores.shape[1:]]
    total = 0.0
    for query, row in pairs:
        m, t = (
            F.interpolate(x[None, None].double(), size=size, mode="bilinear", align_corners=False).flatten().tolist()
            for x in (scores[query], masks[row])
        )
        shared = sum(a * b for a, b in zip(m, t, strict=True))
        total += 1 - 2 * shared / (sum(a * a for a in m) + sum(b * b for b in t))
    return total
