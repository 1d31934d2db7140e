"""The lists of a panoptic JSON, held against each other; no other file is read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.utils.file_io import PathManager

from psf.data.dataset_check import require_file
from psf.data.validation_report import Fault

__all__ = ["check_lists", "read_panoptic_content"]

_NEEDED = {
    "categories": ("id", "name", "isthing"),
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "file_name", "segments_info"),
}
_SINGULAR = {"categories": "category", "images": "image", "annotations": "annotation"}


def read_panoptic_content(json_file: str) -> dict[str, Any]:
    """The JSON; a ValueError if it is missing, damaged or not a panoptic one at all."""
    require_file(json_file)
    with PathManager.open(json_file) as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{json_file}: not a valid JSON file ({error})") from error
    for key in _NEEDED:
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f"{json_file}: not a panoptic JSON, {key!r} is not a list of entries in it")
    if content["annotations"] and not any("segments_info" in one for one in content["annotations"]):
        raise ValueError(
            f"{json_file}: not a panoptic JSON, its annotations have no segments_info; an instances JSON becomes one "
            "by tools/make_panoptic.py"
        )
    return content


def check_lists(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[Fault], list[str]]:
    """Find entries that lack something, ids that come twice and images that nobody lists.

    Returns:
        The usable entries: complete, each id once; the faults; and notes, which are no faults.
    """
    faults: list[Fault] = []
    usable: dict[str, Any] = {}
    for key, needed in _NEEDED.items():
        complete = []
        for position, entry in enumerate(content[key]):
            lacking = [name for name in needed if name not in entry]
            if lacking:
                faults.append(Fault("incomplete entry", f"{key}[{position}]", f"lacks {', '.join(lacking)}"))
            else:
                complete.append(entry)
        usable[key] = complete
    for key, name, kind in (
        ("categories", "id", "duplicate category id"),
        ("images", "id", "duplicate image id"),
        ("annotations", "image_id", "several annotations of an image"),
    ):
        usable[key] = _once(usable[key], name, kind, _SINGULAR[key], faults)
    known = {image["id"] for image in usable["images"]}
    orphans = [one for one in usable["annotations"] if one["image_id"] not in known]
    for one in orphans:
        detail = f"image_id {one['image_id']!r} is not among `images`"
        faults.append(Fault("annotation of an unknown image", one["file_name"], detail))
    usable["annotations"] = [one for one in usable["annotations"] if one["image_id"] in known]
    bare = known - {one["image_id"] for one in usable["annotations"]}
    notes = [f"{len(bare)} images have no annotation and are not used"] if bare else []
    names = Counter(category["name"] for category in usable["categories"])
    notes += [f"{number} categories are called {name!r}" for name, number in names.items() if number > 1]
    return usable, faults, notes


def _once(
    entries: Iterable[dict[str, Any]], key: str, kind: str, singular: str, faults: list[Fault]
) -> list[dict[str, Any]]:
    """The first entry of each id. A further one is a fault, which can be corrected if it says just the same."""
    first: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        known = first.setdefault(entry[key], entry)
        if known is not entry:
            is_copy = known == entry
            detail = "a copy of an earlier entry" if is_copy else "differs from an earlier entry with this id"
            faults.append(Fault(kind, f"{singular} {entry[key]!r}", detail, is_copy))
    return list(first.values())
