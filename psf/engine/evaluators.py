"""Build the evaluators of a dataset: the metrics that its files allow and the config enables."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
    inference_on_dataset,
    print_csv_format,
)
from detectron2.utils import comm
from torch import nn

from psf.data import load_dataset
from psf.data.images import open_image
from psf.data.own_files import free_name
from psf.engine.train_step import without_ddp
from psf.errors import UserError
from psf.evaluation import (
    BackgroundEvaluators,
    InstanceEvaluator,
    PanelEvaluator,
    PanopticGroundTruth,
    PanopticQualityEvaluator,
    PanopticWriter,
    ResultCounter,
    SemanticEvaluator,
    has_panoptic_gt,
    write_per_class,
)
from psf.meta_arch import PanopticSegFormer
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA

__all__ = [
    "UNREADABLE",
    "build_evaluator",
    "check_all_read",
    "check_gt",
    "empty_kinds",
    "evaluate_datasets",
    "needed_results",
    "panoptic_test_set",
]

logger = logging.getLogger(__name__)

# The result that an evaluator reads; "classes": a map of classes is enough.
_RESULTS: dict[type, str] = {
    PanopticQualityEvaluator: "panoptic_seg",
    PanelEvaluator: "panoptic_seg",
    PanopticWriter: "panoptic_seg",
    InstanceEvaluator: "instances",
    SemanticEvaluator: "classes",
    SemSegEvaluator: "sem_seg",
    ResultCounter: "",  # the results that other evaluators read
}
UNREADABLE = "unreadable"  # next to the tasks of an evaluation: the number of images that were skipped


def build_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
    """Build the evaluators of PQ, mask and box AP, and mIoU; MODEL.PSF.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON select.

    A panoptic JSON with its PNGs is enough for all of them; for AP, an instance JSON in the metadata is preferred.
    BOUNDARY_PQ and PQ_BY_SIZE add metrics to PQ. Evaluation of PQ also draws OUTPUT_DIR/panel.png. WRITE_PANOPTIC
    writes the panoptic predictions, also without ground truth. The log names enabled metrics that cannot be measured.
    OUTPUT_DIR/per_class.csv is written with the results. With several datasets, the names of both files contain the
    dataset's name. The evaluators run in the background, see `BackgroundEvaluators`. All processes must call this
    together.

    Raises:
        UserError: as `check_gt`.
    """
    check_gt(cfg, dataset_name)
    metadata = MetadataCatalog.get(dataset_name)
    if metadata.get("is_generated", False):
        load_dataset(dataset_name)  # writes its files, which decide what can be measured
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
        instances = _instance_evaluator(metadata, has_gt, Path(cfg.OUTPUT_DIR, "inference"))
        if instances is not None:
            evaluators.append(instances)
        else:
            unavailable.append("mask AP and box AP (no things, or neither json_file nor a panoptic ground truth)")
    score_evaluators: list[DatasetEvaluator] = []
    if enabled.SEMANTIC_ON:
        if has_gt and _has_joint_ids(metadata):
            evaluators.append(SemanticEvaluator(dataset_name))
        elif os.path.isdir(metadata.get("sem_seg_root") or ""):
            score_evaluators.append(SemSegEvaluator(dataset_name, sem_seg_loading_fn=_read_class_map))
        else:
            unavailable.append("mIoU (neither a panoptic ground truth with joint class ids nor sem_seg_root)")
    counted = {type(one) for one in evaluators}
    panoptic, instance = PanopticQualityEvaluator in counted, InstanceEvaluator in counted
    if panoptic or instance:
        evaluators.append(ResultCounter(dataset_name, has_gt=has_gt, panoptic=panoptic, instance=instance))
    if unavailable:
        logger.warning("%s is evaluated without %s", dataset_name, ", ".join(unavailable))
    gt = PanopticGroundTruth(dataset_name) if has_gt else None
    path = _output_file(cfg, dataset_name, "per_class.csv")
    return _Evaluators(evaluators, score_evaluators, gt, dataset_name=dataset_name, path=path)


def _read_class_map(path: str, dtype: Any) -> np.ndarray:
    """(H, W) classes of a semantic PNG; Detectron2's own reader fails with NumPy 2."""
    with open_image(path) as image:
        return np.asarray(image, dtype)


def check_gt(cfg: CfgNode, dataset_name: str) -> None:
    """Raise a UserError if a panoptic JSON has no annotations, unless predictions are written.

    Sets of other kinds pass, and so do sets whose JSON does not exist (yet).
    """
    path = MetadataCatalog.get(dataset_name).get("panoptic_json") or ""
    writes = cfg.MODEL.PSF.TEST.PANOPTIC_ON and cfg.MODEL.PSF.TEST.WRITE_PANOPTIC
    if os.path.isfile(path) and not writes and not PanopticGroundTruth(dataset_name).annotations:
        raise UserError(
            f'DATASETS.TEST: {path} of "{dataset_name}" has no annotations, so nothing can be measured; to '
            "write predictions only, set MODEL.PSF.TEST.WRITE_PANOPTIC True"
        )


def empty_kinds(evaluator: DatasetEvaluator) -> tuple[str, ...]:
    """Kinds of results without any prediction in an evaluation, see `psf.evaluation.ResultCounter`."""
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    return tuple(kind for one in parts if isinstance(one, ResultCounter) for kind in one.empty_kinds)


