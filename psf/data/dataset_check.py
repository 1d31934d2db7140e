"""Check and load registered datasets, and count their segments."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from psf.data.files import check_regular
from psf.data.panoptic_format import image_key
from psf.errors import UserError

__all__ = [
    "LargestCount",
    "check_dataset",
    "count_segments",
    "largest_count",
    "load_dataset",
    "require_file",
]


def check_dataset(name: str) -> None:
    """Check that the folders and JSON files of a registered dataset exist.

    Only paths in the metadata are checked (image_root, panoptic_root, panoptic_json; for Detectron2's "separated" and
    instance sets also sem_seg_root and json_file), which is fast on large sets. Sets that psf generates need no files.

    Raises:
        UserError: if no set has this name; or naming each missing path, with the source of the path.
    """
    if name not in DatasetCatalog:
        similar = get_close_matches(name, DatasetCatalog.keys(), n=3)
        names = ", ".join(sorted(DatasetCatalog))
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"registered are {names}"
        raise UserError(f"no dataset is registered as {name!r} (DATASETS.TRAIN, DATASETS.TEST); {hint}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("is_generated", False):
        return
    keys = ["image_root"]
    if metadata.get("panoptic_json"):
        keys += ["panoptic_root", "panoptic_json"]
    if metadata.get("sem_seg_root"):
        keys += ["sem_seg_root"]
    if not metadata.get("panoptic_json") or metadata.get("sem_seg_root"):
        keys += ["json_file"]
    paths = [(key, metadata.get(key)) for key in keys if metadata.get(key)]
    missing = [(key, path) for key, path in paths if not PathManager.exists(path)]
    if missing:
        texts = ", ".join(f"{path} ({key})" for key, path in missing)
        raise UserError(f"dataset {name!r} is incomplete, missing: {texts}. {_where_to_look(missing[0][1])}")


def load_dataset(name: str) -> list[dict[str, Any]]:
    """Check a dataset and load its dicts, for `dataset=` of Detectron2's loaders.

    Raises:
        UserError: as `check_dataset`; or if its JSON is damaged, has categories that the metadata do not list,
            refers to missing files, or lists no image.
    """
    check_dataset(name)
    metadata = MetadataCatalog.get(name)
    source = metadata.get("panoptic_json") or metadata.get("json_file")
    try:
        dicts = DatasetCatalog.get(name)
    except json.JSONDecodeError as error:
        raise UserError(f"dataset {name!r}: {source} is not a valid JSON file ({error})") from error
    except KeyError as error:
        raise UserError(
            f"dataset {name!r}: {error.args[0]!r} in {source} is a category id that its metadata do not list, or a "
            "key that is missing in the JSON; the JSON must be of the kind that the dataset was registered for"
        ) from error
    except AssertionError as error:  # Detectron2 raises it if the first image or PNG is missing
        raise UserError(f"dataset {name!r}: {error} of {source} is missing. {_where_to_look(str(error))}") from error
    if not dicts:
        raise UserError(f"dataset {name!r}: {source} lists no image")
    _check_image_ids(dicts, f"dataset {name!r}: {source}")
    return dicts


def _check_image_ids(dicts: Sequence[Mapping[str, Any]], place: str) -> None:
    """Raise a UserError if two images share an id: one would be evaluated with the ground truth of the other.

    `load_panoptic_json` checks the JSON itself; other plugins' loaders do not. A dict may occur repeatedly.
    """
    file_of: dict[Any, Any] = {}
    for one in dicts:
        if "image_id" in one and "file_name" in one:
            first = file_of.setdefault(image_key(one["image_id"]), one["file_name"])
            if first != one["file_name"]:
                raise UserError(
                    f"{place} has the image id {one['image_id']!r} twice, for {first} and {one['file_name']}; give "
                    "each image an id of its own"
                )


def require_file(path: str) -> None:
    """Raise a UserError if a file of a dataset is missing; it names the path and the source of the path."""
    if not PathManager.isfile(path):
        check_regular(path)
        raise UserError(f"{path}: this file of a dataset is missing. {_where_to_look(path)}")


def _where_to_look(path: str) -> str:
    """A hint on the source of the path of a missing file or folder."""
    named = os.environ.get("DETECTRON2_DATASETS")
    root = os.path.abspath(os.path.expanduser(named or "datasets"))
    if not os.path.abspath(path).startswith(os.path.join(root, "")):
        return "Check the paths and their order in --register NAME=JSON,PNGS,IMAGES."
    state = f"is {named!r}" if named else "is not set, so it is the folder 'datasets' in the working folder"
    return f"Detectron2 looks for its own datasets under the variable DETECTRON2_DATASETS, which {state}."


class LargestCount(NamedTuple):
    """The image with the most segments."""

    num_segments: int
    image: str  # its file name, or its id


def count_segments(dataset_dict: Mapping[str, Any], *, stuff: bool = False) -> int | None:
    """Number of things of an image, crowds excluded.

    Args:
        dataset_dict: Detectron2's, with `segments_info` or `annotations`.
        stuff: count the stuff classes of `segments_info`, too: joint queries (table 8) are matched to both.

    Returns:
        None if the dict has neither of the two keys; and for the generated shapes, which would be drawn.
    """
    if "psf_scene" in dataset_dict:
        return None
    if "segments_info" in dataset_dict:
        segments = [one for one in dataset_dict["segments_info"] if not one.get("iscrowd", 0)]
        things = sum(bool(one.get("isthing", True)) for one in segments)
        classes = {one["category_id"] for one in segments if not one.get("isthing", True)}
        return things + (len(classes) if stuff else 0)
    if "annotations" in dataset_dict:
        return sum(not one.get("iscrowd", 0) for one in dataset_dict["annotations"])
    return None


def largest_count(dicts: Iterable[Mapping[str, Any]], *, stuff: bool = False) -> LargestCount | None:
    """The first image with the most things; None if no dict lists its segments. `stuff` as for `count_segments`."""
    largest: LargestCount | None = None
    for one in dicts:
        count = count_segments(one, stuff=stuff)
        if count is not None and (largest is None or count > largest.num_segments):
            largest = LargestCount(count, str(one.get("file_name", one.get("image_id", "?"))))
    return largest
