#!/usr/bin/env python3
"""From instances that people have drawn, and semantic masks if there are any, to a panoptic set.

python tools/make_panoptic.py --instances instances.json --overlap smaller-on-top --output mine/
python tools/make_panoptic.py --labelme folder/ --semantic-labels stuff.txt --overlap later-on-top --output mine/

Takes COCO's instances JSON, as CVAT's "COCO 1.0" export and many other programs write it, or a folder of labelme's
files. Everything is a thing but for what --semantic-labels lists, one `id,name` per line: these are stuff, drawn by
hand, or given by the masks of --semantic, whose values they explain. Writes OUTPUT/panoptic.json and OUTPUT/panoptic/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from psf.data.conversion import PanopticFiles
from psf.data.conversion_coco import read_instances
from psf.data.conversion_labelme import read_labelme
from psf.data.conversion_regions import OVERLAP_POLICIES
from psf.data.conversion_sources import SemanticMasks, convert_source, read_labels


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    parser.add_argument("--workers", type=int, metavar="N", help="images at a time (default: one per processor)")
    args = parser.parse_args(words)
    if args.semantic and not args.semantic_labels:
        parser.error("--semantic needs --semantic-labels, which say what the values of the masks mean")
    if args.instances and (args.thing_labels or args.image_root):
        parser.error("--thing-labels and --image-root belong to --labelme; an instances JSON has its own")
    if args.labelme and args.crowds_as_things:
        parser.error("--crowds-as-things belongs to --instances; labelme knows no crowds")
    return args


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        run(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


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
            print("The ids of things follow the labels in this folder; for sets that belong together, --thing-labels")
    notes = convert_source(
        source,
        files,
        overlap=args.overlap,
        semantic=SemanticMasks(args.semantic, category_of) if args.semantic else None,
        workers=args.workers,
        progress=lambda results, total: tqdm(results, total=total, unit="image"),
    )
    kinds = ("stuff", "thing")
    rows = [(category["id"], category["name"], kinds[category["isthing"]]) for category in source.categories]
    print(tabulate(rows, ("id", "category", "kind")))
    print("\n".join(f"{number} {note}" for note, number in notes.items()))
    images = args.image_root or args.labelme or "IMAGES"
    places = f"--json {files.json_file} --png-root {files.png_root} --image-root {images}"
    validator = os.path.relpath(Path(__file__).with_name("validate_dataset.py"))
    print(f"\nNow look at it: python {validator} {places} --html report.html")


if __name__ == "__main__":
    sys.exit(main())
