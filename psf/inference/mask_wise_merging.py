"""Mask-wise merging (section 3.5, Algorithm 1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from psf.predictions import PanopticSegmentation, Segment

__all__ = ["mask_wise_merging"]


def mask_wise_merging(
    confidence: Tensor,
    masks: Tensor,
    area: Tensor,
    t_cnf: Tensor,
    t_keep: Tensor,
    *,
    without_waiting: bool | None = None,
) -> PanopticSegmentation:
    """Paint masks onto an empty canvas in order of confidence.

    A mask keeps only the pixels that no better mask took; one that loses too much of itself is dropped, and what it
    would have covered stays free. Equal confidences are painted in the order given.

    Args:
        confidence: (N,) s_i, >= 0.
        masks: (N, H, W) bool, at output size; padding already cropped away.
        area: (N,) pixels of each mask.
        t_cnf: (N,) a mask of less confidence is skipped.
        t_keep: (N,) a mask is skipped if a smaller share of its pixels is still free.
        without_waiting: decide on the device, and let the host wait for it once, at the end; None: not on a CPU.

    Returns:
        The map; segment ids count from 1 in the order of painting, a segment's score is its confidence.

    Raises:
        ValueError: if the inputs disagree about N.
    """
    lengths = {len(x) for x in (confidence, masks, area, t_cnf, t_keep)}
    if len(lengths) != 1:
        raise ValueError(f"confidence, masks, area, t_cnf and t_keep have different lengths: {sorted(lengths)}")
    order = confidence.argsort(descending=True, stable=True)
    may_be_painted = (confidence >= t_cnf) & (area > 0)
    if without_waiting is None:
        without_waiting = masks.device.type != "cpu"
    paint = _paint_without_waiting if without_waiting else _paint_one_by_one
    return paint(order, may_be_painted, confidence, masks, area, t_keep)


def _paint_one_by_one(
    order: Tensor, may_be_painted: Tensor, confidence: Tensor, masks: Tensor, area: Tensor, t_keep: Tensor
) -> PanopticSegmentation:
    """Looks at each mask within its box alone, and at no mask that cannot be painted.

    In numpy, whose operations on bools are several times as fast on a CPU as torch's.
    """
    segment_map = torch.zeros(masks.shape[1:], dtype=torch.int32)
    canvas, pixels = segment_map.numpy(), masks.cpu().numpy()
    free = np.ones(canvas.shape, dtype=bool)
    candidates = order[may_be_painted[order]]
    scores, areas, keep = (x[candidates].tolist() for x in (confidence, area, t_keep))
    segments: list[Segment] = []
    for candidate, score, mask_area, share in zip(candidates.tolist(), scores, areas, keep, strict=True):
        box = _bounding_box(pixels[candidate])
        visible = pixels[candidate][box] & free[box]
        visible_area = int(np.count_nonzero(visible))
        if visible_area == 0 or visible_area / mask_area < share:
            continue
        segments.append(Segment(id=len(segments) + 1, candidate=candidate, score=score, area=visible_area))
        canvas[box][visible] = segments[-1].id
        free[box] &= ~visible
    return PanopticSegmentation(segment_map.to(masks.device), segments)


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold the pixels of a mask (H, W) with at least one."""
    rows = np.flatnonzero(mask.any(1))
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    return slice(top, bottom), slice(columns[0], columns[-1] + 1)


def _paint_without_waiting(
    order: Tensor, may_be_painted: Tensor, confidence: Tensor, masks: Tensor, area: Tensor, t_keep: Tensor
) -> PanopticSegmentation:
    """What is accepted is decided on the device; the host waits once, for the list of segments."""
    painted_by = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)  # 1 + position in the order
    area, t_keep, may_be_painted = area[order], t_keep[order], may_be_painted[order]
    visible_areas = torch.zeros_like(area)
    for position in range(len(order)):
        visible = masks.index_select(0, order[position : position + 1])[0] & (painted_by == 0)
        visible_area = visible.sum()
        # In float64, as Python divides.
        enough = visible_area.double() / area[position].clamp(min=1).double() >= t_keep[position]
        accepted = may_be_painted[position] & (visible_area > 0) & enough
        painted_by += (visible & accepted) * (position + 1)
        visible_areas[position] = visible_area * accepted
    ids = (visible_areas > 0).cumsum(0) * (visible_areas > 0)
    segment_map = torch.cat((ids.new_zeros(1), ids)).to(torch.int32)[painted_by]
    rows = torch.stack(
        (ids.double(), order.double(), confidence[order].double(), visible_areas.double()), dim=1
    ).tolist()
    segments = [Segment(int(i), int(candidate), score, int(size)) for i, candidate, score, size in rows if i]
    return PanopticSegmentation(segment_map, segments)
