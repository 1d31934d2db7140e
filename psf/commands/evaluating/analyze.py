"""Count the parameters of a model, and the multiply-adds (FLOPs) of one image.

psf analyze --config-file coco/released/psf_R50_24ep.yaml --tasks params flops

Runs on the CPU with random weights, and reads no file except the config. The default input size gives the paper's
numbers, see docs/fidelity.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import takewhile

from detectron2.modeling import build_model

from psf.commands import add_config_arguments, command_parser, echo, positive, run_command
from psf.engine import build_config, resolve_num_queries
from psf.tools.analysis import count_image_flops, count_parameters, flop_tables, parameter_table

__all__ = ["build_parser", "main"]

TASKS = ("params", "flops")


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; `main` checks the values."""
    parser = command_parser("analyze", __doc__)
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help="params, flops (default: both)")
    parser.add_argument("--input-size", nargs=2, type=positive, default=(800, 1200), metavar=("HEIGHT", "WIDTH"))
    add_config_arguments(parser)
    return parser


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    # argparse assigns all words after --tasks to it, including the config options.
    tasks = list(takewhile(TASKS.__contains__, args.tasks))
    args.tasks, args.opts = tasks, [*args.tasks[len(tasks) :], *args.opts]
    if not tasks:
        parser.error(f"--tasks: expected {' or '.join(TASKS)}, found {args.opts[0]!r}")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    cfg = build_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"], args.register, args.imports)
    resolve_num_queries(cfg)
    model = build_model(cfg)
    if "params" in args.tasks:
        echo(f"Parameters of {args.config_file}\n\n{parameter_table(count_parameters(model))}\n")
    if "flops" in args.tasks:
        height, width = args.input_size
        tables = flop_tables(count_image_flops(model, height, width))
        echo(f"One image of {height} x {width} at test, without post-processing\n\n{tables}")
