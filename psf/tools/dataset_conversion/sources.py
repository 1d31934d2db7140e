"""Convert instance annotations and semantic masks to a panoptic set."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psf.data.files import check_regular
from psf.data.images import image_size, open_image
from psf.data.panoptic_format import INTEGER, NAME, shorten
from psf.errors import UserError
from psf.tools.dataset_conversion.conversion import Drawing, PanopticFiles, distinct_png_names, write_panoptic_set
from psf.tools.dataset_conversion.regions import Region, compose

__all__ = [
    "SemanticMasks",
    "Source",
    "SourceImage",
    "check_distinct",
    "convert_source",
    "count_missing",
    "join_categories",
    "named_categories",
    "read_labels",
]


class SourceImage(NamedTuple):
    """An image of a source.

    image: id, file_name, height, width, as in the panoptic JSON. shapes: its annotations in the source.
    """

    image: dict[str, Any]
    shapes: list[dict[str, Any]]


class Source(NamedTuple):
    """The annotations of a dataset in another format.

    categories: as in a panoptic JSON: id, name, isthing.
    images: in the order of the output.
    regions: function of an image -> its regions and notes; raises a UserError for an invalid shape.
    notes: on the whole source: text -> count.
    image_root: folder of the images, if the annotations determine it; None: the user determines it.
    background: category id, of stuff, of all pixels without a region; None: they are void.
    """

    categories: list[dict[str, Any]]
    images: Sequence[SourceImage]
    regions: Callable[[SourceImage], tuple[list[Region], Counter[str]]]
    notes: Counter[str]
    image_root: Path | None = None
    background: int | None = None

    def with_background(self, name: str) -> Source:
        """The source with a stuff class for all pixels without a region; a new class gets the next free id."""
        known = {category["name"]: category for category in self.categories}
        if name in known and known[name]["isthing"]:
            raise UserError(f"--background: {name!r} is a thing class, expected stuff")
        if name in known:
            return self._replace(background=known[name]["id"])
        if not NAME.accepts(name):
            raise UserError(f"--background: found {shorten(name)}, expected {NAME.expected}")
        new = {"id": max(one["id"] for one in self.categories) + 1, "name": name, "supercategory": "", "isthing": 0}
        return self._replace(categories=[*self.categories, new], background=new["id"])


class SemanticMasks(NamedTuple):
    """A folder of masks, FILE.png for the image FILE.jpg, and the category of each value."""

    folder: Path
    category_of: Mapping[int, int]


def read_labels(path: Path) -> dict[int, str]:
    """Read a file in UTF-8 of lines `id,name`: names by id. Empty lines and lines that begin with # are skipped.

    Both may have the quotes of CSV: 21,"grass, dry".

    Raises:
        UserError: naming file and line, if the file is missing, a line has another form, or an id or name is repeated.
    """
    check_regular(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a file of lines id,name") from error
    names: dict[int, str] = {}
    for position, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        number, _, name = (_unquoted(part.strip()) for part in line.partition(","))
        is_valid = number.isdecimal() and len(number) < 20 and INTEGER.accepts(int(number)) and NAME.accepts(name)
        if not is_valid:
            raise UserError(f"{path}, line {position}: found {shorten(line)}, expected id,name such as 21,grass")
        if int(number) in names or name in names.values():
            raise UserError(f"{path}, line {position}: {shorten(line)} repeats an id or a name of an earlier line")
        names[int(number)] = name
    if not names:
        raise UserError(f"{path}: found no line id,name")
    return names


def _unquoted(text: str) -> str:
    """A text without the quotes of CSV; other quotes are a part of it."""
    try:
        fields = next(csv.reader([text], strict=True)) if text.startswith('"') else []
    except csv.Error:
        return text
    return fields[0].strip() if len(fields) == 1 else text


def check_distinct(images: Sequence[SourceImage], place: str) -> None:
    """Raise a UserError that begins with `place` if two images are the same file."""
    names = Counter(item.image["file_name"] for item in images)
    if repeated := [name for name, number in names.items() if number > 1]:
        raise UserError(f"{place}: lists the image {shorten(repeated[0])} twice; remove one of them")


def named_categories(names: Sequence[str], things: Sequence[str] | None, place: str) -> list[dict[str, Any]]:
    """Categories of a panoptic JSON with ids from 1 in this order.

    Args:
        things: names of the things; None: all.
        place: where the names are from, for the message.

    Raises:
        UserError: if `things` has another name, or there is no name.
    """
    if not names:
        raise UserError(f"{place}: found no class, expected at least one")
    if unknown := [name for name in things or () if name not in names]:
        raise UserError(f"--things: {', '.join(map(repr, unknown))}: {place} has no such class")
    return [
        {"id": number, "name": name, "supercategory": "", "isthing": int(things is None or name in things)}
        for number, name in enumerate(names, 1)
    ]


def count_missing(images: Sequence[SourceImage], root: Path) -> Counter[str]:
    """A note on the images that are not in their folder."""
    absent = sum(not (root / item.image["file_name"]).is_file() for item in images)
    return Counter({f"images that are missing: save them below {root} before training": absent} if absent else {})


def join_categories(
    instances: Sequence[Mapping[str, Any]], stuff_names: Mapping[int, str]
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Categories of instances and names of stuff -> categories of a panoptic JSON, things first.

    A category whose name is in `stuff_names` is stuff and keeps its id. Other stuff gets its ids from `stuff_names` if
    all of these are free; otherwise consecutive ids above the largest, so that ids depend only on the two lists.

    Returns:
        The categories, and id in `stuff_names` -> category id.
    """
    id_of = {category["name"]: category["id"] for category in instances}
    named = set(stuff_names.values())
    kept = [
        {"supercategory": "", **category, "isthing": int(category["name"] not in named)}
        for category in sorted(instances, key=lambda one: one["name"] in named)
    ]
    new = [number for number, name in stuff_names.items() if name not in id_of]
    if set(new) & set(id_of.values()):
        first = max(*id_of.values(), *stuff_names) + 1
        id_of |= {stuff_names[number]: first + position for position, number in enumerate(new)}
    else:
        id_of |= {stuff_names[number]: number for number in new}
    added = [
        {"id": id_of[stuff_names[number]], "name": stuff_names[number], "supercategory": "", "isthing": 0}
        for number in new
    ]
    return [*kept, *added], {number: id_of[name] for number, name in stuff_names.items()}


