"""What other formats hold -> a panoptic set: PNGs and a JSON in COCO's format."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from panopticapi.utils import id2rgb
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from psf.data.json_file import read_json
from psf.data.panoptic_truth import compact_with_boxes
from psf.data.parallel import Progress, map_in_threads, no_progress

__all__ = ["Drawing", "PanopticFiles", "png_name", "write_panoptic_set"]

Item = TypeVar("Item")

# Segment k gets the PNG id k * _ID_STEP modulo 2^24: an odd step keeps ids distinct, a large one makes them visible.
_ID_STEP = 0x9E3779
# A text in every PNG written here. Without it a file is somebody's, perhaps an image of the set, and stays.
_SIGN = ("Software", "psf")


class PanopticFiles(NamedTuple):
    """Where a panoptic set is written: its JSON, and the folder of its PNGs."""

    json_file: Path
    png_root: Path

    def check_free(self, *, overwrite: bool) -> None:
        """Raise a ValueError if the JSON is there already and may not be overwritten, or is no panoptic one."""
        if not self.json_file.exists():
            return
        if not overwrite:
            raise ValueError(f"{self.json_file} exists; remove it, choose another place, or say --overwrite")
        content = read_json(self.json_file)
        annotations = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(annotations, list) or not all(
            isinstance(one, dict) and "segments_info" in one for one in annotations
        ):
            raise ValueError(f"{self.json_file} exists and is no panoptic JSON: it is not overwritten; move it away")


class Drawing(NamedTuple):
    """One image's segments.

    image: its entry in the JSON: id, file_name, height and width.
    labels: (H, W) non-negative integers; 0 is void, others are the `id` of a segment.
    segments: {"id", "category_id", "iscrowd"}; one without a pixel is left out.
    notes: what was met on the way -> how often.
    """

    image: dict[str, Any]
    labels: np.ndarray
    segments: list[dict[str, Any]]
    notes: Counter[str]


def png_name(file_name: str) -> str:
    """What an image's panoptic PNG is called below the folder of the PNGs: like the image below its own, but .png.

    Raises:
        ValueError: if the image's name leads out of a folder. The message is the end of a sentence.
    """
    path = Path(file_name)
    if not path.name or path.is_absolute() or ".." in path.parts:
        raise ValueError(
            f"the file name {file_name!r} is not below a folder of images, where it would be named such as 'city/1.jpg'"
        )
    return path.with_suffix(".png").as_posix()


def write_panoptic_set(
    items: Sequence[Item],
    draw: Callable[[Item], Drawing],
    categories: Sequence[dict[str, Any]],
    files: PanopticFiles,
    *,
    workers: int | None = None,
    progress: Progress = no_progress,
) -> Counter[str]:
    """Draw every item, write its PNG, then the JSON: where that is, the set is whole.

    A PNG is called as `png_name` says. It replaces none but those of an earlier run.

    Args:
        items: what `draw` takes; several threads call it.
        categories: of the JSON, as they are.
        files: where to; folders are made.
        workers, progress: see `map_in_threads`.

    Returns:
        The sum of the drawings' notes, with counts of "images" and "segments".

    Raises:
        ValueError: if two images share an id or the name of their PNG, if that leads out of the folder, or if there is
            a file of that name which was not written here.
    """
    files.json_file.parent.mkdir(parents=True, exist_ok=True)
    files.png_root.mkdir(parents=True, exist_ok=True)

    def write(item: Item) -> tuple[dict[str, Any], dict[str, Any], Counter[str]]:
        drawing = draw(item)
        return drawing.image, _write_png(drawing, files.png_root), drawing.notes

    images, annotations, notes = [], [], Counter[str]()
    seen: dict[Any, str] = {}
    for image, annotation, new_notes in map_in_threads(write, items, workers=workers, progress=progress):
        for key in (("id", image["id"]), ("PNG", annotation["file_name"])):
            if key in seen:
                raise ValueError(f"{seen[key]} and {image['file_name']} have the same {key[0]} {key[1]!r}")
            seen[key] = image["file_name"]
        images.append(image)
        annotations.append(annotation)
        notes += new_notes
        notes["segments"] += len(annotation["segments_info"])
    notes["images"] = len(images)
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    files.json_file.write_text(json.dumps(content), encoding="utf-8")
    return notes


def _write_png(drawing: Drawing, png_root: Path) -> dict[str, Any]:
    """Write an image's PNG; its annotation for the JSON."""
    (labels, segments), boxes = compact_with_boxes(drawing.labels, drawing.segments)
    name = png_name(drawing.image["file_name"])
    target = png_root / name
    if target.exists() and not _is_signed(target):
        raise ValueError(f"{target} exists and is no panoptic PNG of psf: it is not overwritten; choose another place")
    target.parent.mkdir(parents=True, exist_ok=True)
    sign = PngInfo()
    sign.add_text(*_SIGN)
    picture = Image.fromarray(id2rgb(labels.astype(np.uint32) * _ID_STEP & 0xFFFFFF))
    # Whole or not at all: of two images with one name another thread must not see half a PNG, which has no sign.
    partial = target.with_name(f"{target.name}.{threading.get_ident()}.partial")
    picture.save(partial, format="PNG", pnginfo=sign)
    partial.replace(target)
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


def _is_signed(path: Path) -> bool:
    key, value = _SIGN
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.info.get(key) == value
    except (OSError, SyntaxError, ValueError):  # damaged, or no image
        return False
