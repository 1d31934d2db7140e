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

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor

from psf.errors import UserError
from psf.ops.transfer import download, upload, upload_together
from psf.structures.types import PanopticClasses, PanopticTargets, tight_boxes

__all__ = ["all_as_things", "panoptic_targets", "stuff_as_things"]


class _Segments(NamedTuple):
    """All S segments of one image, as its dict has them."""

    maps: Tensor  # (H, W) labels, or (S, H, W) bool masks; at the padded size
    labels: list[int]  # the value of each segment in the labels, or its position among the masks
    category_ids: list[int]  # contiguous
    is_thing: list[bool]
    is_crowd: list[bool]
    boxes: Tensor  # (S, 4) xyxy in pixels
    has_pixels: Tensor | None  # (S,) bool; None: all have
    image_size: tuple[int, int]


class _Chosen(NamedTuple):
    """The segments of one image that are its ground truth, as positions among all segments."""

    things: list[int]
    thing_classes: list[int]
    stuff: dict[int, list[int]]  # class -> its segments; ascending in the classes


def panoptic_targets(
    batched_inputs: Sequence[dict[str, Any]], classes: PanopticClasses, padded_size: tuple[int, int], device: Any
) -> list[PanopticTargets]:
    """The ground truth of each image, on `device`, with masks at the padded size.

    The host waits for the device once for the whole batch; not at all if all images are of form (a) with boxes.

    Raises:
        UserError: if an input has none of the three forms, things without masks, a ground truth of another size than
            its image, or a category id that is not among the classes.
    """
    images = [_segments(x, classes, padded_size, device) for x in batched_inputs]
    has_pixels = iter(download([image.has_pixels for image in images if image.has_pixels is not None]))
    chosen = [_choose(image, None if image.has_pixels is None else next(has_pixels), classes) for image in images]
    tables = [table for image, one in zip(images, chosen, strict=True) for table in _tables(image, one)]
    parts = iter(upload_together([torch.tensor(table, dtype=torch.long) for table in tables], device))
    return [_target(image, one, parts) for image, one in zip(images, chosen, strict=True)]


def _segments(x: dict[str, Any], classes: PanopticClasses, padded_size: tuple[int, int], device: Any) -> _Segments:
    image_size = (x["image"].shape[-2], x["image"].shape[-1])
    if "panoptic_labels" in x:
        return _from_labels(x, image_size, padded_size, device)
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
    return _Segments(masks, [*range(len(ids))], ids, is_thing, [False] * len(ids), boxes, has_pixels, image_size)


def _from_labels(
    x: dict[str, Any], image_size: tuple[int, int], padded_size: tuple[int, int], device: Any
) -> _Segments:
    """Form (a). Only one small map is copied to the device; each mask is one comparison there."""
    labels = _pad(upload(x["panoptic_labels"], device), x, image_size, padded_size)
    segments = x["segments_info"]
    ids = [segment["id"] for segment in segments]
    largest = torch.iinfo(labels.dtype).max
    if any(one > largest for one in ids):
        raise UserError(
            f"image {_name(x)}: `segments_info` has the id {max(ids)}, but `panoptic_labels` is of {labels.dtype} "
            f"and ends at {largest}; the data mapper must make a map of a larger type"
        )
    has_pixels: Tensor | None = None
    if "panoptic_boxes_xyxy_px" in x:
        boxes = upload(x["panoptic_boxes_xyxy_px"], device)
    else:
        boxes, has_pixels = tight_boxes(_compare(labels, ids))
    category_ids = [segment["category_id"] for segment in segments]
    is_thing, is_crowd = ([bool(segment[key]) for segment in segments] for key in ("isthing", "iscrowd"))
    return _Segments(labels, ids, category_ids, is_thing, is_crowd, boxes, has_pixels, image_size)


def _choose(image: _Segments, has_pixels: Tensor | None, classes: PanopticClasses) -> _Chosen:
    """The segments that have pixels and are no crowd; `has_pixels` is (S,) on the CPU."""
    flags = [True] * len(image.labels) if has_pixels is None else has_pixels.numpy()
    kept = [i for i, flag in enumerate(flags) if flag and not image.is_crowd[i]]
    things = [i for i in kept if image.is_thing[i]]
    stuff = [i for i in kept if not image.is_thing[i] and classes.stuff_ids]
    by_class: dict[int, list[int]] = {}
    for i, one in zip(stuff, _indices([image.category_ids[i] for i in stuff], classes, False), strict=True):
        by_class.setdefault(one, []).append(i)
    thing_classes = _indices([image.category_ids[i] for i in things], classes, True)
    return _Chosen(things, thing_classes, dict(sorted(by_class.items())))


def _tables(image: _Segments, chosen: _Chosen) -> list[list[int]]:
    """Positions, labels and classes of the things; labels and classes of the stuff, for the first segment of each."""
    thing_labels = [image.labels[i] for i in chosen.things]
    stuff_labels = [image.labels[first] for first, *_ in chosen.stuff.values()]
    return [chosen.things, thing_labels, chosen.thing_classes, stuff_labels, list(chosen.stuff)]


def _target(image: _Segments, chosen: _Chosen, tables: Iterator[Tensor]) -> PanopticTargets:
    """The ground truth of one image; takes its `_tables`, on the device, from the iterator."""
    things, thing_labels, thing_classes, stuff_labels, stuff_classes = (next(tables) for _ in range(5))
    maps = image.maps
    if maps.dim() == 2:
        for first, *others in chosen.stuff.values():
            for other in others:
                maps = maps.masked_fill(maps == image.labels[other], image.labels[first])
        thing_masks, stuff_masks = _compare(maps, thing_labels), _compare(maps, stuff_labels)
    else:
        thing_masks, stuff_masks = maps[thing_labels], maps[stuff_labels]
        for joined, (_, *others) in zip(stuff_masks, chosen.stuff.values(), strict=True):
            for other in others:
                joined |= maps[other]
    return PanopticTargets(
        thing_classes=thing_classes,
        thing_masks=thing_masks,
        thing_boxes_xyxy_px=image.boxes[things].float(),
        stuff_classes=stuff_classes,
        stuff_masks=stuff_masks,
        image_size=image.image_size,
    )


def _compare(labels: Tensor, values: Sequence[int] | Tensor) -> Tensor:
    """(H, W) map -> (G, H, W) bool, one mask per value."""
    if not isinstance(values, Tensor):
        values = upload(torch.tensor(values, dtype=torch.long), labels.device)
    return labels[None] == values.to(labels.dtype)[:, None, None]


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
    stuff_masks = _compare(upload(x["sem_seg"], device).long(), classes.stuff_ids)
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
    return upload(tensor, device).bool(), ids


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
    return dataclasses.replace(
        target,
        thing_classes=torch.cat((target.thing_classes, target.stuff_classes + num_thing_classes)),
        thing_masks=torch.cat((target.thing_masks, target.stuff_masks)),
        thing_boxes_xyxy_px=torch.cat((target.thing_boxes_xyxy_px, stuff_boxes.to(target.thing_boxes_xyxy_px))),
        stuff_classes=target.stuff_classes[:0],
        stuff_masks=target.stuff_masks[:0],
    )