def convert_source(
    source: Source,
    files: PanopticFiles,
    *,
    overlap: str,
    semantic: SemanticMasks | None = None,
    workers: int | None = None,
    show_progress: bool = False,
) -> Counter[str]:
    """Compose every image of a source and write the set; see `compose` for overlaps.

    Raises:
        UserError: naming the image, if its shapes or its semantic mask are invalid, or its file has another size.
    """
    stuff_ids = {category["id"] for category in source.categories if not category["isthing"]}
    png_names = distinct_png_names([item.image["file_name"] for item in source.images])

    def draw(item: SourceImage) -> Drawing:
        size = (item.image["height"], item.image["width"])
        try:
            if source.image_root is not None:
                _check_size(source.image_root / item.image["file_name"], size)
            background, new_notes = _background(semantic, item.image["file_name"], size)
            if source.background is not None:
                background = np.full(size, -1) if background is None else background
                background = np.where(background < 0, source.background, background)
            regions, notes = source.regions(item)
            labels, segments, composing = compose(
                size, regions, overlap=overlap, stuff_ids=stuff_ids, background=background
            )
        except UserError as error:
            raise UserError(f"{item.image['file_name']}: {error}") from error
        name = png_names[item.image["file_name"]]
        return Drawing(item.image, labels, segments, notes + new_notes + composing, name)

    notes = write_panoptic_set(
        source.images, draw, source.categories, files, workers=workers, show_progress=show_progress
    )
    return notes + source.notes


def _check_size(file: Path, size: tuple[int, int]) -> None:
    """Raise a UserError if an image that is there has another size than its annotations say."""
    if not file.is_file():
        return  # `count_missing` reports it
    try:
        found = image_size(str(file))
    except UserError:
        return  # damaged: `psf validate` reports it
    if found != size:
        raise UserError(
            f"{file} has {found[1]} x {found[0]} pixels, its annotations are of {size[1]} x {size[0]}: restore the "
            "image that was annotated, or correct its size in the annotations"
        )


def _background(
    semantic: SemanticMasks | None, file_name: str, size: tuple[int, int]
) -> tuple[np.ndarray | None, Counter[str]]:
    """(H, W) category ids of an image's semantic mask (-1 is void), and notes on values without a label."""
    notes = Counter[str]()
    if semantic is None:
        return None, notes
    path = semantic.folder / Path(file_name).with_suffix(".png")
    with open_image(str(path)) as mask:
        if mask.mode not in ("L", "P", "1") and not mask.mode.startswith("I"):
            raise UserError(f"{path}: expected a mask with one number per pixel, found mode {mask.mode!r}")
        values = np.asarray(mask).astype(np.int64)
    if values.shape != size:
        raise UserError(f"{path} is {values.shape[1]} x {values.shape[0]}, its image {size[1]} x {size[0]} pixels")
    present, inverse = np.unique(values, return_inverse=True)
    for value in present.tolist():
        if value not in semantic.category_of:
            notes[f"masks with the value {value}, which has no semantic label and becomes void"] += 1
    table = np.array([semantic.category_of.get(value, -1) for value in present.tolist()])
    return table[inverse].reshape(size), notes
