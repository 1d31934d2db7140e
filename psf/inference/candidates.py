"""Candidate masks of one image, from the model's outputs, and their confidence at output size (section 3.5)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from psf.ops.precision import at_least_float32
from psf.ops.transfer import upload_numbers
from psf.structures import Candidates

__all__ = [
    "CandidateThresholds",
    "ImageGeometry",
    "MergingThresholds",
    "ScoredMasks",
    "as_integers",
    "best_class",
    "choose_things",
    "join_candidates",
    "mask_confidence",
    "per_candidate",
    "resize_in_chunks",
    "resize_masks",
    "score_masks",
    "separate_stuff",
    "stuff_candidates",
    "thing_candidates",
    "top_pairs",
    "upper_bound",
]

ROUNDING = 1 + 1e-5  # above the relative error of float32
# Pixels resized at a time, padding included; on a CPU they fit into its cache.
CHUNK_PIXELS = {"cpu": 2**20, "cuda": 2**26}
OTHER_CHUNK_PIXELS = 2**24


class ChosenThings(NamedTuple):
    """Queries that become candidates, each with one class: (M,) for an image, or (B, M) for a batch."""

    indices: Tensor  # of the queries
    classes: Tensor
    scores: Tensor  # probabilities of the classes, in [0, 1]


class MergingThresholds(NamedTuple):
    """The four numbers of Algorithm 1, for things or for stuff."""

    alpha: float  # exponent of the class probability
    beta: float  # exponent of the mean mask score
    t_cnf: float  # masks of lower confidence are dropped
    t_keep: float  # masks that keep a smaller share of their pixels are dropped


class CandidateThresholds(NamedTuple):
    """`MergingThresholds` of N candidates, (N,) float64 each."""

    alpha: Tensor
    beta: Tensor
    t_cnf: Tensor
    t_keep: Tensor

    def select(self, index: Tensor) -> CandidateThresholds:
        """Select by a bool mask or indices."""
        return CandidateThresholds(*(x[index] for x in self))


class ScoredMasks(NamedTuple):
    """Candidates at output size."""

    masks: Tensor  # (N, H, W) bool, mask score above the threshold
    area: Tensor  # (N,) pixels
    confidence: Tensor  # (N,) s = p^alpha * mean(m over the mask)^beta; 0 for an empty mask


class ImageGeometry(NamedTuple):
    """Sizes of an image, (height, width) each."""

    padded_size: tuple[int, int]  # of the batch, with padding
    image_size: tuple[int, int]  # of the image in the batch, without padding
    output_size: tuple[int, int]  # of the results


def best_class(class_logits: Tensor) -> ChosenThings:
    """Each thing query of an image, logits (N, K_things), with its most probable class (section 3.5)."""
    scores, classes = at_least_float32(class_logits).sigmoid().max(-1)
    return ChosenThings(torch.arange(len(classes), device=classes.device), classes, scores)


def top_pairs(class_logits: Tensor, num_pairs: int) -> ChosenThings:
    """The min(num_pairs, N * K_things) most probable pairs of query and class, best first, of logits (N, K_things).

    A query may appear with several classes. Released recipe; the paper uses the best class of each query.
    """
    num_classes = class_logits.shape[-1]
    scores, flat = at_least_float32(class_logits).sigmoid().flatten().topk(min(num_pairs, class_logits.numel()))
    return ChosenThings(torch.div(flat, num_classes, rounding_mode="floor"), flat % num_classes, scores)


def choose_things(class_logits: Tensor, strategy: str, num_pairs: int) -> ChosenThings:
    """Apply the strategy "best_class" or "top_pairs" to each image of a batch: logits (B, N, K_things)."""
    chosen = [
        best_class(logits) if strategy == "best_class" else top_pairs(logits, num_pairs) for logits in class_logits
    ]
    return ChosenThings(*(torch.stack(x) for x in zip(*chosen, strict=True)))


def thing_candidates(
    chosen: ChosenThings, mask_scores: Tensor, boxes_cxcywh_norm: Tensor | None, queries: Tensor | None = None
) -> list[Candidates]:
    """The chosen things of each image of a batch: masks (B, M, h, w), boxes (B, M, 4) and queries (B, M, D), if any."""
    _, classes, scores = chosen
    boxes = [None] * len(classes) if boxes_cxcywh_norm is None else list(boxes_cxcywh_norm)
    is_thing = torch.ones_like(classes, dtype=torch.bool)
    return [
        Candidates(
            scores[b], classes[b], is_thing[b], mask_scores[b], boxes[b], None if queries is None else queries[b]
        )
        for b in range(len(classes))
    ]


def stuff_candidates(class_logits: Tensor, mask_scores: Tensor, queries: Tensor | None = None) -> Candidates:
    """Every stuff class of one image: logits (K_stuff,), masks (K_stuff, h, w) and refined queries (K_stuff, D)."""
    index = torch.arange(len(class_logits), device=class_logits.device)
    scores = at_least_float32(class_logits).sigmoid()
    return Candidates(scores, index, torch.zeros_like(index, dtype=torch.bool), mask_scores, None, queries)


def join_candidates(things: Candidates, stuff: Candidates) -> Candidates:
    """Concatenate things and stuff; if things have boxes, stuff gets boxes of 0."""
    boxes = things.boxes_cxcywh_norm
    if boxes is not None:
        boxes = torch.cat((boxes, boxes.new_zeros(len(stuff.class_scores), 4)))
    queries = None
    if things.query_embeddings is not None and stuff.query_embeddings is not None:
        queries = torch.cat((things.query_embeddings, stuff.query_embeddings))
    return Candidates(
        class_scores=torch.cat((things.class_scores, stuff.class_scores)),
        class_indices=torch.cat((things.class_indices, stuff.class_indices)),
        is_thing=torch.cat((things.is_thing, stuff.is_thing)),
        mask_scores=torch.cat((things.mask_scores, stuff.mask_scores)),
        boxes_cxcywh_norm=boxes,
        query_embeddings=queries,
    )


def separate_stuff(candidates: Candidates, num_thing_classes: int) -> Candidates:
    """Split the classes of joint queries (see `all_as_things`) into thing and stuff classes; the order stays."""
    indices = candidates.class_indices
    is_thing = indices < num_thing_classes
    return candidates._replace(
        class_indices=torch.where(is_thing, indices, indices - num_thing_classes), is_thing=is_thing
    )


def per_candidate(is_thing: Tensor, things: MergingThresholds, stuff: MergingThresholds) -> CandidateThresholds:
    """Thresholds of each candidate, thing or stuff; in float64, so that a share of exactly t_keep is kept."""
    values = upload_numbers([stuff, things], is_thing.device, torch.float64)
    return CandidateThresholds(*values[is_thing.long()].unbind(1))


def mask_confidence(
    class_scores: Tensor, score_sum: Tensor, area: Tensor, alpha: Tensor, beta: Tensor, extra_pixels: float
) -> Tensor:
    """s = p^alpha * (sum of m over the mask / (area + extra_pixels))^beta, (N,); 0 if the mask is empty.

    The paper uses the mean, `extra_pixels` 0. The released code has 1, which lowers the confidence of small masks.
    """
    mean = score_sum / (area + extra_pixels).clamp(min=1)
    confidence = class_scores**alpha * mean**beta
    return torch.where(area > 0, confidence, 0.0).to(score_sum.dtype)


def upper_bound(candidates: Candidates, thresholds: CandidateThresholds, mask_threshold: float) -> Tensor:
    """Upper bound of the confidence, (N,); 0 if the mask is certainly empty.

    The mean is at most the highest score, and interpolation raises the highest score only by rounding.
    """
    highest = at_least_float32(candidates.mask_scores.flatten(1).amax(1)) * ROUNDING
    bound = candidates.class_scores**thresholds.alpha * highest**thresholds.beta * ROUNDING
    return torch.where(highest > mask_threshold, bound, 0.0)


def score_masks(
    candidates: Candidates,
    geometry: ImageGeometry,
    thresholds: CandidateThresholds,
    *,
    mask_threshold: float,
    extra_pixels: float,
) -> ScoredMasks:
    """Resize candidates to the output size, threshold them, and compute their confidence.

    Args:
        candidates: N of them.
        geometry: sizes of the padded batch, the image and the output.
        thresholds: from `per_candidate`; only alpha and beta are used.
        mask_threshold: a pixel belongs to the mask where its score is above.
        extra_pixels: see `mask_confidence`.
    """
    masks = torch.empty(
        len(candidates.mask_scores), *geometry.output_size, dtype=torch.bool, device=thresholds.alpha.device
    )
    areas, sums, start = [], [], 0
    for scores in resize_in_chunks(candidates.mask_scores, geometry):
        kept = F.threshold(scores, mask_threshold, 0.0, inplace=True)
        sums.append(kept.sum((1, 2)))
        inside = kept.gt_(0)  # 1.0 or 0.0: on a CPU, to make and count bools takes 4 times as long
        masks[start : start + len(inside)] = inside
        start += len(inside)
        areas.append(inside.sum(2).long().sum(1))
    area, score_sum = torch.cat(areas), torch.cat(sums)
    confidence = mask_confidence(
        candidates.class_scores,
        score_sum,
        area,
        thresholds.alpha,
        thresholds.beta,
        extra_pixels,
    )
    return ScoredMasks(masks, area, confidence)


def as_integers(sizes: Iterable[Any]) -> tuple[int, ...]:
    """Sizes as int; during a trace they are tensors."""
    if not torch.jit.is_tracing():
        return tuple(sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        return tuple(int(size) for size in sizes)


def resize_masks(mask_scores: Tensor, geometry: ImageGeometry) -> Tensor:
    """(N, h, w) scores of the padded image -> (N, H, W) at the output size, bilinear, without padding.

    In float32 at least: in half precision, interpolation may exceed the highest score.
    """
    height, width = geometry.output_size
    scores = at_least_float32(mask_scores[:, None])
    return F.interpolate(scores, size=_uncropped_size(geometry), mode="bilinear", align_corners=False)[
        :, 0, :height, :width
    ]


def resize_in_chunks(mask_scores: Tensor, geometry: ImageGeometry) -> Iterator[Tensor]:
    """`resize_masks` in chunks of masks, which bounds memory; at least one chunk, which may be empty."""
    height, width = _uncropped_size(geometry)
    pixels = CHUNK_PIXELS.get(mask_scores.device.type, OTHER_CHUNK_PIXELS)
    for chunk in mask_scores.split(max(1, pixels // (height * width))):
        yield resize_masks(chunk, geometry)


def _uncropped_size(geometry: ImageGeometry) -> list[int]:
    """Height and width of the output before the padding is cropped."""
    return [
        max(out, round(padded * out / own))
        for padded, own, out in zip(geometry.padded_size, geometry.image_size, geometry.output_size, strict=True)
    ]
