"""Convert COCO instances or labelme annotations, optionally with semantic masks, to a panoptic dataset.

psf convert-dataset --instances instances.json --overlap smaller-on-top --output mine/
psf convert-dataset --labelme folder/ --semantic-labels stuff.txt --overlap later-on-top --output mine/

Reads an instances JSON in COCO's format, as written by CVAT ("COCO 1.0") and many other programs, or a folder of
labelme files. All classes are things, except the stuff classes in the file --semantic-labels (lines `id,name`). Stuff
regions are annotations, or the pixels with these ids in the masks of --semantic. Writes OUTPUT/panoptic.json and
OUTPUT/panoptic/, and OUTPUT/images/ if the images are only in the labelme files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from psf.commands import add_max_pixels_flag, add_workers_flag, command_parser, echo, run_command
from psf.data.images import limit_pixels
from psf.tools.dataset_conversion.coco import read_instances
from psf.tools.dataset_conversion.conversion import PanopticFiles
from psf.tools.dataset_conversion.labelme import read_labelme
from psf.tools.dataset_conversion.regions import OVERLAP_POLICIES
from psf.tools.dataset_conversion.sources import SemanticMasks, convert_source, read_labels

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; `main` checks the combination of arguments."""
    parser = command_parser("convert-dataset", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--instances", type=Path, metavar="FILE", help="instances JSON in COCO's format")
    source.add_argument("--labelme", type=Path, metavar="FOLDER", help="labelme files, one for each image")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--overlap", required=True, choices=OVERLAP_POLICIES, help="which of two overlapping regions gets the pixels"
    )
    parser.add_argument("--semantic-labels", type=Path, metavar="FILE", help="stuff classes, lines id,name")
    parser.add_argument("--semantic", type=Path, metavar="FOLDER", help="masks with these ids, FILE.png for FILE.jpg")
    parser.add_argument("--thing-labels", type=Path, metavar="FILE", help="thing classes of --labelme, lines id,name")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="images of --labelme, if in another folder")
    parser.add_argument(
        "--crowds-as-things",
        action="store_true",
        help="treat iscrowd annotations as single things: some programs set iscrowd for all masks but polygons",
    )
    parser.add_argument("--overwrite", action="store_true", help="overwrite an existing OUTPUT/panoptic.json")
    add_max_pixels_flag(parser)
    add_workers_flag(parser)
    return parser


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    if args.semantic and not args.semantic_labels:
        parser.error("--semantic needs --semantic-labels, which defines the values of the masks")
    if args.instances and (args.thing_labels or args.image_root):
        parser.error("--thing-labels and --image-root need --labelme; an instances JSON contains both")
    if args.labelme and args.crowds_as_things:
        parser.error("--crowds-as-things needs --instances; labelme has no crowds")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    limit_pixels(args.max_pixels)
    files = PanopticFiles(args.output / "panoptic.json", args.output / "panoptic")
    files.check_free(overwrite=args.overwrite)
    stuff_names = read_labels(args.semantic_labels) if args.semantic_labels else {}
    if args.instances:
        source, category_of = read_instances(args.instances, stuff_names, crowds_as_things=args.crowds_as_things)
    else:
        thing_names = read_labels(args.thing_labels) if args.thing_labels else {}
        source, category_of = read_labelme(
            args.labelme,
            stuff_names,
            thing_names=thing_names,
            image_root=args.image_root,
            extract_to=args.output / "images",
        )
        if not thing_names:
            echo("Thing ids depend on the labels in this folder; for the same ids in several sets, use --thing-labels")
    notes = convert_source(
        source,
        files,
        overlap=args.overlap,
        semantic=SemanticMasks(args.semantic, category_of) if args.semantic else None,
        workers=args.workers,
        show_progress=True,
    )
    kinds = ("stuff", "thing")
    rows = [(category["id"], category["name"], kinds[category["isthing"]]) for category in source.categories]
    echo(tabulate(rows, ("id", "category", "kind")))
    echo("\n".join(f"{number} {note}" for note, number in notes.items()))
    images = source.image_root or args.image_root or args.labelme or "IMAGES"
    places = f"--json {files.json_file} --png-root {files.png_root} --image-root {images}"
    echo(f"\nNext, validate it: psf validate {places} --html report.html")
