#!/usr/bin/env python3
"""COCO's official archives -> the folders of coco_2017_{train,val}_panoptic; datasets/README.md shows them.

python datasets/prepare_coco_panoptic.py --zips ~/Downloads

Unpacks {train,val}2017.zip and panoptic_annotations_trainval2017.zip, with the archives of PNGs inside, and checks that
every image and PNG of the JSON is there. What is unpacked already stays. No folder beyond these is needed: semantic
and instance ground truth are read from the panoptic PNGs.
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


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    datasets = Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=datasets / "coco", metavar="FOLDER", help="(%(default)s)")
    parser.add_argument("--zips", type=Path, metavar="FOLDER", help="of the archives (default: the root)")
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
    """Unpack what a split lacks, and check it."""
    unpack(zips / f"{name}.zip", f"{name}/", root / name)
    json_file, png_zip = root / "annotations" / f"panoptic_{name}.json", f"panoptic_{name}.zip"
    unpack(zips / ANNOTATIONS, f"annotations/{json_file.name}", json_file)
    pngs = root / f"panoptic_{name}"
    if not pngs.exists():
        # Whoever unpacked the outer archive by hand has the inner one.
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
    """Unpack a file, or a folder that ends in "/", to `target`: it appears there whole, or not at all."""
    if target.exists():
        return
    if not archive.is_file():
        raise ValueError(f"neither {target} nor {archive} is there; download it from https://cocodataset.org/#download")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(archive) as opened, tempfile.TemporaryDirectory(dir=target.parent) as temporary:
            every = opened.namelist()
            names = [one for one in every if one == member or (member.endswith("/") and one.startswith(member))]
            if not names:
                raise ValueError(f"{archive} has no {member} in it: it is not the official archive of that name")
            for one in tqdm(names, desc=archive.name, unit="file"):
                opened.extract(one, temporary)
            shutil.move(Path(temporary, member), target)
    except (BadZipFile, EOFError, zlib.error) as error:
        raise ValueError(
            f"{archive} is damaged or was not downloaded to its end ({error}); download it again"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
