"""Read a folder of labelme's JSON files, one per image."""

from __future__ import annotations

import base64
import io
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from psf.data.files import is_hidden, read_json
from psf.data.images import check_pixels
from psf.data.own_files import own_path
from psf.data.panoptic_format import LIST, NAME, SIDE, TEXT, are_coordinates, name_notes, shorten, take
from psf.errors import UserError
from psf.tools.dataset_conversion.conversion import png_name
from psf.tools.dataset_conversion.regions import (
    Region,
    check_outlines,
    ellipse_outline,
    encode_mask,
    join_regions,
    paste,
    rectangle_outline,
    region_of_polygons,
)
from psf.tools.dataset_conversion.sources import Source, SourceImage, check_distinct, join_categories

__all__ = ["read_labelme"]

_IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # labelme itself stores JPEG and PNG
_NUM_POINTS = {"circle": 2, "oriented_rectangle": 4, "rotation": 4, "quadrilateral": 4, "mask": 2}
# Kinds whose points are the corners, including rectangles with more than two points; rotation and quadrilateral are
# X-AnyLabeling's.
_POLYGONS = ("polygon", "rectangle", "oriented_rectangle", "rotation", "quadrilateral")
_WITHOUT_AREA = ("point", "points", "line", "linestrip")
_KINDS = (*_POLYGONS, "circle", "mask", *_WITHOUT_AREA)


def read_labelme(
    folder: Path,
    stuff_names: Mapping[int, str],
    *,
    thing_names: Mapping[int, str],
    image_root: Path | None = None,
    extract_to: Path | None = None,
) -> tuple[Source, dict[int, int]]:
    """Read all labelme files below a folder, sorted by name; image ids count from 1.

    Polygons, rectangles (upright or not), quadrilaterals, circles and masks are used; lines and points have no area.
    Shapes with the same label and group_id are one region. Hidden files are passed over (`is_hidden`). If all images
    are only in the labelme files (imageData), they are extracted. Otherwise a missing image is noted: the set can be
    trained only once it is there.

    Args:
        stuff_names: labels of stuff; see `join_categories`.
        thing_names: labels of things, by id; empty: all other labels in the files, in alphabetical order.
        image_root: folder to which file names are relative; None: `folder`.
        extract_to: folder for extracted images; None: images are not extracted.

    Returns:
        The source, and id in `stuff_names` -> category id.

    Raises:
        UserError: if there is no labelme file, a file is damaged, lacks a key or has a wrong value (naming file and
            shape), or a label or a kind of shape is unknown.
    """
    paths = sorted(path for path in folder.rglob("*.json") if path.is_file() and not is_hidden(path, folder))
    contents = {path: _read(path) for path in paths}
    if not any(contents.values()):
        raise UserError(f"{folder}: found no labelme JSON (expected the keys shapes and imagePath)")
    labels = {shape["label"] for content in contents.values() if content for shape in content["shapes"]}
    thing_names = _name_things(folder, labels, stuff_names, thing_names)
    categories, category_of = join_categories(
        [{"id": number, "name": name} for number, name in thing_names.items()], stuff_names
    )
    id_of = {category["name"]: category["id"] for category in categories}
    used = {path: content for path, content in contents.items() if content}
    root = image_root or folder
    images = [
        SourceImage(_image(path, content, number, root), content["shapes"])
        for number, (path, content) in enumerate(used.items(), 1)
    ]
    check_distinct(images, str(folder))
    are_extracted, notes = _find_images(used, [item.image for item in images], root, extract_to)
    notes.update(name_notes([category["name"] for category in categories]))

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        return _regions(item.shapes, (item.image["height"], item.image["width"]), id_of)

    return Source(categories, images, regions, notes, extract_to if are_extracted else None), category_of


def _name_things(
    folder: Path, labels: set[str], stuff_names: Mapping[int, str], thing_names: Mapping[int, str]
) -> Mapping[int, str]:
    """The names of things by id, from all labels; a UserError if a label is unknown, or there is no class."""
    if thing_names:
        unknown = sorted(labels - {*thing_names.values(), *stuff_names.values()})
        if unknown:
            raise UserError(
                f"{folder}: the labels {', '.join(map(repr, unknown))} are neither thing nor semantic labels; add them"
            )
        return thing_names
    names = dict(enumerate(sorted(labels - set(stuff_names.values())), 1))
    if not names and not stuff_names:
        raise UserError(f"{folder}: no file has a shape, expected at least one class")
    return names


def _find_images(
    contents: Mapping[Path, Mapping[str, Any]], images: Sequence[Mapping[str, Any]], root: Path, extract_to: Path | None
) -> tuple[bool, Counter[str]]:
    """Look for the images below `root`; extract all of them if all are only in the labelme files.

    Returns:
        Whether they were extracted, and notes.
    """
    absent = [not (root / image["file_name"]).is_file() for image in images]
    has_data = [content["has_data"] for content in contents.values()]
    if extract_to is not None and all(absent) and all(has_data):
        for path, image in zip(contents, images, strict=True):
            _extract(path, image, extract_to)
        return True, Counter({f"images were extracted from the labelme files to {extract_to}": len(images)})
    notes = Counter[str]()
    for is_absent, is_stored in zip(absent, has_data, strict=True):
        place = "in the imageData of their labelme file" if is_stored else "missing"
        if is_absent:
            notes[f"images that are {place}: save them below {root} before training"] += 1
    return False, notes


