"""Convert a panoptic JSON in COCO's format to Detectron2's metadata and dataset dicts.

All classes come from the JSON's `categories`: a class's contiguous id is its position there, with a joint count of
things and stuff. Ids may have gaps, and things need not come first.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from detectron2.utils.colormap import colormap

from psf.data.dataset_check import require_file
from psf.data.files import read_json
from psf.data.panoptic_format import LIST, SCHEMA, SINGULAR, find_problem, find_problems, image_key
from psf.errors import UserError

__all__ = ["load_panoptic_json", "panoptic_metadata", "read_categories", "read_panoptic_json"]

logger = logging.getLogger(__name__)


def panoptic_metadata(categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of a set with these `categories`, in the form of Detectron2's "standard" COCO panoptic sets.

    Returns:
        thing_classes and stuff_classes, thing_colors and stuff_colors: all K classes in both lists of a pair, because
        Detectron2 indexes them by the joint id (a category without a color gets one);
        {thing,stuff}_dataset_id_to_contiguous_id: only things, and only stuff; ignore_label, label_divisor and
        evaluator_type.
    """
    names = [category["name"] for category in categories]
    palette = colormap(rgb=True, maximum=255).astype(int).tolist()
    colors = [list(category.get("color", palette[i % len(palette)])) for i, category in enumerate(categories)]
    thing_ids, stuff_ids = (
        {category["id"]: position for position, category in enumerate(categories) if bool(category["isthing"]) is kind}
        for kind in (True, False)
    )
    return {
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": [list(color) for color in colors],
        "thing_dataset_id_to_contiguous_id": thing_ids,
        "stuff_dataset_id_to_contiguous_id": stuff_ids,
        "ignore_label": 255,
        "label_divisor": 1000,
        "evaluator_type": "coco_panoptic_seg",
    }


def read_categories(json_file: str) -> list[dict[str, Any]]:
    """The `categories` of a panoptic JSON; no other key is required.

    Raises:
        UserError: as `read_panoptic_json`.
    """
    return read_panoptic_json(json_file)["categories"]


def load_panoptic_json(json_file: str, png_root: str, image_root: str) -> list[dict[str, Any]]:
    """Read a panoptic JSON into Detectron2's dataset dicts.

    Args:
        json_file: JSON in COCO's panoptic format.
        png_root: folder of the panoptic PNGs, the annotations' `file_name`.
        image_root: folder of the images, the images' own `file_name` (any suffix).

    Returns:
        One dict per annotation: file_name, image_id, height, width, pan_seg_file_name and segments_info, whose
        category_id is contiguous (position in `categories`), with isthing and iscrowd. If the JSON has no
        annotations, which is enough for predictions: one per image, without pan_seg_file_name and segments_info.

    Raises:
        UserError: as `read_panoptic_json`; if it lists no image; if two image ids are the same number ("07" and
            7); if a segment or an annotation refers to a category or image that the JSON does not list.
    """
    content = read_panoptic_json(json_file, ("categories", "images", "annotations"))
    images: dict[int | str, dict[str, Any]] = {}
    for image in content["images"]:
        first = images.setdefault(image_key(image["id"]), image)
        if first["id"] != image["id"]:
            raise UserError(
                f"{json_file}: the image ids {first['id']!r} and {image['id']!r} are the same "
                "number, and ids are compared as numbers; change the id of one of the two images"
            )
    if not content["annotations"]:
        if not images:
            raise UserError(f"{json_file}: `images` and `annotations` are empty, expected at least one image")
        logger.warning("%s has no annotations: it can only be used for predictions", json_file)
        return [_image_dict(key, image, image_root) for key, image in images.items()]
    contiguous = {category["id"]: position for position, category in enumerate(content["categories"])}
    is_thing = [bool(category["isthing"]) for category in content["categories"]]
    dicts = []
    for annotation in content["annotations"]:
        key = image_key(annotation["image_id"])
        if key not in images:
            raise UserError(
                f"{json_file}: annotation {annotation['file_name']} refers to the unknown image "
                f"{annotation['image_id']!r}; `images` must list it"
            )
        segments = []
        for segment in annotation["segments_info"]:
            category = contiguous.get(segment["category_id"])
            if category is None:
                raise UserError(
                    f"{json_file}: unknown category id {segment['category_id']} in {annotation['file_name']}, "
                    f"expected one of `categories`: {sorted(contiguous)}"
                )
            kind = {"category_id": category, "isthing": is_thing[category], "iscrowd": segment.get("iscrowd", 0)}
            segments.append({**segment, **kind})
        dicts.append(
            {
                **_image_dict(key, images[key], image_root),
                "pan_seg_file_name": os.path.join(png_root, annotation["file_name"]),
                "segments_info": segments,
            }
        )
    return dicts


def read_panoptic_json(json_file: str, keys: Sequence[str] = ("categories",)) -> dict[str, Any]:
    """The content of a panoptic JSON, after a check of the lists in `keys`.

    `psf.data.panoptic_format` has the schema of the entries. `annotations` may be absent; it becomes [].

    Raises:
        UserError: if the JSON is missing, damaged or not panoptic, has no category or duplicate category ids.
    """
    require_file(json_file)
    content = read_json(json_file)
    if isinstance(content, dict):
        content = {"annotations": [], **content}
    for key in keys:
        if problem := find_problem(content, key, LIST):
            raise UserError(f"{json_file}: not a panoptic JSON, {problem.text}")
        for entry in content[key]:
            _check_entry(key, entry, json_file)
            for segment in entry["segments_info"] if key == "annotations" else ():
                _check_entry("segments_info", segment, f"{json_file}: {entry['file_name']}")
    if not content["categories"]:
        raise UserError(f"{json_file}: `categories` is empty, expected at least one category")
    ids = [category["id"] for category in content["categories"]]
    if len(set(ids)) < len(ids):
        raise UserError(f"{json_file}: `categories` has duplicate ids: {sorted({i for i in ids if ids.count(i) > 1})}")
    return content


def _check_entry(name: str, entry: Any, where: str) -> None:
    problems = find_problems(name, entry)
    if not problems:
        return
    label = f"the {SINGULAR[name]}"
    if isinstance(entry, dict):
        known = [f"{key} {entry[key]!r}" for key in SCHEMA[name] if key in entry and key != "segments_info"]
        label = f"{label} {', '.join(known)}" if known else label
    first = min(problems, key=lambda problem: not problem.is_missing)
    hint = "; is this a panoptic JSON?" if first.is_missing else ""
    raise UserError(f"{where}: {label}: {first.text}{hint}")


def _image_dict(key: int | str, image: dict[str, Any], image_root: str) -> dict[str, Any]:
    return {
        "file_name": os.path.join(image_root, image["file_name"]),
        "image_id": key,
        "height": int(image["height"]),
        "width": int(image["width"]),
    }
