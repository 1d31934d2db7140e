"""Write label images, and read converted sets back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.commands.datasets import convert_dataset
from psf.data.panoptic_labels import read_panoptic_ids
from psf.tools.dataset_validation.validation import validate_panoptic

VOID = "."


def grid(text: str) -> np.ndarray:
    """Lines of words -> (H, W) integers; a dot is 0."""
    return np.array([[0 if word == VOID else int(word) for word in line.split()] for line in text.strip().split("\n")])


def save(path: Path, pixels: Any, mode: str = "L") -> Path:
    """Write an (H, W) or (H, W, 3) array; 16-bit for mode I;16; a palette of distinct colors for mode P."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels)
    if mode == "I;16":
        Image.fromarray(pixels.astype(np.uint16)).save(path)
        return path
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode == "P":
        image = image.convert("L")
        image.putpalette([channel for index in range(256) for channel in (index, 255 - index, index * 7 % 256)])
    image.save(path)
    return path


def save_image(path: Path, size: tuple[int, int]) -> Path:
    """Write an image of (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    return path


def convert(*words: object) -> int:
    return convert_dataset.main([str(word) for word in words])


def read_set(output: Path, image_root: Path) -> dict[str, np.ndarray]:
    """The maps of a written set, which `psf validate` finds clean: file name -> (H, W) of texts.

    A pixel is the name of its class, with the number of its segment for things (in order of first pixels), "*" for
    crowds, and "." for void.
    """
    json_file, png_root = output / "panoptic.json", output / "panoptic"
    report = validate_panoptic(str(json_file), str(png_root), str(image_root))
    assert report.is_clean, report
    content = json.loads(json_file.read_text())
    names = {one["id"]: one["name"] for one in content["categories"]}
    things = {one["id"] for one in content["categories"] if one["isthing"]}
    maps = {}
    for image, annotation in zip(content["images"], content["annotations"], strict=True):
        assert image["id"] == annotation["image_id"]
        segments = {one["id"]: one for one in annotation["segments_info"]}
        ids = read_panoptic_ids(str(png_root / annotation["file_name"]), segments)
        shown: dict[int, str] = {0: VOID}
        count: dict[str, int] = {}
        for own_id in dict.fromkeys(ids.ravel().tolist()):
            if own_id:
                name = names[segments[own_id]["category_id"]]
                if segments[own_id]["iscrowd"]:
                    name += "*"
                elif segments[own_id]["category_id"] in things:
                    count[name] = count.get(name, 0) + 1
                    name += str(count[name])
                shown[own_id] = name
        assert len(shown) == len(segments) + 1
        maps[image["file_name"]] = np.vectorize(shown.get)(ids)
    return maps


def expected(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().split("\n")]
