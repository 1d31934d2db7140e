"""Read a project in Supervisely's format: meta.json, and DATASET/ann/IMAGE.json for DATASET/img/IMAGE."""

from __future__ import annotations

import base64
import binascii
import io
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from psf.data.files import is_hidden, read_json
from psf.data.images import check_pixels
from psf.data.panoptic_format import LIST, NAME, OBJECT, SIDE, TEXT, are_coordinates, name_notes, shorten, take
from psf.errors import UserError
from psf.tools.dataset_conversion.conversion import png_name
from psf.tools.dataset_conversion.regions import Region, encode_mask, paste
from psf.tools.dataset_conversion.sources import (
    Source,
    SourceImage,
    check_distinct,
    count_missing,
    named_categories,
)

__all__ = ["read_supervisely"]

_WITHOUT_AREA = ("point", "line", "graph", "cuboid", "cuboid_3d", "cuboid_2d")
_WITH_AREA = ("bitmap", "polygon", "multipolygon", "rectangle")
_PNG_START = b"\x89PNG"
# A PNG can be larger than its pixels: filter bytes, chunks, a palette.
_BYTES_PER_PIXEL, _BYTES_OF_CHUNKS = 5, 65_536


def read_supervisely(folder: Path, *, things: Sequence[str] | None = None) -> Source:
    """Read a project, or one of its datasets (a folder beside meta.json); image ids count from 1.

    Bitmaps, polygons with holes, multipolygons and rectangles are used; points, lines, graphs and cuboids have no area.
    Category ids count from 1 in the order of meta.json, so that all datasets of a project have the same ones.

    Args:
        things: titles of the thing classes; None: all.

    Raises:
        UserError: naming the file and the object, if there is no project, a file is damaged, lacks a key or has a wrong
            value, or a class is unknown.
    """
    root = next((path for path in (folder, folder.absolute().parent) if (path / "meta.json").is_file()), None)
    if root is None:
        raise UserError(f"{folder}: found no meta.json in it or beside it, expected a project in Supervisely's format")
    names = _read_classes(root / "meta.json")
    categories = named_categories(list(names), things, str(root / "meta.json"))
    files = sorted(path for path in folder.rglob("ann/*.json") if path.is_file() and not is_hidden(path, folder))
    if not files:
        raise UserError(f"{folder}: found no file DATASET/ann/IMAGE.json")
    images = [_read_image(path, number, folder, names) for number, path in enumerate(files, 1)]
    check_distinct(images, str(folder))
    notes = name_notes(list(names)) + count_missing(images, folder)

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        return _regions(item, names)

    return Source(categories, images, regions, notes, image_root=folder)


def _read_classes(path: Path) -> dict[str, int]:
    """Title -> category id."""
    names: dict[str, int] = {}
    for position, entry in enumerate(take(read_json(path), "classes", LIST, str(path)), 1):
        title = take(entry, "title", NAME, f"{path}: class {position}")
        if title in names:
            raise UserError(f"{path}: class {position}: an earlier class is called {title!r}, too")
        names[title] = position
    if not names:
        raise UserError(f"{path}: `classes` is empty, expected at least one class")
    return names


def _read_image(path: Path, number: int, folder: Path, names: Mapping[str, int]) -> SourceImage:
    content = read_json(path)
    size = take(content, "size", OBJECT, str(path))
    height, width = (int(take(size, key, SIDE, f"{path}: size")) for key in ("height", "width"))
    check_pixels(str(path), height, width)
    file_name = (path.parent.parent / "img" / path.stem).relative_to(folder).as_posix()
    png_name(file_name, str(path))
    objects = take(content, "objects", LIST, str(path))
    for position, one in enumerate(objects, 1):
        _check_object(one, f"{path}: object {position}", names)
    return SourceImage({"id": number, "file_name": file_name, "height": height, "width": width}, objects)


def _check_object(one: Any, place: str, names: Mapping[str, int]) -> None:
    title = take(one, "classTitle", TEXT, place)
    place = f"{place} ({shorten(title)})"
    if title not in names:
        raise UserError(f"{place}: meta.json has no such class, expected one of {', '.join(list(names)[:10])}")
    kind = take(one, "geometryType", TEXT, place)
    if kind not in (*_WITH_AREA, *_WITHOUT_AREA):
        raise UserError(f"{place}: 'geometryType' is {shorten(kind)}, expected one of {', '.join(_WITH_AREA)}")
    if kind == "bitmap":
        bitmap = take(one, "bitmap", OBJECT, place)
        take(bitmap, "data", TEXT, f"{place}: bitmap")
        origin = take(bitmap, "origin", LIST, f"{place}: bitmap")
        if len(origin) != 2 or not are_coordinates(origin) or not all(value % 1 == 0 for value in origin):
            raise UserError(f"{place}: 'origin' is {shorten(origin)}, expected [x, y] in whole pixels")
    elif kind in _WITH_AREA:
        _polygons(one, place)


