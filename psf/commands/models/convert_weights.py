"""Convert a published checkpoint, or an ImageNet backbone in its authors' layout, for MODEL.WEIGHTS.

    psf convert-weights IN.pth OUT.pth --config-file coco/released/psf_R50_24ep.yaml

IN.pth is a released Panoptic SegFormer, or a classifier: ResNet from torchvision or timm, Swin or PVTv2 from their
authors or timm. Its parameter names determine the kind. Every entry is used or reported as dropped. The entries used
must match the model of the config (its backbone, if IN.pth is a classifier) in all names and shapes. Code in the file
is not executed. Errors are one line, with exit code 2.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from psf.checkpoint import Conversion, convert_checkpoint
from psf.commands import add_config_arguments, command_parser, echo, run_command
from psf.engine import build_config

__all__ = ["build_parser", "main"]


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    cfg = build_config(args.config_file, args.opts, args.register, args.imports)
    report(convert_checkpoint(args.source, args.target, cfg, overwrite=args.force), args)


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = command_parser("convert-weights", __doc__)
    add = parser.add_argument
    add("source", metavar="IN.pth", help="checkpoint to convert")
    add("target", metavar="OUT.pth", help="file to write")
    add("--force", "--overwrite", dest="force", action="store_true", help="overwrite OUT.pth")
    add_config_arguments(parser, "--opts")
    return parser


def report(conversion: Conversion, args: argparse.Namespace) -> None:
    """Print which entries were used, and the next command."""
    num_dropped = sum(conversion.dropped.values())
    kind = "ImageNet backbone" if conversion.is_backbone else "released Panoptic SegFormer"
    echo(f"{kind}: {conversion.num_source - num_dropped} of {conversion.num_source} entries used")
    for pattern, count in conversion.dropped.items():
        echo(f"  dropped on purpose: {count} of {pattern}")
    for pattern, count in conversion.fresh.items():
        echo(f"  not in {args.source}, keep their initial values: {count} of {pattern}")
    echo(f"{conversion.num_written} entries written to {args.target}. Next:")
    words = ["psf", "train" if conversion.is_backbone else "evaluate", "--config-file", args.config_file]
    words += [word for text in args.register for word in ("--register", text)]
    words += [word for name in args.imports for word in ("--import", name)]
    echo(shlex.join([*words, *args.opts, "MODEL.WEIGHTS", args.target]))
