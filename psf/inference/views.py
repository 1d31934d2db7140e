"""Test-time augmentation: candidates of several views of an image (flipped, scaled), fused to one set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from psf.inference.candidates import ImageGeometry, join_candidates, resize_masks
from psf.ops.precision import shared_pixels
from psf.ops.transfer import download_arrays, upload_numbers
from psf.structures import Candidates

__all__ = ["ScoredView", "fuse_views", "on_common_grid"]

# Candidates of one class in two views are the same thing if their mask IoU exceeds this.
SAME_THING = 0.4


class ScoredView(NamedTuple):
    """Candidates of one view on the common grid of all views, with their confidence."""

    candidates: Candidates  # N things, then the stuff classes, which are the same in every view
    confidence: Tensor  # (N + K_stuff,)
    masks: Tensor  # (N + K_stuff, h, w) bool


def on_common_grid(candidates: Candidates, geometry: ImageGeometry, is_flipped: bool) -> Candidates:
    """Map a view's candidates to the unflipped image without padding, with masks of `geometry.output_size`.

    Args:
        candidates: of the view.
        geometry: sizes of the view's batch, of the view and of the grid.
        is_flipped: whether the view is flipped left to right.
    """
    masks, boxes = resize_masks(candidates.mask_scores, geometry), candidates.boxes_cxcywh_norm
    if is_flipped:
        masks = masks.flip(2)
        boxes = None if boxes is None else torch.cat((1 - boxes[:, :1], boxes[:, 1:]), dim=1)
    return candidates._replace(mask_scores=masks, boxes_cxcywh_norm=boxes)


def fuse_views(views: Sequence[ScoredView]) -> Candidates:
    """Fuse the candidates of several views to one candidate per thing and one per stuff class.

    A stuff class has the same query in every view: probability and mask are averaged. A thing query may predict
    different things in different views, so things are grouped: in order of confidence, each thing joins the group of
    its class whose first member it overlaps most, if their mask IoU exceeds `SAME_THING` and the group has no member of
    this view yet; else it starts a group. A group's mask is the mean of its members' masks, weighted by confidence, and
    its probability is their highest: a thing found in only one view keeps its probability.

    Args:
        views: at least one, all with the same grid and the same stuff classes.
    """
    is_thing = download_arrays(*(view.candidates.is_thing for view in views))
    kept, others = (
        [upload_numbers(np.flatnonzero(one == flag), views[0].masks.device, torch.long) for one in is_thing]
        for flag in (True, False)
    )
    stuff = _mean_stuff([view.candidates.select(rows) for view, rows in zip(views, others, strict=True)])
    things = [view.candidates.select(rows) for view, rows in zip(views, kept, strict=True)]
    number = torch.cat([torch.full_like(x.class_indices, index) for index, x in enumerate(things)])
    confidence = torch.cat([view.confidence[rows] for view, rows in zip(views, kept, strict=True)])
    masks = torch.cat([view.masks[rows] for view, rows in zip(views, kept, strict=True)])
    boxes = None
    if all(x.boxes_cxcywh_norm is not None for x in things):
        boxes = torch.cat([x.boxes_cxcywh_norm for x in things if x.boxes_cxcywh_norm is not None])
    everything = Candidates(
        torch.cat([x.class_scores for x in things]),
        torch.cat([x.class_indices for x in things]),
        torch.cat([x.is_thing for x in things]),
        torch.cat([x.mask_scores for x in things]),
        boxes,
    )
    groups, count = _group(confidence, everything.class_indices, number, _ious(masks))
    return join_candidates(_mean_things(everything, confidence, groups, count), stuff)


def _mean_stuff(views: list[Candidates]) -> Candidates:
    scores = torch.stack([view.class_scores for view in views]).mean(0)
    masks = torch.stack([view.mask_scores for view in views]).mean(0)
    return views[0]._replace(class_scores=scores, mask_scores=masks, boxes_cxcywh_norm=None)


def _ious(masks: Tensor) -> Tensor:
    """(N, N) mask IoU, 0 for empty masks."""
    flat = masks.flatten(1).float()
    shared = shared_pixels(flat, flat)
    areas = flat.sum(1)
    return shared / (areas[:, None] + areas[None] - shared).clamp(min=1)


def _group(confidence: Tensor, classes: Tensor, views: Tensor, ious: Tensor) -> tuple[Tensor, int]:
    """(N,) number of each thing's group, from 0, in the order of their first members' confidence; number of groups."""
    order = confidence.argsort(descending=True, stable=True)
    near = ious * (classes[:, None] == classes[None])
    overlap, numbers = download_arrays(near[order][:, order], views[order])
    view_of = numbers.tolist()
    group_of: list[int] = []
    firsts: list[int] = []
    full: list[list[int]] = [[] for _ in range(max(view_of, default=-1) + 1)]  # per view, the groups that contain it
    for position, view in enumerate(view_of):
        candidates = overlap[position, firsts]
        candidates[full[view]] = 0
        if len(firsts) and candidates.max() > SAME_THING:
            group = int(candidates.argmax())
        else:
            group = len(firsts)
            firsts.append(position)
        full[view].append(group)
        group_of.append(group)
    groups = upload_numbers(group_of, order.device, order.dtype)
    return torch.empty_like(order).scatter_(0, order, groups), len(firsts)


def _mean_things(things: Candidates, confidence: Tensor, groups: Tensor, count: int) -> Candidates:
    weights = confidence.clamp(min=torch.finfo(confidence.dtype).tiny)
    total = weights.new_zeros(count).index_add_(0, groups, weights)
    share = (weights / total[groups]).to(things.mask_scores.dtype)

    def mean(values: Tensor) -> Tensor:
        weighted = values * share.view(-1, *[1] * (values.dim() - 1))
        return values.new_zeros(count, *values.shape[1:]).index_add_(0, groups, weighted.to(values.dtype))

    scores = things.class_scores.new_zeros(count).scatter_reduce(0, groups, things.class_scores, "amax")
    boxes = None if things.boxes_cxcywh_norm is None else mean(things.boxes_cxcywh_norm)
    classes = things.class_indices.new_zeros(count).index_copy_(0, groups, things.class_indices)
    return Candidates(scores, classes, torch.ones_like(classes, dtype=torch.bool), mean(things.mask_scores), boxes)
