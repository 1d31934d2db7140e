"""Read an instances JSON in COCO's format, the export format of CVAT and many other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from psf.data.files import read_json
from psf.data.images import check_pixels
from psf.data.panoptic_format import (
    FLAG,
    IMAGE_ID,
    INTEGER,
    LIST,
    NAME,
    SIDE,
    TEXT,
    are_coordinates,
    image_key,
    name_notes,
    shorten,
    take,
    with_slashes,
)
from psf.errors import UserError
from psf.tools.dataset_conversion.conversion import png_name
from psf.tools.dataset_conversion.regions import Region, check_outlines, region_of_polygons
from psf.tools.dataset_conversion.sources import Source, SourceImage, check_distinct, join_categories

__all__ = ["check_rle", "read_instances"]

_WITHOUT_AREA = "annotations without an area (boxes, points, lines), dropped"
_MAX_DIGITS = 7  # of a run in compressed RLE: no run has 2^34 pixels


def read_instances(
    json_file: Path, stuff_names: Mapping[int, str], *, crowds_as_things: bool = False
) -> tuple[Source, dict[int, int]]:
    """Read an instances JSON: every category is a thing, except those in `stuff_names`.

    Args:
        json_file: `images`, `annotations` with polygons or RLE, `categories`.
        stuff_names: see `join_categories`.
        crowds_as_things: treat annotations with iscrowd as single things.

    Returns:
        The source, and id in `stuff_names` -> category id.

    Raises:
        UserError: naming the file and the entry, if the file is missing, damaged or not an instances JSON, lists no
            image or repeats an id, or if an entry lacks a key, has a wrong value or refers to an unknown id.
    """
    content = _read(json_file)
    own_categories = _read_categories(content["categories"], str(json_file))
    categories, category_of = join_categories(own_categories, stuff_names)
    known = {category["id"] for category in categories}
    if not known:
        raise UserError(f"{json_file}: `categories` is empty, expected at least one category")
    images = _read_images(content["images"], str(json_file))
    check_distinct(list(images.values()), str(json_file))
    seen: set[int | str] = set()
    for position, annotation in enumerate(content["annotations"]):
        place = f"{json_file}: {_named('annotation', annotation, position)}"
        if isinstance(annotation, dict) and annotation.get("id") is not None:
            own_id = image_key(take(annotation, "id", IMAGE_ID, place))
            if own_id in seen:
                raise UserError(
                    f"{place}: an earlier annotation has the same id; give each annotation an id of its own"
                )
            seen.add(own_id)
        image_id = take(annotation, "image_id", IMAGE_ID, place)
        category_id = take(annotation, "category_id", INTEGER, place)
        item = images.get(image_key(image_id))
        if item is None:
            raise UserError(f"{place} refers to the image {shorten(image_id)}, which `images` does not list")
        if category_id not in known:
            raise UserError(f"{place} has the category {category_id!r}, expected one of {sorted(known)}")
        if "iscrowd" in annotation:
            take(annotation, "iscrowd", FLAG, place)
        _check_shape(annotation.get("segmentation"), (item.image["height"], item.image["width"]), place)
        item.shapes.append(annotation)

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        size = (item.image["height"], item.image["width"])
        found = [_region(annotation, size, crowds_as_things) for annotation in item.shapes]
        kept = [region for region in found if region is not None]
        return kept, Counter({_WITHOUT_AREA: len(found) - len(kept)} if len(kept) < len(found) else {})

    notes = name_notes([category["name"] for category in categories])
    return Source(categories, list(images.values()), regions, notes), category_of


def _read(json_file: Path) -> dict[str, list[Any]]:
    """The three lists of the JSON."""
    content = read_json(json_file)
    keys = ("images", "annotations", "categories")
    missing = sorted(set(keys) - set(content if isinstance(content, dict) else ()))
    if missing:
        raise UserError(f"{json_file}: not an instances JSON in COCO's format, missing: {', '.join(missing)}")
    lists = {key: take(content, key, LIST, str(json_file)) for key in keys}
    if not lists["images"]:
        raise UserError(f"{json_file}: `images` is empty, expected at least one image")
    if any(isinstance(one, dict) and "segments_info" in one for one in lists["annotations"]):
        raise UserError(
            f"{json_file} is a panoptic JSON already (its annotations have segments_info): it needs no conversion; "
            "check it with psf validate"
        )
    return lists


def _read_categories(entries: list[Any], json_file: str) -> list[dict[str, Any]]:
    categories: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        place = f"{json_file}: {_named('category', entry, position)}"
        number = take(entry, "id", INTEGER, place)
        take(entry, "name", NAME, place)
        if number in categories:
            raise UserError(f"{place}: an earlier category, {categories[number]['name']!r}, has the same id")
        categories[number] = {key: entry[key] for key in ("id", "name", "supercategory") if key in entry}
    return list(categories.values())


def _read_images(entries: list[Any], json_file: str) -> dict[int | str, SourceImage]:
    images: dict[int | str, SourceImage] = {}
    with_slashes(entries)
    for position, entry in enumerate(entries):
        place = f"{json_file}: {_named('image', entry, position)}"
        number = take(entry, "id", IMAGE_ID, place)
        file_name = take(entry, "file_name", TEXT, place)
        png_name(file_name, place)
        if image_key(number) in images:
            earlier = images[image_key(number)].image["file_name"]
            raise UserError(f"{place}, {shorten(file_name)}: an earlier image, {shorten(earlier)}, has the same id")
        height, width = (int(take(entry, key, SIDE, place)) for key in ("height", "width"))
        check_pixels(place, height, width)
        images[image_key(number)] = SourceImage(
            {"id": number, "file_name": file_name, "height": height, "width": width}, []
        )
    return images


def _named(kind: str, entry: Any, position: int) -> str:
    """Name of an entry in messages: its id or, without an id, its position in the list."""
    has_id = isinstance(entry, dict) and "id" in entry
    return f"{kind} {shorten(entry['id'])}" if has_id else f"{kind} number {position + 1}"


def _check_shape(shape: Any, size: tuple[int, int], place: str) -> None:
    """Raise a UserError unless a `segmentation` is empty, polygons or RLE in an image of (height, width)."""
    if isinstance(shape, dict) and shape:
        check_rle(shape, size, place)
    elif isinstance(shape, list):
        _check_polygons(shape, place)
    elif shape not in (None, {}):
        raise UserError(f"{place}: 'segmentation' is {shorten(shape)}, expected a list of polygons, or RLE")


def _check_polygons(polygons: Sequence[Any], place: str) -> None:
    """Raise a UserError that begins with `place`, unless these are [[x, y, x, y, ...], ...].

    Polygons with fewer than three points pass, except a list of single points: [[x, y], [x, y], ...] is one polygon in
    a form that is not COCO's.
    """
    wrong = [one for one in polygons if not are_coordinates(one) or len(one) % 2]
    if not wrong and len(polygons) > 1 and all(len(one) == 2 for one in polygons):
        wrong = [polygons]
    if wrong:
        raise UserError(
            f"{place}: 'segmentation' has {shorten(wrong[0])} for a polygon; expected a list of polygons, each "
            "[x, y, x, y, ...] of finite numbers"
        )
    check_outlines(polygons, place)


def check_rle(rle: Mapping[str, Any], size: tuple[int, int], place: str) -> None:
    """Raise a UserError that begins with `place`, unless this is RLE of a mask of (height, width)."""
    if rle.get("size") != list(size):
        raise UserError(
            f"{place} has a mask of {shorten(rle.get('size'))}, but the image has {list(size)} (height, width)"
        )
    counts = rle.get("counts")
    if isinstance(counts, str):
        runs = _decode_runs(counts)
    else:
        runs = counts if isinstance(counts, list) and all(type(run) is int for run in counts) else [-1]
    if min(runs, default=-1) < 0 or sum(runs) != size[0] * size[1]:
        raise UserError(
            f"{place}: the mask is damaged, its 'counts' are {shorten(counts)}; expected runs with a sum of "
            f"{size[0] * size[1]} pixels"
        )


def _decode_runs(text: str) -> list[int]:
    """Decode run lengths of compressed RLE: 5-bit digits, lowest first; from the fourth run on, differences.

    Damaged text has no runs.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64 or shift >= 5 * _MAX_DIGITS:
            return []
        value |= (digit & 0x1F) << shift
        shift += 5
        if not digit & 0x20:  # the number's last digit
            if digit & 0x10:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [] if shift else runs


def _region(annotation: dict[str, Any], size: tuple[int, int], crowds_as_things: bool) -> Region | None:
    """The region of polygons or RLE (compressed or not) in an image of (height, width); None if empty."""
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
