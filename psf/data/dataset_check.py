"""One clear error, before anything is loaded, where a data set is not as its metadata say."""

from __future__ import annotations

import json
import os
from difflib import get_close_matches
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

__all__ = ["check_dataset", "load_dataset", "require_file"]


def check_dataset(name: str) -> None:
    """Check that a registered data set's folders and JSON files are there.

    Looks at the metadata alone (image_root, panoptic_root, panoptic_json; for Detectron2's "separated" and instance
    sets also sem_seg_root and json_file), so it costs nothing on a large set. Sets that psf generates need no files.

    Raises:
        ValueError: if no set has that name, or naming each missing path and where it comes from.
    """
    if name not in DatasetCatalog:
        similar = get_close_matches(name, DatasetCatalog.keys(), n=3)
        hint = f"did you mean {' or '.join(similar)}?" if similar else f"known are {', '.join(sorted(DatasetCatalog))}"
        raise ValueError(f"no data set is registered as {name!r} (DATASETS.TRAIN, DATASETS.TEST); {hint}")
    metadata = MetadataCatalog.get(name)
    if metadata.get("is_generated", False):
        return
    wanted = ["image_root"]
    if metadata.get("panoptic_json"):
        wanted += ["panoptic_root", "panoptic_json"]
    if metadata.get("sem_seg_root"):
        wanted += ["sem_seg_root"]
    if not metadata.get("panoptic_json") or metadata.get("sem_seg_root"):
        wanted += ["json_file"]
    paths = [(key, metadata.get(key)) for key in wanted if metadata.get(key)]
    missing = [(key, path) for key, path in paths if not PathManager.exists(path)]
    if missing:
        texts = ", ".join(f"{path} ({key})" for key, path in missing)
        raise ValueError(f"data set {name!r} is incomplete, missing: {texts}. {_where_to_look(missing[0][1])}")


def load_dataset(name: str) -> list[dict[str, Any]]:
    """Check a data set and load its dicts, which may be given as `dataset=` to Detectron2's loaders.

    Raises:
        ValueError: as `check_dataset`; or if its JSON is damaged, has categories that the metadata do not know, or
            names files that are not there; or if it lists no image.
    """
    check_dataset(name)
    metadata = MetadataCatalog.get(name)
    source = metadata.get("panoptic_json") or metadata.get("json_file")
    try:
        dicts = DatasetCatalog.get(name)
    except json.JSONDecodeError as error:
        raise ValueError(f"data set {name!r}: {source} is not a valid JSON file ({error})") from error
    except KeyError as error:
        raise ValueError(
            f"data set {name!r}: {error.args[0]!r} in {source} is a category id that its metadata do not list, or a "
            "key that the JSON lacks; the JSON must be of the kind that the data set was registered for"
        ) from error
    except AssertionError as error:  # how Detectron2 says that the first image or PNG is not there
        raise ValueError(f"data set {name!r}: {error} of {source} is missing. {_where_to_look(str(error))}") from error
    if not dicts:
        raise ValueError(f"data set {name!r}: {source} lists no image")
    return dicts


def require_file(path: str) -> None:
    """Raise a ValueError that names the path and where it comes from, if a data set's file is missing."""
    if not PathManager.isfile(path):
        raise ValueError(f"{path}: this file of a data set is missing. {_where_to_look(path)}")


def _where_to_look(path: str) -> str:
    """Where the path of a missing file or folder comes from."""
    named = os.environ.get("DETECTRON2_DATASETS")
    root = os.path.abspath(os.path.expanduser(named or "datasets"))
    if not os.path.abspath(path).startswith(os.path.join(root, "")):
        return "Are the paths that it was registered with right, and in this order: --register NAME=JSON,PNGS,IMAGES?"
    state = f"is {named!r}" if named else "is not set, which means the folder 'datasets' where the command runs"
    return f"Detectron2 looks for its own data sets under the variable DETECTRON2_DATASETS, which {state}."
