"""ADE20K and Cityscapes, registered in Detectron2: psf_{ade20k,cityscapes}_panoptic_{train,val}.

Other plugins use the names without psf_. datasets/prepare_*_panoptic.py write the files to the same paths as the
scripts of those plugins, below the folder in the variable DETECTRON2_DATASETS.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, CITYSCAPES_CATEGORIES

from psf.data.panoptic_json import load_panoptic_json, panoptic_metadata

__all__ = [
    "ADE20K_THING_VALUES",
    "BuiltinPaths",
    "ade20k_categories",
    "ade20k_paths",
    "cityscapes_categories",
    "cityscapes_paths",
    "register_builtin",
]

# Pixel values in annotations/ of ADEChallengeData2016: 1..150, in the order of the names; 0 is void.
# fmt: off
_ADE20K_STUFF_VALUES = frozenset({
    1, 2, 3, 4, 5, 6, 7, 10, 12, 14, 17, 18, 22, 26, 27, 29, 30, 35, 41, 47, 49, 52, 53, 55, 60, 61, 62, 64, 69, 78,
    80, 85, 92, 95, 97, 100, 101, 102, 106, 107, 110, 114, 115, 118, 123, 129, 132, 141, 142, 146,
})
# fmt: on
# Thing k (from 1) in the red channel of annotations_instance/ -> its value in annotations/.
ADE20K_THING_VALUES = tuple(value for value in range(1, 151) if value not in _ADE20K_STUFF_VALUES)


class BuiltinPaths(NamedTuple):
    """Paths of a set; the fields have the names of the metadata keys."""

    image_root: Path
    panoptic_json: Path
    panoptic_root: Path


def ade20k_categories() -> list[dict[str, Any]]:
    """150 categories, 100 of them things; id 0 is value 1 of the masks."""
    return [
        {"id": value - 1, "name": name.strip(), "isthing": int(value not in _ADE20K_STUFF_VALUES)}
        for value, name in enumerate(ADE20K_SEM_SEG_CATEGORIES, 1)
    ]


def cityscapes_categories() -> list[dict[str, Any]]:
    """The 19 evaluated categories, 8 of them things; ids are the label ids, from 7 on with gaps."""
    return [
        {**{key: one[key] for key in ("id", "name", "isthing")}, "color": list(one["color"])}
        for one in CITYSCAPES_CATEGORIES
    ]


def ade20k_paths(root: Path, split: str) -> BuiltinPaths:
    """Paths of ADE20K; root: the folder ADEChallengeData2016. split: "train" or "val"."""
    images = root / "images" / {"train": "training", "val": "validation"}[split]
    return BuiltinPaths(images, root / f"ade20k_panoptic_{split}.json", root / f"ade20k_panoptic_{split}")


def cityscapes_paths(root: Path, split: str) -> BuiltinPaths:
    """Paths of Cityscapes; root: the folder with gtFine and leftImg8bit. split: "train" or "val"."""
    gt = root / "gtFine"
    name = f"cityscapes_panoptic_{split}"
    return BuiltinPaths(root / "leftImg8bit" / split, gt / f"{name}.json", gt / name)


def register_builtin() -> None:
    """Register the sets that are not registered yet. Reads the variable DETECTRON2_DATASETS, and no file."""
    # As Detectron2 does: a home folder that does not exist (~name) is no error here, where the sets may not be used.
    root = Path(os.path.expanduser(os.environ.get("DETECTRON2_DATASETS") or "datasets"))
    for split in ("train", "val"):
        paths = ade20k_paths(root / "ADEChallengeData2016", split)
        _register(f"psf_ade20k_panoptic_{split}", paths, ade20k_categories(), partial(_load, paths))
        paths = cityscapes_paths(root / "cityscapes", split)
        _register(f"psf_cityscapes_panoptic_{split}", paths, cityscapes_categories(), partial(_load_cityscapes, paths))


def _register(name: str, paths: BuiltinPaths, categories: list[dict[str, Any]], load: Any) -> None:
    if name not in DatasetCatalog:
        DatasetCatalog.register(name, load)
        texts = {key: str(path) for key, path in paths._asdict().items()}
        MetadataCatalog.get(name).set(**texts, **panoptic_metadata(categories))


def _load(paths: BuiltinPaths) -> list[dict[str, Any]]:
    return load_panoptic_json(str(paths.panoptic_json), str(paths.panoptic_root), str(paths.image_root))


def _load_cityscapes(paths: BuiltinPaths) -> list[dict[str, Any]]:
    """Find images by their ids: the JSON of Cityscapes' own script has file names that do not exist."""
    dicts = _load(paths)
    for one in dicts:
        city = one["image_id"].partition("_")[0]
        one["file_name"] = str(paths.image_root / city / f"{one['image_id']}_leftImg8bit.png")
    return dicts
