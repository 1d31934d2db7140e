"""Convert the ground truth of a training batch from three forms of Detectron2 input dicts to `PanopticTargets`.

An input dict has the ground truth in one of these forms (H, W are those of its `image`):

(a) psf's own mapper: `panoptic_labels` (H, W) integer map, 0 = void, and `segments_info`, a list of dicts with `id`
    (the value in the map), `category_id` (contiguous), `isthing` and `iscrowd`. The optional `panoptic_boxes_xyxy_px`
    (S, 4), one box per segment, x1 and y1 exclusive, saves computing boxes; every segment must then have a pixel;
(b) `instances` with `gt_classes` and `gt_masks` of things and stuff together, in joint contiguous ids (as from
    Mask2Former's mappers); a `sem_seg` is ignored;
(c) `instances` of things and `sem_seg` (H, W), contiguous ids of stuff (as from Detectron2's default mapper for
    Panoptic FPN).

Crowds and void are in no mask: form (a) marks crowds with `iscrowd`; forms (b) and (c) must not contain them. For a
model without stuff classes, stuff is void.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from psf.errors import UserError
from psf.structures.types import PanopticClasses, PanopticTargets, tight_boxes

__all__ = ["all_as_things", "panoptic_targets", "stuff_as_things"]


def panoptic_targets(
    batched_inputs: Sequence[dict[str, Any]], classes: PanopticClasses, padded_size: tuple[int, int], device: Any
) -> list[PanopticTargets]:
    """The ground truth of each image, on `device`, with masks at the padded size.

    Raises:
        UserError: if an input has none of the three forms, things without masks, a ground truth of another size than
            its image, or a category id that is not among the classes.
    """
    return [_one_image(x, classes, padded_size, device) for x in batched_inputs]


def _one_image(
    x: dict[str, Any], classes: PanopticClasses, padded_size: tuple[int, int], device: Any
) -> PanopticTargets:
    image_size = (x["image"].shape[-2], x["image"].shape[-1])
    if "panoptic_labels" in x:
        return _from_labels(x, classes, image_size, padded_size, device)
    if "sem_seg" in x and not _holds_stuff(x, classes):
        masks, ids, is_thing = _from_instances_and_semantics(x, classes, image_size, device)
    elif "instances" in x:
        if classes.is_separated:
            raise UserError(
                "the ground truth has only `instances`, but stuff ids of the dataset overlap thing ids: add `sem_seg`, "
                "or use a dataset with joint contiguous ids"
            )
        masks, ids = _instance_masks(x["instances"], image_size, device)
        is_thing = [one in classes.thing_ids for one in ids]
    else:
        raise UserError(
            f"image {_name(x)}: no ground truth to train on; expected `panoptic_labels` "
            f"with `segments_info`, or `instances`, or `instances` with `sem_seg`, found {sorted(x)}; set "
            'INPUT.DATASET_MAPPER_NAME to "psf_panoptic"'
        )
    masks = _pad(masks, x, image_size, padded_size)
    boxes, has_pixels = tight_boxes(masks)
    kept = has_pixels.tolist()
    things = [i for i, thing in enumerate(is_thing) if thing and kept[i]]
    stuff = [i for i, thing in enumerate(is_thing) if not thing and kept[i] and classes.stuff_ids]
    stuff_classes, stuff_masks = _one_mask_a_class(_indices([ids[i] for i in stuff], classes, False), masks[stuff])
    return PanopticTargets(
        thing_classes=torch.tensor(_indices([ids[i] for i in things], classes, True), dtype=torch.long, device=device),
        thing_masks=masks[things],
        thing_boxes_xyxy_px=boxes[things].float(),
        stuff_classes=stuff_classes,
        stuff_masks=stuff_masks,
        image_size=image_size,
    )


def _from_labels(
    x: dict[str, Any], classes: PanopticClasses, image_size: tuple[int, int], padded_size: tuple[int, int], device: Any
) -> PanopticTargets:
    """Form (a). Only one small map is copied to the device; each mask is one comparison there."""
    indices = [i for i, segment in enumerate(x["segments_info"]) if not segment["iscrowd"]]
    labels = _pad(x["panoptic_labels"].to(device), x, image_size, padded_size)
    segments = x["segments_info"]
    if "panoptic_boxes_xyxy_px" in x:
        boxes = x["panoptic_boxes_xyxy_px"]
    else:
        boxes, has_pixels = tight_boxes(_compare(labels, [segment["id"] for segment in segments]))
        indices = [i for i, has_pixel in enumerate(has_pixels.tolist()) if has_pixel and i in indices]
    things = [i for i in indices if segments[i]["isthing"]]
    stuff = [segments[i] for i in indices if not segments[i]["isthing"] and classes.stuff_ids]
    first_of: dict[int, int] = {}  # class -> label of its first segment, which the others are joined to
    for segment, one in zip(stuff, _indices([segment["category_id"] for segment in stuff], classes, False)):
        if first_of.setdefault(one, segment["id"]) != segment["id"]:
            labels = labels.masked_fill(labels == segment["id"], first_of[one])
    thing_classes = _indices([segments[i]["category_id"] for i in things], classes, True)
    stuff_classes = sorted(first_of)
    return PanopticTargets(
        thing_classes=torch.tensor(thing_classes, dtype=torch.long, device=device),
        thing_masks=_compare(labels, [segments[i]["id"] for i in things]),
        thing_boxes_xyxy_px=boxes[things].to(device, torch.float32),
        stuff_classes=torch.tensor(stuff_classes, dtype=torch.long, device=device),
        stuff_masks=_compare(labels, [first_of[one] for one in stuff_classes]),
        image_size=image_size,
    )


def _compare(labels: Tensor, values: Sequence[int]) -> Tensor:
    """(H, W) map -> (G, H, W) bool, one mask per value."""
    return labels[None] == torch.tensor(values, dtype=labels.dtype, device=labels.device)[:, None, None]


def _pad(maps: Tensor, x: dict[str, Any], image_size: tuple[int, int], padded_size: tuple[int, int]) -> Tensor:
    """Pad (..., H, W) from the image's size to `padded_size`, with void."""
    (height, width), map_size = image_size, tuple(maps.shape[-2:])
    if map_size != image_size:
        raise UserError(
            f"image {_name(x)} has {height} x {width} pixels (height x width), its ground truth "
            f"{map_size[0]} x {map_size[1]}; the data mapper must resize and crop both in the same way"
        )
    return F.pad(maps, (0, padded_size[1] - width, 0, padded_size[0] - height))


