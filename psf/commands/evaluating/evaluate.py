"""Evaluate a checkpoint on DATASETS.TEST: psf train --eval-only.

psf evaluate --model output/mine/model_final.pth --register mine_val=JSON,PNGS,IMAGES DATASETS.TEST mine_val
psf evaluate --config-file shapes/psf_tiny.yaml MODEL.WEIGHTS output/tiny/model_final.pth
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from psf.checkpoint import read_checkpoint
from psf.commands import MODEL_HELP, run_command
from psf.commands.training import train
from psf.engine import check_run, launch
from psf.engine import main as train_or_evaluate
from psf.errors import UserError
from psf.prediction import find_model_file, read_config

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `psf train`, with --eval-only on."""
    parser = train.build_parser("evaluate", __doc__)
    parser.add_argument("--model", metavar="FILE", help=MODEL_HELP)
    parser.set_defaults(eval_only=True)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> None:
    """Run the evaluation; the config of --model becomes a file, which the processes of the run read."""
    if args.model is None:
        launch(train_or_evaluate, args, check=check_run)
        return
    if args.config_file:
        raise UserError("--model and --config-file exclude each other: with a config, use MODEL.WEIGHTS")
    path = find_model_file(args.model)
    cfg = read_config(read_checkpoint(path), path, imports=args.imports)
    if os.path.exists(os.path.expanduser(args.model)):  # otherwise the file is in a cache
        cfg.OUTPUT_DIR = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory() as folder:
        args.config_file = os.path.join(folder, "config.yaml")
        Path(args.config_file).write_text(cfg.dump(), encoding="utf-8")
        launch(train_or_evaluate, args, check=check_run)
