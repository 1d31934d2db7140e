"""Detectron2's DefaultTrainer with psf's mapper, optimizer and evaluators, also on the CPU."""

from __future__ import annotations

import argparse
import logging
import time
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from psf.checkpoint import TunedMerging, check_same_classes
from psf.data import (
    PanopticMapper,
    SkipUnreadable,
    build_mapper,
    build_test_loader,
    check_dataset,
    check_sampler,
    load_dataset,
    watch_workers,
    without_empty_images,
)
from psf.engine.arguments import check_detectron2_keys, setup, write_config
from psf.engine.checkpointer import build_checkpointer
from psf.engine.evaluators import build_evaluator, check_all_read, check_gt, empty_kinds, evaluate_datasets
from psf.engine.mask_health import MaskHealthHook
from psf.engine.merging import apply_merging, find_merging, why_not_tuned, with_merging
from psf.engine.num_queries import resolve_num_queries, warn_of_too_few_queries
from psf.engine.optimizer import build_optimizer
from psf.engine.results import (
    EMPTY_RESULT,
    append_metrics,
    as_numbers,
    build_writers,
    describe_empty_results,
    explain_empty_results,
    results_table,
    write_results,
)
from psf.errors import UserError
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA
from psf.output.run_folder import check_nothing_is_lost, unlock_folder

__all__ = [
    "TrainStep",
    "Trainer",
    "autocast_dtype",
    "main",
]

logger = logging.getLogger(__name__)

FINAL_CHECKPOINT = "model_final"  # as Detectron2 names it


class TrainStep(SimpleTrainer):
    """Detectron2's SimpleTrainer and AMPTrainer in one class; AMPTrainer requires CUDA.

    Args:
        dtype: of autocast; None trains in full precision. Gradients are scaled for float16 only.
        device_type: "cuda" or "cpu".
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[Any],
        optimizer: Optimizer,
        *,
        dtype: torch.dtype | None,
        device_type: str,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._dtype = dtype
        self._device_type = device_type
        self._scaler = torch.amp.GradScaler(device_type, enabled=dtype == torch.float16)

    def run_step(self) -> None:
        """Forward, backward, log, update.

        Raises:
            FloatingPointError: before any weight changes, if the loss is not finite; the message has terms and images.
        """
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self._device_type, dtype=self._dtype, enabled=self._dtype is not None):
            losses = self.model(batch)
        total = sum(losses.values())
        if not torch.isfinite(total):
            terms = {name: value.item() for name, value in losses.items() if not torch.isfinite(value)}
            images = [image.get("file_name", "?") for image in batch]
            raise FloatingPointError(
                f"the loss is not finite at iteration {self.iter}: {terms or total}; images {images}"
            )
        self.optimizer.zero_grad()
        self._scaler.scale(total).backward()
        self._write_metrics(losses, data_time)
        self._scaler.step(self.optimizer)  # unscales the gradients first, so clipping uses true norms
        self._scaler.update()

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "grad_scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):  # empty if the earlier run was not in float16
            self._scaler.load_state_dict(state_dict["grad_scaler"])


def autocast_dtype(cfg: CfgNode) -> torch.dtype | None:
    """SOLVER.AMP.DTYPE if SOLVER.AMP.ENABLED, else None.

    Raises:
        UserError: if it is neither "float16" nor "bfloat16", or if it is "float16" on a CPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return None
    name = cfg.SOLVER.AMP.DTYPE
    if name not in ("float16", "bfloat16"):
        raise UserError(f'SOLVER.AMP.DTYPE is {name!r}, expected "float16" or "bfloat16"')
    if name == "float16" and torch.device(cfg.MODEL.DEVICE).type == "cpu":
        raise UserError(
            'SOLVER.AMP.DTYPE is "float16" and MODEL.DEVICE "cpu": use "bfloat16" on a CPU, or full precision '
            "with SOLVER.AMP.ENABLED False"
        )
    return getattr(torch, name)


