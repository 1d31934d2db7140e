"""One process of a run: train, or evaluate with `--eval-only`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from detectron2.evaluation import verify_results
from detectron2.utils import comm

from psf.checkpoint import check_same_classes
from psf.data import check_dataset
from psf.engine.arguments import setup, write_config
from psf.engine.checkpointer import build_checkpointer
from psf.engine.evaluators import check_all_read
from psf.engine.hooks import Stopped, StopSignals
from psf.engine.results import append_metrics, report
from psf.engine.run_folder import comment_config_file, unlock_folder
from psf.engine.run_log import log_run
from psf.engine.trainer import Trainer, check_views
from psf.errors import UserError
from psf.ops import used_implementations

__all__ = ["main"]

logger = logging.getLogger(__name__)


def main(args: argparse.Namespace) -> Any:
    """One process of a run: train, or evaluate with `--eval-only`. Returns the results, {} outside the main process."""
    if not args.eval_only:
        return _train(args)
    cfg = setup(args)
    if not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name a dataset to evaluate on")
    for name in cfg.DATASETS.TEST:
        check_dataset(name)
    check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    model = Trainer.build_model(cfg)
    check_views(cfg, model)
    checkpointer = build_checkpointer(cfg, model, args.run_dir)
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    log_run(cfg, args, model, source=str(checkpointer.resumed_from or cfg.MODEL.WEIGHTS or "random"))
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, model))
        report(cfg.OUTPUT_DIR, results)
    append_metrics(cfg.OUTPUT_DIR, results, checkpoint.get("iteration", 0))
    if comm.is_main_process():
        comment_config_file(Path(cfg.OUTPUT_DIR), used_implementations())
        verify_results(cfg, results)
        check_all_read(cfg, results)
    logger.info("Evaluation is finished; the results are in %s", cfg.OUTPUT_DIR)
    return results


def _train(args: argparse.Namespace) -> dict[str, Any]:
    """Train; if a signal stops the training, one line in the log says so before `Stopped` ends the process."""
    with StopSignals() as signals:
        cfg = trainer = None
        try:
            cfg = setup(args)
            trainer = Trainer(cfg, signals)
            overwrite = getattr(args, "overwrite", False)
            trainer.resume_or_load(resume=args.resume, overwrite=overwrite)
            if not trainer.is_finished:
                write_config(trainer.config_in_force, overwrite=overwrite)
            log_run(cfg, args, trainer.model, source=trainer.describe_weights(), num_images=trainer.num_images)
            results = trainer.train()
            logger.info("Training is finished; the model is %s", trainer.last_saved or trainer.cfg.OUTPUT_DIR)
            return results
        except Stopped as stopped:
            saved = "nothing to save: start the same command again" if trainer is None else trainer.describe_saved()
            logger.warning("Stopped by %s: %s", stopped.signal_name, saved)
            raise
        finally:
            if cfg is not None:
                unlock_folder(Path(cfg.OUTPUT_DIR))
