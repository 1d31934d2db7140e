"""Check one annotation of a panoptic JSON against its PNG and its image."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.utils.file_io import PathManager

from psf.data.images import is_turned, read_picture
from psf.data.panoptic_format import MAX_SEGMENT_ID, find_problems, is_integer, shorten
from psf.data.panoptic_labels import MeasuredSegments, measure_panoptic_png
from psf.errors import UserError
from psf.tools.dataset_validation.lists import fault_of_problem
from psf.tools.dataset_validation.report import Fault, number_of

__all__ = ["CheckedAnnotation", "check_annotation"]

_AREA_TOLERANCE = 0.05  # difference between the area of a polygon and of its pixels


class _Extent(NamedTuple):
    """Area in pixels, and box as x, y, width, height."""

    area: int
    box: list[int]


class CheckedAnnotation(NamedTuple):
    """The result of checking one annotation.

    annotation: corrected. size: (height, width) of PNG and image if they agree, else None. areas, segments: number of
    pixels and of segments by category, without crowds. is_turned: the image has an EXIF orientation.
    """

    faults: list[Fault]
    annotation: dict[str, Any]
    size: tuple[int, int] | None
    num_pixels: int
    num_void: int
    num_crowds: int
    areas: Counter[int]
    segments: Counter[int]
    is_turned: bool


def check_annotation(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    is_thing: Mapping[int, bool | None],
    png_root: str,
    image_root: str,
) -> CheckedAnnotation:
    """Compare an annotation with its PNG and its image.

    Args:
        annotation, image: matching valid entries of the JSON; segments may be invalid.
        is_thing: by category id; None: unknown.
    """
    faults: list[Fault] = []
    image_file = os.path.join(image_root, image["file_name"])
    picture_size = _image_size(image_file, faults)
    measured = _measure(os.path.join(png_root, annotation["file_name"]), faults)
    size = _compare_sizes(annotation, image, picture_size, measured, faults)
    where, pixels_of = annotation["file_name"], dict[int, int]()
    corrected = dict(annotation)
    segments = _check_entries(where, annotation["segments_info"], is_thing, faults)
    if measured is not None:
        extents = _extents(measured)
        strangers = _strangers(segments, extents)
        if 2 * len(strangers) > len(segments):
            detail = (
                f"{len(strangers)} of {number_of(len(segments), 'segment', 'segments')} differ from it in area and box"
            )
            faults = [fault._replace(is_fixable=False) for fault in faults]
            faults.append(Fault("PNG of another image?", where, f"{detail}: {strangers[:10]}"))
            segments, size = annotation["segments_info"], None
        else:
            segments = _compare_segments(where, segments, extents, faults)
            pixels_of = {number: area for number, (area, _) in extents.items()}
    corrected["segments_info"] = segments
    sound = [one for one in segments if not find_problems("segments_info", one)]
    areas, numbers = Counter[int](), Counter[int]()
    for one in sound:
        if not one.get("iscrowd"):
            areas[one["category_id"]] += pixels_of.get(one["id"], 0)
            numbers[one["category_id"]] += 1
    void = 0 if measured is None else int(measured.areas[measured.ids == 0].sum())
    pixels = 0 if measured is None else measured.size[0] * measured.size[1]
    crowds = sum(bool(one.get("iscrowd")) for one in sound)
    turned = picture_size is not None and is_turned(image_file)
    return CheckedAnnotation(faults, corrected, size, pixels, void, crowds, areas, numbers, turned)


def _image_size(path: str, faults: list[Fault]) -> tuple[int, int] | None:
    """(height, width) of the decoded image, after rotation by its EXIF orientation, as in training."""
    if not PathManager.isfile(path):
        faults.append(Fault("missing image", path, _why_missing(path)))
        return None
    try:
        height, width = read_picture(path).shape[:2]
    except UserError as error:
        faults.append(Fault("unreadable image", path, str(error).removeprefix(f"{path}: ")))
        return None
    return height, width


def _why_missing(path: str) -> str:
    return "not a regular file" if PathManager.exists(path) else "no such file"


def _measure(path: str, faults: list[Fault]) -> MeasuredSegments | None:
    if not PathManager.isfile(path):
        faults.append(Fault("missing PNG", path, _why_missing(path)))
        return None
    try:
        return measure_panoptic_png(path)
    except UserError as error:
        faults.append(Fault("unreadable PNG", path, str(error).removeprefix(f"{path}: ")))
        return None


def _compare_sizes(
    annotation: Mapping[str, Any],
    image: Mapping[str, Any],
    picture: tuple[int, int] | None,
    measured: MeasuredSegments | None,
    faults: list[Fault],
) -> tuple[int, int] | None:
    """The size of PNG and image if they agree; adds a fault if JSON, PNG and image do not."""
    sizes = {"JSON": (image["height"], image["width"]), "PNG": measured and measured.size, "image": picture}
    known = {name: size for name, size in sizes.items() if size is not None}
    agreed = picture if measured is not None and picture == measured.size else None
    if len(set(known.values())) > 1:
        detail = ", ".join(f"{name} {size[1]} x {size[0]}" for name, size in known.items())
        faults.append(Fault("size mismatch", annotation["file_name"], f"{detail} (width x height)", agreed is not None))
    return agreed


def _check_entries(
    where: str, entries: Sequence[Any], is_thing: Mapping[int, bool | None], faults: list[Fault]
) -> list[Any]:
    """Check segments_info alone. Copies and ids out of range are dropped; a missing iscrowd becomes 0."""
    kept: list[Any] = []
    first: dict[int, dict[str, Any]] = {}
    stuff = Counter[int]()
    for entry in entries:
        # The area is checked against the PNG.
        problems = [problem for problem in find_problems("segments_info", entry) if problem.key != "area"]
        if problems:
            name = f"segment {shorten(entry['id'])}: " if isinstance(entry, dict) and "id" in entry else "a segment: "
            faults += [fault_of_problem(where, name, problem) for problem in problems]
            kept.append(entry)
            continue
        name = f"segment {entry['id']}"
        if "iscrowd" not in entry:
            faults.append(Fault("incomplete entry", where, f"{name}: 'iscrowd' is missing", True))
            entry = {**entry, "iscrowd": 0}
        if not 0 < entry["id"] <= MAX_SEGMENT_ID:
            faults.append(Fault("segment id out of range", where, f"{name}, expected 1 to {MAX_SEGMENT_ID}", True))
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


def _extents(measured: MeasuredSegments) -> dict[int, _Extent]:
    """Area and box of each id in the PNG except void."""
    return {
        number: _Extent(area, [left, top, right - left, bottom - top])
        for number, area, (left, top, right, bottom) in zip(
            measured.ids.tolist(), measured.areas.tolist(), measured.boxes_xyxy_px.tolist()
        )
        if number
    }


def _strangers(segments: Sequence[Any], extents: Mapping[int, _Extent]) -> list[int]:
    """Ids of segments that are not in the PNG, or have a different box and a clearly different area there.

    If the JSON has no area and no box, or zeros (as some programs write), only the id is compared.
    """
    strangers = []
    for one in segments:
        number = _id_of(one)
        if number is None:
            continue
        area, box = one.get("area"), one.get("bbox")
        if number not in extents:
            if area != 0:
                strangers.append(number)
            continue
        found = extents[number]
        has_area = isinstance(area, (int, float)) and area > 0
        has_box = isinstance(box, list) and any(box)
        is_near = has_area and abs(area - found.area) <= _AREA_TOLERANCE * found.area
        if (has_area or has_box) and not is_near and box != found.box:
            strangers.append(number)
    return strangers


def _compare_segments(
    where: str, segments: Sequence[Any], extents: Mapping[int, _Extent], faults: list[Fault]
) -> list[Any]:
    """Segments with measured area and box; segments without pixels are dropped."""
    listed = {_id_of(one) for one in segments}
    for number in sorted(extents.keys() - listed):
        faults.append(Fault("id in the PNG, not in the JSON", where, f"id {number}, {extents[number].area} pixels"))
    kept = []
    for one in segments:
        own_id = _id_of(one)
        name = f"segment {own_id}"
        if own_id is None:
            kept.append(one)
        elif own_id in extents:
            area, box = extents[own_id]
            if one.get("area") != area:
                faults.append(
                    Fault("wrong area", where, f"{name}: {shorten(one.get('area'))}, the PNG has {area}", True)
                )
            if one.get("bbox") != box:
                faults.append(Fault("wrong box", where, f"{name}: {shorten(one.get('bbox'))}, the PNG has {box}", True))
            kept.append({**one, "area": area, "bbox": box})
        else:
            kind = "segment of the JSON, not in the PNG" if one.get("area") else "empty segment"
            faults.append(Fault(kind, where, f"{name} has no pixel", True))
    return kept


def _id_of(segment: Any) -> int | None:
    """The id of a segment, which may be invalid; None if it has none."""
    number = segment.get("id") if isinstance(segment, dict) else None
    return number if is_integer(number) else None
