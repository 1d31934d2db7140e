"""Panoptic results of an instance detector: painting, its score threshold, and the metrics."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances
from detectron2.utils import comm
from torch import Tensor, nn

from psf.evaluation import InstanceEvaluator, PanopticQualityEvaluator, write_instance_json
from psf.structures import PanopticClasses

__all__ = ["THRESHOLDS", "JointClasses", "choose_threshold", "evaluate", "main_quality", "paint", "panoptic_classes"]

# Candidates for the minimum score of an instance in the panoptic map.
THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
# An instance is dropped if more confident ones cover a larger share of it than this (Detectron2's default).
OVERLAP = 0.5

PanopticSeg = tuple[Tensor, list[dict[str, Any]]]


def panoptic_classes(dataset_name: str) -> PanopticClasses:
    """The classes of a registered dataset.

    Raises:
        ValueError: if it has no thing class.
    """
    classes = PanopticClasses.from_metadata(MetadataCatalog.get(dataset_name))
    if classes is None or not classes.thing_ids:
        raise ValueError(f'dataset "{dataset_name}": found no thing classes, expected at least one (DATASETS.TRAIN)')
    return classes


class JointClasses(nn.Module):
    """Wraps a detector whose class k is the k-th thing class: `instances` on the CPU with joint contiguous classes.

    Args:
        model: at test, a batch of dicts -> dicts with `instances`.
        classes: of the dataset.
    """

    def __init__(self, model: nn.Module, classes: PanopticClasses) -> None:
        super().__init__()
        self.model = model
        self._thing_ids = torch.tensor(classes.thing_ids)

    def forward(self, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        found = [output["instances"].to("cpu") for output in self.model(batch)]
        for instances in found:
            instances.pred_classes = self._thing_ids[instances.pred_classes]
        return [{"instances": instances} for instances in found]


def paint(instances: Instances, classes: PanopticClasses, threshold: float) -> PanopticSeg:
    """Paint instances into a panoptic map by Detectron2's rule for Panoptic FPN.

    By descending score, an instance gets the pixels that are still free. If the dataset has exactly one stuff class,
    it gets the rest; otherwise the rest is void, and only the quality of the things is meaningful.

    Args:
        instances: N with pred_masks (N, H, W) bool, scores (N,) and pred_classes (N,), joint contiguous ids.
        classes: of the dataset.
        threshold: instances with a lower score are dropped.

    Returns:
        (H, W) int32 segment ids, 0 is void, and their dicts with `id`, `category_id` (contiguous) and `isthing`.
    """
    fills_rest = len(classes.stuff_ids) == 1
    rest = torch.full(instances.image_size, int(fills_rest))  # 0 means no stuff in Detectron2
    ids, segments = combine_semantic_and_instance_outputs(instances, rest, OVERLAP, 1, threshold)
    for segment in segments:
        if not segment["isthing"]:
            segment["category_id"] = classes.stuff_ids[0]
    return ids, segments


def main_quality(quality: dict[str, float], classes: PanopticClasses) -> float:
    """PQ if the dataset has exactly one stuff class, which `paint` fills in; otherwise PQ_th. In percent."""
    return quality["PQ" if len(classes.stuff_ids) == 1 else "PQ_th"]


class _Painted(DatasetEvaluator):
    """Panoptic quality of the instances that reach a threshold, under the key `name` of the results."""

    def __init__(self, dataset_name: str, classes: PanopticClasses, threshold: float, name: str) -> None:
        self._classes, self._threshold, self._name = classes, threshold, name
        self._evaluator = PanopticQualityEvaluator(dataset_name)

    def reset(self) -> None:
        self._evaluator.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        painted = [{"panoptic_seg": paint(x["instances"], self._classes, self._threshold)} for x in outputs]
        self._evaluator.process(inputs, painted)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        found = self._evaluator.evaluate()
        return None if found is None else {self._name: found["panoptic_seg"]}


def choose_threshold(
    model: JointClasses, batches: Iterable[list[dict[str, Any]]], dataset_name: str, classes: PanopticClasses
) -> float:
    """The lowest of THRESHOLDS with the best `main_quality` on these images of a dataset.

    All processes call this together, each with its share of the images, and get the same value.
    """
    with _quiet("psf.evaluation"):  # tables of each threshold, and warnings about missing images
        evaluators = [_Painted(dataset_name, classes, threshold, str(threshold)) for threshold in THRESHOLDS]
        found = inference_on_dataset(model, batches, DatasetEvaluators(evaluators))
    best = max(THRESHOLDS, key=lambda threshold: main_quality(found[str(threshold)], classes)) if found else None
    return comm.all_gather(best)[0]


def evaluate(
    model: JointClasses,
    batches: Iterable[list[dict[str, Any]]],
    dataset_name: str,
    classes: PanopticClasses,
    threshold: float,
    folder: Path,
) -> dict[str, Any]:
    """Compute mask AP ("segm") and box AP ("bbox") of all instances, and panoptic quality ("panoptic_seg") of the map.

    Args:
        model: the detector.
        batches: of this process's share of the dataset.
        dataset_name: a registered panoptic dataset.
        classes: of the dataset.
        threshold: of `paint`.
        folder: gets the instances of the ground truth as a JSON.

    Returns:
        Detectron2's nested results, in percent; {} outside the main process.
    """
    path = folder / f"{dataset_name}_instances.json"
    write_instance_json(dataset_name, path)
    evaluators = [
        InstanceEvaluator(dataset_name, str(path)),
        _Painted(dataset_name, classes, threshold, "panoptic_seg"),
    ]
    found = inference_on_dataset(model, batches, DatasetEvaluators(evaluators))
    return dict(found or {})


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
