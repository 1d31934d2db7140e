"""Build the evaluators of a dataset: the metrics that its files allow and the config enables."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.utils import comm

from psf.errors import UserError
from psf.evaluation import (
    InstanceEvaluator,
    PanelEvaluator,
    PanopticGroundTruth,
    PanopticQualityEvaluator,
    PanopticWriter,
    ResultCounter,
    SemanticEvaluator,
    has_panoptic_gt,
    write_instance_json,
    write_per_class,
)

__all__ = ["build_evaluator", "check_gt", "empty_kinds"]

logger = logging.getLogger(__name__)


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
    """Evaluators of PQ, mask and box AP, and mIoU, by MODEL.PSF.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON.

    A panoptic JSON with its PNGs gives all three; an instance JSON that the metadata name is preferred for AP.
    BOUNDARY_PQ and PQ_BY_SIZE add to PQ; with it comes a picture, OUTPUT_DIR/panel.png. WRITE_PANOPTIC writes the
    panoptic predictions too, which needs no ground truth. Enabled metrics that cannot be
    measured are named in the log. With the results, OUTPUT_DIR/per_class.csv is written. With several datasets the two
    files have the dataset's name in theirs. All processes must call this together.

    Raises:
        UserError: as `check_gt`.
    """
    check_gt(cfg, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    has_gt = has_panoptic_gt(dataset_name)
    enabled = cfg.MODEL.PSF.TEST
    evaluators: list[DatasetEvaluator] = []
    unavailable = []
    if enabled.PANOPTIC_ON:
        if has_gt:
            options = {"boundary": enabled.BOUNDARY_PQ, "by_size": enabled.PQ_BY_SIZE}
            quality = PanopticQualityEvaluator(dataset_name, **options)
            path = _output_file(cfg, dataset_name, "panel.png")
            evaluators += [quality, PanelEvaluator(dataset_name, cfg.INPUT.FORMAT, path, quality)]
        else:
            unavailable.append("PQ (no panoptic_json with annotations and panoptic_root)")
        if enabled.WRITE_PANOPTIC:
            evaluators.append(PanopticWriter(dataset_name, Path(cfg.OUTPUT_DIR, "inference", dataset_name)))
    if enabled.INSTANCE_ON:
        json_file = _instance_json(metadata, has_gt, Path(cfg.OUTPUT_DIR, "inference"))
        if json_file is not None:
            evaluators.append(InstanceEvaluator(dataset_name, json_file))
        else:
            unavailable.append("mask AP and box AP (no things, or neither json_file nor a panoptic ground truth)")
    if enabled.SEMANTIC_ON:
        if has_gt and _has_joint_ids(metadata):
            evaluators.append(SemanticEvaluator(dataset_name))
        elif os.path.isdir(metadata.get("sem_seg_root") or ""):
            evaluators.append(SemSegEvaluator(dataset_name))
        else:
            unavailable.append("mIoU (neither a panoptic ground truth with joint class ids nor sem_seg_root)")
    counted = {type(one) for one in evaluators}
    panoptic, instance = PanopticQualityEvaluator in counted, InstanceEvaluator in counted
    if panoptic or instance:
        evaluators.append(ResultCounter(dataset_name, has_gt=has_gt, panoptic=panoptic, instance=instance))
    if unavailable:
        logger.warning("%s is evaluated without %s", dataset_name, ", ".join(unavailable))
    return _Evaluators(evaluators, dataset_name, _output_file(cfg, dataset_name, "per_class.csv"))


def check_gt(cfg: CfgNode, dataset_name: str) -> None:
    """Raise a UserError if a panoptic JSON has no annotations and predictions are not to be written either.

    Sets of other kinds pass, and those whose JSON is not there (yet).
    """
    path = MetadataCatalog.get(dataset_name).get("panoptic_json") or ""
    writes = cfg.MODEL.PSF.TEST.PANOPTIC_ON and cfg.MODEL.PSF.TEST.WRITE_PANOPTIC
    if os.path.isfile(path) and not writes and not PanopticGroundTruth(dataset_name).annotations:
        raise UserError(
            f'DATASETS.TEST: {path} of "{dataset_name}" has no annotations, so nothing can be measured; for '
            "predictions alone set MODEL.PSF.TEST.WRITE_PANOPTIC True"
        )


def empty_kinds(evaluator: DatasetEvaluator) -> tuple[str, ...]:
    """Of what `build_evaluator` has given and has evaluated: see `psf.evaluation.ResultCounter`."""
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    return tuple(kind for one in parts if isinstance(one, ResultCounter) for kind in one.empty_kinds)


class _Evaluators(DatasetEvaluators):
    """Some evaluators of one dataset, and a table of its classes."""

    def __init__(self, evaluators: list[DatasetEvaluator], dataset_name: str, path: Path) -> None:
        super().__init__(evaluators)
        self._dataset_name, self._path = dataset_name, path

    def evaluate(self) -> OrderedDict[str, Any]:
        """Detectron2's results of all of them; in the main process the table is written."""
        results = super().evaluate()
        if comm.is_main_process() and results:
            panoptic = [one for one in self._evaluators if isinstance(one, PanopticQualityEvaluator)]
            write_per_class(self._path, self._dataset_name, results, panoptic[0] if panoptic else None)
        return results


def _output_file(cfg: CfgNode, dataset_name: str, name: str) -> Path:
    """OUTPUT_DIR/name, which names the dataset, too, where there are several."""
    stem, dot, ending = name.partition(".")
    return Path(cfg.OUTPUT_DIR, name if len(cfg.DATASETS.TEST) == 1 else f"{stem}_{dataset_name}{dot}{ending}")


def _instance_json(metadata: Metadata, has_gt: bool, folder: Path) -> str | None:
    """The instance JSON that the metadata name, if it is there, or one derived from the panoptic ground truth."""
    if not metadata.get("thing_dataset_id_to_contiguous_id"):
        return None
    named = metadata.get("json_file")
    if named and Path(named).is_file():
        return named
    if not has_gt:
        return None
    path = folder / f"{metadata.name}_instances.json"
    write_instance_json(metadata.name, path)
    return str(path)


def _has_joint_ids(metadata: Metadata) -> bool:
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    return things.isdisjoint(metadata.stuff_dataset_id_to_contiguous_id.values())
