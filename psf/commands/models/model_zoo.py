"""List the published models, or download and convert their weights.

    psf model-zoo              the names, the PQ that their authors report, and what the cache has
    psf model-zoo R50 Swin-L   downloads them, for example before a job on machines without a network

The files come from the release of the paper's authors, or from the mirror in the variable PSF_WEIGHTS_URL. A file that
you put into the cache folder (PSF_CACHE) yourself serves, too: the list has its path.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tabulate import tabulate

from psf import model_zoo
from psf.commands import command_parser, echo, log_to_screen, run_command
from psf.model_zoo.names import ALIASES, PUBLISHED, address_of, find

__all__ = ["build_parser", "main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    log_to_screen()
    return run_command(lambda: prepare(args.names) if args.names else list_models())


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = command_parser("model-zoo", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="models to download and convert")
    return parser


def list_models() -> None:
    """Print a table of the published models, and where their files are expected."""
    short = {full: alias for alias, full in ALIASES.items()}
    rows = []
    for one in PUBLISHED.values():
        has = "converted" if one.weights.is_file() else "downloaded" if one.source.is_file() else "no"
        rows.append((one.name, short.get(one.name, ""), one.pq, has, one.config, address_of(one)))
    echo(tabulate(rows, ("name", "short", "PQ, of its authors", "in the cache", "config", "address")))
    folder = next(iter(PUBLISHED.values())).source.parent
    echo(f"The cache is {folder}; a file that you put there has the last part of its address as its name.")


def prepare(names: Sequence[str]) -> None:
    """Fill the cache, and print the path of each model's weights."""
    for name in dict.fromkeys(find(name).name for name in names):  # all names are known before the first download
        model = model_zoo.resolve(name)
        echo(f"{model.name}: {model.weights}, for --config-file {model.config}")
