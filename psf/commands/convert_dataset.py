"""Convert COCO instances or labelme annotations, with semantic masks if there are any, to a panoptic dataset.

psf convert-dataset --instances instances.json --overlap smaller-on-top --output mine/
psf convert-dataset --labelme folder/ --semantic-labels stuff.txt --overlap later-on-top --output mine/

Takes COCO's instances JSON, as CVAT's "COCO 1.0" export and many other programs write it, or a folder of labelme's
files. Everything is a thing but for what --semantic-labels lists, one `id,name` per line: these are stuff, drawn by
hand, or given by the masks of --semantic, whose values they explain. Writes OUTPUT/panoptic.json and OUTPUT/panoptic/.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from psf.commands import add_workers_flag, command_parser, echo, run_command
from psf.tools.dataset_conversion.coco import read_instances
from psf.tools.dataset_conversion.conversion import PanopticFiles
from psf.tools.dataset_conversion.labelme import read_labelme
from psf.tools.dataset_conversion.regions import OVERLAP_POLICIES
from psf.tools.dataset_conversion.sources import SemanticMasks, convert_source, read_labels

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """The arguments; which of them go together is checked by `main`."""
    parser = command_parser("convert-dataset", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--instances", type=Path, metavar="FILE", help="instances JSON in COCO's format")
    source.add_argument("--labelme", type=Path, metavar="FOLDER", help="with a JSON of labelme for each image")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument(
        "--overlap", required=True, choices=OVERLAP_POLICIES, help="who has the pixels that two regions claim"
    )
    parser.add_argument("--semantic-labels", type=Path, metavar="FILE", help="lines id,name: stuff")
    parser.add_argument("--semantic", type=Path, metavar="FOLDER", help="masks with these ids, FILE.png for FILE.jpg")
    parser.add_argument("--thing-labels", type=Path, metavar="FILE", help="lines id,name: the things of --labelme")
    parser.add_argument("--image-root", type=Path, metavar="FOLDER", help="of the images of --labelme, if elsewhere")
    parser.add_argument(
        "--crowds-as-things",
        action="store_true",
        help="annotations with iscrowd are single things: some programs mark every mask that is no polygon so",
    )
    parser.add_argument("--overwrite", action="store_true", help="an existing OUTPUT/panoptic.json")
    add_workers_flag(parser)
    return parser


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    if args.semantic and not args.semantic_labels:
        parser.error("--semantic needs --semantic-labels, which say what the values of the masks mean")
    if args.instances and (args.thing_labels or args.image_root):
        parser.error("--thing-labels and --image-root belong to --labelme; an instances JSON has its own")
    if args.labelme and args.crowds_as_things:
        parser.error("--crowds-as-things belongs to --instances; labelme knows no crowds")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    files = PanopticFiles(args.output / "panoptic.json", args.output / "panoptic")
    files.check_free(overwrite=args.overwrite)
    stuff_names = read_labels(args.semantic_labels) if args.semantic_labels else {}
    if args.instances:
        source, category_of = read_instances(args.instances, stuff_names, crowds_as_things=args.crowds_as_things)
    else:
        thing_names = read_labels(args.thing_labels) if args.thing_labels else {}
        source, category_of = read_labelme(
            args.labelme, stuff_names, thing_names=thing_names, image_root=args.image_root
        )
        if not thing_names:
            echo("The ids of things follow the labels in this folder; for sets that belong together, --thing-labels")
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
    images = args.image_root or args.labelme or "IMAGES"
    places = f"--json {files.json_file} --png-root {files.png_root} --image-root {images}"
    echo(f"\nNext, validate it: psf validate {places} --html report.html")
