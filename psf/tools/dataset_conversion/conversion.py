"""Write a panoptic set: PNGs and a JSON in COCO's format."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image
from tqdm.contrib.concurrent import thread_map

from psf.data.files import make_folder, read_json, write_text
from psf.data.own_files import has_png_sign, save_signed_png
from psf.data.panoptic_format import FILE_NAME, shorten
from psf.data.panoptic_labels import compact_with_boxes
from psf.errors import UserError
from psf.progress import Progress

__all__ = ["Drawing", "PanopticFiles", "distinct_png_names", "png_name", "write_panoptic_set"]

Item = TypeVar("Item")

# Segment k gets the PNG id k * _ID_STEP modulo 2^24: an odd step keeps ids distinct, a large one makes them visible.
_ID_STEP = 0x9E3779

_MAX_PART, _MAX_PATH = 255, 2000  # bytes that file systems and Linux accept, with space for the folder of the result


class PanopticFiles(NamedTuple):
    """Output paths of a panoptic set: its JSON, and the folder of its PNGs."""

    json_file: Path
    png_root: Path

    def check_free(self, *, overwrite: bool) -> None:
        """Raise a UserError if the JSON exists and may not be overwritten, is a link, or is no panoptic JSON."""
        if not os.path.lexists(self.json_file):
            return
        if self.json_file.is_symlink():
            raise UserError(f"{self.json_file} is a link, which is not replaced; remove it, or choose another folder")
        if not overwrite:
            raise UserError(f"{self.json_file} exists; remove it, choose another folder, or use --overwrite")
        content = read_json(self.json_file)
        annotations = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(annotations, list) or not all(
            isinstance(one, dict) and "segments_info" in one for one in annotations
        ):
            raise UserError(
                f"{self.json_file} exists and is not a panoptic JSON, so it is not overwritten; move it away"
            )


class Drawing(NamedTuple):
    """One image's segments.

    image: its entry in the JSON: id, file_name, height and width.
    labels: (H, W) non-negative integers; 0 is void, others are the `id` of a segment.
    segments: {"id", "category_id", "iscrowd"}; segments without a pixel are dropped.
    notes: text for the report -> count.
    png: name of its PNG; "": `png_name`.
    """

    image: dict[str, Any]
    labels: np.ndarray
    segments: list[dict[str, Any]]
    notes: Counter[str]
    png: str = ""


def png_name(file_name: str, place: str) -> str:
    """Name of an image's panoptic PNG in the PNG folder: the name of the image with the suffix .png.

    Raises:
        UserError: beginning with `place`, if the path leads out of the folder, or a name in it is too long.
    """
    path = Path(file_name)
    longest = max((len(os.fsencode(part)) for part in path.with_suffix(".png").parts), default=0) if path.name else 0
    if longest > _MAX_PART or len(os.fsencode(file_name)) > _MAX_PATH:
        raise UserError(
            f"{place}: the file name {shorten(file_name)} has {len(file_name)} characters, expected at most "
            f"{_MAX_PART} bytes for each folder and name, and {_MAX_PATH} in total"
        )
    if not path.name or not FILE_NAME.accepts(file_name):
        raise UserError(
            f"{place}: the file name {shorten(file_name)} is not relative to the image folder, expected a path such as "
            "'city/1.jpg'"
        )
    return path.with_suffix(".png").as_posix()


def distinct_png_names(file_names: Iterable[str]) -> dict[str, str]:
    """`png_name` of each image; NAME_2.png and so on for further images of one name, such as a.jpg and a.png."""
    wanted = {name: png_name(name, "an image") for name in file_names}
    taken, given = set(wanted.values()), set[str]()
    for name, png in wanted.items():
        number = 2
        while wanted[name] in given:
            candidate, number = f"{png.removesuffix('.png')}_{number}.png", number + 1
            if candidate not in taken:
                wanted[name] = png_name(candidate, "an image")
        given.add(wanted[name])
        taken.add(wanted[name])
    return wanted


def write_panoptic_set(
    items: Sequence[Item],
    draw: Callable[[Item], Drawing],
    categories: Sequence[dict[str, Any]],
    files: PanopticFiles,
    *,
    workers: int | None = None,
    show_progress: bool = False,
) -> Counter[str]:
    """Draw every item and write its PNG, then the JSON. The JSON is written last: if it exists, the set is complete.

    PNGs have the names of the drawings, or of `png_name`. Only PNGs of an earlier run are overwritten.

    Args:
        items: arguments of `draw`, which several threads call.
        categories: of the JSON.
        files: output paths; folders are created.
        workers: threads; None: as many as `ThreadPoolExecutor` has by default.
        show_progress: whether to show a progress bar on stderr.

    Returns:
        The sum of the drawings' notes, and counts of "images" and "segments".

    Raises:
        UserError: if two images share an id or a PNG name, if a PNG name leads out of the folder, or if a file of that
            name exists and was not written by psf.
    """
    make_folder(files.json_file.parent, "the folder of the result (--output),")
    make_folder(files.png_root, "the folder of the PNGs,")

    def write(item: Item) -> tuple[dict[str, Any], dict[str, Any], Counter[str]]:
        drawing = draw(item)
        return drawing.image, _write_png(drawing, files.png_root), drawing.notes

    images, annotations, notes = [], [], Counter[str]()
    seen: dict[Any, str] = {}
    for image, annotation, new_notes in thread_map(
        write, items, tqdm_class=Progress, max_workers=workers, disable=not show_progress, unit="image"
    ):
        for key in (("id", image["id"]), ("PNG", annotation["file_name"])):
            if key in seen:
                raise UserError(f"{seen[key]} and {image['file_name']} have the same {key[0]} {key[1]!r}")
            seen[key] = image["file_name"]
        images.append(image)
        annotations.append(annotation)
        notes += new_notes
        notes["segments"] += len(annotation["segments_info"])
    notes["images"] = len(images)
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    write_text(files.json_file, json.dumps(content))
    return notes


def _write_png(drawing: Drawing, png_root: Path) -> dict[str, Any]:
    """Write an image's PNG; returns its annotation for the JSON."""
    (labels, segments), boxes = compact_with_boxes(drawing.labels, drawing.segments)
    name = drawing.png or png_name(drawing.image["file_name"], str(png_root))
    target = png_root / name
    if os.path.lexists(target) and (target.is_symlink() or not has_png_sign(target)):
        raise UserError(
            f"{target} exists and is not a panoptic PNG of psf, so it is not overwritten; choose another folder"
        )
    # Two images can have the same PNG name, and a thread that checks the sign must not read half a PNG.
    save_signed_png(Image.fromarray(id2rgb(labels.astype(np.uint32) * _ID_STEP & 0xFFFFFF)), target)
    areas = np.bincount(labels.ravel(), minlength=len(segments) + 1)
    infos = [
        {
            "id": segment["id"] * _ID_STEP & 0xFFFFFF,
            "category_id": segment["category_id"],
            "iscrowd": int(segment["iscrowd"]),
            "area": int(areas[segment["id"]]),
            "bbox": [int(left), int(top), int(right - left), int(bottom - top)],
        }
        for segment, (left, top, right, bottom) in zip(segments, boxes)
    ]
    return {"image_id": drawing.image["id"], "file_name": name, "segments_info": infos}
