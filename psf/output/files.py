"""Which files an image's results become, and writing them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
from PIL import Image

from psf.output.task_output import TaskOutput

__all__ = ["FILE_KINDS", "output_names", "write_output"]

FILE_KINDS = {
    "picture": "NAME.jpg, the image with classes, scores and masks drawn over it",
    "png": "NAME_panoptic.png or NAME_semantic.png, the label of each pixel",
    "json": "NAME.json, what was found: class, score, area, box",
    "masks": "NAME_masks/ID_CLASS.png, a binary mask (0, 255) for each of what was found",
}


def output_names(name: str, task: str) -> dict[str, str]:
    """What the outputs of an image are called in their folder, by kind; `masks` is a folder itself."""
    return {"picture": f"{name}.jpg", "png": f"{name}_{task}.png", "json": f"{name}.json", "masks": f"{name}_masks"}


def write_output(
    output: TaskOutput, image_rgb: np.ndarray, *, source: Path, folder: Path, name: str, kinds: Collection[str]
) -> None:
    """Write one image's results.

    The JSON names the image, its size, the task, the PNG of labels, and under the task's key the records; where masks
    are written, each with the name of its own.

    Args:
        output: the results.
        image_rgb: (H, W, 3) uint8, what to draw over.
        source: where the image came from.
        folder: an existing folder.
        name: of the output files, without what `output_names` adds.
        kinds: some of FILE_KINDS.
    """
    height, width = output.size
    paths = {kind: folder / own for kind, own in output_names(name, output.task).items()}
    labels = output.label_image() if "png" in kinds else None
    records = output.records() if {"json", "masks"} & set(kinds) else []
    if "masks" in kinds:
        paths["masks"].mkdir(exist_ok=True)
        for record in records:
            file = f"{record['id']}_{re.sub(r'[^A-Za-z0-9-]+', '_', record['class'])}.png"
            Image.fromarray(output.mask(record)).save(paths["masks"] / file)
            record["mask_file_name"] = f"{paths['masks'].name}/{file}"
    if "picture" in kinds:
        # Thin coloured lines and letters stay sharp.
        Image.fromarray(output.picture(image_rgb)).save(paths["picture"], quality=95, subsampling=0)
    if labels is not None:
        Image.fromarray(labels).save(paths["png"])
    if "json" in kinds:
        description = {"file_name": str(source), "height": height, "width": width, "task": output.task}
        if labels is not None:
            description[f"{output.task}_file_name"] = paths["png"].name
        text = json.dumps({**description, output.records_key: records}, indent=2)
        paths["json"].write_text(text + "\n", encoding="utf-8")
