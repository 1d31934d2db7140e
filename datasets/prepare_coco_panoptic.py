#!/usr/bin/env python3
"""Unpack COCO's archives to the folders of coco_2017_{train,val}_panoptic; datasets/README.md shows the folders.

python datasets/prepare_coco_panoptic.py --zips ~/Downloads

Unpacks {train,val}2017.zip and panoptic_annotations_trainval2017.zip with the archives of PNGs inside it, and checks
that every image and PNG of the JSON exists. Keeps files that are unpacked already. No other folders are needed, because
semantic and instance ground truth are read from the panoptic PNGs.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from tqdm import tqdm

from psf.data.files import read_json

ANNOTATIONS = "panoptic_annotations_trainval2017.zip"
DOWNLOADS = "https://cocodataset.org/#download"


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    datasets = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=datasets / "coco", metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--zips", type=Path, metavar="FOLDER", help="folder of the archives (default: the root)")
    parser.add_argument("--splits", nargs="+", choices=("train", "val"), default=("train", "val"))
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        for split in args.splits:
            prepare(args.root, args.zips or args.root, f"{split}2017")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def prepare(root: Path, zips: Path, name: str) -> None:
    """Unpack the missing files of a split, and check that it is complete."""
    unpack(zips / f"{name}.zip", f"{name}/", root / name)
    json_file, png_zip = root / "annotations" / f"panoptic_{name}.json", f"panoptic_{name}.zip"
    unpack(zips / ANNOTATIONS, f"annotations/{json_file.name}", json_file)
    pngs = root / f"panoptic_{name}"
    if not pngs.exists():
        # The inner archive exists if the outer one was unpacked by hand.
        inner = next((folder / png_zip for folder in (json_file.parent, zips) if (folder / png_zip).exists()), None)
        with tempfile.TemporaryDirectory(dir=root) as temporary:
            if inner is None:
                inner = Path(temporary, png_zip)
                unpack(zips / ANNOTATIONS, f"annotations/{png_zip}", inner)
            unpack(inner, f"panoptic_{name}/", pngs)
    content = read_json(json_file)
    for folder, entries in ((root / name, content["images"]), (pngs, content["annotations"])):
        missing = sorted({entry["file_name"] for entry in entries} - set(os.listdir(folder)))
        if missing:
            raise ValueError(
                f"{folder} lacks {len(missing)} files of {json_file}, the first is {missing[0]}; remove the folder and "
                "run this again with complete archives"
            )
    print(f"{name}: {len(content['images'])} images and {len(content['annotations'])} PNGs, all there")


def unpack(archive: Path, member: str, target: Path) -> None:
    """Unpack a file, or a folder whose name ends in "/", to `target`. A failure leaves no partial `target`."""
    if target.exists():
        return
    if not archive.is_file():
        raise ValueError(f"found neither {target} nor {archive}; download the archive from {DOWNLOADS}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            all_names = opened.namelist()
            names = [name for name in all_names if name == member or (member.endswith("/") and name.startswith(member))]
            if not names:
                raise ValueError(f"{archive} contains no {member}: expected the official archive of this name")
            for name in tqdm(names, desc=archive.name, unit="file"):
                opened.extract(name, temporary)
            shutil.move(Path(temporary, member), target)
    except (BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive} is damaged or was not downloaded completely ({error}); download it again"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
