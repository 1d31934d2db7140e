"""Convert a panoptic JSON in COCO's format to Detectron2's metadata and dataset dicts.

All classes come from the JSON's `categories`: a class's contiguous id is its position there, with a joint count of
things and stuff. Ids may have gaps, and things need not come first.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from detectron2.utils.colormap import colormap

from psf.data.dataset_check import require_file
from psf.data.files import read_json
from psf.data.panoptic_format import (
    LIST,
    SCHEMA,
    SINGULAR,
    check_segment_ids,
    distinct_names,
    find_problem,
    find_problems,
    image_key,
    name_notes,
    shorten,
    with_slashes,
)
from psf.errors import UserError

__all__ = ["load_panoptic_json", "panoptic_metadata", "read_categories", "read_lists", "read_panoptic_json"]

logger = logging.getLogger(__name__)

# Parsed JSONs are kept up to this many bytes of text in total; parsed they take about four times as much memory.
MAX_KEPT_BYTES = 32 * 2**20
# A file that was changed so recently may change again within the resolution of its times, so it is not kept.
SETTLED_SECONDS = 2.0


def panoptic_metadata(categories: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Metadata of a set with these `categories`, in the form of Detectron2's "standard" COCO panoptic sets.

    Returns:
        thing_classes and stuff_classes, thing_colors and stuff_colors: all K classes in both lists of a pair, because
        Detectron2 indexes them by the joint id (a category without a color gets one; a name that several categories
        have gets the id, "ball (id 3)", because results are stored by name);
        {thing,stuff}_dataset_id_to_contiguous_id: only things, and only stuff; ignore_label, label_divisor and
        evaluator_type.
    """
    names = distinct_names([one["name"] for one in categories], [one["id"] for one in categories])
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
        UserError: as `read_panoptic_json`; if it lists no image; if a segment or an annotation refers to a category or
            image that the JSON does not list.
    """
    content = read_panoptic_json(json_file, ("categories", "images", "annotations"))
    images = {image_key(image["id"]): image for image in content["images"]}
    for note, number in name_notes([category["name"] for category in content["categories"]]).items():
        logger.warning("%s: %d %s", json_file, number, note)
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
                f"{shorten(annotation['image_id'])}; `images` must list it"
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
    if len(dicts) < len(images):
        num_bare = len(images) - len(dicts)
        logger.warning("%s: %d of %d images have no annotation and are not used", json_file, num_bare, len(images))
    return dicts


def read_lists(json_file: str, keys: Sequence[str]) -> dict[str, Any]:
    """The content of a panoptic JSON with the lists in `keys`, whose entries are unchecked.

    `annotations` may be absent; it becomes []. Backslashes in file names (Windows) become slashes.

    Raises:
        UserError: if the JSON is missing or damaged, or has not these lists.
    """
    content = _read_object(json_file)
    _check_lists(content, keys, json_file)
    return content


def _read_object(json_file: str) -> Any:
    require_file(json_file)
    content = read_json(json_file)
    return {"annotations": [], **content} if isinstance(content, dict) else content


def _check_lists(content: Any, keys: Sequence[str], json_file: str) -> None:
    for key in keys:
        if problem := find_problem(content, key, LIST):
            raise UserError(f"{json_file}: not a panoptic JSON, {problem.text}")
        if with_slashes(content[key]):
            logger.info("%s: backslashes in the file names of `%s` are read as slashes", json_file, key)


def read_panoptic_json(json_file: str, keys: Sequence[str] = ("categories",)) -> dict[str, Any]:
    """The content of a panoptic JSON, after a check of the lists in `keys`; see `read_lists`.

    `psf.data.panoptic_format` has the schema of the entries. A file is parsed and checked once per process, until it
    changes: callers share the content, and must not change it. See `_ParsedFiles`.

    Raises:
        UserError: if the JSON is missing, damaged or not panoptic, has no category, or two entries share what must be
            unique: the id and the file of images ("07" and 7 are the same id), the image and the PNG of annotations,
            the id of categories and of an image's segments.
    """
    with _parsed.lock:
        content = _parsed.read(json_file)
        missing = [key for key in keys if key not in content.checked]
        _check_lists(content, missing, json_file)
        for key in missing:
            _check_entries(key, content[key], json_file)
        if not content["categories"]:
            raise UserError(f"{json_file}: `categories` is empty, expected at least one category")
        content.checked.update(missing)
    return content


def _check_entries(key: str, entries: Sequence[Any], json_file: str) -> None:
    for entry in entries:
        _check_entry(key, entry, json_file)
        if key == "annotations":
            place = f"{json_file}: {entry['file_name']}"
            for segment in entry["segments_info"]:
                _check_entry("segments_info", segment, place)
            check_segment_ids([segment["id"] for segment in entry["segments_info"]], place)
    _check_unique(key, entries, json_file)


class _Content(dict[str, Any]):
    """A parsed JSON; unlike a plain dict, it can have weak references. checked: its lists that were checked."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__(content)
        self.checked: set[str] = set()


