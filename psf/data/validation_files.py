"""One annotation of a panoptic JSON, held against its PNG and its image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from psf.data.panoptic_truth import MeasuredSegments, measure_panoptic_png
from psf.data.pictures import read_picture
from psf.data.validation_report import Fault

__all__ = ["CheckedAnnotation", "check_annotation"]

_MAX_ID = 256**3 - 1


class CheckedAnnotation(NamedTuple):
    """annotation, size: as they should be; size is (height, width) of PNG and image, where these agree, else None.

    areas: pixels by category, of segments that are no crowds; segments: their number by category.
    """

    faults: list[Fault]
    annotation: dict[str, Any]
    size: tuple[int, int] | None
    num_pixels: int
    num_void: int
    num_crowds: int
    areas: Counter[int]
    segments: Counter[int]


def check_annotation(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    is_thing: Mapping[int, bool],
    png_root: str,
    image_root: str,
) -> CheckedAnnotation:
    """Read both files and compare.

    Args:
        annotation, image: complete entries of the JSON that belong together.
        is_thing: by category id.
    """
    faults: list[Fault] = []
    picture_size = _image_size(os.path.join(image_root, image["file_name"]), faults)
    measured = _measure(os.path.join(png_root, annotation["file_name"]), faults)
    size = _compare_sizes(annotation, image, picture_size, measured, faults)
    entries = [dict(entry) for entry in annotation["segments_info"]]
    segments = _check_entries(annotation["file_name"], entries, is_thing, faults)
    if measured is not None:
        segments = _compare_segments(annotation["file_name"], segments, measured, faults)
    areas, numbers = Counter[int](), Counter[int]()
    things_alone = [one for one in segments if "category_id" in one and not one.get("iscrowd")]
    for one in things_alone:
        areas[one["category_id"]] += one.get("area", 0)
        numbers[one["category_id"]] += 1
    void = 0 if measured is None else int(measured.areas[measured.ids == 0].sum())
    pixels = 0 if measured is None else measured.size[0] * measured.size[1]
    corrected = {**annotation, "segments_info": segments}
    crowds = sum(bool(one.get("iscrowd")) for one in segments)
    return CheckedAnnotation(faults, corrected, size, pixels, void, crowds, areas, numbers)


def _image_size(path: str, faults: list[Fault]) -> tuple[int, int] | None:
    """(height, width) as the model sees the image: decoded and turned by its EXIF orientation."""
    if not PathManager.isfile(path):
        faults.append(Fault("missing image", path, "no such file"))
        return None
    try:
        height, width = read_picture(path).shape[:2]
    except ValueError as error:
        faults.append(Fault("unreadable image", path, str(error).removeprefix(f"{path}: ")))
        return None
    return height, width


def _measure(path: str, faults: list[Fault]) -> MeasuredSegments | None:
    if not PathManager.isfile(path):
        faults.append(Fault("missing PNG", path, "no such file"))
        return None
    try:
        return measure_panoptic_png(path)
    except ValueError as error:
        faults.append(Fault("unreadable PNG", path, str(error).removeprefix(f"{path}: ")))
        return None


def _compare_sizes(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    picture: tuple[int, int] | None,
    measured: MeasuredSegments | None,
    faults: list[Fault],
) -> tuple[int, int] | None:
    """The size on which PNG and image agree; a fault where the three do not."""
    sizes = {"JSON": (image["height"], image["width"]), "PNG": measured and measured.size, "image": picture}
    known = {name: size for name, size in sizes.items() if size is not None}
    agreed = picture if measured is not None and picture == measured.size else None
    if len(set(known.values())) > 1:
        detail = ", ".join(f"{name} {size[1]} x {size[0]}" for name, size in known.items())
        faults.append(Fault("size mismatch", annotation["file_name"], f"{detail} (width x height)", agreed is not None))
    return agreed


def _check_entries(
    where: str, entries: list[dict[str, Any]], is_thing: Mapping[int, bool], faults: list[Fault]
) -> list[dict[str, Any]]:
    """What can be said of segments_info alone. Copies and ids that no pixel can have are dropped, no iscrowd is 0."""
    kept: list[dict[str, Any]] = []
    first: dict[int, dict[str, Any]] = {}
    stuff = Counter[int]()
    for entry in entries:
        lacking = [key for key in ("id", "category_id") if not isinstance(entry.get(key), int)]
        if lacking:
            faults.append(Fault("incomplete entry", where, f"a segment lacks {' and '.join(lacking)}: {entry}"))
            kept.append(entry)
            continue
        if "iscrowd" not in entry:
            faults.append(Fault("incomplete entry", where, f"segment {entry['id']} lacks iscrowd", True))
            entry["iscrowd"] = 0
        name = f"segment {entry['id']}"
        if not 0 < entry["id"] <= _MAX_ID:
            faults.append(Fault("segment id out of range", where, f"{name}, expected 1 to {_MAX_ID}", True))
            continue
        if entry["category_id"] not in is_thing:
            detail = f"{name} has category {entry['category_id']}, expected one of {sorted(is_thing)[:20]}"
            faults.append(Fault("unknown category", where, detail))
        known = first.setdefault(entry["id"], entry)
        if known is not entry:
            is_copy = all(known[key] == entry[key] for key in ("category_id", "iscrowd"))
            faults.append(Fault("duplicate segment id", where, f"{name} is listed again", is_copy))
            if is_copy:
                continue
        elif is_thing.get(entry["category_id"]) is False:
            stuff[entry["category_id"]] += 1
        kept.append(entry)
    for category_id, number in stuff.items():
        if number > 1:
            detail = f"category {category_id} is stuff and has {number} segments, expected one"
            faults.append(Fault("stuff class in several segments", where, detail))
    return kept


def _compare_segments(
    where: str, segments: list[dict[str, Any]], measured: MeasuredSegments, faults: list[Fault]
) -> list[dict[str, Any]]:
    """Segments with area and box as measured; those without a pixel are dropped.

    If no segment at all is in the PNG, that is another image's: nothing is dropped.
    """
    extents = {
        number: (area, [left, top, right - left, bottom - top])
        for number, area, (left, top, right, bottom) in zip(
            measured.ids.tolist(), measured.areas.tolist(), measured.boxes_xyxy_px.tolist()
        )
        if number
    }
    listed = {one["id"] for one in segments if isinstance(one.get("id"), int)}
    for number in sorted(extents.keys() - listed):
        faults.append(Fault("id in the PNG, not in the JSON", where, f"id {number}, {extents[number][0]} pixels"))
    is_same_image = not listed or bool(listed & extents.keys())
    kept = []
    for one in segments:
        name = f"segment {one.get('id')}"
        if not isinstance(one.get("id"), int):
            kept.append(one)
        elif one["id"] in extents:
            area, box = extents[one["id"]]
            if one.get("area") != area:
                faults.append(Fault("wrong area", where, f"{name}: {one.get('area')}, the PNG has {area}", True))
            if one.get("bbox") != box:
                faults.append(Fault("wrong box", where, f"{name}: {one.get('bbox')}, the PNG has {box}", True))
            kept.append({**one, "area": area, "bbox": box})
        else:
            kind = "segment of the JSON, not in the PNG" if one.get("area") else "empty segment"
            faults.append(Fault(kind, where, f"{name} has no pixel", is_same_image))
            if not is_same_image:
                kept.append(one)
    return kept
