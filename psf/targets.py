"""The truth of a training batch: three forms of Detectron2 input dicts, one internal form.

An input dict carries the truth in one of these forms (H, W are those of its `image`):

(a) psf's own mapper: `panoptic_labels` (H, W) integer map, 0 = void, and `segments_info`, a list of dicts with `id`
    (the value in the map), `category_id` (contiguous), `isthing` and `iscrowd`;
(b) `instances` with `gt_classes` and `gt_masks` of things and stuff together, in joint contiguous ids (what
    Mask2Former's mappers give); a `sem_seg` beside them is not looked at;
(c) `instances` of things and `sem_seg` (H, W), contiguous ids of stuff (what Detectron2's default mapper gives for
    Panoptic FPN).

Crowds and void are in no mask: (a) leaves them out by `iscrowd`, (b) and (c) expect them to be left out already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor
from torchvision.ops import masks_to_boxes

from psf.classes import PanopticClasses
from psf.predictions import PanopticTargets

__all__ = ["panoptic_targets"]


def panoptic_targets(
    batched_inputs: Sequence[dict[str, Any]], classes: PanopticClasses, padded_size: tuple[int, int], device: Any
) -> list[PanopticTargets]:
    """The truth of each image, on `device`, with masks at the padded size.

    Raises:
        ValueError: if an input holds none of the three forms, things without masks, a truth of another size than its
            image, or a category id that is not among the classes.
    """
    return [_one_image(x, classes, padded_size, device) for x in batched_inputs]


def _one_image(
    x: dict[str, Any], classes: PanopticClasses, padded_size: tuple[int, int], device: Any
) -> PanopticTargets:
    image_size = (x["image"].shape[-2], x["image"].shape[-1])
    if "panoptic_labels" in x:
        masks, ids, is_thing = _from_labels(x, device)
    elif "sem_seg" in x and not _holds_stuff(x, classes):
        masks, ids, is_thing = _from_instances_and_semantics(x, classes, image_size, device)
    elif "instances" in x:
        if classes.is_separated:
            raise ValueError(
                "the truth is `instances` alone, and the data set's stuff ids overlap its thing ids: give `sem_seg` "
                "too, or use a data set with joint contiguous ids"
            )
        masks, ids = _instance_masks(x["instances"], image_size, device)
        is_thing = torch.isin(ids, ids.new_tensor(classes.thing_ids))
    else:
        raise ValueError(
            f"image {_name(x)}: no truth to train on; expected `panoptic_labels` "
            f"with `segments_info`, or `instances`, or `instances` with `sem_seg`, found {sorted(x)}; set "
            'INPUT.DATASET_MAPPER_NAME to "psf_panoptic"'
        )
    height, width = image_size
    if tuple(masks.shape[1:]) != image_size:
        raise ValueError(
            f"image {_name(x)} has {height} x {width} pixels (height x width), its truth "
            f"{masks.shape[1]} x {masks.shape[2]}; the data mapper must resize and crop both alike"
        )
    masks = F.pad(masks, (0, padded_size[1] - width, 0, padded_size[0] - height))
    not_empty = masks.flatten(1).any(1)
    masks, ids, is_thing = masks[not_empty], ids[not_empty], is_thing[not_empty]
    things, stuff = masks[is_thing], masks[~is_thing]
    stuff_classes, stuff_masks = _one_mask_a_class(_indices(ids[~is_thing], classes.stuff_ids, "stuff"), stuff)
    boxes = masks_to_boxes(things)
    boxes[:, 2:] += 1  # from the last pixel inside to the first outside
    return PanopticTargets(
        thing_classes=_indices(ids[is_thing], classes.thing_ids, "thing"),
        thing_masks=things,
        thing_boxes_xyxy_px=boxes,
        stuff_classes=stuff_classes,
        stuff_masks=stuff_masks,
        image_size=image_size,
    )


def _from_labels(x: dict[str, Any], device: Any) -> tuple[Tensor, Tensor, Tensor]:
    segments = [s for s in x["segments_info"] if not s["iscrowd"]]
    labels = x["panoptic_labels"].to(device)
    values = torch.tensor([s["id"] for s in segments], dtype=labels.dtype, device=device)
    masks = labels[None] == values[:, None, None]  # (G, H, W)
    ids = torch.tensor([s["category_id"] for s in segments], dtype=torch.long, device=device)
    is_thing = torch.tensor([bool(s["isthing"]) for s in segments], dtype=torch.bool, device=device)
    return masks, ids, is_thing


def _from_instances_and_semantics(
    x: dict[str, Any], classes: PanopticClasses, image_size: tuple[int, int], device: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if "instances" in x:
        thing_masks, thing_ids = _instance_masks(x["instances"], image_size, device)
    else:
        thing_masks = torch.zeros(0, *image_size, dtype=torch.bool, device=device)
        thing_ids = torch.zeros(0, dtype=torch.long, device=device)
    semantics = x["sem_seg"].to(device)
    stuff_ids = torch.tensor(classes.stuff_ids, dtype=semantics.dtype, device=device)
    stuff_masks = semantics[None] == stuff_ids[:, None, None]
    is_thing = torch.arange(len(thing_ids) + len(stuff_ids), device=device) < len(thing_ids)
    return torch.cat((thing_masks, stuff_masks)), torch.cat((thing_ids, stuff_ids.long())), is_thing


def _instance_masks(instances: Instances, image_size: tuple[int, int], device: Any) -> tuple[Tensor, Tensor]:
    """(G, H, W) bool and (G,) contiguous ids; polygons are drawn."""
    ids = instances.gt_classes.to(device)
    if not instances.has("gt_masks"):  # Detectron2's mapper leaves them out where an image has no instance
        if len(ids):
            raise ValueError(
                f"{len(ids)} `instances` without `gt_masks`: the model learns masks; with Detectron2's own mapper set "
                "MODEL.MASK_ON to True"
            )
        return torch.zeros(len(ids), *image_size, dtype=torch.bool, device=device), ids
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks.polygons, *image_size)
    tensor = masks.tensor if isinstance(masks, BitMasks) else masks
    return tensor.to(device).bool(), ids


def _holds_stuff(x: dict[str, Any], classes: PanopticClasses) -> bool:
    """Whether the instances are form (b), which some mappers give with a `sem_seg` beside it."""
    if "instances" not in x or classes.is_separated:
        return False
    return bool(set(x["instances"].gt_classes.tolist()) & set(classes.stuff_ids))


def _name(x: dict[str, Any]) -> Any:
    return x.get("file_name", x.get("image_id", "?"))


def _indices(ids: Tensor, known: tuple[int, ...], kind: str) -> Tensor:
    """Contiguous ids -> positions among the classes of their kind."""
    matches = ids[:, None] == ids.new_tensor(known)[None]  # (G, K)
    if not matches.any(1).all():
        unknown = sorted(set(ids[~matches.any(1)].tolist()))
        raise ValueError(
            f"the truth holds {kind} category ids {unknown}, the model's {kind} classes have ids {list(known)}; the "
            "data set's metadata and its annotations disagree"
        )
    return matches.int().argmax(1) if known else ids


def _one_mask_a_class(classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Stuff is one region a class: segments of the same class are joined."""
    unique, position = classes.unique(return_inverse=True)
    joined = torch.zeros(len(unique), *masks.shape[1:], dtype=torch.bool, device=masks.device)
    for mask, i in zip(masks, position, strict=True):
        joined[i] |= mask
    return unique, joined
