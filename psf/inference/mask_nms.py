"""Non-maximum suppression among masks: the lesser of two that show the same thing is left out."""

from __future__ import annotations

import torch
from torch import Tensor

from psf.inference.boxes import tight_boxes

__all__ = ["mask_nms"]


def mask_nms(masks: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Greedy suppression by mask IoU among masks of one class.

    Masks are compared inside the box that both share, and only where their boxes and areas leave an IoU above the
    threshold possible; so few pixels are looked at where masks are apart.

    Args:
        masks: (N, H, W) bool, best first.
        classes: (N,) masks of different classes never suppress each other.
        threshold: a mask is left out if its IoU with a better one that is kept is above; 1 keeps all.

    Returns:
        (M,) positions of those kept, ascending.
    """
    if threshold >= 1 or len(masks) < 2:
        return torch.arange(len(masks), device=masks.device)
    boxes, _ = tight_boxes(masks)
    areas = masks.sum((1, 2))
    pairs = _possible_pairs(boxes, areas, classes, threshold)
    shared = _shared_pixels(masks, boxes, pairs).tolist()
    sizes = areas.tolist()
    left_out: set[int] = set()
    for (better, worse), both in zip(pairs, shared, strict=True):  # by the better one, ascending
        if better not in left_out and both > threshold * (sizes[better] + sizes[worse] - both):
            left_out.add(worse)
    return torch.tensor([one for one in range(len(masks)) if one not in left_out], device=masks.device)


def _possible_pairs(boxes: Tensor, areas: Tensor, classes: Tensor, threshold: float) -> list[tuple[int, int]]:
    """Pairs (better, worse) of one class: two masks share no more than their boxes do, nor than the smaller has."""
    low, high = torch.max(boxes[:, None, :2], boxes[None, :, :2]), torch.min(boxes[:, None, 2:], boxes[None, :, 2:])
    most_shared = (high - low).clamp(min=0).prod(-1).minimum(areas[:, None]).minimum(areas[None])
    possible = most_shared > threshold * (areas[:, None] + areas[None] - most_shared)
    possible &= classes[:, None] == classes[None]
    return [(better, worse) for better, worse in possible.triu(1).nonzero().tolist()]


def _shared_pixels(masks: Tensor, boxes: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    """(P,) pixels that each pair has in common; the host does not wait for a device in between."""
    corners = boxes.tolist()
    counts = []
    for one, other in pairs:
        x0, y0, x1, y1 = corners[one]
        left, top, right, bottom = corners[other]
        window = (slice(max(y0, top), min(y1, bottom)), slice(max(x0, left), min(x1, right)))
        counts.append((masks[one][window] & masks[other][window]).sum())
    return torch.stack(counts) if counts else boxes.new_zeros(0)
