"""Detectron2's result structures: panoptic_seg, instances, sem_seg."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

from psf.inference.candidates import ImageGeometry, resize_in_chunks, resize_masks
from psf.ops.precision import at_least_float32
from psf.ops.transfer import download_arrays, upload_numbers
from psf.structures import Candidates, PanopticClasses, PanopticSegmentation, Segment, tight_boxes

__all__ = [
    "InstanceSettings",
    "instance_result",
    "join_stuff_segments",
    "mask_nms",
    "panoptic_result",
    "semantic_classes",
    "semantic_result",
    "semantic_scores",
    "suppress_masks",
]


class InstanceSettings(NamedTuple):
    """Which instances are reported (MODEL.PSF.TEST.INSTANCE)."""

    boxes: str  # "mask": tight boxes of the masks; "location_decoder": predicted boxes
    score_thresh: float  # lower bound of the confidence
    max_per_image: int
    # When two instances of a class overlap by more than this IoU, the less confident one is dropped; 1: none.
    nms_thresh: float


def semantic_scores(candidates: Candidates, channels: Tensor, num_channels: int, geometry: ImageGeometry) -> Tensor:
    """For each class, the highest class probability times mask score of its candidates.

    Args:
        candidates: N of them.
        channels: (N,) output channel of each candidate.
        num_channels: channels of the output; a channel without candidates is 0.
        geometry: sizes of the padded batch, the image and the output.

    Returns:
        (num_channels, H, W), float32 at least, >= 0. The maximum is taken before the masks are resized.
    """
    return resize_masks(_highest_scores(candidates, channels, num_channels), geometry)


def _highest_scores(candidates: Candidates, channels: Tensor, num_channels: int) -> Tensor:
    """`semantic_scores` at the size of the masks."""
    weighted = at_least_float32(candidates.mask_scores) * candidates.class_scores[:, None, None]
    maps = weighted.new_zeros(num_channels, *weighted.shape[1:])
    index = channels[:, None, None].expand_as(weighted)
    return torch.scatter_reduce(maps, 0, index, weighted, reduce="amax")


def join_stuff_segments(
    segmentation: PanopticSegmentation, is_thing: np.ndarray, class_indices: np.ndarray
) -> PanopticSegmentation:
    """Merge segments of the same stuff class; the merged segment has the position of the first and the best score.

    Args:
        segmentation: ids count from 1, in the order of its segments.
        is_thing, class_indices: (N,) of the candidates.

    Returns:
        The map with ids from 1; unchanged if no two segments have the same stuff class.
    """
    joined: list[Segment] = []
    position_of: dict[int, int] = {}  # stuff class -> position of its joined segment
    new_ids = [0]
    for segment in segmentation.segments:
        position = len(joined)
        if not is_thing[segment.candidate]:
            position = position_of.setdefault(int(class_indices[segment.candidate]), position)
        new_ids.append(position + 1)
        if position == len(joined):
            joined.append(segment._replace(id=position + 1))
        else:
            first = joined[position]
            best = max(first, segment, key=lambda one: one.score)
            joined[position] = best._replace(id=first.id, area=first.area + segment.area)
    if len(joined) == len(segmentation.segments):
        return segmentation
    panoptic_seg = segmentation.panoptic_seg
    table = upload_numbers(new_ids, panoptic_seg.device, panoptic_seg.dtype)
    return PanopticSegmentation(table.index_select(0, panoptic_seg.flatten()).view_as(panoptic_seg), joined)


def panoptic_result(
    segmentation: PanopticSegmentation,
    candidates: Candidates,
    classes: PanopticClasses,
    *,
    classes_on_host: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Detectron2's `panoptic_seg`: the (H, W) int32 map and segments_info in plain numbers.

    Each stuff class has one segment, even if several candidates have that class.

    Args:
        segmentation: of the image.
        candidates: of the image.
        classes: contiguous ids of the classes.
        classes_on_host: `is_thing` and `class_indices` of the candidates on the host, where they are there already.
    """
    is_thing, indices = classes_on_host or download_arrays(candidates.is_thing, candidates.class_indices)
    segmentation = join_stuff_segments(segmentation, is_thing, indices)
    segments_info = []
    for segment in segmentation.segments:
        ids = classes.thing_ids if is_thing[segment.candidate] else classes.stuff_ids
        segments_info.append(
            {
                "id": segment.id,
                "category_id": ids[indices[segment.candidate]],
                "isthing": bool(is_thing[segment.candidate]),
                "score": segment.score,
                "area": segment.area,
            }
        )
    return segmentation.panoptic_seg, segments_info


def instance_result(
    things: Candidates, masks: Tensor, scores: Tensor, classes: PanopticClasses, geometry: ImageGeometry, *, boxes: str
) -> Instances:
    """Detectron2's `instances`: pred_masks, pred_boxes (pixels), scores, pred_classes (contiguous ids).

    Args:
        things: N of them, in the order of the result.
        masks: (N, H, W) bool, their masks at output size.
        scores: (N,) their scores.
        classes: contiguous ids of the classes.
        geometry: contains the output size.
        boxes: "mask" | "location_decoder", see `InstanceSettings.boxes`.
    """
    result = Instances(geometry.output_size)
    result.pred_masks, result.scores = masks, scores
    ids = upload_numbers(classes.thing_ids, masks.device, torch.long)
    result.pred_classes = ids[things.class_indices]
    if boxes == "mask" or things.boxes_cxcywh_norm is None:  # a model without things has no boxes at all
        result.pred_boxes = Boxes(tight_boxes(masks)[0].float())
    else:
        result.pred_boxes = Boxes(_predicted_boxes(things, geometry))
    return result


