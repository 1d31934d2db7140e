"""Mask-wise merging (section 3.5, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from psf.errors import UserError
from psf.ops.transfer import download_arrays, upload_numbers
from psf.structures import PanopticSegmentation, Segment, tight_boxes

__all__ = ["MaskNumbers", "PaintedMask", "mask_wise_merging", "merge_masks", "paint_masks", "paints_on_device"]

Index = tuple[slice, ...]
Numbers = TypeVar("Numbers", np.ndarray, Tensor)


class MaskNumbers(NamedTuple):
    """What merging needs of N masks besides their pixels, on the host: (N,) arrays, as in `mask_wise_merging`."""

    confidence: np.ndarray
    area: np.ndarray
    t_cnf: np.ndarray
    t_keep: np.ndarray
    boxes: np.ndarray | None = None  # (N, 4) `tight_boxes`; None: paint with NumPy, on the host


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
    on_device: bool | None = None,
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
        on_device: paint where the masks are; the host waits twice, for the numbers and for the visible areas. False:
            paint with NumPy. None: see `paints_on_device`. A trace always paints on the device.

    Returns:
        The map; segment ids count from 1 in the order of painting, a segment's score is its confidence.

    Raises:
        UserError: if the inputs have different N.
    """
    lengths = {len(x) for x in (confidence, masks, area, t_cnf, t_keep)}
    if len(lengths) != 1:
        raise UserError(f"confidence, masks, area, t_cnf and t_keep have different lengths: {sorted(lengths)}")
    if torch.jit.is_tracing():
        return _merge_in_a_trace(confidence, masks, area, t_cnf, t_keep)
    on_device = paints_on_device(masks) if on_device is None else on_device
    boxes = [tight_boxes(masks)[0]] if on_device else []
    return merge_masks(masks, MaskNumbers(*download_arrays(confidence, area, t_cnf, t_keep, *boxes)))


def paints_on_device(masks: Tensor) -> bool:
    """Whether `merge_masks` should paint these masks where they are; else with NumPy, on the host.

    On a CPU, NumPy paints 4 to 6 times as fast as torch.
    """
    return masks.device.type != "cpu"


def merge_masks(masks: Tensor, numbers: MaskNumbers) -> PanopticSegmentation:
    """`mask_wise_merging` of masks (N, H, W) whose numbers are on the host: at most one wait more."""
    if numbers.boxes is None:
        panoptic_seg, painted = _paint_on_host(masks, numbers)
    else:
        panoptic_seg, painted = _paint_on_device(masks, numbers, numbers.boxes)
    scores = numbers.confidence
    segments = [Segment(i, one.candidate, float(scores[one.candidate]), one.area) for i, one in enumerate(painted, 1)]
    return PanopticSegmentation(panoptic_seg, segments)


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
    order = _painting_order(confidence, area, t_cnf)
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


def _painting_order(confidence: np.ndarray, area: np.ndarray, t_cnf: np.ndarray) -> np.ndarray:
    """(M,) the candidates that can be painted, the most confident first."""
    order = np.argsort(-confidence, kind="stable")
    return order[((confidence >= t_cnf) & (area > 0))[order]]


