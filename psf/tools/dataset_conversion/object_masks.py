"""Read masks per object: one image file for each object, as microscopy sets have them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from psf.data.files import is_hidden
from psf.data.images import image_size, image_suffixes
from psf.errors import UserError
from psf.tools.dataset_conversion.classes import Classes
from psf.tools.dataset_conversion.label_images import read_label_image
from psf.tools.dataset_conversion.pairing import find_images, join_by_name
from psf.tools.dataset_conversion.regions import Region, encode_mask
from psf.tools.dataset_conversion.sources import Source, SourceImage, check_distinct

__all__ = ["read_object_masks"]

_EMPTY = "masks without a pixel, dropped"
_NUMBER_AT_END = re.compile(r"[\s_.-]*\d+$")


def read_object_masks(
    folder: Path, classes: Classes, *, image_root: Path | None = None, skip_unlabeled: bool = False
) -> Source:
    """Read a folder with one folder of masks per image.

    Without `image_root`, ID/images/ has the image and ID/masks/ its masks, as in the 2018 Data Science Bowl. With it,
    NAME/ has the masks of the image NAME.png. A mask is an image with one value besides 0, or a color besides black.
    The class of a mask is named by its file (car.png, car_2.png) or its folder (car/2.png); if there is only one thing
    class, other masks belong to that class.

    Args:
        classes: their values are not read.
        skip_unlabeled: skip images without a folder of masks.

    Raises:
        UserError: naming the file or folder, if there is no image, an image has no masks or masks have no image, or the
            class of a mask is unknown.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: found no such folder")
    root = folder if image_root is None else image_root
    if image_root is None:
        pairs = _pairs_inside(folder)
    else:
        images = find_images(image_root, without=[folder])
        parents = {path.parent for path in _mask_files(folder)}
        # Masks in NAME/ or, with a folder per class, in NAME/CLASS/.
        keys = {
            next((one for one in (key, key.rpartition("/")[0]) if one in images), key)
            for key in (parent.relative_to(folder).as_posix() for parent in sorted(parents))
        }
        keys |= {key for key in images if (folder / key).is_dir()}  # without a mask: no object
        folders = {key: folder / key for key in sorted(keys)}
        pairs, num_skipped = join_by_name(images, folders, place=str(folder), skip_unlabeled=skip_unlabeled)
    class_of = _ClassNames(classes)
    items = []
    for number, (file_name, mask_folder) in enumerate(pairs, 1):
        height, width = image_size(str(root / file_name))
        entry = {"id": number, "file_name": file_name, "height": height, "width": width}
        masks = [{"file": path, "category_id": class_of(path, mask_folder)} for path in _mask_files(mask_folder)]
        items.append(SourceImage(entry, masks))
    check_distinct(items, str(folder))
    notes = Counter(classes.notes)
    if image_root is not None and num_skipped:
        notes["images without masks were skipped"] = num_skipped
    return Source(classes.categories, items, _regions, notes, image_root=root)


def _pairs_inside(folder: Path) -> list[tuple[str, Path]]:
    """(Image, its folder of masks) of each folder ID, the image relative to `folder`."""
    pairs = []
    for masks in sorted(path for path in folder.rglob("masks") if path.is_dir() and not is_hidden(path, folder)):
        images = list(find_images(masks.parent / "images").values())
        if len(images) != 1:
            raise UserError(f"{masks.parent / 'images'}: found {len(images)} images, expected the image of {masks}")
        pairs.append(((masks.parent / "images" / images[0]).relative_to(folder).as_posix(), masks))
    if not pairs:
        raise UserError(
            f"{folder}: found no folder ID/masks beside ID/images; if the images are elsewhere, set --image-root, and "
            "name each folder of masks as its image"
        )
    return pairs


def _mask_files(folder: Path) -> list[Path]:
    suffixes = {*image_suffixes(), ".npy"}
    found = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes and path.is_file())
    return sorted(path for path in found if not is_hidden(path, folder))


class _ClassNames:
    """Finds the class of a mask by its name."""

    def __init__(self, classes: Classes) -> None:
        self._place, self._things = classes.place, classes.things
        self._names: Mapping[str, int] = {_plain(one["name"]): one["id"] for one in classes.categories}
        self._shown = [one["name"] for one in classes.categories]

    def __call__(self, path: Path, folder: Path) -> int:
        parents = path.relative_to(folder).parts[:-1]
        for name in (path.stem, _NUMBER_AT_END.sub("", path.stem), *reversed(parents)):
            if (category_id := self._names.get(_plain(name))) is not None:
                return category_id
        if len(self._things) == 1:
            return self._things[0]
        raise UserError(
            f"{path}: neither the file nor its folder is named after a class of {self._place}; expected one of "
            f"{', '.join(self._shown[:10])}, such as {self._shown[0]}_1.png"
        )


def _plain(name: str) -> str:
    """A name without spaces, underscores, hyphens and case."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
    size = (item.image["height"], item.image["width"])
    regions = []
    for mask in item.shapes:
        pixels = _read_mask(mask["file"], size)
        if pixels.any():
            regions.append(Region(encode_mask(pixels), mask["category_id"]))
    num_empty = len(item.shapes) - len(regions)
    return regions, Counter({_EMPTY: num_empty} if num_empty else {})


def _read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool."""
    pixels = read_label_image(path, size)
    is_set = pixels != 0 if pixels.ndim == 2 else (pixels != 0).any(axis=2)
    inside = pixels[is_set]
    if len(inside) and (inside != inside[:1]).any():
        raise UserError(
            f"{path}: found several values besides 0, expected the mask of one object, with one; label images are read "
            "by --labels"
        )
    return is_set
