"""Evaluate a checkpoint on DATASETS.TEST: psf train --eval-only.

psf evaluate --config-file shapes/psf_tiny.yaml MODEL.WEIGHTS output/tiny/model_final.pth
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from psf.commands import run_command, train
from psf.engine import check_run, launch
from psf.engine import main as train_or_evaluate

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `psf train`, with --eval-only on."""
    parser = train.build_parser("evaluate", __doc__)
    parser.set_defaults(eval_only=True)
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: launch(train_or_evaluate, args, check=check_run))
