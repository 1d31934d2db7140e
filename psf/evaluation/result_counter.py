"""Count predictions, to distinguish empty results from bad results."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Any

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from psf.data import image_key
from psf.evaluation.ground_truth import PanopticGroundTruth

__all__ = ["ResultCounter"]


class ResultCounter(DatasetEvaluator):
    """Finds kinds of results that are in the ground truth but were never predicted; returns no metrics.

    Args:
        dataset_name: a registered dataset.
        has_gt: whether it has panoptic ground truth; else every kind is expected to occur.
        panoptic: count the things and the stuff of `panoptic_seg`.
        instance: count `instances`.

    Attributes, after `evaluate`, in the main process:
        empty_kinds: of "things", "stuff" and "instances", the kinds without a prediction in any image.
    """

    def __init__(self, dataset_name: str, *, has_gt: bool, panoptic: bool, instance: bool) -> None:
        self._gt = PanopticGroundTruth(dataset_name) if has_gt else None
        self._kinds = ("things", "stuff") * panoptic + ("instances",) * instance
        self.empty_kinds: tuple[str, ...] = ()
        self.reset()

    def reset(self) -> None:
        self._expected: Counter[str] = Counter()
        self._predicted: Counter[str] = Counter()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count a batch: inputs have "image_id", outputs have "panoptic_seg" and "instances" if these are counted."""
        for image, output in zip(inputs, outputs):
            self._expected.update(self._expected_of(image))
            if "things" in self._kinds:
                things = [segment.get("isthing") for segment in output["panoptic_seg"][1]]
                self._predicted.update("things" if is_thing else "stuff" for is_thing in things)
            if "instances" in self._kinds:
                self._predicted["instances"] += len(output["instances"])

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Set `empty_kinds`; returns an empty result, which Detectron2 merges with those of other evaluators."""
        gathered = comm.gather((self._expected, self._predicted))
        if comm.is_main_process():
            expected: Counter[str] = sum((one for one, _ in gathered), Counter())
            predicted: Counter[str] = sum((one for _, one in gathered), Counter())
            self.empty_kinds = tuple(kind for kind in self._kinds if expected[kind] and not predicted[kind])
        return OrderedDict()

    def _expected_of(self, image: dict[str, Any]) -> list[str]:
        """The kinds of segments that an image has."""
        if self._gt is None:
            return list(self._kinds)
        annotation = self._gt.annotations.get(image_key(image["image_id"]))
        if annotation is None:
            return []
        categories = [one["category_id"] for one in annotation["segments_info"] if not one.get("iscrowd")]
        are_things = {category in self._gt.thing_ids for category in categories}
        return ["things", "instances"] * (True in are_things) + ["stuff"] * (False in are_things)
