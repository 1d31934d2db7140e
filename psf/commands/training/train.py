"""Train a model, and evaluate it at the end.

psf train --config-file shapes/psf_tiny.yaml --num-gpus 0 OUTPUT_DIR output/tiny
psf train --config-file small/psf_small.yaml --register mine_train=JSON,PNGS,IMAGES \\
    --register mine_val=JSON,PNGS,IMAGES DATASETS.TRAIN mine_train DATASETS.TEST mine_val
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from psf.commands import interruptible, run_command
from psf.engine import argument_parser, check_run, launch
from psf.engine import main as train_or_evaluate

__all__ = ["build_parser", "main"]


def build_parser(name: str = "train", description: str | None = __doc__) -> argparse.ArgumentParser:
    """Build the parser of train_net.py."""
    parser = argument_parser()
    parser.prog, parser.description, parser.epilog = f"psf {name}", description, None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Run the training; its own signal handlers report what is saved, as soon as something is."""
    with interruptible(lambda: "nothing is saved; the same command starts again"):
        launch(train_or_evaluate, args, check=check_run)
