"""Panoptic quality as a Detectron2 evaluator: no temporary files, no pool of processes."""

from __future__ import annotations

import json
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from tabulate import tabulate

from psf.evaluation.ground_truth import PanopticGroundTruth, image_key
from psf.evaluation.panoptic_quality import ClassQuality, PanopticQuality, SegmentMatches, match_segments

__all__ = ["PanopticQualityEvaluator"]

logger = logging.getLogger(__name__)


class PanopticQualityEvaluator(DatasetEvaluator):
    """Panoptic quality of `panoptic_seg` results, equal to Detectron2's COCOPanopticEvaluator.

    The sums run in the order of the ground truth's JSON, whatever the order of the images and the number of processes,
    so that a result is the same to the last bit.

    Args:
        dataset_name: a registered data set with `panoptic_json` and `panoptic_root` in its metadata.
        output_dir: where to write the predictions in COCO's format, as panoptic_predictions.json and
            panoptic_predictions/*.png; None writes nothing.
        distributed: gather from all processes, and give results in the main one; else evaluate what this one saw.

    Attributes:
        per_class: after `evaluate`, in the main process: category id -> ClassQuality, in the order of the JSON.
    """

    def __init__(self, dataset_name: str, *, output_dir: str | None = None, distributed: bool = True) -> None:
        self._truth = PanopticGroundTruth(dataset_name)
        self._dataset_ids = {
            True: {new: old for old, new in self._truth.thing_ids.items()},
            False: {new: old for old, new in self._truth.stuff_ids.items()},
        }
        self._png_dir = None if output_dir is None else Path(output_dir, "panoptic_predictions")
        self._distributed = distributed
        self.per_class: dict[int, ClassQuality] = {}
        self.reset()

    def reset(self) -> None:
        self._matches: dict[int | str, SegmentMatches] = {}
        self._written: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match the segments of a batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "panoptic_seg": ((H, W) ids, segments with `id`, `category_id` and `isthing`). As in
                Detectron2, a segment without `isthing` has the data set's own category id, not the contiguous one.
        """
        for image, output in zip(inputs, outputs):
            ids, segments_info = output["panoptic_seg"]
            labels = ids.cpu().numpy()
            segments = [self._in_dataset_ids(segment) for segment in segments_info]
            truth = self._truth.read(image["image_id"])
            try:
                matches = match_segments(truth.labels, truth.segments, labels, segments)
            except ValueError as error:
                raise ValueError(f"image {image['image_id']!r}: {error}") from error
            key = image_key(image["image_id"])
            self._matches[key] = matches
            if self._png_dir is not None:
                self._written.append(_write_png(self._png_dir, self._truth.annotations[key], labels, segments))

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """PQ, SQ, RQ of all, _th of things and _st of stuff, in percent, under "panoptic_seg".

        The keys of a kind of which no category occurs are left out. None outside the main process.
        """
        matches, written = self._matches, self._written
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather((matches, written))
            if not comm.is_main_process():
                return None
            matches = {key: value for part, _ in gathered for key, value in part.items()}
            written = [record for _, part in gathered for record in part]

        categories = self._truth.categories
        quality = PanopticQuality({key: bool(category["isthing"]) for key, category in categories.items()})
        for image_id in self._truth.annotations:
            if image_id in matches:
                quality.add_matches(matches[image_id])
        num_missing = len(self._truth.annotations) - len(matches)
        if num_missing:
            logger.warning(
                "%d of the %d images in %s have no prediction and are left out of the panoptic quality",
                num_missing,
                len(self._truth.annotations),
                self._truth.metadata.panoptic_json,
            )
        if self._png_dir is not None:
            content = {"categories": list(categories.values()), "annotations": written}
            self._png_dir.mkdir(parents=True, exist_ok=True)
            self._png_dir.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
        self.per_class = quality.per_class
        _log_tables(quality, {key: category["name"] for key, category in categories.items()})
        return OrderedDict(panoptic_seg=quality.summarise())

    def _in_dataset_ids(self, segment: dict[str, Any]) -> dict[str, Any]:
        is_thing, category = segment.get("isthing"), segment["category_id"]
        if is_thing is None:
            return {"id": segment["id"], "category_id": category}
        if category not in self._dataset_ids[is_thing]:
            raise ValueError(
                f"a predicted segment has class {category} as a {'thing' if is_thing else 'stuff'}, the data set's "
                f"metadata know {sorted(self._dataset_ids[is_thing])}; the model was built for other classes"
            )
        return {"id": segment["id"], "category_id": self._dataset_ids[is_thing][category]}


def _write_png(
    folder: Path, annotation: dict[str, Any], labels: np.ndarray, segments: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write one prediction (id = R + 256 G + 65536 B), and return its entry in the JSON."""
    file_name = os.path.splitext(annotation["file_name"])[0] + ".png"
    path = folder / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [(labels >> shift & 0xFF).astype(np.uint8) for shift in (0, 8, 16)]
    Image.fromarray(np.stack(channels, axis=-1)).save(path)
    return {"image_id": annotation["image_id"], "file_name": file_name, "segments_info": segments}


def _log_tables(quality: PanopticQuality, names: dict[int, str]) -> None:
    rows = []
    for name, is_thing in (("all", None), ("things", True), ("stuff", False)):
        mean = quality.mean(is_thing)
        if mean is not None:
            rows.append([name, 100 * mean.pq, 100 * mean.sq, 100 * mean.rq, mean.num_classes])
    table = tabulate(rows, ["", "PQ", "SQ", "RQ", "classes"], tablefmt="pipe", floatfmt=".3f")
    logger.info("Panoptic quality:\n%s", table)
    rows = [
        [names[key], 100 * one.pq, 100 * one.sq, 100 * one.rq, one.tp, one.fp, one.fn]
        for key, one in quality.per_class.items()
        if one.occurs
    ]
    headers = ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN"]
    logger.info("Panoptic quality per class:\n%s", tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))
