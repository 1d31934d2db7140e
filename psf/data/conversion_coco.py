"""COCO's instances JSON, as COCO, CVAT and many others write it -> regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from psf.data.conversion import png_name
from psf.data.conversion_fields import CATEGORY_ID, FLAG, IMAGE_ID, LIST, SIDE, TEXT, shorten, take
from psf.data.conversion_regions import Region, region_of_polygons
from psf.data.conversion_shapes import check_polygons, check_rle
from psf.data.conversion_sources import Source, SourceImage, join_categories
from psf.data.json_file import read_json
from psf.data.panoptic_json import image_key

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
        ValueError: naming the file and the entry, if the file is missing or damaged or not of this kind, lists no image
            or an id twice, or if an entry lacks something, has it in another form or names what is not listed.
    """
    content = _read(json_file)
    own_categories = _read_categories(content["categories"], str(json_file))
    categories, category_of = join_categories(own_categories, stuff_names)
    known = {category["id"] for category in categories}
    if not known:
        raise ValueError(f"{json_file}: `categories` is empty, expected at least one category")
    images = _read_images(content["images"], str(json_file))
    for position, annotation in enumerate(content["annotations"]):
        place = f"{json_file}: {_named('annotation', annotation, position)}"
        image_id = take(annotation, "image_id", IMAGE_ID, place)
        category_id = take(annotation, "category_id", CATEGORY_ID, place)
        item = images.get(image_key(image_id))
        if item is None:
            raise ValueError(f"{place} is of the image {image_id!r}, which `images` does not list")
        if category_id not in known:
            raise ValueError(f"{place} has the category {category_id!r}, expected one of {sorted(known)}")
        if "iscrowd" in annotation:
            take(annotation, "iscrowd", FLAG, place)
        _check_shape(annotation.get("segmentation"), (item.image["height"], item.image["width"]), place)
        item.shapes.append(annotation)

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        size = (item.image["height"], item.image["width"])
        found = [_region(annotation, size, crowds_as_things) for annotation in item.shapes]
        kept = [region for region in found if region is not None]
        return kept, Counter({_WITHOUT_AREA: len(found) - len(kept)} if len(kept) < len(found) else {})

    return Source(categories, list(images.values()), regions), category_of


def _read(json_file: Path) -> dict[str, list[Any]]:
    """The three lists of the JSON."""
    content = read_json(json_file)
    keys = ("images", "annotations", "categories")
    missing = sorted(set(keys) - set(content if isinstance(content, dict) else ()))
    if missing:
        raise ValueError(f"{json_file}: not an instances JSON in COCO's format, it lacks {', '.join(missing)}")
    lists = {key: take(content, key, LIST, str(json_file)) for key in keys}
    if not lists["images"]:
        raise ValueError(f"{json_file}: `images` is empty, expected at least one image")
    if any(isinstance(one, dict) and "segments_info" in one for one in lists["annotations"]):
        raise ValueError(
            f"{json_file} is a panoptic JSON already (its annotations have segments_info): it needs no conversion; "
            "tools/validate_dataset.py looks whether it is a good one"
        )
    return lists


def _read_categories(entries: list[Any], json_file: str) -> list[dict[str, Any]]:
    categories: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        place = f"{json_file}: {_named('category', entry, position)}"
        number = take(entry, "id", CATEGORY_ID, place)
        take(entry, "name", TEXT, place)
        if number in categories:
            raise ValueError(f"{place}: an earlier category, {categories[number]['name']!r}, has this id, too")
        categories[number] = {key: entry[key] for key in ("id", "name", "supercategory") if key in entry}
    return list(categories.values())


def _read_images(entries: list[Any], json_file: str) -> dict[int | str, SourceImage]:
    images: dict[int | str, SourceImage] = {}
    for position, entry in enumerate(entries):
        place = f"{json_file}: {_named('image', entry, position)}"
        number = take(entry, "id", IMAGE_ID, place)
        file_name = take(entry, "file_name", TEXT, place)
        try:
            png_name(file_name)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
        if image_key(number) in images:
            earlier = images[image_key(number)].image["file_name"]
            raise ValueError(f"{place}, {file_name!r}: an earlier image, {earlier!r}, has this id, too")
        height, width = (int(take(entry, key, SIDE, place)) for key in ("height", "width"))
        images[image_key(number)] = SourceImage(
            {"id": number, "file_name": file_name, "height": height, "width": width}, []
        )
    return images


def _named(kind: str, entry: Any, position: int) -> str:
    """What a message calls an entry: by its id if it has one, else by its place in the list."""
    has_id = isinstance(entry, dict) and "id" in entry
    return f"{kind} {shorten(entry['id'])}" if has_id else f"{kind} number {position + 1}"


def _check_shape(shape: Any, size: tuple[int, int], place: str) -> None:
    """Raise a ValueError unless a `segmentation` is nothing, polygons or RLE in an image of (height, width)."""
    if isinstance(shape, dict) and shape:
        check_rle(shape, size, place)
    elif isinstance(shape, list):
        check_polygons(shape, place)
    elif shape not in (None, {}):
        raise ValueError(f"{place}: 'segmentation' is {shorten(shape)}, expected a list of polygons, or RLE")


def _region(annotation: dict[str, Any], size: tuple[int, int], crowds_as_things: bool) -> Region | None:
    """Polygons, or RLE of either kind, of an image of (height, width); None if there is neither."""
    shape, category_id = annotation.get("segmentation"), annotation["category_id"]
    is_crowd = bool(annotation.get("iscrowd", 0)) and not crowds_as_things
    if not shape:
        return None
    if isinstance(shape, list):
        return region_of_polygons(shape, size, category_id, is_crowd)
    rle = {"size": list(size), "counts": shape["counts"]}
    if isinstance(shape["counts"], list):
        rle = coco_mask.frPyObjects(rle, *size)
    return Region(rle, category_id, is_crowd)