def _extract(path: Path, image: Mapping[str, Any], folder: Path) -> None:
    """Write the image in a labelme file to a folder; a UserError if it is damaged or has another size."""
    size = (image["height"], image["width"])
    try:
        data = base64.b64decode(read_json(path)["imageData"])
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as picture:
            check_pixels("the image", picture.height, picture.width)
            picture.load()
    except (TypeError, ValueError, SyntaxError, OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: its imageData is damaged ({error}); save the image as a file") from error
    if (picture.height, picture.width) != size:
        raise UserError(
            f"{path}: the image in imageData has {picture.width} x {picture.height} pixels, but imageWidth x "
            f"imageHeight is {size[1]} x {size[0]}; save it with a recent labelme"
        )
    with own_path(folder / image["file_name"]) as draft:
        draft.write_bytes(data)


def _read(path: Path) -> dict[str, Any] | None:
    """A labelme file without its image; None for a JSON of another kind."""
    content = read_json(path)
    if not isinstance(content, dict) or not {"shapes", "imagePath"} <= content.keys():
        return None
    place = str(path)
    for position, shape in enumerate(take(content, "shapes", LIST, place), 1):
        _check_shape(shape, f"{path}: shape {position}")
    missing = {"imageHeight", "imageWidth"} - {key for key, value in content.items() if value}
    if missing:
        raise UserError(f"{path}: {' and '.join(sorted(missing))} missing; save it with a recent labelme")
    height, width = (int(take(content, key, SIDE, place)) for key in ("imageHeight", "imageWidth"))
    check_pixels(place, height, width)
    image_path = take(content, "imagePath", TEXT, place)
    return {
        "shapes": content["shapes"],
        "imagePath": image_path,
        "imageHeight": height,
        "imageWidth": width,
        "has_data": bool(content.get("imageData")),
    }


def _check_shape(shape: Any, place: str) -> None:
    """Raise a UserError that begins with `place`, unless the shape has a label, points and a known kind."""
    label, points = take(shape, "label", NAME, place), take(shape, "points", LIST, place)
    place = f"{place} ({shorten(label)})"
    kind = shape.get("shape_type") or "polygon"
    if kind not in _KINDS:
        raise UserError(f"{place}: 'shape_type' is {shorten(kind)}, expected one of {', '.join(_KINDS)}")
    if not all(are_coordinates(point) and len(point) == 2 for point in points):
        raise UserError(f"{place}: 'points' is {shorten(points)}, expected [[x, y], ...] of finite numbers")
    if not isinstance(shape.get("group_id"), (int, str, type(None))):
        raise UserError(f"{place}: 'group_id' is {shorten(shape['group_id'])}, expected a whole number or null")
    number = _NUM_POINTS.get(kind, len(points))
    if len(points) != number:
        raise UserError(f"{place}: {kind} with {len(points)} points, expected {number}")
    check_outlines([_outline(kind, points)], place)


def _image(path: Path, content: dict[str, Any], number: int, root: Path) -> dict[str, Any]:
    file = path.parent / content["imagePath"].replace("\\", "/")
    name = Path(os.path.relpath(file, root)).as_posix()
    if name.split("/")[0] == "..":
        raise UserError(f"{path}: its image {file} is not below {root}; set --image-root to the folder of all images")
    png_name(name, f"{path}: imagePath {shorten(content['imagePath'])}")
    return {"id": number, "file_name": name, "height": content["imageHeight"], "width": content["imageWidth"]}


def _regions(
    shapes: list[dict[str, Any]], size: tuple[int, int], id_of: Mapping[str, int]
) -> tuple[list[Region], Counter[str]]:
    found: list[tuple[Hashable, Region]] = []
    notes = Counter[str]()
    for shape in shapes:
        region = _region(shape, size, id_of[shape["label"]])
        if region is None:
            notes[f"shapes without an area ({shape.get('shape_type')}), dropped"] += 1
            continue
        group = shape.get("group_id")
        found.append((None if group is None else (shape["label"], group), region))
    return join_regions(found), notes


def _region(shape: dict[str, Any], size: tuple[int, int], category_id: int) -> Region | None:
    kind = shape.get("shape_type") or "polygon"
    if kind == "mask":
        return Region(_mask_rle(shape, np.array(shape["points"], dtype=np.float64), size), category_id)
    return region_of_polygons([_outline(kind, shape["points"])], size, category_id)


def _outline(kind: str, corners: list[list[float]]) -> list[float]:
    """The polygon [x, y, x, y, ...] of a shape; empty for a mask, and for a shape without an area."""
    points = np.array(corners, dtype=np.float64).reshape(-1, 2)
    if kind == "mask" or kind in _WITHOUT_AREA:
        return []
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = rectangle_outline(x0, y0, x1 - x0, y1 - y0)
    elif kind == "circle":
        radius = np.hypot(*(points[1] - points[0]))
        points = ellipse_outline(points[0, 0], points[0, 1], radius, radius)
    polygon: list[float] = points.ravel().tolist()
    return polygon


def _mask_rle(shape: dict[str, Any], points: np.ndarray, size: tuple[int, int]) -> dict[str, Any]:
    """Decode a mask, a PNG in base64 of the box between its two points."""
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=("PNG",)) as image:
            check_pixels("its mask", image.height, image.width)
            part = np.asarray(image.convert("L")) > 0
    except Exception as error:  # no mask, no base64, or any error of Pillow
        raise UserError(f"a mask labelled {shape['label']!r} is damaged ({error})") from error
    left, top = points.min(axis=0).round().astype(int).tolist()
    whole: np.ndarray = np.zeros(size, dtype=np.uint8)
    paste(whole, part, top, left)
    return encode_mask(whole)
