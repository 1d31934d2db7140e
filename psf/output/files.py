"""Write an image's results as files."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.output.task_output import TaskOutput

__all__ = ["FILE_KINDS", "write_output"]

FILE_KINDS = {
    "picture": "NAME.jpg, the image with masks, classes and scores drawn over it, and a legend below",
    "png": "NAME_panoptic.png or NAME_semantic.png, the label of each pixel (not of instances, which may overlap)",
    "json": "NAME.json, a record of each segment: class, score, area, box",
    "masks": "NAME_masks/ID_CLASS.png, a binary mask (0, 255) of each segment",
}

MASK_NAME = re.compile(r"\d+_[\w-]*\.png")  # names of _write_masks


def write_output(
    output: TaskOutput, image_rgb: np.ndarray, *, source: Path, folder: Path, name: str, kinds: Collection[str]
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

    Raises:
        UserError: if the results do not allow one of the files; then no file is written.
    """
    height, width = output.size
    label_file = folder / f"{name}_{output.task}.png"
    labels = output.label_image() if "png" in kinds else None
    records = output.records() if {"json", "masks"} & set(kinds) else []
    picture = output.picture_with_legend(image_rgb) if "picture" in kinds else None
    if "masks" in kinds:
        _write_masks(output, records, folder / f"{name}_masks")
    if picture is not None:
        # Thin coloured lines and letters stay sharp.
        Image.fromarray(picture).save(folder / f"{name}.jpg", quality=95, subsampling=0)
    if labels is not None:
        Image.fromarray(labels).save(label_file)
    if "json" in kinds:
        description = {"file_name": str(source), "height": height, "width": width, "task": output.task}
        if labels is not None:
            description[f"{output.task}_file_name"] = label_file.name
        text = json.dumps({**description, output.records_key: records}, indent=2)
        (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def _write_masks(output: TaskOutput, records: list[dict[str, Any]], folder: Path) -> None:
    """Write a mask for each record, and store its file name in the record."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if MASK_NAME.fullmatch(file.name) and file.is_file():
            file.unlink()
    for record in records:
        # 60 letters take at most 240 bytes; file systems allow names of 255 bytes.
        name = re.sub(r"[^\w-]+", "_", record["class"])[:60]
        file = folder / f"{record['id']}_{name}.png"
        Image.fromarray(output.mask(record)).save(file)
        record["mask_file_name"] = f"{folder.name}/{file.name}"
