"""COCO's instances JSON, as COCO, CVAT and many others write it -> regions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from psf.data.conversion_regions import Region, region_of_polygons
from psf.data.conversion_sources import Source, SourceImage, join_categories

__all__ = ["read_instances"]

_WITHOUT_AREA = "annotations without an area (boxes, points, lines), left out"


def read_instances(
    json_file: Path, stuff_names: Mapping[int, str], *, crowds_as_things: bool = False
) -> tuple[Source, dict[int, int]]:
    """Read an instances JSON: every category is a thing, but for those that `stuff_names` name, too.

    Args:
        json_file: `images`, `annotations` with polygons or RLE, `categories`.
        stuff_names: see `join_categories`.
        crowds_as_things: whether annotations with iscrowd are single things all the same.

    Returns:
        The source, and id in `stuff_names` -> category id.

    Raises:
        ValueError: if the file is missing or damaged or not of this kind, or an annotation names an image or a
            category that it does not list.
    """
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{json_file}: cannot be read as a JSON file ({error})") from error
    missing = {"images", "annotations", "categories"} - set(content if isinstance(content, dict) else ())
    if missing:
        raise ValueError(f"{json_file}: not an instances JSON in COCO's format, it lacks {', '.join(sorted(missing))}")
    categories, category_of = join_categories(
        [{key: one[key] for key in ("id", "name", "supercategory") if key in one} for one in content["categories"]],
        stuff_names,
    )
    known = {category["id"] for category in categories}
    images = {
        image["id"]: SourceImage({key: image[key] for key in ("id", "file_name", "height", "width")}, [])
        for image in content["images"]
    }
    for annotation in content["annotations"]:
        place = f"{json_file}: annotation {annotation.get('id')}"
        if annotation["image_id"] not in images:
            raise ValueError(f"{place} is of the image {annotation['image_id']!r}, which `images` does not list")
        if annotation["category_id"] not in known:
            raise ValueError(f"{place} has the category {annotation['category_id']!r}, expected one of {sorted(known)}")
        images[annotation["image_id"]].shapes.append(annotation)

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        size = (item.image["height"], item.image["width"])
        found = [_region(annotation, size, crowds_as_things) for annotation in item.shapes]
        kept = [region for region in found if region is not None]
        return kept, Counter({_WITHOUT_AREA: len(found) - len(kept)} if len(kept) < len(found) else {})

    return Source(categories, list(images.values()), regions), category_of


def _region(annotation: dict[str, Any], size: tuple[int, int], crowds_as_things: bool) -> Region | None:
    """Polygons, or RLE of either kind, of an image of (height, width); None if there is neither."""
    shape, category_id = annotation.get("segmentation"), annotation["category_id"]
    is_crowd = bool(annotation.get("iscrowd", 0)) and not crowds_as_things
    if not shape:
        return None
    if isinstance(shape, list):
        return region_of_polygons(shape, size, category_id, is_crowd)
    if list(shape["size"]) != list(size):
        raise ValueError(
            f"annotation {annotation.get('id')} has a mask of {shape['size']}, the image {list(size)} (height, width)"
        )
    rle = coco_mask.frPyObjects(shape, *size) if isinstance(shape["counts"], list) else shape
    return Region(rle, category_id, is_crowd)
