"""Panoptic quality as a Detectron2 evaluator, without temporary files or a process pool."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from psf.data import image_key
from psf.errors import UserError
from psf.evaluation.ground_truth import PanopticGroundTruth
from psf.evaluation.panoptic_quality import ClassQuality, PanopticQuality
from psf.evaluation.panoptic_writer import PanopticWriter
from psf.evaluation.segment_matching import SegmentMatches, match_segments, match_with_boundaries
from psf.structures import CategoryIds

__all__ = ["SEGMENT_SIZES", "PanopticQualityEvaluator"]

logger = logging.getLogger(__name__)

# COCO's sizes: low <= area in pixels < high.
SEGMENT_SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, math.inf)}


class _Measured(NamedTuple):
    """One image: matches by mask IoU, and by boundary IoU if enabled."""

    masks: SegmentMatches
    boundaries: SegmentMatches | None


class PanopticQualityEvaluator(DatasetEvaluator):
    """Panoptic quality of `panoptic_seg` results, equal to Detectron2's COCOPanopticEvaluator.

    Processes send the matches of their images, and the main process adds them up in the order of the ground truth's
    JSON. So counts and IoU sums do not depend on the order of the images or the number of processes; they are
    bit-identical to those of panopticapi in one process. (Its pool adds up partial sums, one for each core.)

    Args:
        dataset_name: a registered dataset with `panoptic_json` and `panoptic_root` in its metadata.
        output_dir: a `PanopticWriter` writes the predictions here in COCO's format; None writes nothing.
        distributed: gather from all processes, and return results in the main process; else evaluate the images of
            this process.
        boundary: also measure Boundary PQ (Cheng et al., arXiv 2103.16562; table 7 of the paper): a match needs
            min(mask IoU, boundary IoU) > 0.5, and this minimum is its IoU.
        by_size: also measure PQ of small, medium and large segments (`SEGMENT_SIZES`). A match and a miss have the size
            of the ground-truth segment, a false positive has its own: every segment counts in exactly one size.

    Attributes, after `evaluate`, in the main process:
        per_class: category id -> ClassQuality, in the order of the JSON.
        boundary_per_class: the same for Boundary PQ; empty if it is disabled.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        output_dir: str | Path | None = None,
        distributed: bool = True,
        boundary: bool = False,
        by_size: bool = False,
    ) -> None:
        self._gt = PanopticGroundTruth(dataset_name)
        self._category_ids = CategoryIds.from_metadata(self._gt.metadata)
        self._writer = None
        if output_dir is not None:
            self._writer = PanopticWriter(dataset_name, output_dir, distributed=distributed)
        self._distributed = distributed
        self._boundary = boundary
        self._by_size = by_size
        self.per_class: dict[int, ClassQuality] = {}
        self.boundary_per_class: dict[int, ClassQuality] = {}
        self.reset()

    def reset(self) -> None:
        self._measured: dict[int | str, _Measured] = {}
        if self._writer is not None:
            self._writer.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Match the segments of a batch.

        Args:
            inputs: dicts with "image_id".
            outputs: dicts with "panoptic_seg": ((H, W) ids, segments with `id`, `category_id` and `isthing`). As in
                Detectron2, a segment without `isthing` has the dataset's own category id, not the contiguous one.
        """
        for image, output in zip(inputs, outputs):
            ids, segments_info = output["panoptic_seg"]
            segments = self._category_ids.coco_segments(segments_info)
            gt = self._gt.of(image)
            maps = (gt.labels, gt.segments, ids.cpu().numpy(), segments)
            try:
                measured = match_with_boundaries(*maps) if self._boundary else (match_segments(*maps), None)
            except UserError as error:
                raise UserError(f"image {image['image_id']!r}: {error}") from error
            self._measured[image_key(image["image_id"])] = _Measured(*measured)
        if self._writer is not None:
            self._writer.process(inputs, outputs)

    def image_quality(self, image_id: int | str) -> float | None:
        """PQ of an image that this process has seen, in [0, 1]: the mean over the classes that occur in it.

        None if neither the ground truth nor the prediction has a segment.
        """
        mean = self._add_up([self._measured[image_key(image_id)].masks]).mean()
        return None if mean is None else mean.pq

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """PQ, SQ, RQ of all classes, _th of things and _st of stuff, in percent, under "panoptic_seg".

        Boundary PQ has the same keys under "panoptic_boundary"; with sizes, "panoptic_sizes" has PQ_small, ...,
        RQ_large. Keys of things, stuff or a size without segments are absent. None outside the main process.
        """
        if self._writer is not None:
            self._writer.evaluate()
        measured = self._measured
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(measured)
            if not comm.is_main_process():
                return None
            measured = {key: value for part in gathered for key, value in part.items()}
        num_missing = len(self._gt.annotations) - len(measured)
        if num_missing:
            logger.warning(
                "%d of the %d images in %s have no prediction and do not count in the panoptic quality",
                num_missing,
                len(self._gt.annotations),
                self._gt.metadata.panoptic_json,
            )
        in_order = [measured[key] for key in self._gt.annotations if key in measured]
        masks = [one.masks for one in in_order]
        quality = self._add_up(masks)
        boundary = self._add_up([one.boundaries for one in in_order if one.boundaries is not None])
        sizes = {}
        if self._by_size:
            sizes = {name: self._add_up([one.of_area(*span) for one in masks]) for name, span in SEGMENT_SIZES.items()}
        self.per_class = quality.per_class
        self.boundary_per_class = boundary.per_class if self._boundary else {}
        self._log_tables(quality, boundary, sizes)

        results = OrderedDict(panoptic_seg=quality.summarise())
        if self._boundary:
            results["panoptic_boundary"] = boundary.summarise()
        if self._by_size:
            results["panoptic_sizes"] = {}
            for name, one in sizes.items():
                mean = one.mean()
                results["panoptic_sizes"] |= {} if mean is None else mean.in_percent(f"_{name}")
        return results

    def _add_up(self, images: list[SegmentMatches]) -> PanopticQuality:
        quality = PanopticQuality({key: bool(one["isthing"]) for key, one in self._gt.categories.items()})
        for matches in images:
            quality.add_matches(matches)
        return quality

    def _log_tables(
        self, quality: PanopticQuality, boundary: PanopticQuality, sizes: dict[str, PanopticQuality]
    ) -> None:
        kinds = (("all", None), ("things", True), ("stuff", False))
        means = [(name, quality.mean(is_thing)) for name, is_thing in kinds]
        means += [(name, one.mean()) for name, one in sizes.items()]
        means += [(f"{name}, boundary", boundary.mean(is_thing)) for name, is_thing in kinds]
        rows = [[name, 100 * one.pq, 100 * one.sq, 100 * one.rq, one.num_classes] for name, one in means if one]
        table = tabulate(rows, ["", "PQ", "SQ", "RQ", "classes"], tablefmt="pipe", floatfmt=".3f")
        logger.info("Panoptic quality:\n%s", table)

        headers = ["class", "PQ", "SQ", "RQ", "TP", "FP", "FN", *(["boundary PQ"] if self._boundary else [])]
        categories, rows = self._gt.categories, []
        for key, one in self.per_class.items():
            if one.occurs:
                row = [categories[key]["name"], 100 * one.pq, 100 * one.sq, 100 * one.rq]
                extra = [100 * self.boundary_per_class[key].pq] if self._boundary else []
                rows.append([*row, one.tp, one.fp, one.fn, *extra])
        logger.info("Panoptic quality per class:\n%s", tabulate(rows, headers, tablefmt="pipe", floatfmt=".2f"))
