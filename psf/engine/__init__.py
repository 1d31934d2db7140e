"""Training and evaluation as Detectron2 does them, on one GPU, many, or the CPU."""

from psf.engine.arguments import add_register_flag, argument_parser, build_config, setup
from psf.engine.checkpointer import Checkpointer
from psf.engine.command_line import run_command_line
from psf.engine.evaluators import build_evaluator
from psf.engine.launch import launch
from psf.engine.optimizer import build_optimizer
from psf.engine.predictor import Predictor
from psf.engine.trainer import Trainer, main

__all__ = [
    "Checkpointer",
    "Predictor",
    "Trainer",
    "add_register_flag",
    "argument_parser",
    "build_config",
    "build_evaluator",
    "build_optimizer",
    "launch",
    "main",
    "run_command_line",
    "setup",
]
