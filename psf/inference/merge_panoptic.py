"""Mask-wise merging (section 3.5) for the outputs of any model: class scores, class ids and masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from psf.errors import UserError
from psf.inference.candidates import ImageGeometry, MergingThresholds, per_candidate, score_masks
from psf.inference.mask_wise_merging import mask_wise_merging
from psf.inference.results import panoptic_result
from psf.ops.precision import at_least_float32
from psf.ops.transfer import download_arrays, upload, upload_numbers
from psf.structures import Candidates, PanopticClasses

__all__ = ["merge_panoptic"]


def merge_panoptic(
    class_scores: Tensor,
    class_ids: Tensor,
    mask_scores: Tensor,
    metadata: Any,
    sizes: ImageGeometry | tuple[int, int],
    thresholds: MergingThresholds | tuple[MergingThresholds, MergingThresholds],
    *,
    mask_threshold: float = 0.5,
    extra_pixels: float = 0.0,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Merge the masks of one image to Detectron2's `panoptic_seg`, by Algorithm 1.

    The model may be any that predicts a class and a mask per query, such as MaskFormer or Mask2Former.

    Args:
        class_scores: (N,) probability of each mask's class, in [0, 1].
        class_ids: (N,) integers, contiguous ids of the metadata; things and stuff share one id space.
        mask_scores: (N, h, w) probabilities (not logits) of the pixels, of any size.
        metadata: the dataset's Detectron2 metadata, or a `PanopticClasses`.
        sizes: (height, width) of the result, for masks without padding; or an `ImageGeometry`, whose padding is
            cropped.
        thresholds: for things and stuff alike, or a pair: for things, for stuff.
        mask_threshold: a pixel belongs to a mask where its score is above.
        extra_pixels: added to the pixel count in the mean mask score; the released code has 1.

    Returns:
        The (H, W) int32 map, 0 for no segment; and segments_info: dicts with id, category_id (contiguous), isthing,
        score (confidence) and area. Masks of the same stuff class become one segment.

    Raises:
        UserError: if shapes do not fit, a class id is not in the metadata, a score is not a probability, or ids of
            things and stuff overlap.
    """
    classes = _read_classes(metadata)
    ids = _check_inputs(class_scores, class_ids, mask_scores)
    things, stuff = (thresholds, thresholds) if isinstance(thresholds, MergingThresholds) else thresholds
    if not isinstance(sizes, ImageGeometry):
        grid = (mask_scores.shape[1], mask_scores.shape[2])
        sizes = ImageGeometry(grid, grid, (int(sizes[0]), int(sizes[1])))
    candidates = _candidates(class_scores, ids, mask_scores, classes)
    each = per_candidate(candidates.is_thing, things, stuff)
    scored = score_masks(candidates, sizes, each, mask_threshold=mask_threshold, extra_pixels=extra_pixels)
    merged = mask_wise_merging(scored.confidence, scored.masks, scored.area, each.t_cnf, each.t_keep)
    return panoptic_result(merged, candidates, classes)


def _read_classes(metadata: Any) -> PanopticClasses:
    classes = metadata if isinstance(metadata, PanopticClasses) else PanopticClasses.from_metadata(metadata)
    if classes is None:
        raise UserError(
            "the metadata has neither thing_dataset_id_to_contiguous_id nor stuff_dataset_id_to_contiguous_id: use "
            'that of a panoptic set, such as MetadataCatalog.get("coco_2017_val_panoptic")'
        )
    if classes.is_separated:
        shared = sorted(set(classes.thing_ids) & set(classes.stuff_ids))
        raise UserError(
            f"ids {shared} of the metadata mean a thing class and a stuff class: expected one id space, as that of "
            '"coco_2017_val_panoptic" (not "..._separated")'
        )
    return classes


def _check_inputs(class_scores: Tensor, class_ids: Tensor, mask_scores: Tensor) -> list[int]:
    """The class ids, from the transfer that also brings the lowest and highest scores."""
    shapes = [tuple(x.shape) for x in (class_scores, class_ids, mask_scores)]
    if len(shapes[0]) != 1 or shapes[1] != shapes[0] or len(shapes[2]) != 3 or shapes[2][:1] != shapes[0]:
        raise UserError(
            f"class_scores, class_ids and mask_scores have the shapes {shapes[0]}, {shapes[1]} and {shapes[2]}: "
            "expected (N,), (N,) and (N, h, w) of one image"
        )
    named = {"class_scores": (class_scores, "softmax"), "mask_scores": (mask_scores, "sigmoid")}
    named = {name: one for name, one in named.items() if one[0].numel()}
    extremes = [x.double() for scores, _ in named.values() for x in scores.aminmax()]
    ids, *numbers = download_arrays(upload(class_ids, class_scores.device), *extremes)
    for (name, (_, activation)), low, high in zip(named.items(), numbers[::2], numbers[1::2], strict=True):
        if not (low >= 0 and high <= 1):  # also for NaN
            raise UserError(
                f"{name} are in {low:g} .. {high:g}: expected probabilities in 0 .. 1; apply {activation} to logits"
            )
    return ids.tolist()


def _candidates(class_scores: Tensor, ids: list[int], mask_scores: Tensor, classes: PanopticClasses) -> Candidates:
    """The masks with indices among the thing classes, or among the stuff classes."""
    place = {contiguous: (index, True) for index, contiguous in enumerate(classes.thing_ids)}
    place |= {contiguous: (index, False) for index, contiguous in enumerate(classes.stuff_ids)}
    if unknown := sorted(set(ids) - place.keys()):
        raise UserError(
            f"class_ids contain {unknown}, the metadata has {min(place, default='none')} .. "
            f"{max(place, default='none')}: drop masks of the class for no object before merging"
        )
    return Candidates(
        class_scores=at_least_float32(class_scores),
        class_indices=upload_numbers([place[one][0] for one in ids], class_scores.device, torch.long),
        is_thing=upload_numbers([place[one][1] for one in ids], class_scores.device, torch.bool),
        mask_scores=mask_scores,
        boxes_cxcywh_norm=None,
    )