def semantic_result(candidates: Candidates, classes: PanopticClasses, geometry: ImageGeometry) -> Tensor:
    """Detectron2's `sem_seg`: (K, H, W) scores; the channels are the dataset's contiguous ids."""
    return resize_masks(_class_maps(candidates, classes), geometry)


def semantic_classes(candidates: Candidates, classes: PanopticClasses, geometry: ImageGeometry) -> Tensor:
    """(H, W) int32, the channel with the highest score of `semantic_result`, the first among equals.

    The scores of all classes at output size never exist together: 133 classes at 4000 x 3000 would take 6.4 GB.
    """
    best = winner = None
    number = 0
    for scores in resize_in_chunks(_class_maps(candidates, classes).detach(), geometry):
        for score in scores:
            if best is None or winner is None:
                best, winner = score.clone(), torch.zeros_like(score, dtype=torch.int32)
            else:
                # Numbers grow, so a maximum replaces those of worse classes: on a CPU 5 times as fast as `torch.where`.
                torch.maximum(winner, (score > best).to(torch.int32).mul_(number), out=winner)
                torch.maximum(best, score, out=best)
            number += 1
    assert winner is not None  # a model has at least one class
    return winner


def _class_maps(candidates: Candidates, classes: PanopticClasses) -> Tensor:
    """(K, h, w) highest class probability times mask score, before the masks are resized."""
    things, stuff, num_channels = classes.semantic_channels
    # Indexing instead of a loop, as a trace would store the channels of its example.
    indices = candidates.class_indices + torch.where(candidates.is_thing, 0, len(things))
    channels = upload_numbers([*things, *stuff], indices.device, torch.long)[indices]
    return _highest_scores(candidates, channels, num_channels)


def _predicted_boxes(things: Candidates, geometry: ImageGeometry) -> Tensor:
    """(N, 4) x0 y0 x1 y1 in output pixels."""
    assert things.boxes_cxcywh_norm is not None
    height, width = geometry.output_size
    boxes = box_convert(things.boxes_cxcywh_norm, "cxcywh", "xyxy").clamp(0, 1)
    return boxes * upload_numbers([width, height, width, height], boxes.device, boxes.dtype)


def mask_nms(masks: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """Greedy suppression by mask IoU among masks of one class.

    Args:
        masks: (N, H, W) bool, best first.
        classes: (N,) masks of different classes never suppress each other.
        threshold: a mask is dropped if its IoU with a better kept mask is above this; 1 keeps all.

    Returns:
        (M,) indices of the kept masks, ascending.
    """
    if threshold >= 1 or len(masks) < 2:
        return torch.arange(len(masks), device=masks.device)
    boxes, areas, class_ids = download_arrays(tight_boxes(masks)[0], masks.sum((1, 2)), classes)
    return upload_numbers(suppress_masks(list(masks), boxes, areas, class_ids, threshold), masks.device, torch.long)


def suppress_masks(
    masks: Sequence[Tensor], boxes: np.ndarray, areas: np.ndarray, classes: np.ndarray, threshold: float
) -> np.ndarray:
    """`mask_nms` of masks whose numbers are on the host; the host waits once.

    Two masks are compared only inside the intersection of their boxes, and only if boxes and areas allow an IoU above
    the threshold. So masks that are apart cost little.

    Args:
        masks: N times (H, W) bool, best first.
        boxes: (N, 4) `tight_boxes`.
        areas, classes: (N,) pixels, and classes.
        threshold: as in `mask_nms`.
    """
    kept = np.ones(len(masks), dtype=bool)
    pairs = _possible_pairs(boxes, areas, classes, threshold)
    if pairs:
        [shared] = download_arrays(_shared_pixels(masks, boxes, pairs))
        sizes = areas.tolist()
        for (better, worse), both in zip(pairs, shared.tolist(), strict=True):  # ascending by the better mask
            if kept[better] and both > threshold * (sizes[better] + sizes[worse] - both):
                kept[worse] = False
    return np.flatnonzero(kept)


def _possible_pairs(
    boxes: np.ndarray, areas: np.ndarray, classes: np.ndarray, threshold: float
) -> list[tuple[int, int]]:
    """Pairs (better, worse) of one class whose boxes and areas allow an IoU above the threshold."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    smaller = np.minimum(areas[:, None], areas[None])
    most_shared = np.minimum((high - low).clip(min=0).prod(-1), smaller)
    possible = most_shared > threshold * (areas[:, None] + areas[None] - most_shared)
    possible &= classes[:, None] == classes[None]
    return [(better, worse) for better, worse in np.argwhere(np.triu(possible, 1)).tolist()]


def _shared_pixels(masks: Sequence[Tensor], boxes: np.ndarray, pairs: list[tuple[int, int]]) -> Tensor:
    """(P,) number of pixels that each pair has in common, computed without synchronization with the device."""
    corners = boxes.tolist()
    counts = []
    for one, other in pairs:
        x0, y0, x1, y1 = corners[one]
        left, top, right, bottom = corners[other]
        window = (slice(max(y0, top), min(y1, bottom)), slice(max(x0, left), min(x1, right)))
        counts.append((masks[one][window] & masks[other][window]).sum())
    return torch.stack(counts)
