"""Read the XML "CVAT for images 1.1" (docs.cvat.ai, "XML annotation format")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from xml.parsers import expat

import numpy as np

from psf.data.files import check_regular
from psf.data.images import check_pixels
from psf.data.panoptic_format import NAME, SIDE, are_coordinates, name_notes, parse_number, shorten
from psf.errors import UserError
from psf.tools.dataset_conversion.classes import Classes
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
    rotate_outline,
)
from psf.tools.dataset_conversion.sources import (
    Source,
    SourceImage,
    check_distinct,
    count_missing,
    named_categories,
)

__all__ = ["read_cvat"]

_MOST_BYTES = 4_000_000_000
_MOST_TAG_BYTES = 20_000_000  # of a tag with its attributes, such as millions of runs of a mask
_CHUNK = 2**20  # bytes; Python's parser divides larger ones
_WITH_AREA = ("mask", "polygon", "box", "ellipse")
_WITHOUT_AREA = ("polyline", "points", "cuboid", "skeleton")
_NUMBERS = {
    "mask": ("left", "top", "width", "height"),
    "box": ("xtl", "ytl", "xbr", "ybr"),
    "ellipse": ("cx", "cy", "rx", "ry"),
}


def read_cvat(
    xml_file: Path,
    *,
    image_root: Path | None = None,
    things: Sequence[str] | None = None,
    classes: Classes | None = None,
) -> Source:
    """Read an export; image ids count from 1.

    Masks, polygons, boxes and ellipses are used, rotated or not, in the order of z_order; polylines, points, cuboids
    and skeletons have no area. Shapes with one label and one group_id are one region. Category ids count from 1 in the
    order of the labels in the file.

    Args:
        image_root: folder that the names of the images are relative to; None: unknown.
        things: labels of the things; None: all.
        classes: a table of classes, in place of the labels in the file and `things`.

    Raises:
        UserError: naming the file and the line, if the file is missing, no such XML or damaged, has a DOCTYPE, lists no
            image, or a shape lacks an attribute or has a wrong value.
    """
    reader = _Reader(xml_file)
    reader.read()
    labels = list(dict.fromkeys([*reader.labels, *reader.used_labels]))
    if classes:
        classes.check_labels(reader.used_labels, str(xml_file))
    categories = classes.categories if classes else named_categories(labels, things, str(xml_file))
    id_of = {category["name"]: category["id"] for category in categories}
    if not reader.images:
        raise UserError(f"{xml_file}: found no <image>, expected an export of the kind 'CVAT for images 1.1'")
    check_distinct(reader.images, str(xml_file))

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        return _regions(item, id_of)

    notes = name_notes([one["name"] for one in categories])
    notes += count_missing(reader.images, image_root) if image_root else Counter()
    return Source(categories, reader.images, regions, notes, image_root=image_root)


class _Reader:
    """Reads the file element by element.

    Attributes:
        labels: of the task or project, in order.
        used_labels: of shapes, in order.
        images: with their shapes: the attributes of the XML, and `kind`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._read_text
        # Entities, which can refer to files and grow without limit, are declared in a DOCTYPE.
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parents: list[str] = []
        self._text = ""
        self._label: str | None = None  # of the <label> that is read; parts of skeletons, with a <parent>, have none
        self._item: SourceImage | None = None
        self.labels: list[str] = []
        self.used_labels: dict[str, None] = {}
        self.images: list[SourceImage] = []

    def read(self) -> None:
        check_regular(self._path)
        try:
            if (size := self._path.stat().st_size) > _MOST_BYTES:
                raise UserError(f"{self._path}: found {size} bytes, expected at most {_MOST_BYTES}")
            with self._path.open("rb") as file:
                self._parse(file)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read ({error.strerror or error}); expected CVAT's XML") from error
        except UserError:
            raise
        except (expat.ExpatError, LookupError, ValueError) as error:  # the last two: of an encoding
            raise UserError(f"{self._path}: not a valid XML file ({error})") from error

    def _parse(self, file: BinaryIO) -> None:
        """Parse a file in chunks; many versions of expat read a tag that has not ended again with each of them."""
        done = 0
        while chunk := file.read(_CHUNK):
            self._parser.Parse(chunk, False)
            done += len(chunk)
            waiting = done - max(self._parser.CurrentByteIndex, 0)
            if waiting > _MOST_TAG_BYTES:
                raise UserError(f"{self._place}: found a tag of {waiting} bytes or more, expected CVAT's XML")
        self._parser.Parse(b"", True)

    @property
    def _place(self) -> str:
        return f"{self._path}, line {self._parser.CurrentLineNumber}"

    def _refuse_doctype(self, *_: object) -> None:
        raise UserError(f"{self._place}: found a DOCTYPE, which CVAT does not write; remove it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._parents and name != "annotations":
            raise UserError(f"{self._place}: found <{shorten(name)[1:-1]}>, expected <annotations> of CVAT")
        self._text = ""
        if name == "track":
            raise UserError(f"{self._place}: found a <track> of a video; export it as 'CVAT for images 1.1'")
        if name == "image" and len(self._parents) == 1:
            self._item = self._read_image(attributes)
        elif self._item is not None and self._parents[-1] == "image":
            if name in _WITH_AREA:
                self._item.shapes.append({**self._read_shape(name, attributes, self._item), "kind": name})
            elif name in _WITHOUT_AREA:
                self._item.shapes.append({"kind": name, "z_order": 0})
        self._parents.append(name)

    def _end(self, name: str) -> None:
        self._parents.pop()
        if name in ("name", "parent") and self._parents[-1:] == ["label"]:
            self._label = self._text.strip() if name == "name" else None
        elif name == "label" and self._label is not None:
            if not NAME.accepts(self._label):
                raise UserError(f"{self._place}: the label is {shorten(self._label)}, expected {NAME.expected}")
            self.labels.append(self._label)
            self._label = None
        elif name == "image" and len(self._parents) == 1 and self._item is not None:
            self.images.append(self._item)
            self._item = None

    def _read_text(self, text: str) -> None:
        self._text = (self._text + text)[:1000]  # longer than any name

    def _read_image(self, attributes: Mapping[str, str]) -> SourceImage:
        name = attributes.get("name", "")
        place = f"{self._place}: <image> {shorten(name)}"
        png_name(name, place)
        height, width = (_whole_number(attributes, key, place) for key in ("height", "width"))
        if not (SIDE.accepts(height) and SIDE.accepts(width)):
            raise UserError(f"{place}: found {width} x {height}, expected {SIDE.expected}")
        check_pixels(place, height, width)
        return SourceImage({"id": len(self.images) + 1, "file_name": name, "height": height, "width": width}, [])

    def _read_shape(self, kind: str, attributes: Mapping[str, str], item: SourceImage) -> dict[str, Any]:
        label = attributes.get("label", "")
        place = f"{self._place}: <{kind}> {shorten(label)}"
        if not NAME.accepts(label):
            raise UserError(f"{place}: the label is {shorten(label)}, expected {NAME.expected}")
        self.used_labels[label] = None
        shape: dict[str, Any] = {"label": label, "z_order": _whole_number(attributes, "z_order", place, default=0)}
        shape["group_id"] = _whole_number(attributes, "group_id", place, default=0)
        if kind == "mask":
            box = [_whole_number(attributes, key, place) for key in _NUMBERS["mask"]]
            return shape | {"box": box, "runs": _read_runs(attributes, place, box, item)}
        points = _read_outline(kind, attributes, place)
        check_outlines([points], place)
        return shape | {"points": points}


def _read_runs(attributes: Mapping[str, str], place: str, box: Sequence[int], item: SourceImage) -> np.ndarray:
    """Lengths of the runs of a mask, checked."""
    _, _, width, height = box
    if not (0 < width <= item.image["width"] and 0 < height <= item.image["height"]):
        raise UserError(
            f"{place}: found a mask of {width} x {height} pixels, expected at most those of the image, "
            f"{item.image['width']} x {item.image['height']}"
        )
    words = attributes.get("rle", "").split(",")
    if not all(word.strip().isdecimal() and len(word) < 16 for word in words):
        raise UserError(f"{place}: 'rle' is {shorten(attributes.get('rle'))}, expected numbers such as 3, 5, 7")
    runs = [int(word) for word in words]
    # Before NumPy adds them: it would count modulo 2^64, and repeat values beyond the end of its memory.
    if (number := sum(runs)) > width * height:
        raise UserError(f"{place}: 'rle' has {number} pixels, expected at most {width} x {height}")
    return np.array(runs, dtype=np.int64)


def _read_outline(kind: str, attributes: Mapping[str, str], place: str) -> list[float]:
    """The polygon [x, y, x, y, ...] of a shape."""
    if kind == "polygon":
        text = attributes.get("points", "")
        numbers = [parse_number(word) for pair in text.split(";") for word in pair.split(",")]
        if not are_coordinates(numbers) or len(numbers) % 2:
            raise UserError(f"{place}: 'points' is {shorten(text)}, expected x,y;x,y;... of finite numbers")
        return [float(number) for number in numbers if number is not None]
    keys = (*_NUMBERS[kind], "rotation")
    found = [parse_number({"rotation": "0", **attributes}.get(key, "")) for key in keys]
    if not are_coordinates(found):
        raise UserError(f"{place}: expected finite numbers for {', '.join(keys)}")
    a, b, c, d, rotation = (float(number) for number in found if number is not None)
    if kind == "box":
        points, center = rectangle_outline(a, b, c - a, d - b), ((a + c) / 2, (b + d) / 2)
    else:
        points, center = ellipse_outline(a, b, c, d), (a, b)
    outline: list[float] = rotate_outline(points, rotation, center).ravel().tolist()
    return outline


def _regions(item: SourceImage, id_of: Mapping[str, int]) -> tuple[list[Region], Counter[str]]:
    size = (item.image["height"], item.image["width"])
    found: list[tuple[Hashable, Region]] = []
    notes = Counter[str]()
    for shape in sorted(item.shapes, key=lambda one: int(one["z_order"])):
        region = None
        if shape["kind"] == "mask":
            region = Region(encode_mask(_draw_mask(shape, size)), id_of[shape["label"]])
        elif shape["kind"] in _WITH_AREA:
            region = region_of_polygons([shape["points"]], size, id_of[shape["label"]])
        if region is None:
            notes[f"shapes without an area ({shape['kind']}), dropped"] += 1
        else:
            found.append(((shape["label"], shape["group_id"]) if shape["group_id"] else None, region))
    return join_regions(found), notes


def _draw_mask(shape: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8: the runs are pixels outside and inside, in turn, row by row of the box."""
    left, top, width, height = shape["box"]
    runs = shape["runs"]
    part: np.ndarray = np.zeros(height * width, dtype=np.uint8)
    part[: runs.sum()] = np.repeat(np.arange(len(runs)) % 2, runs)
    whole: np.ndarray = np.zeros(size, dtype=np.uint8)
    paste(whole, part.reshape(height, width), top, left)
    return whole


def _whole_number(attributes: Mapping[str, str], key: str, place: str, *, default: int | None = None) -> int:
    """An attribute as a whole number of at most 9 digits."""
    if key not in attributes and default is not None:
        return default
    text = attributes.get(key, "")
    if not text.removeprefix("-").isdecimal() or len(text) > 10:
        raise UserError(f"{place}: {key!r} is {shorten(text)}, expected a whole number")
    return int(text)
