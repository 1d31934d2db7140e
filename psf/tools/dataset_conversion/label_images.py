"""Convert label images, with a class or an instance in each pixel, to panoptic maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from psf.data.images import image_size, is_deep, load_array, open_image
from psf.data.panoptic_labels import compact_with_boxes, pixel_runs
from psf.errors import UserError
from psf.tools.dataset_conversion.classes import Classes, show_color
from psf.tools.dataset_conversion.conversion import Drawing, PanopticFiles, write_panoptic_set

__all__ = ["ENCODINGS", "LabelPair", "Segment", "convert_label_images", "draw_segments", "read_label_image"]

# The meaning of a pixel -> for the help text.
ENCODINGS = {
    "class": "its class, a value or a color; --instance-ids, or else connected components, separate things",
    "cityscapes": "class * 1000 + number from 0; below 1000, the class without a number",
    "kitti360": "class * 1000 + number from 1; 0 is none",
    "mapillary": "class * 256 + number from 0",
    "kitti": "class * 256 + number from 1; 0 is none",
    "ade20k": "red // 10 * 256 + green is the class, blue the number from 1",
    "number": "the number of a thing of the only thing class, from 1, or its color",
}
_CONNECTIVITY = 8  # pixels that touch at a corner are connected
_NUMBER_BITS = 24  # of an instance number, which can be a color
_LARGEST_NUMBER = (1 << _NUMBER_BITS) - 1
_LARGEST_VALUE = 2**31 - 1
_ONLY_THING = -1  # stands for the value of the only thing class
_MOST_SEGMENTS = 100_000  # of an image: more is noise, and would fill the memory
_MOST_NAMED = 5  # values in a message


class LabelPair(NamedTuple):
    """An image and its label images.

    file_name: of the image, relative to its folder. labels: of the encoding. instances: an instance number or color
    per pixel, 0 or black where there is none; None: no such file.
    """

    file_name: str
    labels: Path
    instances: Path | None = None


class Segment(NamedTuple):
    """What a pixel belongs to; equal ones are one segment.

    number: of the thing; 0 for stuff and crowds. part: the value of the class in the label image: two classes that
    become one category can use the same numbers.
    """

    category_id: int
    part: int = 0
    number: int = 0
    is_crowd: bool = False


def convert_label_images(
    pairs: Sequence[LabelPair],
    classes: Classes,
    image_root: Path,
    files: PanopticFiles,
    *,
    encoding: str = "class",
    unknown_is_void: bool = False,
    min_area: int = 0,
    workers: int | None = None,
    show_progress: bool = False,
) -> Counter[str]:
    """Draw every label image and write the set; image ids count from 1.

    Stuff is one segment per class. Things are separated by their numbers; pixels of a thing class without a number are
    a crowd. Without numbers (encoding "class", no `instances`) each connected component of a thing class is a thing.

    Args:
        encoding: one of ENCODINGS; "number" needs a single thing class.
        unknown_is_void: whether values that the table does not list become void, which the notes count.
        min_area: things with fewer pixels become void.
        files, workers, show_progress: see `write_panoptic_set`.

    Returns:
        The notes of `write_panoptic_set`.

    Raises:
        UserError: naming the file, if it cannot be read, differs in size from its image, or has unknown values (with
            the numbers of their pixels); or naming the table, if it lacks values or has no single thing class.
    """
    _check_table(classes, encoding)
    things = set(classes.things)

    def draw(item: tuple[int, LabelPair]) -> Drawing:
        number, pair = item
        size = image_size(str(image_root / pair.file_name))
        keys = _read_keys(pair, classes, encoding, size)
        reader = _Reader(keys, classes)
        labels, segments = draw_segments(keys.keys, reader.segment_of, str(pair.labels))
        reader.check_unknown(pair.labels, are_void=unknown_is_void)
        notes = reader.notes
        if encoding == "class" and pair.instances is None:
            labels, segments = _split_things(labels, segments, things)
        if min_area:
            labels, segments = _drop_small(labels, segments, things, min_area, notes)
        _check_number(len(segments), "segments", str(pair.labels))
        entry = {"id": number, "file_name": pair.file_name, "height": size[0], "width": size[1]}
        return Drawing(entry, labels, segments, notes)

    notes = write_panoptic_set(
        list(enumerate(pairs, 1)), draw, classes.categories, files, workers=workers, show_progress=show_progress
    )
    return notes + classes.notes


def _check_table(classes: Classes, encoding: str) -> None:
    if encoding == "number":
        if len(classes.things) != 1:
            raise UserError(
                f"{classes.place}: found {len(classes.things)} thing classes, --encoding number needs exactly one; for "
                "several, give images of the classes as --labels and these as --instance-ids"
            )
        return
    colored = set(classes.by_color.values()) if encoding == "class" else set()
    for category in classes.categories:
        if category["id"] not in colored | set(classes.by_value.values()):
            raise UserError(
                f"{classes.place}: {category['name']!r} has no value, expected a column value (or r, g, b with "
                "--encoding class)"
            )


def read_label_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """A label image as numbers: (H, W) integers, or (H, W, 3) uint8 in RGB if it is in color and has no palette.

    Of a palette image these are the indices (`_palette_colors` has its colors). .npy arrays are (H, W).

    Args:
        size: (height, width) of its image; None: any size.

    Raises:
        UserError: naming the file, if it cannot be read, is a JPEG, has 16 bits per channel in color, no integers, or
            another size.
    """
    pixels = _read_pixels(path)
    if size is not None and pixels.shape[:2] != size:
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise UserError(f"{path} is {found}, its image {size[1]} x {size[0]} pixels (width x height)")
    return pixels


def _read_pixels(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        array = load_array(str(path))
        if array.dtype.kind not in "bui" or array.shape[2] != 1:
            raise UserError(f"{path}: the array is of {array.dtype}, {array.shape}; expected (H, W) integers")
        if array.min() < -_LARGEST_VALUE or array.max() > _LARGEST_VALUE:
            raise UserError(f"{path}: found values to {array.max()}, expected at most {_LARGEST_VALUE}")
        return array[..., 0].astype(np.int64)
    with open_image(str(path)) as image:
        if image.format in ("JPEG", "MPO"):
            raise UserError(f"{path}: a JPEG, whose compression changes labels; expected a PNG from the original tool")
        if image.mode == "F" or is_deep(image, str(path)):
            raise UserError(f"{path}: expected integers, or 8 bits per channel of a color; save it as such a PNG")
        if image.mode in ("L", "P", "1", "I") or image.mode.startswith("I;16"):
            return np.asarray(image)
        return np.asarray(image.getchannel("L") if image.mode == "LA" else image.convert("RGB"))


def _palette_colors(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 of a label image with a palette or in gray."""
    with open_image(str(path)) as image:
        # Transparency in bytes is converted without a warning only to RGBA.
        return np.asarray(image.convert("RGBA").convert("RGB"))


