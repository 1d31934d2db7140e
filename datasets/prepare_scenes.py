"""The command line of prepare_ade20k_panoptic.py and prepare_cityscapes_panoptic.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from psf.commands import add_workers_flag


def main(
    description: str, folder: str, prepare: Callable[..., Counter[str]], words: Sequence[str] | None = None
) -> int:
    """Prepare the splits of a dataset in `folder` below DETECTRON2_DATASETS; returns the exit status."""
    datasets = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=datasets / folder, metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=("train", "val"))
    parser.add_argument("--overwrite", action="store_true", help="what an earlier run has written")
    add_workers_flag(parser)
    args = parser.parse_args(words)
    for split in args.splits:
        try:
            notes = prepare(
                args.root,
                split,
                overwrite=args.overwrite,
                workers=args.workers,
                show_progress=True,
            )
        except (ValueError, OSError) as error:
            sys.stderr.write(f"error: {error}\n")
            return 2
        print(f"{split}: {notes['images']} images, {notes['segments']} segments")
    return 0
