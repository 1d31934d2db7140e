"""Detectron2's DefaultTrainer with psf's mapper, optimizer and evaluators, also on the CPU."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PreciseBN
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.solver import LRMultiplier
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.optim import Optimizer

from psf import without_deprecations
from psf.checkpoint import TunedMerging, check_same_classes
from psf.data import (
    PanopticMapper,
    build_mapper,
    build_test_loader,
    build_train_loader,
    check_dataset,
    check_sampler,
    join_datasets,
    load_dataset,
    unchanged_random_state,
    without_empty_images,
)
from psf.data.files import remove_stale_drafts
from psf.engine.arguments import write_config
from psf.engine.checkpointer import build_checkpointer
from psf.engine.config.checks import check_config
from psf.engine.config.num_queries import resolve_num_queries, warn_of_too_few_queries
from psf.engine.evaluators import build_evaluator, check_gt, empty_kinds, evaluate_datasets
from psf.engine.hooks import CheckpointHook, MaskHealthHook, ProcessStateHook, StopSignals
from psf.engine.merging import apply_merging, find_merging, why_not_tuned, with_merging
from psf.engine.optimizer import build_optimizer
from psf.engine.results import (
    EMPTY_RESULT,
    append_metrics,
    as_numbers,
    build_writers,
    describe_empty_results,
    drop_later_metrics,
    explain_empty_results,
    report,
    write_results,
)
from psf.engine.run_folder import comment_config_file, remove_run
from psf.engine.run_log import TimeLeftHook
from psf.engine.train_step import DISK_ERRORS, METRICS_PERIOD, TrainStep, autocast_dtype, without_ddp
from psf.errors import UserError
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA
from psf.ops import used_implementations

__all__ = [
    "Trainer",
    "check_views",
]

logger = logging.getLogger(__name__)

RANDOM = "random"  # weights
FINAL_CHECKPOINT = "model_final"  # as Detectron2 names it


class Trainer(DefaultTrainer):
    """Trains the model of a config; evaluates every TEST.EVAL_PERIOD iterations and at the end.

    OUTPUT_DIR gets Detectron2's files (checkpoints, metrics.json, TensorBoard events) and, at each evaluation,
    results.json, per_class.csv and panel.png. With TEST.AUG.ENABLED, `test_with_TTA` evaluates once more at the end,
    and its results are added.

    With MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES above 0, the merging thresholds are tuned after the last iteration, before
    the last checkpoint and evaluation. `config_in_force` is the config with these thresholds; it is written to
    OUTPUT_DIR/config.yaml.

    Checkpoints have the state of the loader and of the random generators of all processes: on a CPU a resumed run has
    the losses of an unbroken one. docs/training.md describes when they are written.

    Args:
        cfg: the config.
        signals: stop the training after an iteration; None: signals have their usual effect.

    Raises:
        UserError: if DATASETS.TRAIN is empty, if files of a dataset are missing, if keys contradict, or if TEST.AUG
            cannot be run.
    """

    _hooks: list[HookBase]

    def __init__(self, cfg: CfgNode, signals: StopSignals | None = None) -> None:
        # Not DefaultTrainer's, which fixes the classes of step and checkpointer, and requires a GPU for DDP.
        TrainerBase.__init__(self)
        for name in ("detectron2", "psf"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        check_config(cfg)
        if not cfg.DATASETS.TRAIN:
            raise UserError("DATASETS.TRAIN is empty: name a dataset to train on")
        if not cfg.DATASETS.TEST:
            logger.warning("DATASETS.TEST is empty: NOTHING WILL BE EVALUATED; name a dataset with DATASETS.TEST")
        if twice := sorted({name for name in cfg.DATASETS.TRAIN if cfg.DATASETS.TRAIN.count(name) > 1}):
            logger.warning(
                "DATASETS.TRAIN names %s more than once: its images are trained on as often in each epoch; "
                "DATASETS.TRAIN_REPEAT_FACTOR weights sets",
                ", ".join(twice),
            )
        for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
            check_dataset(name)
        check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        for name in cfg.DATASETS.TEST:
            check_gt(cfg, name)
        dtype = autocast_dtype(cfg)
        if (num_queries := resolve_num_queries(cfg, is_training=True)) is not None:
            num_queries.log()

        self.config_in_force = cfg
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        check_views(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        device_type = torch.device(cfg.MODEL.DEVICE).type
        device_ids = None if device_type == "cpu" else [comm.get_local_rank()]  # DDP refuses ids for CPU modules
        with without_deprecations():
            model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)

        self._trainer = TrainStep(
            model,
            data_loader,
            optimizer,
            dtype=dtype,
            device_type=device_type,
            max_skipped=cfg.SOLVER.MAX_SKIPPED_STEPS,
            output_dir=cfg.OUTPUT_DIR,
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = build_checkpointer(cfg, model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.last_saved: Path | None = None
        self._signals = StopSignals() if signals is None else signals
        self._process_state = ProcessStateHook(self._trainer)
        self.register_hooks([*self.build_hooks(), self._process_state])
        if comm.is_main_process():
            remove_stale_drafts(Path(cfg.OUTPUT_DIR))

    @property
    def is_finished(self) -> bool:
        """Whether the resumed run has no iterations left."""
        return self.start_iter >= self.max_iter

    def train(self) -> dict[str, Any]:
        """Train to SOLVER.MAX_ITER. Returns the last evaluation's results, {} outside the main process.

        Raises:
            UserError: if a file cannot be written because the disk is full, or for a similar reason.
        """
        try:
            super().train()
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise
            raise UserError(
                f"{error.filename or self.cfg.OUTPUT_DIR} cannot be written ({error.strerror}): make room or change "
                f"the folder's permissions; {self.describe_saved()}"
            ) from error
        if self.cfg.TEST.AUG.ENABLED:
            views = self.test_with_TTA(self.cfg, self.model)
            self._last_eval_results.update(views)
            report(self.cfg.OUTPUT_DIR, self._last_eval_results)
            append_metrics(self.cfg.OUTPUT_DIR, views, self.iter)
        return self._last_eval_results

    def resume_or_load(self, resume: bool = True, *, overwrite: bool = False) -> None:
        """As Detectron2's; also warns if there are no pretrained weights at all.

        Unless a run is resumed, `overwrite` then removes an earlier training from OUTPUT_DIR: not before the data, the
        model and its weights are loaded in all processes, so that a wrong one does not cost the earlier training.

        The merging thresholds in a checkpoint are used only if training is finished. A run that continues tunes them
        again.
        """
        entries = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        merging = self.checkpointer.merging
        self.checkpointer.merging = None
        if self.checkpointer.resumed_from is not None:
            self._continue_after(self.iter + 1, entries.get("processes", []))
        comm.synchronize()
        if comm.is_main_process():
            if overwrite and not resume:
                remove_run(Path(self.cfg.OUTPUT_DIR))
            drop_later_metrics(self.cfg.OUTPUT_DIR, self.start_iter, is_finished=self.is_finished)
        if merging is not None and self.is_finished:
            self._set_merging(merging)
        if self.describe_weights() == RANDOM:
            logger.warning(
                "MODEL.WEIGHTS is empty: TRAINING STARTS FROM RANDOM WEIGHTS, also in the backbone; docs/model_zoo.md "
                "lists the sources of pretrained weights"
            )

    def describe_weights(self) -> str:
        """Where the weights before the first iteration come from."""
        model = self.cfg.MODEL
        if self.checkpointer.resumed_from is not None:
            return f"{self.checkpointer.resumed_from}, which continues after {self.start_iter:,} iterations"
        is_pretrained = model.BACKBONE.NAME == "build_psf_timm_backbone" and model.PSF.TIMM.PRETRAINED
        return model.WEIGHTS or (f"timm's of {model.PSF.TIMM.NAME}, in the backbone" if is_pretrained else RANDOM)

    @property
    def num_images(self) -> int | None:
        """Images that are trained on; None if the loader is not psf's."""
        return getattr(self._trainer.data_loader, "num_images", None)

    def _continue_after(self, num_iterations: int, states: list[dict[str, Any]]) -> None:
        """Set the first iteration of a resumed run.

        Args:
            num_iterations: of the earlier run.
            states: of its processes, from `ProcessStateHook`; empty in files of Detectron2 and of earlier versions.
        """
        self.start_iter = num_iterations
        self.last_saved = self.checkpointer.resumed_from
        if self.is_finished:
            logger.warning(
                "The run in OUTPUT_DIR has finished its %d iterations (SOLVER.MAX_ITER), and is only evaluated again; "
                "increase MAX_ITER to train on",
                num_iterations,
            )
        elif states:
            self._process_state.resumed = states[comm.get_rank() % len(states)]
        else:
            logger.warning("The checkpoint has no state of the loader: the order of the images starts again")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Detectron2's, but learning rates follow the keys under SOLVER, also if these have changed.

        Raises:
            UserError: if the checkpoint has more iterations than SOLVER.MAX_ITER, or another optimizer.
        """
        num_iterations = state_dict["iteration"] + 1
        if num_iterations > self.max_iter:
            raise UserError(
                f"cannot resume: SOLVER.MAX_ITER is {self.max_iter}, but the checkpoint has been trained for "
                f"{num_iterations} iterations; increase it, or evaluate with --eval-only --resume"
            )
        base_lrs = getattr(self.scheduler, "base_lrs", None)
        super().load_state_dict(state_dict)
        if isinstance(self.scheduler, LRMultiplier):
            self.scheduler.base_lrs = base_lrs
            for group, rate in zip(self.optimizer.param_groups, self.scheduler.get_lr(), strict=True):
                group["lr"] = rate

    def save_checkpoint(self, name: str, iteration: int | None = None) -> Path:
        """Write OUTPUT_DIR/name.pth after an iteration (default: the current one); all processes call this together."""
        self._trainer.write_metrics_so_far()  # a signal may end the training after this
        states = comm.gather(self._process_state.capture())
        self.checkpointer.save(name, iteration=self.iter if iteration is None else iteration, processes=states)
        self.last_saved = Path(self.cfg.OUTPUT_DIR, f"{name}.pth")
        return self.last_saved

    def describe_saved(self) -> str:
        """What is saved, and how to continue, in one line."""
        if self.last_saved is None:
            return "no iteration is finished, so nothing is saved: start the same command again"
        if self.last_saved.name == f"{FINAL_CHECKPOINT}.pth":
            return f"training is finished and {self.last_saved} is saved; the same command with --resume evaluates it"
        return f"{self.last_saved} is saved; continue with the same command and --resume"

    def build_hooks(self) -> list[HookBase | None]:
        """Detectron2's hooks, with mask health and, before checkpoints and evaluation, the tuning of merging."""
        hooks: list[HookBase | None] = [
            hook for hook in super().build_hooks() if not isinstance(hook, PeriodicCheckpointer)
        ]
        evaluation = next(i for i, hook in enumerate(hooks) if isinstance(hook, EvalHook))
        hooks.insert(evaluation, CheckpointHook.from_config(self.cfg, self._signals))
        for hook in hooks:
            if isinstance(hook, PreciseBN):  # its loader draws random numbers
                hook.update_stats = unchanged_random_state()(hook.update_stats)
        model = without_ddp(self.model)
        if comm.is_main_process() and hasattr(model, "mask_health"):  # other models do not measure it
            hooks.insert(1, MaskHealthHook.from_config(self.cfg, model))  # after the timer, before the writers
        if self.cfg.MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES > 0:
            reason = why_not_tuned(self.cfg, model)
            if reason is None:
                last = next(i for i, hook in enumerate(hooks) if isinstance(hook, CheckpointHook))
                hooks.insert(last, _MergingTuner())  # these save and evaluate with the tuned values
            else:
                logger.info("Merging thresholds will not be tuned (TUNE_IMAGES): %s", reason)
        return [*hooks, *([_ConfigComments(), TimeLeftHook()] if comm.is_main_process() else [])]

    def build_writers(self) -> list[EventWriter]:
        """`psf.engine.results.build_writers`."""
        trainer = weakref.proxy(self)
        return build_writers(self.cfg.OUTPUT_DIR, self.max_iter, lambda: trainer.start_iter)

    def tune_merging(self) -> None:
        """Search the merging thresholds on training images, and store them in model, checkpoints and config.yaml.

        The trained weights are saved first, so that they are not lost if the search is killed. All processes call this
        together.
        """
        self.save_final()
        self._signals.allow()  # a signal may end the search: a resumed run repeats it
        with unchanged_random_state():
            merging = find_merging(self.cfg, without_ddp(self.model))
        self._signals.is_deferred = True  # until its result is saved, too
        if merging is not None:
            self._set_merging(merging, is_new=True)
            write_config(self.config_in_force)

    def allow_signals(self) -> None:
        """`StopSignals.allow`."""
        self._signals.allow()

    def save_final(self) -> Path:
        """Write the checkpoint of a finished training; all processes call this together."""
        return self.save_checkpoint(FINAL_CHECKPOINT, max(self.start_iter, self.max_iter) - 1)

    def _set_merging(self, merging: TunedMerging, *, is_new: bool = False) -> None:
        model = without_ddp(self.model)
        apply_merging(model, merging, is_new=is_new)
        self.checkpointer.merging = merging
        if model.post_processor.is_tuned:
            self.config_in_force = with_merging(
                self.config_in_force, model.post_processor.things, model.post_processor.stuff
            )

    def after_step(self) -> None:
        """Detectron2's hooks, which find the metrics of the last iterations in the event storage when they write."""
        if (self.iter + 1) % METRICS_PERIOD == 0 or self.iter + 1 == self.max_iter:
            self._trainer.write_metrics_so_far()
        super().after_step()

    def after_train(self) -> None:
        """Detectron2's hooks; after a failure no evaluation, and no error of a hook, which would hide the first one."""
        if self.iter >= self.max_iter:
            super().after_train()
            return
        self.storage.iter = self.iter
        actions = [hook.after_train for hook in self._hooks if not isinstance(hook, EvalHook)]
        if comm.get_world_size() == 1:  # several processes would have to gather them, and the others may have ended
            actions.insert(0, self._trainer.write_metrics_so_far)
        for action in actions:
            try:
                action()
            except Exception as error:  # such as Detectron2's division by the 0 iterations since the last line
                logger.warning("At the end of the failed training: %s: %s", type(error).__name__, error)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        """`psf.engine.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[Any]:
        """`psf.data.build_train_loader` over all of DATASETS.TRAIN, with the mapper of INPUT.DATASET_MAPPER_NAME.

        DATALOADER.FILTER_EMPTY_ANNOTATIONS drops images without annotations, see `psf.data.without_empty_images`.
        """
        mapper = build_mapper(cfg, True)
        datasets = [(name, load_dataset(name)) for name in cfg.DATASETS.TRAIN]
        for _, dataset in datasets:
            _check_first(mapper, dataset)
        images = without_empty_images(cfg, join_datasets(cfg, datasets))
        check_sampler(cfg, images)
        warn_of_too_few_queries(cfg, images)
        return build_train_loader(cfg, images, mapper)

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
    @unchanged_random_state()  # a run that is resumed from the checkpoint before has no evaluation
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict[str, Any]:
        """Evaluate on DATASETS.TEST, log a table, and write OUTPUT_DIR/results.json.

        If no things, no stuff or no instances were predicted, a warning and the entry "empty_result" explain what
        rejected the candidates of a few images.
        """
        evaluators = evaluators or [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        results = evaluate_datasets(cfg, model, evaluators, cls.build_test_loader)
        report(cfg.OUTPUT_DIR, results)
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
        plain = without_ddp(model)
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
    @unchanged_random_state()
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with TEST.AUG; files of evaluators go to OUTPUT_DIR/TTA, names of results end with _TTA.

        Writes no results.json and no table, because the caller has other results, too. Images are read at the size of
        the largest view, not by MIN_SIZE_TEST and MAX_SIZE_TEST.
        """
        views = PanopticSegFormerWithTTA(cfg, without_ddp(model))
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
            self.trainer.allow_signals()

    def after_step(self) -> None:
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.trainer.tune_merging()


class _ConfigComments(HookBase):
    """Writes into config.yaml which implementations of deformable attention ran, and why, as soon as they have run."""

    trainer: Trainer

    def __init__(self) -> None:
        self._written: list[str] = []

    def after_step(self) -> None:
        if self._written != (used := used_implementations()):
            comment_config_file(Path(self.trainer.cfg.OUTPUT_DIR), used)
            self._written = used

    def after_train(self) -> None:
        self._written = []  # tuning has written the file anew
        self.after_step()


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


def check_views(cfg: CfgNode, model: nn.Module) -> None:
    """Raise a UserError if TEST.AUG cannot be run, before hours of training or evaluation."""
    if cfg.TEST.AUG.ENABLED:
        PanopticSegFormerWithTTA(cfg, model)