def _from_instances_and_semantics(
    x: dict[str, Any], classes: PanopticClasses, image_size: tuple[int, int], device: Any
) -> tuple[Tensor, list[int], list[bool]]:
    if "instances" in x:
        thing_masks, thing_ids = _instance_masks(x["instances"], image_size, device)
    else:
        thing_masks, thing_ids = torch.zeros(0, *image_size, dtype=torch.bool, device=device), []
    stuff_masks = _compare(x["sem_seg"].to(device), classes.stuff_ids)
    is_thing = [True] * len(thing_ids) + [False] * len(classes.stuff_ids)
    return torch.cat((thing_masks, stuff_masks)), [*thing_ids, *classes.stuff_ids], is_thing


def _instance_masks(instances: Instances, image_size: tuple[int, int], device: Any) -> tuple[Tensor, list[int]]:
    """(G, H, W) bool and G contiguous ids; polygons are rasterized."""
    ids = instances.gt_classes.tolist()
    if not instances.has("gt_masks"):  # Detectron2's mapper omits them if an image has no instance
        if len(ids):
            raise UserError(
                f"{len(ids)} `instances` without `gt_masks`, which the model learns; with Detectron2's own mapper set "
                "MODEL.MASK_ON to True"
            )
        return torch.zeros(0, *image_size, dtype=torch.bool, device=device), ids
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks.polygons, *image_size)
    tensor = masks.tensor if isinstance(masks, BitMasks) else masks
    return tensor.to(device).bool(), ids


def _holds_stuff(x: dict[str, Any], classes: PanopticClasses) -> bool:
    """Whether the instances are form (b), to which some mappers add a `sem_seg`."""
    if "instances" not in x or classes.is_separated:
        return False
    return bool(set(x["instances"].gt_classes.tolist()) & set(classes.stuff_ids))


def _name(x: dict[str, Any]) -> Any:
    return x.get("file_name", x.get("image_id", "?"))


def _indices(ids: Sequence[int], classes: PanopticClasses, is_thing: bool) -> list[int]:
    """Contiguous ids -> positions among the thing classes, or among the stuff classes."""
    kind, known = ("thing", classes.thing_ids) if is_thing else ("stuff", classes.stuff_ids)
    position = {one: i for i, one in enumerate(known)}
    unknown = sorted(set(ids) - position.keys())
    if unknown:
        raise UserError(
            f"the ground truth has {kind} category ids {unknown}, the model's {kind} classes are {list(known)}; the "
            "dataset's metadata and its annotations disagree"
        )
    return [position[one] for one in ids]


def _one_mask_a_class(classes: Sequence[int], masks: Tensor) -> tuple[Tensor, Tensor]:
    """Join the segments of each stuff class to one mask."""
    unique = sorted(set(classes))
    joined = torch.zeros(len(unique), *masks.shape[1:], dtype=torch.bool, device=masks.device)
    for mask, one in zip(masks, classes, strict=True):
        joined[unique.index(one)] |= mask
    return torch.tensor(unique, dtype=torch.long, device=masks.device), joined


def all_as_things(classes: PanopticClasses) -> PanopticClasses:
    """The classes of joint queries: thing classes, then stuff classes, all as things."""
    return PanopticClasses(classes.thing_ids + classes.stuff_ids, ())


def stuff_as_things(target: PanopticTargets, num_thing_classes: int) -> PanopticTargets:
    """The ground truth for joint queries: each stuff region becomes a thing, with a class after the thing classes.

    Args:
        target: of one image.
        num_thing_classes: K_things of the dataset.
    """
    stuff_boxes, _ = tight_boxes(target.stuff_masks)
    return target._replace(
        thing_classes=torch.cat((target.thing_classes, target.stuff_classes + num_thing_classes)),
        thing_masks=torch.cat((target.thing_masks, target.stuff_masks)),
        thing_boxes_xyxy_px=torch.cat((target.thing_boxes_xyxy_px, stuff_boxes.to(target.thing_boxes_xyxy_px))),
        stuff_classes=target.stuff_classes[:0],
        stuff_masks=target.stuff_masks[:0],
    )
