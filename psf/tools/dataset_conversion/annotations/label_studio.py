"""Read Label Studio's JSON export (labelstud.io, "Label Studio Task Format")."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import numpy as np

from psf.data.files import read_json
from psf.data.images import check_pixels, image_size, image_suffixes
from psf.data.panoptic_format import LIST, NAME, OBJECT, SIDE, are_coordinates, name_notes, shorten, take
from psf.errors import UserError
from psf.output.annotations import decode_brush
from psf.tools.dataset_conversion.classes import Classes
from psf.tools.dataset_conversion.conversion import png_name
from psf.tools.dataset_conversion.regions import (
    Region,
    check_outlines,
    ellipse_outline,
    encode_mask,
    rectangle_outline,
    region_of_polygons,
    rotate_outline,
)
from psf.tools.dataset_conversion.sources import (
    Source,
    SourceImage,
    check_distinct,
    count_missing,
    named_categories,
)

__all__ = ["read_label_studio"]

_NUMBERS = {
    "rectanglelabels": ("x", "y", "width", "height"),
    "ellipselabels": ("x", "y", "radiusX", "radiusY"),
}
_WITH_AREA = ("brushlabels", "polygonlabels", *_NUMBERS)
_UPLOADED = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio's name of an uploaded file


class _Task(NamedTuple):
    """A task, and the regions of the annotation that is used."""

    place: str
    address: str
    regions: list[Any]


def read_label_studio(
    json_file: Path, *, image_root: Path, things: Sequence[str] | None = None, classes: Classes | None = None
) -> Source:
    """Read an export of the kind "JSON"; image ids count from 1.

    Brush masks, polygons, rectangles and ellipses are used, rotated or not. Of several annotations of a task the last
    one counts that is not skipped; tasks without an annotation are left out. If no task has an annotation, the
    predictions are used. Category ids count from 1 in the alphabetical order of the labels.

    Args:
        image_root: folder in which the images are looked for: by as much of the end of their address as is there, and
            without the prefix that Label Studio gives to uploaded files.
        things: labels of the things; None: all.
        classes: a table of classes, in place of the labels in the file and `things`.

    Raises:
        UserError: naming the file, task and region, if the file is missing or no such export, or if an entry lacks a
            key or has a wrong value.
    """
    content = read_json(json_file)
    if not isinstance(content, list) or not all(isinstance(one, dict) and "data" in one for one in content):
        raise UserError(f"{json_file}: expected a list of tasks: an export of Label Studio of the kind JSON")
    tasks, notes = _choose(content, str(json_file))
    images: list[SourceImage] = []
    for task in tasks:
        item = _read_task(task, image_root, len(images) + 1)
        if item is None:
            notes[f"tasks without a region whose image is not below {image_root}, skipped"] += 1
        else:
            images.append(item)
    if not images:
        raise UserError(f"{json_file}: found no task with an annotation or a prediction")
    check_distinct(images, str(json_file))
    labels = sorted({shape["label"] for item in images for shape in item.shapes if shape["label"]})
    if classes:
        classes.check_labels(labels, str(json_file))
    categories = classes.categories if classes else named_categories(labels, things, str(json_file))
    id_of = {category["name"]: category["id"] for category in categories}
    notes += name_notes([one["name"] for one in categories]) + count_missing(images, image_root)

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        return _regions(item, id_of)

    return Source(categories, images, regions, notes, image_root=image_root)


def _choose(content: Sequence[dict[str, Any]], json_file: str) -> tuple[list[_Task], Counter[str]]:
    """The tasks with the annotation that counts, and notes."""
    notes = Counter[str]()
    chosen: dict[str, list[_Task]] = {"annotations": [], "predictions": []}
    for position, entry in enumerate(content, 1):
        place = f"{json_file}: task {shorten(entry['id']) if 'id' in entry else position}"
        address = _address(take(entry, "data", OBJECT, place), place)
        for kind, tasks in chosen.items():
            results = [one for one in take({kind: [], **entry}, kind, LIST, place) if not _is_skipped(one, place)]
            if results:
                tasks.append(_Task(place, address, take(results[-1], "result", LIST, place)))
            if len(results) > 1 and kind == "annotations":
                notes["tasks with several annotations; the last one was used"] += 1
    if chosen["annotations"]:
        without = len(content) - len(chosen["annotations"])
        notes += Counter({"tasks without an annotation, skipped": without} if without else {})
        return chosen["annotations"], notes
    if chosen["predictions"]:
        notes["tasks without an annotation, so that their predictions are used"] = len(chosen["predictions"])
    return chosen["predictions"], notes


def _is_skipped(annotation: Any, place: str) -> bool:
    if not isinstance(annotation, dict):
        raise UserError(f"{place}: found {shorten(annotation)}, expected an annotation")
    return bool(annotation.get("was_cancelled"))


def _address(data: Mapping[str, Any], place: str) -> str:
    """The address of the task's image."""
    for key in sorted(data, key=lambda one: one != "image"):
        parts = _parts(data[key]) if isinstance(data[key], str) else []
        if parts and Path(parts[-1]).suffix.lower() in image_suffixes():
            return str(data[key])
    raise UserError(f"{place}: 'data' is {shorten(dict(data))}, expected the address of an image")


