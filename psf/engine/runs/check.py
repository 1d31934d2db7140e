"""Check a run within seconds, before its log begins, its processes start and its data are read."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from detectron2.config import CfgNode

from psf.checkpoint import check_same_classes
from psf.data import check_dataset, check_sampler
from psf.engine.arguments import build_config
from psf.engine.checkpointer import check_weights
from psf.engine.config.checks import check_device
from psf.engine.config.num_queries import FROM_DATA
from psf.engine.run_folder import check_run_folder, has_checkpoints
from psf.engine.train_step import autocast_dtype
from psf.engine.trainer import Trainer, check_views
from psf.errors import UserError
from psf.meta_arch import PanopticSegFormer

__all__ = ["check_batch", "check_run"]


def check_run(args: argparse.Namespace, num_processes: int = 1, *, is_training: bool = True) -> None:
    """Check a run of `psf.engine.main`: its config, datasets, weights, model, batch and output folder.

    Nothing is written, and no image is read. Datasets of the user's own code must be registered before, or by a module
    of `--import`.

    Args:
        args: of `psf.engine.argument_parser`.
        num_processes: of the whole run.
        is_training: False for programs that only evaluate, as `--eval-only` does.

    Raises:
        UserError: as `build_config`, `psf.data.check_dataset`, `check_weights`, the parts of the model and
            `check_run_folder` do; if the processes cannot share SOLVER.IMS_PER_BATCH evenly.
    """
    if not args.config_file:
        return  # `main` reports it
    cfg = build_config(args.config_file, args.opts, args.register, args.imports, warn=False)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg.MODEL.DEVICE, "MODEL.DEVICE", must_exist=True)
    is_training, folder = is_training and not args.eval_only, Path(cfg.OUTPUT_DIR)
    names = (*(cfg.DATASETS.TRAIN if is_training else ()), *cfg.DATASETS.TEST)
    if is_training and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name a dataset to train on")
    if not is_training and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name a dataset to evaluate on")
    for name in names:
        check_dataset(name)
    check_same_classes(names)
    _check_place(cfg, args, is_training=is_training)
    if not (args.resume and has_checkpoints(folder)):
        check_weights(cfg.MODEL.WEIGHTS)
    if is_training:
        check_batch(cfg, num_processes)
        check_sampler(cfg, [])
        autocast_dtype(cfg)
        check_run_folder(folder, resume=args.resume, overwrite=args.overwrite)
    if PanopticSegFormer.__name__ == cfg.MODEL.META_ARCHITECTURE:
        _check_model(cfg, is_training=is_training)


def _check_place(cfg: CfgNode, args: argparse.Namespace, *, is_training: bool) -> None:
    """Raise a UserError if a run that was moved is used with its old OUTPUT_DIR, or is evaluated without weights."""
    folder, beside = Path(cfg.OUTPUT_DIR), Path(args.config_file).parent
    if "OUTPUT_DIR" not in args.opts[::2] and has_checkpoints(beside) and not has_checkpoints(folder):
        raise UserError(
            f"{args.config_file} has OUTPUT_DIR {folder}, where there is no checkpoint, but {beside} has checkpoints: "
            f"if the run was moved, add OUTPUT_DIR {beside}; otherwise name a folder for this run"
        )
    if not (is_training or args.resume or cfg.MODEL.WEIGHTS) and has_checkpoints(folder):
        raise UserError(
            "MODEL.WEIGHTS is empty, so an untrained model would be evaluated: name a file, such as MODEL.WEIGHTS "
            f"{folder / 'model_final.pth'}, or add --resume for the last checkpoint"
        )


def check_batch(cfg: CfgNode, num_processes: int) -> None:
    """Raise a UserError if the processes of a training cannot share SOLVER.IMS_PER_BATCH evenly."""
    images, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    shares = reference or num_processes  # Detectron2 scales the batch to the number of processes
    if images < 1 or images % shares:
        source = "SOLVER.REFERENCE_WORLD_SIZE" if reference else "the number of processes"
        raise UserError(f"SOLVER.IMS_PER_BATCH is {images}: expected a positive multiple of {shares}, {source}")


def _check_model(cfg: CfgNode, *, is_training: bool) -> None:
    """Build model and optimizer without memory and without weights: what their constructors refuse is found now."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.PSF.TIMM.PRETRAINED = "meta", False
    if cfg.MODEL.PSF.NUM_THING_QUERIES == FROM_DATA:
        cfg.MODEL.PSF.NUM_THING_QUERIES = 1
    logging.disable(logging.WARNING)  # the run itself logs them
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            model = Trainer.build_model(cfg)
            check_views(cfg, model)
            if is_training:
                Trainer.build_lr_scheduler(cfg, Trainer.build_optimizer(cfg, model))
    except UserError:
        raise
    except Exception:  # a part of the user's own that cannot be built in this way; the run reports real faults
        return
    finally:
        logging.disable(logging.NOTSET)
