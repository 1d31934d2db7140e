"""Read a set in YOLO's text format (docs.ultralytics.com, "Instance Segmentation Datasets Overview")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from psf.data.files import check_regular, is_hidden
from psf.data.images import image_size, image_suffixes
from psf.data.panoptic_format import NAME, are_coordinates, name_notes, parse_number, shorten
from psf.engine.config.files import PlainLoader
from psf.errors import UserError
from psf.tools.dataset_conversion.conversion import png_name
from psf.tools.dataset_conversion.regions import Region, check_outlines, region_of_polygons
from psf.tools.dataset_conversion.sources import Source, SourceImage, check_distinct, named_categories

__all__ = ["read_yolo"]

_MOST_BYTES = 200_000  # of a data.yaml; PyYAML reads about 50,000 in a second
_MOST_CLASSES = 10_000
_MOST_LABEL_BYTES = 100_000_000  # of the text of an image
_BOX = 4  # numbers of a box, after the class


def read_yolo(path: Path, *, things: Sequence[str] | None = None) -> Source:
    """Read a set with polygons; image ids count from 1, and category ids are the numbers of YOLO plus 1.

    The labels of an image are in the text of its name, with the last folder `images` of its path replaced by `labels`;
    an image without a text has no objects. Lines with a box alone have no area.

    Args:
        path: a data.yaml; its folder, for all images; or a folder of images below it, such as images/train.
        things: names of the things; None: all.

    Raises:
        UserError: naming the file and the line, if there is no data.yaml or no image, a file is damaged, or a line has
            a wrong value.
    """
    root = path if path.is_dir() else path.parent
    data_file = path if not path.is_dir() else _find_data_file(path)
    names = _read_names(data_file)
    categories = named_categories(list(names.values()), things, str(data_file))
    id_of = {number: category["id"] for number, category in zip(names, categories, strict=True)}
    top = data_file.absolute().parent
    images = [_read_image(file, root, number, top) for number, file in enumerate(_find_images(root, top), 1)]
    if not images:
        raise UserError(f"{root}: found no image in a folder `images`, expected images/... and labels/... beside it")
    check_distinct(images, str(root))

    def regions(item: SourceImage) -> tuple[list[Region], Counter[str]]:
        return _regions(item, id_of)

    return Source(categories, images, regions, name_notes(list(names.values())), image_root=root)


def _find_data_file(folder: Path) -> Path:
    """data.yaml, or the only *.yaml, of a folder or of the nearest folder above it that has one."""
    for place in (folder, *folder.absolute().parents[:4]):
        found = sorted(file for file in place.glob("*.y*ml") if file.is_file())
        chosen = [file for file in found if file.stem == "data"] or found
        if chosen:
            if len(chosen) > 1:
                raise UserError(f"{place} has {chosen[0].name} and {chosen[1].name}: name the file of the set")
            return chosen[0]
    raise UserError(f"{folder}: found no data.yaml in it or above it, expected a set in YOLO's format")


def _read_names(path: Path) -> dict[int, str]:
    """Number -> name of the classes."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise UserError(f"{path}: found more than {_MOST_BYTES} bytes, expected a data.yaml")
        content = yaml.load(text, Loader=PlainLoader)  # a SafeLoader with limits
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected a data.yaml") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a valid YAML file ({' '.join(str(error).split())[:200]})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    is_valid = isinstance(names, dict) and all(type(key) is int and NAME.accepts(one) for key, one in names.items())
    if not isinstance(names, dict) or not is_valid:
        raise UserError(f"{path}: `names` is {shorten(names)}, expected a list of names, or a name for each number")
    if len(names) > _MOST_CLASSES:
        raise UserError(f"{path}: found {len(names)} classes, expected at most {_MOST_CLASSES}")
    if repeated := [name for name, number in Counter(names.values()).items() if number > 1]:
        raise UserError(f"{path}: two classes are called {repeated[0]!r}; rename one of them")
    return dict(sorted(names.items()))


def _find_images(root: Path, top: Path) -> list[Path]:
    """All images below a folder `images` of the set, in order; `top`: the folder of data.yaml."""
    suffixes = image_suffixes()
    files = (file for file in root.rglob("*") if file.suffix.lower() in suffixes and not is_hidden(file, root))
    return sorted(file for file in files if _folder_images(file, top) is not None and file.is_file())


def _folder_images(file: Path, top: Path) -> Path | None:
    """The last folder `images` of a path, `top` or below it; None: there is none."""
    folders = file.absolute().parents
    inside = folders[: len(folders) - len(top.parents)]
    return next((folder for folder in inside if folder.name == "images"), None)


def _read_image(file: Path, root: Path, number: int, top: Path) -> SourceImage:
    file_name = file.relative_to(root).as_posix()
    png_name(file_name, str(root))
    height, width = image_size(str(file))
    images = _folder_images(file, top)
    assert images is not None  # `_find_images` has left out others
    labels = images.with_name("labels") / file.absolute().relative_to(images).with_suffix(".txt")
    shapes = _read_labels(labels, (height, width))
    return SourceImage({"id": number, "file_name": file_name, "height": height, "width": width}, shapes)


def _read_labels(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    """`class`, its number, and `points`, a polygon in pixels or [] for a box, of each line."""
    if not path.exists():
        return []
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(_MOST_LABEL_BYTES + 1)
    if len(data) > _MOST_LABEL_BYTES:
        raise UserError(f"{path}: found more than {_MOST_LABEL_BYTES} bytes, expected the labels of an image")
    shapes = []
    for position, line in enumerate(data.decode("ascii", errors="replace").splitlines(), 1):
        place = f"{path}, line {position}"
        words = line.split()
        if not words:
            continue
        numbers = [parse_number(word) for word in words[1:]]
        if not words[0].isdecimal() or len(words[0]) > 9 or not are_coordinates(numbers) or len(numbers) % 2:
            raise UserError(
                f"{place}: found {shorten(line)}, expected a class and a polygon: 0 0.1 0.1 0.5 0.1 0.5 0.2"
            )
        values = np.array(numbers, dtype=np.float64).reshape(-1, 2)
        if (values < -0.01).any() or (values > 1.01).any():
            raise UserError(f"{place}: found {shorten(line)}, expected shares of the width and height, from 0 to 1")
        points = [] if len(numbers) <= _BOX else (values * [size[1], size[0]]).ravel().tolist()
        check_outlines([points], place)
        shapes.append({"class": int(words[0]), "points": points, "place": place})
    return shapes


def _regions(item: SourceImage, id_of: dict[int, int]) -> tuple[list[Region], Counter[str]]:
    size = (item.image["height"], item.image["width"])
    regions, notes = [], Counter[str]()
    for shape in item.shapes:
        if shape["class"] not in id_of:
            raise UserError(f"{shape['place']}: found the class {shape['class']}, expected one of {sorted(id_of)[:20]}")
        region = region_of_polygons([shape["points"]], size, id_of[shape["class"]])
        if region is None:
            notes["lines without a polygon (boxes), dropped"] += 1
        else:
            regions.append(region)
    return regions, notes