def main(args: argparse.Namespace) -> Any:
    """One process of a run: train, or evaluate with `--eval-only`. Returns the results, {} outside the main process."""
    cfg = setup(args)
    if not args.eval_only:
        try:
            return _train(cfg, resume=args.resume)
        finally:
            unlock_folder(Path(cfg.OUTPUT_DIR))
    _check_datasets(cfg.DATASETS.TEST)
    check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    model = Trainer.build_model(cfg)
    _check_views(cfg, model)
    checkpointer = build_checkpointer(cfg, model, args.run_dir)
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
        _report(cfg, results)
    _append_metrics(cfg, results, checkpoint.get("iteration", 0))
    if comm.is_main_process():
        verify_results(cfg, results)
        check_all_read(cfg, results)
    return results


def _train(cfg: CfgNode, *, resume: bool) -> dict[str, Any]:
    trainer = Trainer(cfg)
    if resume and not trainer.checkpointer.has_checkpoint():
        check_nothing_is_lost(Path(cfg.OUTPUT_DIR))
    trainer.resume_or_load(resume=resume)
    write_config(trainer.config_in_force)
    return trainer.train()


class Trainer(DefaultTrainer):
    """Trains the model of a config; evaluates every TEST.EVAL_PERIOD iterations and at the end.

    OUTPUT_DIR gets Detectron2's files (checkpoints, metrics.json, TensorBoard events) and, at each evaluation,
    results.json, per_class.csv and panel.png. With TEST.AUG.ENABLED, `test_with_TTA` evaluates once more at the end,
    and its results are added.

    With MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES above 0, the merging thresholds are tuned after the last iteration, before
    the last checkpoint and evaluation. `config_in_force` is the config with these thresholds; it is written to
    OUTPUT_DIR/config.yaml.

    Raises:
        UserError: if DATASETS.TRAIN is empty, if files of a dataset are missing, if keys contradict, or if TEST.AUG
            cannot be run.
    """

    _hooks: list[HookBase]

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's, which fixes the classes of step and checkpointer, and requires a GPU for DDP.
        TrainerBase.__init__(self)
        for name in ("detectron2", "psf"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        check_detectron2_keys(cfg)
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN is empty: name a dataset to train on")
        if not cfg.DATASETS.TEST:
            logger.warning("DATASETS.TEST is empty: NOTHING WILL BE EVALUATED")
        _check_datasets((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        for name in cfg.DATASETS.TEST:
            check_gt(cfg, name)
        dtype = autocast_dtype(cfg)
        if (num_queries := resolve_num_queries(cfg, is_training=True)) is not None:
            num_queries.log()

        self.config_in_force = cfg
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        _check_views(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device_type = torch.device(cfg.MODEL.DEVICE).type
        device_ids = None if device_type == "cpu" else [comm.get_local_rank()]  # DDP refuses ids for CPU modules
        model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)

        self._trainer = TrainStep(model, data_loader, optimizer, dtype=dtype, device_type=device_type)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = build_checkpointer(cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def train(self) -> dict[str, Any]:
        """Train to SOLVER.MAX_ITER. Returns the last evaluation's results, {} outside the main process."""
        super().train()
        if self.cfg.TEST.AUG.ENABLED:
            views = self.test_with_TTA(self.cfg, self.model)
            self._last_eval_results.update(views)
            _report(self.cfg, self._last_eval_results)
            _append_metrics(self.cfg, views, self.iter)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's; also warns if there are no pretrained weights at all.

        The merging thresholds in a checkpoint are used only if training is finished. A run that continues tunes them
        again.
        """
        super().resume_or_load(resume)
        merging = self.checkpointer.merging
        self.checkpointer.merging = None
        if merging is not None and self.start_iter >= self.max_iter:
            self._set_merging(merging)
        model = self.cfg.MODEL
        is_pretrained = model.BACKBONE.NAME == "build_psf_timm_backbone" and model.PSF.TIMM.PRETRAINED
        if not (model.WEIGHTS or is_pretrained or (resume and self.checkpointer.has_checkpoint())):
            logger.warning(
                "MODEL.WEIGHTS is empty: TRAINING STARTS FROM RANDOM WEIGHTS, also in the backbone; docs/model_zoo.md "
                "lists the sources of pretrained weights"
            )

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, with mask health and, before checkpoints and evaluation, the tuning of merging."""
        hooks: list[HookBase | None] = super().build_hooks()
        model = _without_ddp(self.model)
        if comm.is_main_process() and hasattr(model, "mask_health"):  # other models do not measure it
            hooks.insert(1, MaskHealthHook.from_config(self.cfg, model))  # after the timer, before the writers
        if self.cfg.MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES > 0:
            reason = why_not_tuned(self.cfg, model)
            if reason is None:
                last = next(i for i, hook in enumerate(hooks) if isinstance(hook, (PeriodicCheckpointer, EvalHook)))
                hooks.insert(last, _MergingTuner())  # these save and evaluate with the tuned values
            else:
                logger.info("Merging thresholds will not be tuned (TUNE_IMAGES): %s", reason)
        return hooks

    def build_writers(self) -> list[EventWriter]:
        """`psf.engine.results.build_writers`."""
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    def tune_merging(self) -> None:
        """Search the merging thresholds on training images, and store them in model, checkpoints and config.yaml.

        The trained weights are saved first, so that they are not lost if the search is killed. All processes call this
        together.
        """
        self.save_final()
        merging = find_merging(self.cfg, _without_ddp(self.model))
        if merging is not None:
            self._set_merging(merging, is_new=True)
            write_config(self.config_in_force)

    def save_final(self) -> None:
        """Write the checkpoint of a finished training."""
        self.checkpointer.save(FINAL_CHECKPOINT, iteration=max(self.start_iter, self.max_iter) - 1)

    def _set_merging(self, merging: TunedMerging, *, is_new: bool = False) -> None:
        model = _without_ddp(self.model)
        apply_merging(model, merging, is_new=is_new)
        self.checkpointer.merging = merging
        if model.post_processor.is_tuned:
            self.config_in_force = with_merging(
                self.config_in_force, model.post_processor.things, model.post_processor.stuff
            )

    def after_train(self) -> None:
        """Detectron2's hooks, but no evaluation after a failure: an error there would hide the first one."""
        if self.iter < self.max_iter:
            self._hooks = [hook for hook in self._hooks if not isinstance(hook, EvalHook)]
        super().after_train()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """`psf.engine.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """Detectron2's loader over all of DATASETS.TRAIN, with the mapper that INPUT.DATASET_MAPPER_NAME names.

        DATALOADER.FILTER_EMPTY_ANNOTATIONS drops images without annotations, see `psf.data.without_empty_images`.
        """
        mapper = build_mapper(cfg, True)
        datasets = [load_dataset(name) for name in cfg.DATASETS.TRAIN]
        for dataset in datasets:
            _check_first(mapper, dataset)
        images = without_empty_images(cfg, [image for dataset in datasets for image in dataset])
        check_sampler(cfg, images)
        warn_of_too_few_queries(cfg, images)
        loader = build_detection_train_loader(cfg, dataset=images, mapper=SkipUnreadable(cfg, mapper, len(images)))
        watch_workers(cfg, loader)
        return loader

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable[Any]:
        """`psf.data.build_test_loader`; reads the first image, so that errors are raised here."""
        mapper, dataset = build_mapper(cfg, False), load_dataset(dataset_name)
        _check_first(mapper, dataset)
        return build_test_loader(cfg, dataset, mapper, keep_going=True)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluators:
        """`psf.engine.build_evaluator`."""
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict[str, Any]:
        """Evaluate on DATASETS.TEST, log a table, and write OUTPUT_DIR/results.json.

        If no things, no stuff or no instances were predicted, a warning and the entry "empty_result" explain what
        rejected the candidates of a few images.
        """
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = evaluate_datasets(cfg, model, evaluators, cls.build_test_loader)
        _report(cfg, results)
        if comm.is_main_process():
            for name, evaluator in zip(cfg.DATASETS.TEST, evaluators, strict=True):
                if explained := cls._explain_empty_result(cfg, model, name, empty_kinds(evaluator)):
                    (results if len(cfg.DATASETS.TEST) == 1 else results[name]).update(explained)
                    write_results(cfg.OUTPUT_DIR, results)
        return results

    @classmethod
    def _explain_empty_result(
        cls, cfg: CfgNode, model: nn.Module, dataset_name: str, kinds: tuple[str, ...]
    ) -> dict[str, Any]:
        """An entry for a dataset's results if `kinds` were not predicted at all; {} if the model cannot explain it."""
        plain = _without_ddp(model)
        if not kinds or not hasattr(plain, "explain"):
            return {}
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # for only a few images
        summaries = explain_empty_results(plain, cls.build_test_loader(cfg, dataset_name), kinds)
        if not summaries:
            return {}
        logger.warning("%s", describe_empty_results(dataset_name, summaries, plain.post_processor))
        return {EMPTY_RESULT: as_numbers(summaries)}

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with TEST.AUG; files of evaluators go to OUTPUT_DIR/TTA, names of results end with _TTA.

        Writes no results.json and no table, because the caller has other results, too. Images are read at the size of
        the largest view, not by MIN_SIZE_TEST and MAX_SIZE_TEST.
        """
        views = PanopticSegFormerWithTTA(cfg, _without_ddp(model))
        cfg = cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR = str(Path(cfg.OUTPUT_DIR, "TTA"))
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = max(cfg.TEST.AUG.MIN_SIZES), cfg.TEST.AUG.MAX_SIZE
        Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = evaluate_datasets(cfg, views, evaluators, cls.build_test_loader)
        return {f"{name}_TTA": result for name, result in results.items()}


class _MergingTuner(HookBase):
    """Tunes the merging thresholds after the last iteration, or on resume if tuning was interrupted."""

    trainer: Trainer

    def before_train(self) -> None:
        if self.trainer.start_iter >= self.trainer.max_iter and self.trainer.checkpointer.merging is None:
            self.trainer.tune_merging()
            self.trainer.save_final()

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.trainer.tune_merging()


def _without_ddp(model: nn.Module) -> Any:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _check_datasets(names: Iterable[str]) -> None:
    for name in names:
        check_dataset(name)


def _check_first(mapper: Any, dataset: list[dict[str, Any]]) -> None:
    """Read an image in this process, so that a problem of all files is not reported by a worker.

    Raises:
        UserError: about the first image, if neither the first nor the last can be read.
    """
    if not isinstance(mapper, PanopticMapper):
        return
    try:
        mapper.read(dataset[0])
    except UserError as error:
        try:
            mapper.read(dataset[-1])  # if only the first is damaged, the loaders decide
        except UserError:
            raise error from None


def _check_views(cfg: CfgNode, model: nn.Module) -> None:
    """Raise a UserError if TEST.AUG cannot be run, before hours of training or evaluation."""
    if cfg.TEST.AUG.ENABLED:
        PanopticSegFormerWithTTA(cfg, model)


def _report(cfg: CfgNode, results: Mapping[str, Any]) -> None:
    """In the main process, write results.json and log a table."""
    if comm.is_main_process():
        path = write_results(cfg.OUTPUT_DIR, results)
        logger.info("Results, also in %s:\n%s", path, results_table(results))


def _append_metrics(cfg: CfgNode, results: Mapping[str, Any], iteration: int) -> None:
    """In the main process, add a line to metrics.json."""
    if comm.is_main_process():
        append_metrics(cfg.OUTPUT_DIR, results, iteration)
