#!/usr/bin/env python3
"""Reads a panoptic set whole and says what is wrong with it.

python tools/validate_dataset.py --json panoptic.json --png-root panoptic/ --image-root images/ --html report.html
python tools/validate_dataset.py --register mine=panoptic.json,panoptic/,images/
python tools/validate_dataset.py --dataset coco_2017_val_panoptic

Exit status: 0 if the set is clean, 1 if it has faults, 2 if it could not be read at all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from psf.data.registration import PanopticSet
from psf.data.validation import places_of_dataset, validate_panoptic, write_corrected
from psf.data.validation_html import write_html


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="panoptic JSON in COCO's format")
    parser.add_argument("--png-root", metavar="FOLDER", help="of the panoptic PNGs")
    parser.add_argument("--image-root", metavar="FOLDER", help="of the images")
    parser.add_argument("--register", metavar="NAME=JSON,PNGS,IMAGES", help="the three in one, as train_net.py has it")
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set, in place of the three")
    parser.add_argument("--fix", type=Path, metavar="FILE", help="write a corrected JSON here, where that is safe")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report with drawn samples here")
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="drawn images (default: %(default)s)")
    parser.add_argument("--show", type=int, default=3, metavar="N", help="faults of a kind (default: %(default)s)")
    parser.add_argument("--workers", type=int, metavar="N", help="files at a time (default: one per processor)")
    args = parser.parse_args(words)
    places = (args.json, args.png_root, args.image_root)
    if [bool(args.dataset), bool(args.register), any(places)].count(True) != 1 or any(places) != all(places):
        parser.error("expected --json, --png-root and --image-root, or --register alone, or --dataset alone")
    return args


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        return run(args)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2


def run(args: argparse.Namespace) -> int:
    if args.register:
        _, json_file, png_root, image_root = PanopticSet.parse(args.register)
    elif args.dataset:
        json_file, png_root, image_root = places_of_dataset(args.dataset)
    else:
        json_file, png_root, image_root = args.json, args.png_root, args.image_root
    report = validate_panoptic(
        json_file,
        png_root,
        image_root,
        workers=args.workers,
        progress=lambda results, total: tqdm(results, total=total, unit="image"),
    )
    print(f"{json_file}\n\n{report.text(num_examples=args.show)}")
    if args.html:
        write_html(report, args.html, png_root=png_root, image_root=image_root, num_samples=args.samples)
        print(f"\n{args.html}: the report with drawn samples")
    if args.fix:
        fixed, left = write_corrected(report, args.fix), report.unfixed()
        print(f"\n{args.fix}: corrected {count(fixed)}; left as it is: {count(left)}")
    return 0 if report.is_clean else 1


def count(kinds: dict[str, int]) -> str:
    return ", ".join(f"{number} x {kind}" for kind, number in kinds.items()) or "nothing"


if __name__ == "__main__":
    sys.exit(main())