def _paint_on_host(masks: Tensor, numbers: MaskNumbers) -> tuple[Tensor, list[PaintedMask]]:
    """Paint each mask within its bounding box."""
    pixels = masks.cpu().numpy()

    def mask_of(candidate: int) -> tuple[Index, np.ndarray]:
        box = _bounding_box(pixels[candidate])
        return box, pixels[candidate][box]

    canvas, painted = paint_masks(*numbers[:4], mask_of, pixels.shape[1:])
    return upload_numbers(canvas, masks.device, torch.int32), painted


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns of the bounding box of a mask (H, W) with at least one pixel."""
    rows = np.flatnonzero(mask.any(1))
    top, bottom = rows[0], rows[-1] + 1
    columns = np.flatnonzero(mask[top:bottom].any(0))
    return slice(top, bottom), slice(columns[0], columns[-1] + 1)


def _paint_on_device(masks: Tensor, numbers: MaskNumbers, boxes: np.ndarray) -> tuple[Tensor, list[PaintedMask]]:
    """Paint or drop each mask on the device, within its bounding box; the host waits only for the visible areas."""
    order = _painting_order(numbers.confidence, numbers.area, numbers.t_cnf)
    least = _least_areas(numbers.area[order], numbers.t_keep[order].astype(np.float64)).astype(np.int64)

    def crops() -> Iterable[tuple[Index, Tensor, int]]:
        for candidate, (x0, y0, x1, y1), pixels in zip(
            order.tolist(), boxes[order].tolist(), least.tolist(), strict=True
        ):
            place = (slice(y0, y1), slice(x0, x1))
            yield place, masks[candidate][place], pixels

    panoptic_seg, visible_areas = _paint_in_order(masks, crops())
    areas = download_arrays(visible_areas)[0].tolist()
    return panoptic_seg, [PaintedMask(*one) for one in zip(order.tolist(), areas, strict=True) if one[1]]


def _least_areas(area: Numbers, t_keep: Numbers) -> Numbers:
    """Least number of visible pixels with which masks are painted: n / area >= t_keep, and n >= 1.

    On a GPU, torch multiplies by the reciprocal of a Python number in place of a division, which may round otherwise;
    integers are compared exactly. Rounding moves the ceiling of the product by at most one.

    Args:
        area: (N,) pixels, at least 1.
        t_keep: (N,) float64.
    """
    least = -(-area * t_keep // 1) - 1
    for _ in range(2):
        least = least + (least / area < t_keep)
    return least.clip(min=1)


def _paint_in_order(masks: Tensor, ordered: Iterable[tuple[Index, Tensor, int | Tensor]]) -> tuple[Tensor, Tensor]:
    """Algorithm 1 as tensor operations, without any decision of the host.

    Args:
        masks: (N, H, W) bool.
        ordered: M times, in the order of painting: a part of the canvas, the mask there, and the least number of
            pixels that must be visible.

    Returns:
        (H, W) int32 map with ids from 1 in the order of painting, and (M,) visible areas, 0 for dropped masks.
    """
    canvas = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)  # 1 + position in the order
    areas = []
    for position, (place, mask, least) in enumerate(ordered, 1):
        part = canvas[place]
        visible = mask & (part == 0)
        visible_area = visible.sum()
        is_painted = visible_area >= least
        part.masked_fill_(visible & is_painted, position)
        areas.append(visible_area * is_painted)
    visible_areas = torch.stack(areas) if areas else torch.zeros(0, dtype=torch.long, device=masks.device)
    is_painted = visible_areas > 0
    ids = torch.cat((is_painted.new_zeros(1), is_painted)).cumsum(0, dtype=torch.int32)
    # A dropped position is nowhere on the canvas, so its id does not matter.
    return ids.index_select(0, canvas.flatten()).view_as(canvas), visible_areas


def _merge_in_a_trace(
    confidence: Tensor, masks: Tensor, area: Tensor, t_cnf: Tensor, t_keep: Tensor
) -> PanopticSegmentation:
    """The map as a function of all inputs: a trace would store the order and boxes of its example. Segments are its."""
    order = confidence.argsort(descending=True, stable=True)
    least = _least_areas(area.clamp(min=1), t_keep.double()).long()
    never = torch.iinfo(torch.long).max
    least = least.masked_fill((confidence < t_cnf) | (area == 0), never)[order]
    everywhere = (slice(None), slice(None))
    panoptic_seg, visible_areas = _paint_in_order(
        masks,
        ((everywhere, masks.index_select(0, order[i : i + 1])[0], least[i]) for i in range(len(order))),
    )
    rows = zip(order.tolist(), confidence[order].tolist(), visible_areas.tolist(), strict=True)
    painted = [row for row in rows if row[2]]
    return PanopticSegmentation(panoptic_seg, [Segment(i, *row) for i, row in enumerate(painted, 1)])
