"""Write an image's results as files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.data.files import read_json
from psf.data.own_files import check_replaceable, is_own, own_path, write_own_text
from psf.errors import UserError
from psf.output.task_output import TaskOutput

__all__ = ["FILE_KINDS", "check_jpeg_size", "check_output", "write_output"]

FILE_KINDS = {
    "picture": "NAME.jpg, the image with masks, classes and scores drawn over it, and a legend below",
    "png": "NAME_panoptic.png or NAME_semantic.png, the label of each pixel (not of instances, which may overlap)",
    "json": "NAME.json, a record of each segment: class, score, area, box",
    "masks": "NAME_masks/ID_CLASS.png, a binary mask (0, 255) of each segment",
}

MAX_JPEG_SIDE = 65_500  # pixels, of libjpeg
MASK_NAME = re.compile(r"\d+_[\w-]*\.png")  # ID_CLASS.png
NOT_IN_NAMES = re.compile(r"[^\w-]+")


def check_jpeg_size(height: int, width: int, place: str, way_out: str) -> None:
    """Raise a UserError that begins with `place` if a picture is too large for a JPEG.

    Pillow's own error has no number, and looks like that of a full disk.

    Args:
        height, width: of the picture, with its legend.
        way_out: what to do instead.
    """
    if max(height, width) > MAX_JPEG_SIDE:
        raise UserError(
            f"{place} has more than {MAX_JPEG_SIDE:,} pixels a side ({width} x {height}), the most of a JPEG: {way_out}"
        )


def check_output(
    folder: Path, name: str, *, source: Path, task: str, kinds: Collection[str], overwrite: bool = False
) -> None:
    """Check that `write_output` may write an image's files: existing files are psf's own, and of the same image.

    The image of earlier results is known only if they have a JSON.

    Args:
        folder, name, source, kinds: as for `write_output`.
        task: of the results.
        overwrite: True: files that psf has not written, and results of another image, may be replaced, too.

    Raises:
        UserError: naming a file that psf has not written, a result of another image, or a file or a link in the place
            of the folder of masks.
    """
    masks = folder / f"{name}_masks"
    if "masks" in kinds and os.path.lexists(masks) and (masks.is_symlink() or not os.path.isdir(masks)):
        raise UserError(
            f"{masks} exists, and is a link or no folder: move it away, or choose another folder for the results"
        )
    files = {
        "picture": [folder / f"{name}.jpg"],
        "png": [folder / f"{name}_{task}.png"],
        "json": [folder / f"{name}.json"],
        "masks": _masks_in(masks),
    }
    way_out = "choose another folder for the results (--output), or use --overwrite"
    check_replaceable((file for kind in kinds for file in files[kind]), overwrite=overwrite, way_out=way_out)
    other = _earlier_source(folder / f"{name}.json")
    if not overwrite and other is not None and os.path.realpath(other) != os.path.realpath(source):
        raise UserError(
            f"{folder / name}.json has the results of {other}, which those of {source} would replace; {way_out}"
        )


def write_output(
    output: TaskOutput,
    image_rgb: np.ndarray,
    *,
    source: Path,
    folder: Path,
    name: str,
    kinds: Collection[str],
    overwrite: bool = False,
) -> None:
    """Write one image's results; masks of an earlier run of the same name are removed.

    The JSON contains the image, its size, the task, the label PNG, and the records under the task's key. If masks are
    written, each record has the name of its mask file.

    Args:
        output: the results.
        image_rgb: (H, W, 3) uint8, to draw on.
        source: the image file.
        folder: an existing folder.
        name: NAME in FILE_KINDS.
        kinds: some of FILE_KINDS; `png` has no effect for instances.
        overwrite: as for `check_output`.

    Raises:
        UserError: if the results do not allow one of the files, or as `check_output`; then no file is written.
    """
    check_output(folder, name, source=source, task=output.task, kinds=kinds, overwrite=overwrite)
    height, width = output.size
    label_file = folder / f"{name}_{output.task}.png"
    labels = output.label_image() if "png" in kinds else None
    records = output.records() if {"json", "masks"} & set(kinds) else []
    picture = output.picture_with_legend(image_rgb) if "picture" in kinds else None
    if picture is not None:
        way_out = f"use --save {'json' if output.task == 'instance' else 'png,json'}"
        check_jpeg_size(picture.shape[0], picture.shape[1], f"{folder / name}.jpg, with its legend,", way_out)
    if "masks" in kinds:
        _write_masks(output, records, folder / f"{name}_masks")
    if picture is not None:
        with own_path(folder / f"{name}.jpg", overwrite=overwrite) as path:
            # Thin coloured lines and letters stay sharp.
            Image.fromarray(picture).save(path, quality=95, subsampling=0)
    if labels is not None:
        with own_path(label_file, overwrite=overwrite) as path:
            Image.fromarray(labels).save(path)
    if "json" in kinds:
        description = {"file_name": str(source), "height": height, "width": width, "task": output.task}
        if labels is not None:
            description[f"{output.task}_file_name"] = label_file.name
        text = json.dumps({**description, output.records_key: records}, indent=2)
        write_own_text(folder / f"{name}.json", text + "\n", overwrite=overwrite)


def _earlier_source(json_file: Path) -> str | None:
    """The image of the results in a JSON of `write_output`; None if there is none."""
    content = read_json(json_file) if os.path.lexists(json_file) and is_own(json_file) else None
    return content.get("file_name") if isinstance(content, dict) else None


def _masks_in(folder: Path) -> list[Path]:
    """What has the name of a mask in a folder; the folder may be missing."""
    if not os.path.isdir(folder):  # False for a name that is too long, where pathlib raises
        return []
    return sorted(path for path in folder.iterdir() if MASK_NAME.fullmatch(path.name) and not path.is_dir())


def _write_masks(output: TaskOutput, records: list[dict[str, Any]], folder: Path) -> None:
    """Write a mask for each record instead of those in the folder, and store its file name in the record."""
    folder.mkdir(exist_ok=True)
    for mask in _masks_in(folder):
        mask.unlink()  # `check_output` has allowed it
    for record in records:
        # 60 letters take at most 240 bytes; file systems allow names of 255 bytes.
        name = f"{record['id']}_{NOT_IN_NAMES.sub('_', record['class'])[:60]}.png"
        with own_path(folder / name) as path:
            Image.fromarray(output.mask(record)).save(path)
        record["mask_file_name"] = f"{folder.name}/{name}"
