#!/usr/bin/env python3
"""Search ALPHA, BETA, T_CNF and T_KEEP of things and of stuff for the best PQ on a validation set.

python tools/tune_merging.py --config-file configs/shapes/psf_tiny.yaml --num-gpus 0 MODEL.WEIGHTS model_final.pth \\
    DATASETS.TEST "('psf_shapes_tune',)"

The model runs once over the first of DATASETS.TEST; what merging needs of each image is kept in memory, some kilobytes.
Prints PQ over pairs of numbers around the best point, and that point as KEY VALUE options. Numbers chosen on a data set
flatter it: choose them on one, and report on another.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from itertools import islice

from psf.checkpoint import class_names_from_config
from psf.data import check_dataset
from psf.engine import Checkpointer, Trainer, argument_parser, setup
from psf.evaluation import PanopticGroundTruth
from psf.evaluation.tuning import DEFAULT_GRID, Grid, cache_data_set, key_value_words, surface_table, tune


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser()
    parser.description, parser.epilog = __doc__, None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--num-images", type=int, help="so many, the first of the data set (default: all)")
    for name, values in DEFAULT_GRID._asdict().items():
        flag, default = f"--{name.replace('_', '-')}", ",".join(f"{value:g}" for value in values)
        help_text = f"values of {name.upper()} to try (default: {default})"
        parser.add_argument(flag, type=numbers, default=values, metavar="NUMBERS", help=help_text)
    return parser.parse_args(words)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def run(args: argparse.Namespace) -> None:
    cfg = setup(args)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a data set with panoptic truth")
    name = cfg.DATASETS.TEST[0]
    check_dataset(name)
    model = Trainer.build_model(cfg)
    Checkpointer(model, class_names=class_names_from_config(cfg)).load(cfg.MODEL.WEIGHTS)
    grid = Grid(args.alpha, args.beta, args.t_cnf, args.t_keep)
    num_batches = args.num_images and -(-args.num_images // cfg.MODEL.PSF.TEST.BATCH_SIZE)
    cached = cache_data_set(model, islice(Trainer.build_test_loader(cfg, name), num_batches), name, grid)
    size = sum(image.num_bytes for image in cached) / 2**20
    print(f"{name}: {len(cached)} images, {size:.1f} MiB kept", flush=True)
    categories = {key: bool(one["isthing"]) for key, one in PanopticGroundTruth(name).categories.items()}
    processor = model.post_processor
    found = tune(cached, categories, processor.things, processor.stuff, grid)
    for surface in found.surfaces:
        print(f"\nPQ over {surface.kind.upper()}\n\n{surface_table(surface)}")
    print(f"\nPQ {found.pq_at_start:.3f} with the config's numbers, {found.pq:.3f} with these:\n")
    print(shlex.join(key_value_words(found)))


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        run(args)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
