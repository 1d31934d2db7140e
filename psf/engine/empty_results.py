"""Why an evaluation has no things, no stuff or no instances at all: a few images are looked at again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.evaluation.evaluator import inference_context
from torch import nn

from psf.inference import KEPT, CandidateOutcomes, RejectionSummary, summarise_rejections
from psf.post_processing import PostProcessor

__all__ = ["EMPTY_RESULT", "as_numbers", "describe_empty_results", "explain_empty_results"]

EMPTY_RESULT = "empty_result"  # key of the explanation beside the tasks of an evaluation
NUM_IMAGES = 16  # looked at again


def explain_empty_results(
    model: nn.Module, data_loader: Iterable[list[dict[str, Any]]], kinds: Sequence[str]
) -> dict[str, RejectionSummary]:
    """Run the model again on the first images of a dataset, and count what rejects its candidates.

    Args:
        model: has `explain`, as `PanopticSegFormer` has; it is in evaluation mode meanwhile.
        data_loader: test batches of the dataset.
        kinds: some of "things", "stuff" and "instances", of which the evaluation has found nothing.

    Returns:
        A summary for each kind that the model has candidates of: a model without things has none to explain.
    """
    images: list[dict[str, CandidateOutcomes]] = []
    with inference_context(model), torch.no_grad():
        for batch in data_loader:
            images += model.explain(batch)
            if len(images) >= NUM_IMAGES:
                break
    summaries = {}
    for kind in kinds:
        result = "instances" if kind == "instances" else "panoptic_seg"
        summaries[kind] = summarise_rejections([one[result] for one in images], kind != "stuff")
    return {kind: one for kind, one in summaries.items() if one.num_candidates}


def as_numbers(summaries: dict[str, RejectionSummary]) -> dict[str, dict[str, Any]]:
    """The summaries as results.json has them: nested dicts of numbers."""
    return {
        kind: {
            "images": one.num_images,
            "candidates": one.num_candidates,
            "largest_confidence": one.largest_confidence,
            "largest_class_score": one.largest_class_score,
            "largest_mask_score": one.largest_mask_score,
            "rejected_by": {reason: count for reason, count in one.counts.items() if reason != KEPT},
        }
        for kind, one in summaries.items()
    }


def describe_empty_results(dataset_name: str, summaries: dict[str, RejectionSummary], processor: PostProcessor) -> str:
    """One line for the log that says what rejected the candidates, and names the keys to change."""
    return f"{dataset_name}: " + "; ".join(_describe(kind, one, processor) for kind, one in summaries.items())


def _describe(kind: str, summary: RejectionSummary, processor: PostProcessor) -> str:
    counts = ", ".join(f"{count} by {reason}" for reason, count in summary.counts.items())
    keys = [text for reason in summary.counts for text in _advice(reason, kind, summary, processor)]
    advice = f"; train for longer, or lower {' and '.join(keys)}" if keys else ""
    return (
        f"no {kind} were predicted; of {summary.num_candidates} candidates in {summary.num_images} images these were "
        f"rejected: {counts}{advice}"
    )


def _advice(reason: str, kind: str, summary: RejectionSummary, processor: PostProcessor) -> list[str]:
    """The key that stands for a reason, the number in force, and how far the best candidate is from it."""
    numbers = processor.stuff if kind == "stuff" else processor.things
    confidence = f"the largest confidence is {summary.largest_confidence:.3g}"
    if reason == "empty_mask":
        score = f"the largest mask score is {summary.largest_mask_score:.3g}"
        return [f"MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD ({processor.mask_threshold}; {score})"]
    if reason == "SCORE_THRESH":
        return [f"MODEL.PSF.TEST.INSTANCE.SCORE_THRESH ({processor.instance.score_thresh}; {confidence})"]
    if reason == "T_CNF":
        return [f"MODEL.PSF.POST_PROCESSOR.{kind.upper()}.T_CNF ({numbers.t_cnf:g}; {confidence})"]
    if reason == "T_KEEP":
        return [f"MODEL.PSF.POST_PROCESSOR.{kind.upper()}.T_KEEP ({numbers.t_keep:g})"]
    return []
