#!/usr/bin/env python3
"""Parameters of a model, and the multiply-adds of one image.

python tools/analyze_model.py --config-file configs/coco/released/psf_R50_24ep.yaml --tasks params flops

Runs on the CPU, with random weights: no checkpoint, no data set, no file is read but the config. The default input size
is the one that gives the paper's figures, see docs/fidelity.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import takewhile

from detectron2.modeling import build_model

from psf.analysis import count_image_flops, count_parameters, flop_tables, parameter_table
from psf.engine import add_register_flag, build_config, resolve_num_queries

TASKS = ("params", "flops")


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="a yaml, or the name of one of psf's own")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK", help="params, flops (default: both)")
    parser.add_argument("--input-size", nargs=2, type=int, default=(800, 1200), metavar=("HEIGHT", "WIDTH"))
    add_register_flag(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options, at the end")
    args = parser.parse_args(words)
    # argparse hands all words after --tasks to it, the options too.
    tasks = list(takewhile(TASKS.__contains__, args.tasks))
    args.tasks, args.opts = tasks, [*args.tasks[len(tasks) :], *args.opts]
    if not tasks:
        parser.error(f"--tasks: expected {' or '.join(TASKS)}, found {args.opts[0]!r}")
    if min(args.input_size) < 1:
        parser.error(f"--input-size: expected two positive numbers of pixels, found {args.input_size}")
    return args


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        cfg = build_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"], args.register)
        resolve_num_queries(cfg)
        model = build_model(cfg)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    if "params" in args.tasks:
        print(f"Parameters of {args.config_file}\n\n{parameter_table(count_parameters(model))}\n")
    if "flops" in args.tasks:
        height, width = args.input_size
        tables = flop_tables(count_image_flops(model, height, width))
        print(f"One image of {height} x {width} at test, without post-processing\n\n{tables}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
