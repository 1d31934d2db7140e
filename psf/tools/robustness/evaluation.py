"""Measure panoptic quality on corrupted images."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import nn

from psf.data import build_mapper, build_test_loader, load_dataset, spread_evenly
from psf.errors import UserError
from psf.evaluation import BackgroundEvaluators, PanopticGroundTruth, PanopticQualityEvaluator
from psf.tools.robustness.corruptions import corrupt
from psf.tools.robustness.record import RobustnessRecord

__all__ = ["Corrupt", "evaluate_corruption", "evaluate_robustness"]

logger = logging.getLogger(__name__)


class Corrupt(T.Augmentation):
    """Corrupts the image, not the ground truth; the random seed is computed from the image's bytes.

    Raises:
        UserError: naming INPUT.FORMAT, if the images are not in colour.
    """

    def __init__(self, name: str, severity: int, image_format: str) -> None:
        super().__init__()
        if image_format not in ("BGR", "RGB"):
            raise UserError(
                f"INPUT.FORMAT is {image_format!r}, expected 'BGR' or 'RGB': corruptions need colour images"
            )
        self.name, self.severity, self.is_bgr = name, severity, image_format == "BGR"

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return T.ColorTransform(partial(self._apply, seed=zlib.crc32(np.ascontiguousarray(image).tobytes())))

    def _apply(self, image: np.ndarray, seed: int) -> np.ndarray:
        channels = slice(None, None, -1) if self.is_bgr else slice(None)
        return corrupt(np.ascontiguousarray(image[..., channels]), self.name, self.severity, seed)[..., channels]


def evaluate_corruption(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    augmentation: T.Augmentation | None,
    num_images: int | None = None,
) -> dict[str, float]:
    """PQ, SQ, RQ of all, _th of things and _st of stuff, in percent. All processes must call this together.

    Args:
        cfg: of the model; its mapper's augmentations follow `augmentation`, so that images are corrupted in their
            original size.
        model: of the config.
        dataset_name: a registered dataset with panoptic ground truth.
        augmentation: applied to the images first; None: none.
        num_images: number of images, spread evenly over the dataset; None: all.

    Returns:
        The metrics; {} outside the main process.
    """
    dataset = spread_evenly(load_dataset(dataset_name), num_images)
    mapper: Any = build_mapper(cfg, False)
    if augmentation is not None:
        if not hasattr(mapper, "augmentations"):
            raise UserError(
                f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}, whose mapper has no `augmentations`, "
                "which corruptions need"
            )
        mapper.augmentations = T.AugmentationList([augmentation, mapper.augmentations])
    loader = build_test_loader(cfg, dataset, mapper)
    evaluators = BackgroundEvaluators([PanopticQualityEvaluator(dataset_name)], PanopticGroundTruth(dataset_name))
    with closing(evaluators):
        results = inference_on_dataset(model, loader, evaluators) or {}
    return dict(results.get("panoptic_seg", {}))


def evaluate_robustness(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    record: RobustnessRecord,
    *,
    corruptions: Sequence[str],
    severities: Sequence[int],
    num_images: int | None = None,
    after_each: Callable[[], object] = lambda: None,
) -> None:
    """Evaluate clean images, then each corruption at each severity; skip the evaluations in the record.

    The main process's record counts, and is written after each evaluation. All processes must call this together.

    Args:
        cfg: of the model.
        model: of the config.
        dataset_name: a registered dataset with panoptic ground truth.
        record: of this measurement.
        corruptions: names in `CORRUPTIONS`; repeated names count once.
        severities: 1 to 5; repeated values count once.
        num_images: as in `evaluate_corruption`.
        after_each: called in the main process after each evaluation.
    """
    pairs = dict.fromkeys((name, level) for name in corruptions for level in severities)
    evaluations: list[tuple[str, int] | None] = [None, *pairs]
    missing = [one for one in evaluations if record.get(*(one or ())) is None]
    missing = comm.all_gather(missing)[0]
    augmentations = [None if one is None else Corrupt(one[0], one[1], cfg.INPUT.FORMAT) for one in missing]
    for position, (one, augmentation) in enumerate(zip(missing, augmentations), start=1):
        logger.info("%d of %d: %s", position, len(missing), "clean images" if one is None else one)
        results = evaluate_corruption(cfg, model, dataset_name, augmentation, num_images)
        if comm.is_main_process():
            record.add(results, *(one or ()))
            after_each()
