"""Show what is inside a model file: architecture, classes, sizes, thresholds, training, checksum.

    psf info output/mine/model_final.pth

Files of other projects are named by their kind: published Panoptic SegFormers, ImageNet classifiers, weights of
Detectron2. Nothing in a file is executed.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from psf.commands import MODEL_HELP, command_parser, echo, run_command
from psf.errors import printable
from psf.prediction.description import describe_checkpoint

__all__ = ["build_parser", "main"]

WIDTH, TITLE = 100, 14  # columns


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: show(args.model))


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = command_parser("info", __doc__)
    parser.add_argument("model", metavar="FILE", help=f"{MODEL_HELP}, or any other checkpoint")
    return parser


def show(model: str) -> None:
    """Print the description of a model."""
    for title, text in describe_checkpoint(model):
        lines = textwrap.wrap(printable(text), WIDTH - TITLE, break_on_hyphens=False) or [""]
        echo(f"{title:<{TITLE}}{lines[0]}")
        for line in lines[1:]:
            echo(f"{'':<{TITLE}}{line}")