def _parts(address: str) -> list[str]:
    """Folders and name of a file: of a local file after `?d=`, otherwise of the path of the address."""
    _, mark, path = address.partition("?d=")
    try:
        path = unquote(path if mark else urlsplit(address).path)
    except ValueError:  # no valid address
        return []
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _find_file(address: str, root: Path) -> str:
    """The file of an address, relative to `root`: the longest end of it that is there, or else its last part."""
    parts = _parts(address)
    uploaded = _UPLOADED.fullmatch(parts[-1])
    names = [parts[-1], *([uploaded[1]] if uploaded else [])]
    for name in names:
        for start in range(len(parts)):
            candidate = "/".join([*parts[start:-1], name])
            if ".." not in parts and os.path.isfile(root / candidate):
                return candidate
    return names[-1]


def _read_task(task: _Task, root: Path, number: int) -> SourceImage | None:
    """None if nothing has the size of the image."""
    file_name = _find_file(task.address, root)
    png_name(file_name, task.place)
    shapes, size = [], None
    for position, region in enumerate(task.regions, 1):
        place = f"{task.place}, region {position}"
        if not isinstance(region, dict) or region.get("type") not in _WITH_AREA:
            shapes.append({"label": "", "type": region.get("type") if isinstance(region, dict) else None})
            continue
        own = tuple(int(take(region, f"original_{side}", SIDE, place)) for side in ("height", "width"))
        if size is not None and own != size:
            raise UserError(f"{place}: the image has {own} (height, width), expected {size} as of earlier regions")
        size = (own[0], own[1])
        check_pixels(place, *size)
        shapes.append(_read_region(region, size, place))
    if size is None:
        if not (root / file_name).is_file():
            return None
        size = image_size(str(root / file_name))
    return SourceImage({"id": number, "file_name": file_name, "height": size[0], "width": size[1]}, shapes)


def _read_region(region: Mapping[str, Any], size: tuple[int, int], place: str) -> dict[str, Any]:
    """Label and pixels of a region: the type, and `rle` or a polygon `points` in pixels."""
    kind = region["type"]
    value = take(region, "value", OBJECT, place)
    labels = take(value, kind, LIST, place)
    if len(labels) != 1 or not NAME.accepts(labels[0]):
        raise UserError(f"{place}: {kind!r} is {shorten(labels)}, expected one label")
    if region.get("image_rotation"):
        raise UserError(f"{place}: the image was turned for this region; turn the file, and draw the region again")
    if kind == "brushlabels":
        return {"label": labels[0], "type": kind, "rle": take(value, "rle", LIST, place), "place": place}
    if kind == "polygonlabels":
        points = take(value, "points", LIST, place)
        if not all(are_coordinates(point) and len(point) == 2 for point in points):
            raise UserError(f"{place}: 'points' is {shorten(points)}, expected [[x, y], ...] of finite numbers")
        outline = np.array(points, dtype=np.float64).reshape(-1, 2) * _pixels_of_percent(size)
    else:
        outline = _rotated(kind, value, size, place)
    polygon: list[float] = outline.ravel().tolist()
    check_outlines([polygon], place)
    return {"label": labels[0], "type": kind, "points": polygon}


def _pixels_of_percent(size: tuple[int, int]) -> np.ndarray:
    return np.array([size[1], size[0]]) / 100


def _rotated(kind: str, value: Mapping[str, Any], size: tuple[int, int], place: str) -> np.ndarray:
    """(P, 2) points of a rectangle or an ellipse in pixels."""
    numbers = [value.get(key) for key in _NUMBERS[kind]] + [value.get("rotation") or 0]
    if not are_coordinates(numbers):
        raise UserError(f"{place}: expected finite numbers for {', '.join(_NUMBERS[kind])}")
    scale_x, scale_y = _pixels_of_percent(size)
    a, b, c, d, rotation = (float(number) for number in numbers)
    # Rectangles turn around their upper left corner, ellipses around their center.
    make = rectangle_outline if kind == "rectanglelabels" else ellipse_outline
    points = make(a * scale_x, b * scale_y, c * scale_x, d * scale_y)
    return rotate_outline(points, rotation, (a * scale_x, b * scale_y))


def _regions(item: SourceImage, id_of: Mapping[str, int]) -> tuple[list[Region], Counter[str]]:
    size = (item.image["height"], item.image["width"])
    regions, notes = [], Counter[str]()
    for shape in item.shapes:
        region = None
        if "rle" in shape:
            try:
                mask = decode_brush(shape["rle"], size)
            except UserError as error:
                raise UserError(f"{shape['place']}: {error}") from error
            region = Region(encode_mask(mask), id_of[shape["label"]]) if mask.any() else None
        elif "points" in shape:
            region = region_of_polygons([shape["points"]], size, id_of[shape["label"]])
        if region is None:
            notes[f"regions without an area ({shorten(shape['type'])}), dropped"] += 1
        else:
            regions.append(region)
    return regions, notes
