#!/usr/bin/env python3
"""Convert the nuclei of the 2018 Data Science Bowl to a panoptic dataset; datasets/README.md shows the folders.

python datasets/prepare_nuclei.py --archive ~/Downloads/stage1_train

The things are nuclei, the stuff is background: every pixel without a nucleus. Masks are drawn in the order of their
file names. Where two masks overlap, the earlier one keeps the shared pixels. An image belongs to the split val if
int(sha1(ID), 16) % 5 == 0, and to train otherwise. Images of more than 360 x 360 pixels are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.commands import add_workers_flag
from psf.data import read_image
from psf.data.images import open_image
from psf.tools.dataset_conversion.conversion import Drawing, PanopticFiles, write_panoptic_set

NUCLEUS, BACKGROUND = 1, 2
CATEGORIES = [
    {"id": NUCLEUS, "name": "nucleus", "isthing": 1, "color": [220, 20, 60]},
    {"id": BACKGROUND, "name": "background", "isthing": 0, "color": [90, 110, 130]},
]
MAX_SIDE = 360  # pixels; the few larger images are many times larger


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    datasets = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archive", type=Path, required=True, metavar="FOLDER", help="has one folder per image")
    parser.add_argument(
        "--output", type=Path, default=datasets / "nuclei", metavar="FOLDER", help="for the dataset (%(default)s)"
    )
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=("train", "val"))
    parser.add_argument("--overwrite", action="store_true", help="overwrite the output of an earlier run")
    add_workers_flag(parser)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        for split in args.splits:  # all are checked before the first is written
            find_images(args.archive, split)
            _panoptic_files(args.output, split).check_free(overwrite=args.overwrite)
        for split in args.splits:
            notes = prepare(args.archive, args.output, split, overwrite=args.overwrite, workers=args.workers)
            print(
                f"{split}: {notes['images']} images, {notes['segments']} segments; skipped {notes['larger']} larger "
                f"images; {notes['overlap']} pixels of overlapping masks went to the earlier one, "
                f"{notes['hidden']} masks kept none"
            )
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def prepare(
    archive: Path, output: Path, split: str, *, overwrite: bool = False, workers: int | None = None
) -> Counter[str]:
    """Write the images of a split, `panoptic_SPLIT.json` and its PNGs below `output`.

    Args:
        archive: has ID/images/ID.png and a binary mask per nucleus, ID/masks/*.png.
        output: gets the folders SPLIT and panoptic_SPLIT, and the JSON.
        split: "train" or "val".
        overwrite: replace the output of an earlier run.
        workers: see `write_panoptic_set`.

    Returns:
        Counts of "images", "segments", "larger" images, pixels of "overlap", and "hidden" masks, which keep no pixel.

    Raises:
        ValueError: if a file is missing or damaged, or differs in size from its image, if no image remains, or if an
            output file exists that this script has not written.
    """
    files = _panoptic_files(output, split)
    files.check_free(overwrite=overwrite)
    kept, num_larger = find_images(archive, split)

    def draw(folder: Path) -> Drawing:
        drawing = _draw(folder)
        _write_image(_image_file(folder), output / split / drawing.image["file_name"])
        return drawing

    (output / split).mkdir(parents=True, exist_ok=True)
    notes = write_panoptic_set(kept, draw, CATEGORIES, files, workers=workers, show_progress=True)
    notes["larger"] = num_larger
    return notes


def find_images(archive: Path, split: str) -> tuple[list[Path], int]:
    """The folders of the images of a split, and the number of images that are skipped because they are larger.

    Raises:
        ValueError: if there is no image, or none that is small enough.
    """
    folders = sorted(path.parent.parent for path in archive.glob("*/images/*.png"))
    if not folders:
        raise ValueError(f"{archive}: found no file ID/images/ID.png; datasets/README.md shows the expected folders")
    own = [folder for folder in folders if split_of(folder.name) == split]
    kept = [folder for folder in own if max(_size(_image_file(folder))) <= MAX_SIDE]
    if not kept:
        raise ValueError(
            f"{archive}: found no image of the split {split} with at most {MAX_SIDE} x {MAX_SIDE} pixels, expected "
            "some; name the other split alone with --splits"
        )
    return kept, len(own) - len(kept)


def split_of(image_id: str) -> str:
    """The split of an image: "val" for about one in five, else "train"."""
    return "val" if int(hashlib.sha1(image_id.encode()).hexdigest(), 16) % 5 == 0 else "train"


def _panoptic_files(output: Path, split: str) -> PanopticFiles:
    return PanopticFiles(output / f"panoptic_{split}.json", output / f"panoptic_{split}")


def _image_file(folder: Path) -> Path:
    return folder / "images" / f"{folder.name}.png"


def _size(file: Path) -> tuple[int, int]:
    """Width and height in pixels."""
    with open_image(str(file)) as image:
        return image.size


def _draw(folder: Path) -> Drawing:
    width, height = _size(_image_file(folder))
    mask_files = sorted((folder / "masks").glob("*.png"))
    if not mask_files:
        raise ValueError(f"{folder / 'masks'}: found no file *.png, expected a mask of each nucleus")
    labels: np.ndarray = np.zeros((height, width), np.int32)
    segments: list[dict[str, Any]] = []
    notes: Counter[str] = Counter()
    for number, file in enumerate(mask_files, 1):
        mask = read_image(str(file), "L")[..., 0] > 0
        if mask.shape != labels.shape:
            raise ValueError(
                f"{file}: found {mask.shape[1]} x {mask.shape[0]} pixels (width x height), expected {width} x {height} "
                "as its image has"
            )
        is_free = mask & (labels == 0)
        labels[is_free] = number
        notes["overlap"] += int(mask.sum() - is_free.sum())
        notes["hidden"] += int(not is_free.any())
        segments.append({"id": number, "category_id": NUCLEUS, "iscrowd": 0})
    background = len(segments) + 1
    labels[labels == 0] = background
    segments.append({"id": background, "category_id": BACKGROUND, "iscrowd": 0})
    entry = {"id": folder.name, "file_name": f"{folder.name}.png", "height": height, "width": width}
    return Drawing(entry, labels, segments, notes)


def _write_image(source: Path, target: Path) -> None:
    """Write an image in RGB, without the transparency of the archive's files."""
    pixels = read_image(str(source), "RGB")
    if not target.exists():
        Image.fromarray(pixels).save(target)
    elif not np.array_equal(read_image(str(target), "RGB"), pixels):
        raise ValueError(f"{target} exists and is another image: it is not overwritten; choose another --output")


if __name__ == "__main__":
    sys.exit(main())
