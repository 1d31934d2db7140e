"""A panoptic JSON in COCO's format -> Detectron2's metadata and data set dicts.

Everything comes from the JSON's `categories`: a class's contiguous id is its position there, for things and stuff in
one count. Ids may have gaps and things need not come first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from detectron2.utils.colormap import colormap
from detectron2.utils.file_io import PathManager

from psf.data.dataset_check import require_file

__all__ = ["image_key", "load_panoptic_json", "panoptic_metadata", "read_categories"]


def panoptic_metadata(categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of a set with these `categories`, in the form of Detectron2's "standard" COCO panoptic sets.

    Returns:
        thing_classes and stuff_classes, thing_colors and stuff_colors: all K classes in both lists of a pair, because
        Detectron2 indexes them by the joint id (a category without a color gets one);
        {thing,stuff}_dataset_id_to_contiguous_id: each its own kind alone; ignore_label, label_divisor and
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
    """The `categories` of a panoptic JSON; it need have nothing else.

    Raises:
        ValueError: if the JSON is missing, damaged or not panoptic, or if an id is there twice.
    """
    return _read_json(json_file, ("categories",))["categories"]


def load_panoptic_json(json_file: str, png_root: str, image_root: str) -> list[dict[str, Any]]:
    """Read a panoptic JSON into Detectron2's data set dicts.

    Args:
        json_file: JSON in COCO's panoptic format.
        png_root: folder of the panoptic PNGs, the annotations' `file_name`.
        image_root: folder of the images, the images' own `file_name` (any suffix).

    Returns:
        One dict per annotation: file_name, image_id, height, width, pan_seg_file_name and segments_info, whose
        category_id is contiguous (position in `categories`), with isthing and iscrowd.

    Raises:
        ValueError: as `read_categories`; or if a segment or an annotation names a category or image that the JSON does
            not list.
    """
    content = _read_json(json_file, ("categories", "images", "annotations"))
    contiguous = {category["id"]: position for position, category in enumerate(content["categories"])}
    is_thing = [bool(category["isthing"]) for category in content["categories"]]
    images = {image_key(image["id"]): image for image in content["images"]}
    dicts = []
    for annotation in content["annotations"]:
        image = images.get(image_key(annotation["image_id"]))
        if image is None:
            raise ValueError(
                f"{json_file}: annotation {annotation['file_name']} is of the unknown image "
                f"{annotation['image_id']!r}; `images` must list it"
            )
        segments = []
        for segment in annotation["segments_info"]:
            category = contiguous.get(segment["category_id"])
            if category is None:
                raise ValueError(
                    f"{json_file}: unknown category id {segment['category_id']} in {annotation['file_name']}, "
                    f"expected one of `categories`: {sorted(contiguous)}"
                )
            kind = {"category_id": category, "isthing": is_thing[category], "iscrowd": segment.get("iscrowd", 0)}
            segments.append({**segment, **kind})
        dicts.append(
            {
                "file_name": os.path.join(image_root, image["file_name"]),
                "image_id": image_key(annotation["image_id"]),
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": os.path.join(png_root, annotation["file_name"]),
                "segments_info": segments,
            }
        )
    return dicts


def image_key(image_id: int | str) -> int | str:
    """The image id as a number where it is one: some JSONs write it as text, which COCO's evaluation is not for."""
    return int(image_id) if str(image_id).isdigit() else image_id


def _read_json(json_file: str, keys: Sequence[str]) -> dict[str, Any]:
    """The content of a panoptic JSON that has these keys, `categories` among them."""
    require_file(json_file)
    with PathManager.open(json_file, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{json_file}: not a valid JSON file ({error})") from error
    for key in keys:
        if key not in content:
            raise ValueError(f"{json_file}: not a panoptic JSON, it has no {key!r}")
    if not content["categories"]:
        raise ValueError(f"{json_file}: `categories` is empty, so there is nothing to learn")
    for category in content["categories"]:
        lacking = {"id", "name", "isthing"} - category.keys()
        if lacking:
            raise ValueError(f"{json_file}: not a panoptic JSON, the category {category} has no {sorted(lacking)}")
    ids = [category["id"] for category in content["categories"]]
    if len(set(ids)) < len(ids):
        raise ValueError(f"{json_file}: `categories` has ids twice: {sorted({i for i in ids if ids.count(i) > 1})}")
    return content
