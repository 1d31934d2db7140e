"""Search ALPHA, BETA, T_CNF and T_KEEP of things and of stuff for the best PQ on a validation set.

psf tune-merging --config-file shapes/psf_tiny.yaml --num-gpus 0 MODEL.WEIGHTS model_final.pth \\
    DATASETS.TEST "('psf_shapes_tune',)" OUTPUT_DIR output/tuning

Runs the model once over the first dataset of DATASETS.TEST, and keeps the input of merging in memory (some kilobytes
per image). Prints tables of PQ around the best values, and the best values as KEY VALUE options; OUTPUT_DIR/merging.md
contains the same. PQ on the dataset of the search is optimistic: report PQ on another dataset.
"""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from psf.commands import add_num_images_flag, echo, run_command
from psf.commands.training import train
from psf.data import build_test_loader, load_dataset, spread_evenly
from psf.data.own_files import free_name, write_own_text
from psf.engine import (
    Trainer,
    build_checkpointer,
    check_run,
    panoptic_test_set,
    setup,
)
from psf.evaluation import PanopticGroundTruth
from psf.evaluation.merging_search.search import (
    DEFAULT_GRID,
    Grid,
    Tuning,
    cache_dataset,
    check_can_be_tuned,
    key_value_words,
    surface_table,
    tune,
)

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `psf train`, with arguments for the values to try."""
    parser = train.build_parser("tune-merging", __doc__)
    add_num_images_flag(parser)
    for name, values in DEFAULT_GRID._asdict().items():
        flag, default = f"--{name.replace('_', '-')}", ",".join(f"{value:g}" for value in values)
        help_text = f"values of {name.upper()} to try (default: {default})"
        parser.add_argument(flag, type=numbers, default=values, metavar="NUMBERS", help=help_text)
    return parser


def numbers(text: str) -> tuple[float, ...]:
    """Parse comma-separated numbers."""
    values = tuple(float(part) for part in text.split(","))
    if not all(0 <= value < math.inf for value in values):
        raise argparse.ArgumentTypeError(f"expected finite numbers >= 0, found {text}")
    return values


def run(args: argparse.Namespace) -> None:
    check_run(args, is_training=False)
    cfg = setup(args, is_training=False, folder_name="merging")
    name = panoptic_test_set(cfg)
    model = Trainer.build_model(cfg)
    check_can_be_tuned(model)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    grid = Grid(args.alpha, args.beta, args.t_cnf, args.t_keep)
    loader = build_test_loader(cfg, spread_evenly(load_dataset(name), args.num_images))
    cached = cache_dataset(model, loader, name, grid)
    size = sum(image.num_bytes for image in cached) / 2**20
    echo(f"{name}: {len(cached)} images, {size:.1f} MiB cached")
    categories = {key: bool(one["isthing"]) for key, one in PanopticGroundTruth(name).categories.items()}
    processor = model.post_processor
    report = "\n".join(report_lines(tune(cached, categories, processor.things, processor.stuff, grid)))
    path = free_name(Path(cfg.OUTPUT_DIR, "merging.md"))
    write_own_text(path, f"{name}: {len(cached)} images, {cfg.MODEL.WEIGHTS}\n{report}\n")
    echo(f"\nAlso in {path}:\n{report}")


def report_lines(found: Tuning) -> Iterator[str]:
    """Markdown: tables of PQ, the gain, and the best values as options in the last line."""
    for surface in found.surfaces:
        yield f"\nPQ over {surface.kind.upper()}\n\n{surface_table(surface)}"
    if not found.is_settled:
        yield "\nThe search stopped while PQ was still improving: better values may exist."
    yield f"\nPQ {found.pq_at_start:.3f} with the config's values, {found.pq:.3f} with these:\n"
    yield shlex.join(key_value_words(found))


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: run(args))