def evaluate_datasets(
    cfg: CfgNode,
    model: nn.Module,
    evaluators: Sequence[DatasetEvaluator],
    build_loader: Callable[[CfgNode, str], Iterable[Any]],
) -> dict[str, Any]:
    """Evaluate on DATASETS.TEST, as Detectron2's `DefaultTrainer.test` does, and count images that cannot be read.

    Args:
        cfg, model: of the evaluation.
        evaluators: one per dataset.
        build_loader: such as `Trainer.build_test_loader`.

    Returns:
        The results of the evaluators, by dataset if there are several; {} outside the main process. If images were
        skipped, `UNREADABLE` has their number; the metrics are those of the other images.
    """
    results: dict[str, Any] = {}
    for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
        loader = build_loader(cfg, name)
        with ExitStack() as stack:
            stack.enter_context(needed_results(model, evaluator))
            if isinstance(evaluator, BackgroundEvaluators):
                stack.enter_context(closing(evaluator))  # its threads end, also if the model or the loader fails
            of_dataset = inference_on_dataset(model, loader, evaluator)
        num_unreadable = sum(comm.all_gather(len(getattr(loader, "unreadable", ()))))
        if comm.is_main_process():
            logger.debug("Evaluation results for %s in csv format:", name)
            print_csv_format(of_dataset)
            if num_unreadable:
                of_dataset[UNREADABLE] = {"images": num_unreadable}
        results[name] = of_dataset
    return next(iter(results.values())) if len(results) == 1 else results


@contextmanager
def needed_results(model: nn.Module, evaluator: DatasetEvaluator) -> Iterator[None]:
    """Within the block, psf's models compute no result that the evaluator does not read.

    They also return a map of classes in place of semantic scores, if only `SemanticEvaluator` reads those. With an
    evaluator or a model that psf does not know, such as a subclass that changes the results or a module that reads
    those of its own model, all enabled results are computed in full.
    """
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    plain = without_ddp(model)
    one = plain.model if type(plain) is PanopticSegFormerWithTTA else plain
    if not (_has_plain_results(one) and all(type(part) in _RESULTS for part in parts)):
        yield
        return
    read, settings = {_RESULTS[type(part)] for part in parts}, one.settings
    one.settings = settings._replace(
        panoptic=settings.panoptic and "panoptic_seg" in read,
        instance=settings.instance and "instances" in read,
        semantic=settings.semantic and not read.isdisjoint(("classes", "sem_seg")),
        semantic_classes="sem_seg" not in read,
    )
    try:
        yield
    finally:
        one.settings = settings


def _has_plain_results(model: nn.Module) -> bool:
    """Whether the evaluators get the results of psf's model as they are: nothing on the way may read other ones."""
    return isinstance(model, PanopticSegFormer) and all(
        name not in vars(model) and getattr(type(model), name) is getattr(PanopticSegFormer, name)
        for name in ("forward", "result")
    )


def check_all_read(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """Raise a UserError if images were skipped in an evaluation, so that its exit code says so."""
    parts = [results] if len(cfg.DATASETS.TEST) == 1 else [results.get(name, {}) for name in cfg.DATASETS.TEST]
    number = sum(part.get(UNREADABLE, {}).get("images", 0) for part in parts)
    if number:
        raise UserError(
            f"{number} image{'s' if number > 1 else ''} of DATASETS.TEST could not be read (named above); the results "
            f"in {cfg.OUTPUT_DIR} are those of the others"
        )


class _Evaluators(BackgroundEvaluators):
    """The evaluators of one dataset; also writes a table of its classes."""

    def __init__(
        self,
        evaluators: list[DatasetEvaluator],
        score_evaluators: list[DatasetEvaluator],
        gt: PanopticGroundTruth | None,
        *,
        dataset_name: str,
        path: Path,
    ) -> None:
        super().__init__(evaluators, gt, in_foreground=score_evaluators)
        self._dataset_name, self._path = dataset_name, path

    def evaluate(self) -> OrderedDict[str, Any]:
        """The results of all evaluators; the main process also writes the table."""
        results = super().evaluate()
        if comm.is_main_process() and results:
            panoptic = [one for one in self._evaluators if isinstance(one, PanopticQualityEvaluator)]
            write_per_class(self._path, self._dataset_name, results, panoptic[0] if panoptic else None)
        return results


def _output_file(cfg: CfgNode, dataset_name: str, name: str) -> Path:
    """OUTPUT_DIR/name; the file name contains the dataset if there are several."""
    stem, dot, ending = name.partition(".")
    return Path(cfg.OUTPUT_DIR, name if len(cfg.DATASETS.TEST) == 1 else f"{stem}_{dataset_name}{dot}{ending}")


def _instance_evaluator(metadata: Metadata, has_gt: bool, folder: Path) -> InstanceEvaluator | None:
    """With the instance JSON in the metadata, if the file exists; otherwise with one derived from the panoptic one."""
    if not metadata.get("thing_dataset_id_to_contiguous_id"):
        return None
    named = metadata.get("json_file")
    if named and Path(named).is_file():
        return InstanceEvaluator(metadata.name, named)
    if not has_gt:
        return None
    path = free_name(folder / f"{metadata.name}_instances.json")
    return InstanceEvaluator(metadata.name, str(path), derive=True)


def _has_joint_ids(metadata: Metadata) -> bool:
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    return things.isdisjoint(metadata.stuff_dataset_id_to_contiguous_id.values())


def panoptic_test_set(cfg: CfgNode) -> str:
    """Name of the first dataset of DATASETS.TEST, which has panoptic ground truth; a generated dataset is written.

    Raises:
        UserError: if DATASETS.TEST is empty, or the dataset's files are missing or damaged, or it has no panoptic
            ground truth.
    """
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name a dataset with panoptic ground truth")
    name: str = cfg.DATASETS.TEST[0]
    load_dataset(name)
    if not has_panoptic_gt(name):
        raise UserError(f"{name} (DATASETS.TEST) has no panoptic_json and panoptic_root: PQ cannot be measured on it")
    return name
