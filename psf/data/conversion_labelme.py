"""A folder of labelme's JSON files, one per image -> regions."""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from psf.data.conversion_regions import Region, region_of_polygons
from psf.data.conversion_sources import Source, SourceImage, join_categories

__all__ = ["read_labelme"]

_CIRCLE_POINTS = 64


def read_labelme(
    folder: Path, stuff_names: Mapping[int, str], *, thing_names: Mapping[int, str], image_root: Path | None = None
) -> tuple[Source, dict[int, int]]:
    """Read all labelme files below a folder, sorted by name; image ids count from 1.

    Polygons, rectangles, circles and masks count; lines and points have no area. Shapes of one label and one group_id
    are one region.

    Args:
        stuff_names: labels of stuff; see `join_categories`.
        thing_names: labels of things, by id; empty: all labels that occur and are not stuff, in alphabetical order.
        image_root: what file names are to be relative to; None: `folder`.

    Returns:
        The source, and id in `stuff_names` -> category id.

    Raises:
        ValueError: if there is no labelme file, one is damaged, or a label is not known.
    """
    contents = {path: _read(path) for path in sorted(folder.rglob("*.json"))}
    if not any(contents.values()):
        raise ValueError(f"{folder}: no JSON file of labelme in it (they have the keys shapes and imagePath)")
    labels = {shape["label"] for content in contents.values() if content for shape in content["shapes"]}
    if thing_names:
        unknown = sorted(labels - {*thing_names.values(), *stuff_names.values()})
        if unknown:
            raise ValueError(
                f"{folder}: the labels {', '.join(unknown)} are neither thing nor semantic labels; add them"
            )
    else:
        thing_names = dict(enumerate(sorted(labels - set(stuff_names.values())), 1))
    categories, category_of = join_categories(
        [{"id": number, "name": name} for number, name in thing_names.items()], stuff_names
    )
    id_of = {category["name"]: category["id"] for category in categories}
    images = [
        SourceImage(_image(path, content, number, image_root or folder), content["shapes"])
        for number, (path, content) in enumerate(((p, c) for p, c in contents.items() if c), 1)
    ]

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        return _regions(item.shapes, (item.image["height"], item.image["width"]), id_of)

    return Source(categories, images, regions), category_of


def _read(path: Path) -> dict[str, Any] | None:
    """A labelme file without its image; None for a JSON of another kind."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a JSON file ({error})") from error
    if not isinstance(content, dict) or not {"shapes", "imagePath"} <= content.keys():
        return None
    lacking = {"imageHeight", "imageWidth"} - {key for key, value in content.items() if value}
    if lacking:
        raise ValueError(f"{path}: {' and '.join(sorted(lacking))} missing; save it with a recent labelme")
    return {key: content[key] for key in ("shapes", "imagePath", "imageHeight", "imageWidth")}


def _image(path: Path, content: dict[str, Any], number: int, root: Path) -> dict[str, Any]:
    file = path.parent / content["imagePath"].replace("\\", "/")
    name = Path(os.path.relpath(file, root)).as_posix()
    if name.startswith(".."):
        raise ValueError(f"{path}: its image {file} is not below {root}; give --image-root the folder of all images")
    return {"id": number, "file_name": name, "height": content["imageHeight"], "width": content["imageWidth"]}


def _regions(
    shapes: list[dict[str, Any]], size: tuple[int, int], id_of: Mapping[str, int]
) -> tuple[list[Region], Counter[str]]:
    grouped: dict[Any, list[Region]] = {}
    notes = Counter[str]()
    for position, shape in enumerate(shapes):
        region = _region(shape, size, id_of[shape["label"]])
        if region is None:
            notes[f"shapes without an area ({shape.get('shape_type')}), left out"] += 1
            continue
        group = shape.get("group_id")
        grouped.setdefault((shape["label"], group) if group is not None else position, []).append(region)
    merged = [Region(coco_mask.merge([one.rle for one in group]), group[0].category_id) for group in grouped.values()]
    return merged, notes


def _region(shape: dict[str, Any], size: tuple[int, int], category_id: int) -> Region | None:
    kind, points = shape.get("shape_type") or "polygon", np.array(shape["points"], dtype=np.float64).reshape(-1, 2)
    if kind == "mask":
        return Region(_mask_rle(shape, points, size), category_id)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    elif kind == "circle" and len(points) == 2:
        angles = np.linspace(0, 2 * np.pi, _CIRCLE_POINTS, endpoint=False)
        points = points[0] + np.hypot(*(points[1] - points[0])) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    elif kind not in ("polygon", "rectangle"):
        return None
    return region_of_polygons([points.ravel().tolist()], size, category_id)


def _mask_rle(shape: dict[str, Any], points: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """The mask is a PNG in base64 of the box that the two points span."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            part = np.asarray(image.convert("L")) > 0
    except (KeyError, TypeError, binascii.Error, UnidentifiedImageError, OSError) as error:
        raise ValueError(f"a mask labelled {shape['label']!r} is damaged ({error})") from error
    left, top = points.min(axis=0).round().astype(int).tolist()
    whole: np.ndarray = np.zeros(size, dtype=np.uint8, order="F")
    y, x = max(top, 0), max(left, 0)
    part = part[y - top :, x - left :][: size[0] - y, : size[1] - x]
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return coco_mask.encode(whole)
