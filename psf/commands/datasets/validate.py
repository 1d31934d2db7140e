"""Validate a panoptic dataset: read and check every image, PNG and annotation.

psf validate --json panoptic.json --png-root panoptic/ --image-root images/ --html report.html
psf validate --register a=a.json,a_png/,images/ --register b=b.json,b_png/,images/
psf validate --dataset coco_2017_val_panoptic

Exit code: 0 no faults; 1 a dataset has faults, or categories of datasets differ; 2 a dataset cannot be read.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from psf.checkpoint import check_same_classes
from psf.commands import add_max_pixels_flag, add_workers_flag, command_parser, echo, not_negative, run_command
from psf.data.images import limit_pixels
from psf.data.registration import PanopticSet, register_panoptic
from psf.errors import UserError
from psf.tools.dataset_validation.html import write_html
from psf.tools.dataset_validation.report import check_corrected_target, check_report_target
from psf.tools.dataset_validation.validation import places_of_dataset, shared_images, validate_panoptic, write_corrected

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; `main` checks the combination of arguments."""
    parser = command_parser("validate", __doc__)
    parser.add_argument("--json", metavar="FILE", help="panoptic JSON in COCO's format")
    parser.add_argument("--png-root", metavar="FOLDER", help="of the panoptic PNGs")
    parser.add_argument("--image-root", metavar="FOLDER", help="of the images")
    parser.add_argument(
        "--register",
        action="append",
        default=[],
        metavar="NAME=JSON,PNGS,IMAGES",
        help="the three paths in one flag, as for psf train; can be repeated",
    )
    parser.add_argument("--dataset", metavar="NAME", help="a registered dataset, instead of the three paths")
    parser.add_argument("--fix", type=Path, metavar="FILE", help="write a JSON with all safe corrections")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report with drawn samples")
    parser.add_argument(
        "--samples", type=not_negative, default=12, metavar="N", help="number of drawn images (default: %(default)s)"
    )
    parser.add_argument(
        "--show", type=not_negative, default=3, metavar="N", help="examples per kind of fault (default: %(default)s)"
    )
    add_max_pixels_flag(parser)
    add_workers_flag(parser)
    return parser


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    places = (args.json, args.png_root, args.image_root)
    if [bool(args.dataset), bool(args.register), any(places)].count(True) != 1 or any(places) != all(places):
        parser.error("expected --json, --png-root and --image-root, or --register alone, or --dataset alone")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    limit_pixels(args.max_pixels)
    if len(args.register) > 1:
        return run_several(args)
    if args.register:
        _, *places = PanopticSet.parse(args.register[0])
    elif args.dataset:
        places = [*places_of_dataset(args.dataset)]
    else:
        places = [args.json, args.png_root, args.image_root]
    return 0 if validate(args, *places) else 1


def run_several(args: argparse.Namespace) -> int:
    """Validate each set; check that all have the same categories, as one training requires, and share no image."""
    sets = [PanopticSet.parse(text) for text in args.register]
    if args.fix or args.html:
        raise UserError(f"--fix and --html need a single set, found {len(sets)} --register: validate one set at a time")
    for one in sets:
        register_panoptic(*one)
    is_clean = [validate(args, *places) for _, *places in sets]
    for note in shared_images(sets):
        echo(f"note: {note}\n")
    try:
        check_same_classes(one.name for one in sets)
    except UserError as error:
        echo(error)
        return 1
    return 0 if all(is_clean) else 1


def validate(args: argparse.Namespace, json_file: str, png_root: str, image_root: str) -> bool:
    """Print the report on a set; returns whether it is clean. Checks first that the output files may be written."""
    if args.html:
        check_report_target(args.html)
    if args.fix:
        check_corrected_target(args.fix, json_file)
    if args.html and args.fix and os.path.realpath(args.html) == os.path.realpath(args.fix):
        raise UserError(f"--html and --fix are the same file, {args.fix}; name two files")
    report = validate_panoptic(
        json_file,
        png_root,
        image_root,
        workers=args.workers,
        show_progress=True,
    )
    echo(f"{json_file}\n\n{report.text(num_examples=args.show)}\n")
    if args.html:
        write_html(report, args.html, png_root=png_root, image_root=image_root, num_samples=args.samples)
        echo(f"{args.html}: the report with drawn samples\n")
    if args.fix:
        fixed, left = write_corrected(report, args.fix), report.unfixed()
        echo(f"{args.fix}: corrected {count(fixed)}; not corrected: {count(left)}\n")
    return report.is_clean


def count(kinds: dict[str, int]) -> str:
    return ", ".join(f"{number} x {kind}" for kind, number in kinds.items()) or "nothing"