def _packed(colors: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int32, 0xRRGGBB."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


class _Keys(NamedTuple):
    """One image's pixels as keys.

    keys: (H, W) integers. decode: key -> value (or color) of its class, and number of its thing, 0 without one.
    lookup: value or color -> category id; None: void.
    """

    keys: np.ndarray
    decode: Callable[[int], tuple[int, int]]
    lookup: Mapping[int, int | None]
    is_color: bool = False


# Decoders of encodings with one number per pixel. A number that may be 0 is one more here.
_DECODERS: dict[str, Callable[[int], tuple[int, int]]] = {
    "cityscapes": lambda key: (key // 1000, key % 1000 + 1) if key >= 1000 else (key, 0),
    "kitti360": lambda key: (key // 1000, key % 1000),
    "mapillary": lambda key: (key // 256, key % 256 + 1),
    "kitti": lambda key: (key // 256, key % 256),
}


def _read_keys(pair: LabelPair, classes: Classes, encoding: str, size: tuple[int, int]) -> _Keys:
    pixels = read_label_image(pair.labels, size)
    if encoding == "ade20k":
        if pixels.ndim == 2:
            raise UserError(f"{pair.labels}: found one number per pixel, expected colors as in *_seg.png of ADE20K")
        red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
        keys = (red // 10 * 256 + green) * 256 + blue
        return _Keys(keys, lambda key: (key >> 8, key & 255), classes.by_value)
    if encoding == "number":
        ignored = {0, *(value for value, category_id in classes.by_value.items() if category_id is None)}
        lookup: Mapping[int, int | None] = {**classes.by_value, _ONLY_THING: classes.things[0]}
        return _Keys(_numbers(pixels), lambda key: (key, 0) if key in ignored else (_ONLY_THING, key), lookup)
    if encoding != "class":
        return _Keys(_one_channel(pixels, pair.labels), _DECODERS[encoding], classes.by_value)
    is_color = not classes.by_value or (pixels.ndim == 3 and bool(classes.by_color))
    lookup = classes.by_color if is_color else classes.by_value
    if is_color:
        keys = _packed(pixels if pixels.ndim == 3 else _palette_colors(pair.labels))
    else:
        keys = _one_channel(pixels, pair.labels)
    if pair.instances is None:  # things are separated later
        return _Keys(keys, lambda key: (key, 1), lookup, is_color)
    numbers = _numbers(read_label_image(pair.instances, size)).astype(np.int64)
    if numbers.max(initial=0) > _LARGEST_NUMBER or numbers.min(initial=0) < 0:
        raise UserError(f"{pair.instances}: found numbers to {numbers.max()}, expected 0 to {_LARGEST_NUMBER}")
    both = keys.astype(np.int64) << _NUMBER_BITS | numbers
    return _Keys(both, lambda key: (key >> _NUMBER_BITS, key & _LARGEST_NUMBER), lookup, is_color)


def _numbers(pixels: np.ndarray) -> np.ndarray:
    """(H, W) integers: the pixels, or their packed colors."""
    return pixels if pixels.ndim == 2 else _packed(pixels)


def _one_channel(pixels: np.ndarray, path: Path) -> np.ndarray:
    """(H, W) integers, also of a gray image that was saved in color."""
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise UserError(f"{path}: found colors, expected one number per pixel, or a table of classes with r, g and b")
    return pixels[..., 0]


class _Reader:
    """Finds the segments of one image's keys, and remembers the values that the table does not list."""

    def __init__(self, keys: _Keys, classes: Classes) -> None:
        self.notes: Counter[str] = Counter()
        self._keys, self._place, self._things = keys, classes.place, set(classes.things)
        self._unknown: dict[int, int] = {}  # key -> value

    def segment_of(self, key: int) -> Segment | None:
        value, number = self._keys.decode(key)
        if value not in self._keys.lookup:
            self._unknown[key] = value
            return None
        category_id = self._keys.lookup[value]
        if category_id is None:
            return None
        if category_id not in self._things:
            return Segment(category_id)
        if number:
            return Segment(category_id, value, number)
        self.notes["regions of a thing class without an instance number, which become crowds"] += 1
        return Segment(category_id, is_crowd=True)

    def check_unknown(self, path: Path, *, are_void: bool) -> None:
        """Raise a UserError if there are unknown values, or note them if they are void."""
        values = sorted(set(self._unknown.values()))
        if not values:
            return
        shown = {value: f"color {show_color(value)}" if self._keys.is_color else f"value {value}" for value in values}
        more = ", ..." if len(values) > _MOST_NAMED else ""
        if are_void:
            names = ", ".join(shown[value] for value in values[:_MOST_NAMED])
            self.notes[f"label images with the unknown {names}{more}, which became void"] += 1
            return
        counts = []
        for value in values[:_MOST_NAMED]:
            own = [key for key, one in self._unknown.items() if one == value]
            counts.append(f"the {shown[value]} ({np.count_nonzero(np.isin(self._keys.keys, own))} pixels)")
        raise UserError(
            f"{path}: found {', '.join(counts)}{more}, expected values of {self._place}; add them there, list "
            "void values with --ignore, or make all others void with --unknown void"
        )


def draw_segments(
    keys: np.ndarray, segment_of: Callable[[int], Segment | None], place: str
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Labels and segments of an image from a key per pixel.

    Args:
        keys: (H, W) integers.
        segment_of: key -> its segment; None: void.
        place: the file, for messages.

    Returns:
        (H, W) int32 labels and the segments, as in `Drawing`.

    Raises:
        UserError: if there are more keys than an image has segments.
    """
    starts, runs = pixel_runs(keys)
    present, inverse = np.unique(runs, return_inverse=True)
    _check_number(len(present), "different values", place)
    label_of: dict[Segment | None, int] = {None: 0}
    table = [label_of.setdefault(segment_of(key), len(label_of)) for key in present.tolist()]
    lengths = np.diff(starts, append=keys.size)
    labels = np.repeat(np.array(table, dtype=np.int32)[inverse.reshape(-1)], lengths).reshape(keys.shape)
    segments = [
        {"id": label, "category_id": segment.category_id, "iscrowd": segment.is_crowd}
        for segment, label in label_of.items()
        if segment is not None
    ]
    return labels, segments


def _split_things(
    labels: np.ndarray, segments: list[dict[str, Any]], things: set[int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Make each connected component of a thing class a segment."""
    (small, present), boxes = compact_with_boxes(labels, segments)
    split: np.ndarray = small.astype(np.int32)
    kept = [one for one in present if one["category_id"] not in things]
    last = len(present)
    for one, (left, top, right, bottom) in zip(present, boxes):
        if one["category_id"] not in things:
            continue
        part = split[top:bottom, left:right]
        mask = small[top:bottom, left:right] == one["id"]
        number, components = cv2.connectedComponents(mask.astype(np.uint8), connectivity=_CONNECTIVITY)
        part[mask] = components[mask] + last
        kept += [{**one, "id": last + component} for component in range(1, number)]
        last += number - 1
    return split, kept


def _drop_small(
    labels: np.ndarray, segments: list[dict[str, Any]], things: set[int], min_area: int, notes: Counter[str]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Make things with fewer pixels void, and count them in the notes."""
    areas = np.bincount(labels.ravel(), minlength=max((one["id"] for one in segments), default=0) + 1)
    small = [
        one["id"]
        for one in segments
        if one["category_id"] in things and not one["iscrowd"] and 0 < areas[one["id"]] < min_area
    ]
    if not small:
        return labels, segments
    notes[f"things with fewer than {min_area} pixels, which became void"] += len(small)
    return np.where(np.isin(labels, small), 0, labels), [one for one in segments if one["id"] not in set(small)]


def _check_number(number: int, kind: str, place: str) -> None:
    if number > _MOST_SEGMENTS:
        raise UserError(
            f"{place}: found {number} {kind}, expected at most {_MOST_SEGMENTS}; is the image noisy, compressed, or of "
            "another --encoding? --min-area drops small things"
        )
