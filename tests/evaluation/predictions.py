"""Predictions for the small dataset, and what an evaluator makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog

from psf.evaluation import (
    PanopticGroundTruth,
)


def perturbed(name: str, shift: int = 3) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(input, output) pairs: the ground truth moved to the right, one segment dropped, ids renumbered."""
    gt = PanopticGroundTruth(name)
    pairs = []
    for image in DatasetCatalog.get(name):
        labels, segments = gt.read_contiguous(image["image_id"])
        moved = np.roll(labels, shift, axis=1)
        ids = np.zeros(labels.shape, dtype=np.int32)
        kept = []
        for number, segment in enumerate(segments[:3], 1):
            ids[moved == segment["id"]] = number
            kept.append(
                {"id": number, "category_id": segment["category_id"], "isthing": segment["isthing"], "score": 0.5}
            )
        pairs.append((image, {"panoptic_seg": (torch.from_numpy(ids), kept)}))
    return pairs


def run(evaluator: Any, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for image, output in pairs:
        evaluator.process([image], [output])
    return evaluator.evaluate()
