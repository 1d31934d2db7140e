"""Convert downloaded ADE20K and Cityscapes to panoptic sets, at the paths that other plugins use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psf.data.builtin import (
    ADE20K_THING_VALUES,
    BuiltinPaths,
    ade20k_categories,
    ade20k_paths,
    cityscapes_categories,
    cityscapes_paths,
)
from psf.data.files import is_hidden
from psf.errors import UserError
from psf.tools.dataset_conversion.conversion import Drawing, PanopticFiles, write_panoptic_set
from psf.tools.dataset_conversion.label_images import Segment, draw_segments, read_label_image

__all__ = ["prepare_ade20k", "prepare_cityscapes"]


def prepare_ade20k(
    root: Path, split: str, *, overwrite: bool = False, workers: int | None = None, show_progress: bool = False
) -> Counter[str]:
    """Convert stuff in annotations/ and things in annotations_instance/ to ade20k_panoptic_`split`; things are on top.

    Pixels of a thing class in annotations/ without an instance are void, as in other panoptic versions of ADE20K.

    Args:
        root: the folder ADEChallengeData2016.
        split: "train" or "val".

    Raises:
        UserError: naming the missing or inconsistent file.
    """
    part = {"train": "training", "val": "validation"}[split]
    categories = ade20k_categories()
    is_stuff: np.ndarray = np.zeros(256, dtype=bool)
    is_stuff[1 : len(categories) + 1] = [not category["isthing"] for category in categories]

    def category_of(key: int) -> tuple[int, bool] | None:
        value = key if key < 256 else ADE20K_THING_VALUES[key % 256 - 1]
        return (value - 1, False) if value else None

    def draw(image_file: Path) -> Drawing:
        name = f"{image_file.stem}.png"
        semantic = _read_numbers(root / "annotations" / part / name)
        instance_file = root / "annotations_instance" / part / name
        colors = read_label_image(instance_file)
        if colors.ndim == 2:
            raise UserError(f"{instance_file}: expected a color image, found one number per pixel")
        classes, instances = np.moveaxis(colors.astype(np.int32), -1, 0)[:2]
        if semantic.shape != instances.shape:
            raise UserError(f"{instance_file} differs in size from the same file in annotations/{part}")
        # 0; for stuff, its value; for things, 256 * instance + class.
        keys = np.where(is_stuff[semantic], semantic, 0)
        is_thing = (instances > 0) & (classes > 0) & (classes <= len(ADE20K_THING_VALUES))
        keys = np.where(is_thing, 256 * instances + classes, keys)
        entry = {"id": image_file.stem, "file_name": image_file.name}
        return _drawing(entry, keys, category_of)

    images = _files(root / "images" / part, "*.jpg")
    return _write(images, draw, categories, ade20k_paths(root, split), overwrite, workers, show_progress)


def prepare_cityscapes(
    root: Path, split: str, *, overwrite: bool = False, workers: int | None = None, show_progress: bool = False
) -> Counter[str]:
    """Convert *_gtFine_instanceIds.png to gtFine/cityscapes_panoptic_`split`.

    The PNGs have class * 1000 + number for single things, and the class for stuff and groups of things, which become
    crowds. Classes that are not evaluated become void.

    Args:
        root: the folder with gtFine and leftImg8bit.
        split: "train" or "val".

    Raises:
        UserError: naming the missing or inconsistent file.
    """
    categories = cityscapes_categories()
    is_thing = {category["id"]: bool(category["isthing"]) for category in categories}

    def category_of(key: int) -> tuple[int, bool] | None:
        category_id = key if key < 1000 else key // 1000
        return (category_id, is_thing[category_id] and key < 1000) if category_id in is_thing else None

    def draw(gt_file: Path) -> Drawing:
        city, name = gt_file.parent.name, gt_file.name.removesuffix("_gtFine_instanceIds.png")
        entry = {"id": name, "file_name": f"{city}/{name}_leftImg8bit.png"}
        return _drawing(entry, _read_numbers(gt_file), category_of)

    gt_files = _files(root / "gtFine" / split, "*/*_gtFine_instanceIds.png")
    return _write(gt_files, draw, categories, cityscapes_paths(root, split), overwrite, workers, show_progress)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(file for file in folder.glob(pattern) if not is_hidden(file, folder))
    if not found:
        raise UserError(f"{folder}: found no file {pattern}; datasets/README.md shows the expected folders")
    return found


def _read_numbers(path: Path) -> np.ndarray:
    """(H, W) int32 of a PNG with one number per pixel."""
    numbers = read_label_image(path)
    if numbers.ndim != 2:
        raise UserError(f"{path}: expected one number per pixel, found a color image")
    return numbers.astype(np.int32)


def _drawing(entry: dict[str, Any], keys: np.ndarray, category_of: Callable[[int], tuple[int, bool] | None]) -> Drawing:
    """One segment per key with a category; category_of: key -> category id and whether it is a crowd, or None."""

    def segment_of(key: int) -> Segment | None:
        found = category_of(key)
        return None if found is None else Segment(found[0], part=key, is_crowd=found[1])

    labels, segments = draw_segments(keys, segment_of, entry["file_name"])
    height, width = keys.shape
    return Drawing({**entry, "height": height, "width": width}, labels, segments, Counter())


def _write(
    sources: Sequence[Path],
    draw: Callable[[Path], Drawing],
    categories: Sequence[dict[str, Any]],
    paths: BuiltinPaths,
    overwrite: bool,
    workers: int | None,
    show_progress: bool,
) -> Counter[str]:
    files = PanopticFiles(paths.panoptic_json, paths.panoptic_root)
    files.check_free(overwrite=overwrite)
    return write_panoptic_set(sources, draw, categories, files, workers=workers, show_progress=show_progress)