def _polygons(one: Mapping[str, Any], place: str) -> list[list[np.ndarray]]:
    """Outline and holes of each part of a polygon, multipolygon or rectangle, each (P, 2) x, y in whole pixels."""
    is_multiple = one["geometryType"] == "multipolygon"
    parts = take(one, "parts", LIST, place) if is_multiple else [take(one, "points", OBJECT, place)]
    found = []
    for part in parts:
        exterior = _points(take(part, "exterior", LIST, place), place)
        holes = [_points(hole, place) for hole in take({"interior": [], **part}, "interior", LIST, place)]
        if one["geometryType"] == "rectangle":
            if len(exterior) != 2:
                raise UserError(f"{place}: a rectangle with {len(exterior)} points, expected 2")
            (x0, y0), (x1, y1) = exterior
            exterior = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], dtype=np.int32)
        found.append([exterior, *holes])
    return found


def _points(points: Any, place: str) -> np.ndarray:
    if not isinstance(points, list) or not all(are_coordinates(point) and len(point) == 2 for point in points):
        raise UserError(f"{place}: found the points {shorten(points)}, expected [[x, y], ...] of finite numbers")
    return np.array(points, dtype=np.float64).reshape(-1, 2).round().astype(np.int32)


def _regions(item: SourceImage, names: Mapping[str, int]) -> tuple[list[Region], Counter[str]]:
    size = (item.image["height"], item.image["width"])
    regions: list[Region] = []
    notes = Counter[str]()
    for one in item.shapes:
        kind = one["geometryType"]
        mask: np.ndarray = np.zeros(size, dtype=np.uint8)
        if kind == "bitmap":
            left, top = map(int, one["bitmap"]["origin"])
            paste(mask, _read_bitmap(one, size), top, left)
        elif kind in _WITH_AREA:
            for part in _polygons(one, "an object"):
                mask |= _fill(part, size)
        if mask.any():
            regions.append(Region(encode_mask(mask), names[one["classTitle"]]))
        else:
            notes[f"objects without an area ({kind}), dropped"] += 1
    return regions, notes


def _fill(part: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 of an outline and its holes, as Supervisely draws them: the points are pixels of the object."""
    mask: np.ndarray = np.zeros(size, dtype=np.uint8)
    exterior, *holes = part
    if len(exterior) >= 3:
        cv2.fillPoly(mask, [exterior], (1,))
        cv2.fillPoly(mask, [hole for hole in holes if len(hole) >= 3], (0,))
    return mask


def _read_bitmap(one: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """(h, w) bool of a bitmap: base64 of a PNG, compressed by zlib or not; a pixel that is not transparent is set."""
    place = f"a bitmap of {one['classTitle']!r}"
    most = size[0] * size[1] * _BYTES_PER_PIXEL + _BYTES_OF_CHUNKS
    try:
        data = base64.b64decode(one["bitmap"]["data"])
        if not data.startswith(_PNG_START):
            stream = zlib.decompressobj()
            data = stream.decompress(data, most)
            if stream.unconsumed_tail or not stream.eof:
                raise UserError(f"{place}: its data is cut off, or has more than {most} bytes; expected a PNG in zlib")
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.height > size[0] or image.width > size[1]:
                raise UserError(f"{place} is {image.width} x {image.height}, its image {size[1]} x {size[0]} pixels")
            if "transparency" in image.info or image.mode in ("RGBA", "LA"):
                return np.asarray(image.convert("RGBA"))[..., 3] > 0
            if image.mode in ("1", "L", "P", "I") or image.mode.startswith("I;16"):
                return np.asarray(image) > 0
    except UserError:
        raise
    except (binascii.Error, zlib.error) as error:
        raise UserError(f"{place} is damaged ({error}); expected base64 of a PNG in zlib") from error
    except Exception as error:  # Pillow may raise any error for damaged data
        raise UserError(f"{place} is damaged ({error}); expected a PNG") from error
    raise UserError(f"{place}: found a PNG of mode {image.mode}, expected transparency or one number per pixel")
