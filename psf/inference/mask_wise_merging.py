"""Mask-wise merging (section 3.5, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psf.errors import UserError
from psf.structures import PanopticSegmentation, Segment

__all__ = ["PaintedMask", "mask_wise_merging", "paint_masks"]

Index = tuple[slice, ...]


class PaintedMask(NamedTuple):
    """candidate: position of the candidate. area: number of its pixels on the canvas."""

    candidate: int
    area: int


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

    A mask gets the pixels that no mask of higher confidence has. A mask that keeps too small a share of its pixels is
    dropped, and its pixels remain free. Masks of equal confidence are painted in the given order.

    Args:
        confidence: (N,) s_i, >= 0.
        masks: (N, H, W) bool, at output size, without padding.
        area: (N,) pixels of each mask.
        t_cnf: (N,) masks of lower confidence are dropped.
        t_keep: (N,) masks that keep a smaller share of their pixels are dropped.
        without_waiting: decide on the device, with one synchronization at the end; None: True except on a CPU, and in
            a trace, to which NumPy's results would be constants.

    Returns:
        The map; segment ids count from 1 in the order of painting, a segment's score is its confidence.

    Raises:
        UserError: if the inputs have different N.
    """
    lengths = {len(x) for x in (confidence, masks, area, t_cnf, t_keep)}
    if len(lengths) != 1:
        raise UserError(f"confidence, masks, area, t_cnf and t_keep have different lengths: {sorted(lengths)}")
    if without_waiting is None:
        without_waiting = masks.device.type != "cpu" or torch.jit.is_tracing()
    paint = _paint_without_waiting if without_waiting else _paint_on_cpu
    return paint(confidence, masks, area, t_cnf, t_keep)


def paint_masks(
    confidence: np.ndarray,
    area: np.ndarray,
    t_cnf: np.ndarray,
    t_keep: np.ndarray,
    mask_of: Callable[[int], tuple[Index, np.ndarray]],
    shape: tuple[int, ...],
    num_pixels: np.ndarray | None = None,
) -> tuple[np.ndarray, list[PaintedMask]]:
    """Algorithm 1 on a canvas of any shape, mask by mask.

    Args:
        confidence, area, t_cnf, t_keep: (N,), as in `mask_wise_merging`.
        mask_of: candidate -> index of a part of the canvas, and the (bool) mask in this part. It is called only for
            candidates that can be painted.
        shape: shape of the canvas.
        num_pixels: (*shape), number of pixels per element of the canvas; None: one each.

    Returns:
        (*shape) int32, 0 or the position of the mask in the list, from 1; and the list of painted masks.
    """
    canvas = np.zeros(shape, dtype=np.int32)
    is_free = np.ones(shape, dtype=bool)
    order = np.argsort(-confidence, kind="stable")
    order = order[((confidence >= t_cnf) & (area > 0))[order]]
    painted: list[PaintedMask] = []
    for candidate, mask_area, share in zip(order.tolist(), area[order].tolist(), t_keep[order].tolist(), strict=True):
        place, mask = mask_of(candidate)
        visible = mask & is_free[place]
        visible_area = int(np.count_nonzero(visible) if num_pixels is None else num_pixels[place][visible].sum())
        if visible_area == 0 or visible_area / mask_area < share:
            continue
        painted.append(PaintedMask(candidate, visible_area))
        canvas[place][visible] = len(painted)
        is_free[place] &= ~visible
    return canvas, painted


def _paint_on_cpu(
    confidence: Tensor, masks: Tensor, area: Tensor, t_cnf: Tensor, t_keep: Tensor
) -> PanopticSegmentation:
    """Paint the masks, each within its bounding box.

    This uses NumPy, whose bool operations are several times faster on a CPU than those of torch.
    """
    pixels, scores = masks.cpu().numpy(), confidence.detach().cpu().numpy()

    def mask_of(candidate: int) -> tuple[Index, np.ndarray]:
        box = _bounding_box(pixels[candidate])
        return box, pixels[candidate][box]

    areas, least_confidence, least_share = (x.cpu().numpy() for x in (area, t_cnf, t_keep))
    canvas, painted = paint_masks(scores, areas, least_confidence, least_share, mask_of, pixels.shape[1:])
    segments = [
        Segment(id=i, candidate=one.candidate, score=float(scores[one.candidate]), area=one.area)
        for i, one in enumerate(painted, 1)
    ]
    return PanopticSegmentation(torch.from_numpy(canvas).to(masks.device), segments)


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of a mask (H, W) with at least one pixel."""
    rows = np.flatnonzero(mask.any(1))
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    return slice(top, bottom), slice(columns[0], columns[-1] + 1)


def _paint_without_waiting(
    confidence: Tensor, masks: Tensor, area: Tensor, t_cnf: Tensor, t_keep: Tensor
) -> PanopticSegmentation:
    """Paint or drop on the device; the host waits only once, for the list of segments."""
    order = confidence.argsort(descending=True, stable=True)
    may_be_painted = (confidence >= t_cnf) & (area > 0)
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
    panoptic_seg = torch.cat((ids.new_zeros(1), ids)).to(torch.int32)[painted_by]
    rows = torch.stack(
        (ids.double(), order.double(), confidence[order].double(), visible_areas.double()), dim=1
    ).tolist()
    segments = [Segment(int(i), int(candidate), score, int(size)) for i, candidate, score, size in rows if i]
    return PanopticSegmentation(panoptic_seg, segments)
