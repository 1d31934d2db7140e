"""Mean IoU of `sem_seg` results against the panoptic ground truth, without semantic PNGs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from typing import Any

import numpy as np
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from psf.data import distinct_names
from psf.errors import UserError
from psf.evaluation.ground_truth import PanopticGroundTruth
from psf.evaluation.segment_matching import count_overlaps

__all__ = ["SemanticEvaluator"]

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """mIoU, fwIoU, mACC and pACC with the names and definitions of Detectron2's SemSegEvaluator, in percent.

    SemSegEvaluator does not support the joint class ids of things and stuff in a panoptic dataset, and needs a semantic
    PNG per image. Here the class of a pixel is that of its segment in the panoptic PNG, including crowds; void is
    ignored.

    Args:
        dataset_name: a registered panoptic dataset; its things and stuff have joint contiguous ids.
        distributed: gather from all processes, and return results in the main process.

    Raises:
        UserError: if a contiguous id means both a thing and stuff (Detectron2's `_separated` datasets).
    """

    def __init__(self, dataset_name: str, *, distributed: bool = True) -> None:
        self._gt = PanopticGroundTruth(dataset_name)
        shared = set(self._gt.thing_ids.values()) & set(self._gt.stuff_ids.values())
        if shared:
            raise UserError(f"{dataset_name}: contiguous ids {sorted(shared)} mean both a thing and stuff")
        self._names = distinct_names(self._gt.metadata.stuff_classes)
        self._num_classes = len(self._gt.thing_ids) + len(self._gt.stuff_ids)
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        self._confusion = np.zeros((self._num_classes, self._num_classes), dtype=np.int64)  # [ground truth, prediction]

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Count the pixels of a batch: inputs have "image_id", outputs "sem_seg", (K, H, W) scores or (H, W) classes.

        Raises:
            UserError: if the result has not the size of the ground truth.
        """
        for image, output in zip(inputs, outputs):
            sem_seg = output["sem_seg"]
            predicted = (sem_seg.argmax(dim=0) if sem_seg.ndim == 3 else sem_seg).cpu().numpy()
            labels, segments = self._gt.contiguous(self._gt.of(image))
            overlaps = count_overlaps(labels, predicted)
            class_of = {segment["id"]: segment["category_id"] for segment in segments}
            for key, pixels in zip(overlaps.gt_ids.tolist(), overlaps.pixels[:, :, 0, 0]):
                if key in class_of:  # else void
                    self._confusion[class_of[key], overlaps.pred_ids] += pixels

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """The means, and IoU-<class> and ACC-<class> of the classes that occur, under "sem_seg".

        None outside the main process; no keys if the ground truth has no labeled pixel.
        """
        confusion = self._confusion
        if self._distributed:
            comm.synchronize()
            gathered = comm.gather(confusion)
            if not comm.is_main_process():
                return None
            confusion = np.sum(gathered, axis=0)
        hits, gt, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
        occurs = np.flatnonzero(gt)
        if not len(occurs):
            logger.warning("the ground truth has no labeled pixel, so there is no mIoU")
            return OrderedDict(sem_seg={})
        iou = 100 * hits[occurs] / (gt + predicted - hits)[occurs]
        accuracy = 100 * hits[occurs] / gt[occurs]
        result = {
            "mIoU": iou.mean(),
            "fwIoU": (iou * gt[occurs]).sum() / gt.sum(),
            "mACC": accuracy.mean(),
            "pACC": 100 * hits.sum() / gt.sum(),
        }
        names = [self._names[index] for index in occurs]
        result.update({f"IoU-{name}": value for name, value in zip(names, iou)})
        result.update({f"ACC-{name}": value for name, value in zip(names, accuracy)})
        return OrderedDict(sem_seg={key: float(value) for key, value in result.items()})
