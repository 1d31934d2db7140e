"""The shapes datasets, registered in Detectron2: psf_shapes_train, psf_shapes_val and psf_shapes_tune.

Training scenes are generated in memory by psf's mappers; other mappers read them through Detectron2's PathManager and
`annotations` (psf.data.shapes.reading). The others are written as a COCO panoptic set (images, PNGs,
JSON) on first use, because evaluators read files. They are below PSF_CACHE, by default psf/ in the user's cache folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from psf.data.files import cache_path, cache_root
from psf.data.panoptic_json import load_panoptic_json, panoptic_metadata
from psf.data.shapes.reading import SceneAnnotations, ScenePathHandler
from psf.data.shapes.scene import CATEGORIES, Scene, make_scene, scene_size
from psf.errors import UserError

__all__ = ["NUM_SCENES", "load_written_split", "register_shapes", "training_dicts"]

# Name of a split -> number of its scenes. "tune" is for choosing settings, so that "val" stays unseen.
NUM_SCENES = {"train": 10_000, "val": 100, "tune": 100}

# Part of the folder's name: raise it with any change to the scenes, so that old files are not used for new scenes.
VERSION = 1

# Segment k gets the PNG id k * _ID_STEP modulo 2^24: an odd step keeps ids distinct, a large one makes them visible.
_ID_STEP = 0x9E3779


def register_shapes() -> None:
    """Register the splits that are not registered yet. Opens no file; the paths follow the current PSF_CACHE."""
    try:
        root = cache_root()
    except UserError:  # no home folder: who uses no generated scenes needs none
        root = None
    PathManager.register_handler(ScenePathHandler(), allow_override=True)
    for split in NUM_SCENES:
        name = f"psf_shapes_{split}"
        if name in DatasetCatalog:
            continue
        metadata = MetadataCatalog.get(name).set(is_generated=True, **panoptic_metadata(CATEGORIES))
        if split == "train":
            DatasetCatalog.register(name, training_dicts)
        elif root is None:
            DatasetCatalog.register(name, cache_root)  # raises the error
        else:
            folder = root / f"shapes-v{VERSION}-{split}"
            DatasetCatalog.register(name, lambda split=split, folder=folder: load_written_split(split, folder))
            metadata.set(**{key: str(path) for key, path in _paths(folder).items()})


def training_dicts() -> list[dict[str, Any]]:
    """Dataset dicts of the training scenes; `psf_scene` holds the arguments of `make_scene`.

    Detectron2's own loader draws all scenes once or twice, for its table of classes, which takes minutes.
    """
    dicts = []
    for index in range(NUM_SCENES["train"]):
        height, width = scene_size(index, split="train")
        dicts.append(
            {
                "file_name": ScenePathHandler.path(index, "train"),
                "image_id": index,
                "height": height,
                "width": width,
                "annotations": SceneAnnotations(index, "train"),
                "psf_scene": {"index": index, "split": "train"},
            }
        )
    return dicts


def load_written_split(split: str, folder: Path) -> list[dict[str, Any]]:
    """Dataset dicts of the split in `folder`, which is generated first if it does not exist.

    Raises:
        UserError: naming PSF_CACHE, if the folder cannot be written.
    """
    if not folder.is_dir():
        with cache_path(folder) as draft:
            _write_split(split, draft)
    paths = _paths(folder)
    return load_panoptic_json(str(paths["panoptic_json"]), str(paths["panoptic_root"]), str(paths["image_root"]))


def _paths(folder: Path) -> dict[str, Path]:
    return {
        "image_root": folder / "images",
        "panoptic_root": folder / "panoptic",
        "panoptic_json": folder / "panoptic.json",
    }


def _write_split(split: str, folder: Path) -> None:
    paths = _paths(folder)
    paths["image_root"].mkdir(parents=True)
    paths["panoptic_root"].mkdir()
    images, annotations = [], []
    for index in range(NUM_SCENES[split]):
        scene = make_scene(index, split=split)
        height, width = scene.labels.shape
        name = f"{index:06d}.png"
        ids = scene.labels.astype(np.uint32) * _ID_STEP & 0xFFFFFF
        Image.fromarray(scene.image).save(paths["image_root"] / name)
        Image.fromarray(np.stack([ids >> shift & 0xFF for shift in (0, 8, 16)], axis=-1).astype(np.uint8)).save(
            paths["panoptic_root"] / name
        )
        images.append({"id": index, "file_name": name, "height": height, "width": width})
        annotations.append({"image_id": index, "file_name": name, "segments_info": _segments_info(scene)})
    info = {"description": f"psf shapes, {split}, version {VERSION}"}
    content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": CATEGORIES}
    paths["panoptic_json"].write_text(json.dumps(content))


def _segments_info(scene: Scene) -> list[dict[str, Any]]:
    """The segments in the form of a COCO panoptic JSON: PNG id, category id, area, box (x, y, width, height), crowd."""
    infos = []
    for segment in scene.segments:
        ys, xs = np.nonzero(scene.labels == segment["id"])
        left, top = int(xs.min()), int(ys.min())
        infos.append(
            {
                "id": segment["id"] * _ID_STEP & 0xFFFFFF,
                "category_id": CATEGORIES[segment["category_id"]]["id"],
                "iscrowd": int(segment["iscrowd"]),
                "area": len(xs),
                "bbox": [left, top, int(xs.max()) + 1 - left, int(ys.max()) + 1 - top],
            }
        )
    return infos
