"""Training and evaluation in Detectron2's way, on one GPU, several, or the CPU."""

from psf.engine.arguments import (
    add_import_flag,
    add_register_flag,
    argument_parser,
    build_config,
    output_folder,
    setup,
)
from psf.engine.checkpointer import Checkpointer, build_checkpointer
from psf.engine.config.num_queries import resolve_num_queries
from psf.engine.evaluators import build_evaluator, panoptic_test_set
from psf.engine.optimizer import build_optimizer
from psf.engine.predictor import Predictor
from psf.engine.runs import check_run, launch, main
from psf.engine.trainer import Trainer

__all__ = [
    "Checkpointer",
    "Predictor",
    "Trainer",
    "add_import_flag",
    "add_register_flag",
    "argument_parser",
    "build_checkpointer",
    "build_config",
    "build_evaluator",
    "build_optimizer",
    "check_run",
    "launch",
    "main",
    "output_folder",
    "panoptic_test_set",
    "resolve_num_queries",
    "setup",
]