class _Version(NamedTuple):
    """What distinguishes the versions of a file: writing it changes at least its ctime."""

    path: str
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: str) -> _Version | None:
        """The version on the disk; None if it is no file of this machine, or is too new to be told from the next."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        if time.time() - max(status.st_mtime, status.st_ctime) < SETTLED_SECONDS:
            return None
        return cls(os.path.abspath(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class _ParsedFiles:
    """The newest parsed JSONs up to MAX_KEPT_BYTES of text, and any others as long as someone uses their content."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._used: weakref.WeakValueDictionary[_Version, _Content] = weakref.WeakValueDictionary()
        self._kept: OrderedDict[str, tuple[int, _Content]] = OrderedDict()  # path -> bytes of text, content

    def read(self, path: str) -> _Content:
        version = _Version.of(path)  # before reading: if the file changes meanwhile, it is read again
        content = None if version is None else self._used.get(version)
        if content is None:
            parsed = _read_object(path)
            _check_lists(parsed, ("categories",), path)
            content = _Content(parsed)
            if version is not None:
                self._used[version] = content
                self._keep(version, content)
        return content

    def _keep(self, version: _Version, content: _Content) -> None:
        self._kept.pop(version.path, None)  # another version
        if version.size <= MAX_KEPT_BYTES:
            self._kept[version.path] = version.size, content
            while sum(size for size, _ in self._kept.values()) > MAX_KEPT_BYTES:
                self._kept.popitem(last=False)


_parsed = _ParsedFiles()


_UNIQUE = {"categories": ("id",), "images": ("id", "file_name"), "annotations": ("image_id", "file_name")}


def _check_unique(name: str, entries: Sequence[dict[str, Any]], json_file: str) -> None:
    """Raise a UserError if two entries share what must be unique: one of them would get what belongs to the other."""
    for key in _UNIQUE[name]:
        first: dict[Any, dict[str, Any]] = {}
        for entry in entries:
            value = os.path.normpath(entry[key]) if key == "file_name" else image_key(entry[key])
            if (other := first.setdefault(value, entry)) is not entry:
                values = dict.fromkeys(shorten(one[key]) for one in (other, entry))
                same = "" if len(values) == 1 else ", which are the same"
                raise UserError(
                    f"{json_file}: two {name} have the {key} {' and '.join(values)}{same}: "
                    f"{_label(other, name, key)} and {_label(entry, name, key)}; change or remove one of them "
                    "(psf validate lists all, and --fix removes copies)"
                )


def _label(entry: dict[str, Any], name: str, without: str) -> str:
    known = [key for key in SCHEMA[name] if key in entry and key not in ("segments_info", without)]
    return ", ".join(f"{key} {shorten(entry[key])}" for key in known)


def _check_entry(name: str, entry: Any, where: str) -> None:
    problems = find_problems(name, entry)
    if not problems:
        return
    known = _label(entry, name, "") if isinstance(entry, dict) else ""
    label = f"the {SINGULAR[name]} {known}".rstrip()
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
