"""The predictor of a command line, with its device, task and threshold."""

from __future__ import annotations

import argparse
import logging

import torch
from detectron2.config import CfgNode

from psf.checkpoint import check_same_classes
from psf.engine import build_config
from psf.engine.config.checks import check_device
from psf.errors import UserError
from psf.output import TASKS
from psf.prediction import ModelFile, Predictor, read_model_file

__all__ = ["build_predictor"]

logger = logging.getLogger("psf.predict")


def build_predictor(args: argparse.Namespace) -> Predictor:
    """Build a predictor from --model or --config-file, with the given device, task and threshold."""
    file = _read_model(args)
    cfg = file.cfg
    _set_threshold(cfg, args.task, args.confidence_threshold)
    # Enable only the requested result, and no semantic scores: those of one large photograph take gigabytes.
    for task in TASKS:
        cfg.MODEL.PSF.TEST[f"{task.upper()}_ON"] = task == args.task
    predictor = Predictor.of_model_file(file)
    processor = getattr(predictor.model, "post_processor", None)
    if processor is not None and args.task == "instance" and args.confidence_threshold is None:
        threshold = max(processor.things.t_cnf, cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH)  # of the checkpoint, if tuned
        processor.instance = processor.instance._replace(score_thresh=threshold)
    if processor is not None and args.confidence_threshold is not None:  # also if the checkpoint stores tuned ones
        processor.things, processor.stuff = (
            numbers._replace(t_cnf=args.confidence_threshold) for numbers in (processor.things, processor.stuff)
        )
    return predictor


def _read_model(args: argparse.Namespace) -> ModelFile:
    if args.model is not None:
        device = _choose_device(args.device, "cuda")
        return read_model_file(
            args.model,
            config_file=args.config_file,
            options=args.opts,
            imports=args.imports,
            register=args.register,
            device=device,
        )
    cfg = build_config(args.config_file, args.opts, args.register, args.imports)
    if not cfg.DATASETS.TEST and not cfg.MODEL.PSF.CLASSES:
        raise UserError(f"{args.config_file}: DATASETS.TEST is empty; class names come from its first dataset")
    check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST[:1]))
    cfg.MODEL.DEVICE = _choose_device(args.device, cfg.MODEL.DEVICE)
    return ModelFile(cfg.MODEL.WEIGHTS, cfg, {})


def _set_threshold(cfg: CfgNode, task: str, threshold: float | None) -> None:
    """Set the confidence threshold of panoptic segments and instances."""
    merging = cfg.MODEL.PSF.POST_PROCESSOR
    if task == "semantic" and threshold is not None:
        raise UserError(
            "--confidence-threshold has no effect with --task semantic: each pixel gets its most likely class"
        )
    if threshold is not None:
        merging.THINGS.T_CNF = merging.STUFF.T_CNF = cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH = threshold


def _choose_device(requested: str | None, configured: str) -> str:
    device = requested or configured
    check_device(device, "--device" if requested else "MODEL.DEVICE")
    if device.startswith("cuda") and not torch.cuda.is_available():
        if requested:
            raise UserError(f"--device {requested}: torch finds no CUDA GPU")
        logger.info("no CUDA GPU found: running on the CPU")
        return "cpu"
    logger.info("running on %s", device)
    return device
