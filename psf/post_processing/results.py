"""Detectron2's structures out of what a post-processor has decided."""

from __future__ import annotations

from typing import Any

from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import box_convert

from psf.classes import PanopticClasses
from psf.inference import Frame, semantic_scores, tight_boxes
from psf.joint_queries import join_stuff_segments
from psf.predictions import Candidates, PanopticSegmentation

__all__ = ["instance_result", "panoptic_result", "semantic_result"]


def panoptic_result(
    segmentation: PanopticSegmentation, candidates: Candidates, classes: PanopticClasses
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Detectron2's `panoptic_seg`: the (H, W) int32 map and segments_info in plain numbers.

    Stuff has one segment a class, also where several candidates are of that class.
    """
    segmentation = join_stuff_segments(segmentation, candidates)
    is_thing, indices = candidates.is_thing.tolist(), candidates.class_indices.tolist()
    segments_info = []
    for segment in segmentation.segments:
        ids = classes.thing_ids if is_thing[segment.candidate] else classes.stuff_ids
        segments_info.append(
            {
                "id": segment.id,
                "category_id": ids[indices[segment.candidate]],
                "isthing": is_thing[segment.candidate],
                "score": segment.score,
                "area": segment.area,
            }
        )
    return segmentation.segment_map, segments_info


def instance_result(
    things: Candidates, masks: Tensor, scores: Tensor, classes: PanopticClasses, frame: Frame, *, boxes: str
) -> Instances:
    """Detectron2's `instances`: pred_masks, pred_boxes (pixels), scores, pred_classes (contiguous ids).

    Args:
        things: N of them, in the order of the result.
        masks: (N, H, W) bool, theirs at output size.
        scores: (N,) theirs.
        classes: contiguous ids of the classes.
        frame: whose output size it is.
        boxes: "mask" | "location_decoder", as `InstanceSettings.boxes`.
    """
    result = Instances(frame.output_size)
    result.pred_masks, result.scores = masks, scores
    result.pred_classes = things.class_indices.new_tensor(classes.thing_ids)[things.class_indices]
    if boxes == "mask" or not len(masks):  # a model without things has no boxes at all
        result.pred_boxes = Boxes(tight_boxes(masks)[0].float())
    else:
        result.pred_boxes = Boxes(_predicted_boxes(things, frame))
    return result


def semantic_result(candidates: Candidates, classes: PanopticClasses, frame: Frame) -> Tensor:
    """Detectron2's `sem_seg`: (K, H, W) scores; K and the channels as the data set's contiguous ids have them."""
    things, stuff, num_channels = classes.semantic_channels
    channels = [
        (things if is_thing else stuff)[index]
        for is_thing, index in zip(candidates.is_thing.tolist(), candidates.class_indices.tolist(), strict=True)
    ]
    return semantic_scores(candidates, candidates.class_indices.new_tensor(channels), num_channels, frame)


def _predicted_boxes(things: Candidates, frame: Frame) -> Tensor:
    """(N, 4) x0 y0 x1 y1 in output pixels."""
    assert things.boxes_cxcywh_norm is not None
    height, width = frame.output_size
    boxes = box_convert(things.boxes_cxcywh_norm, "cxcywh", "xyxy").clamp(0, 1)
    return boxes * boxes.new_tensor([width, height, width, height])
