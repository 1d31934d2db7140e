"""Read the classes of label images: a CSV, or the config.json of Mapillary Vistas."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from psf.data.files import check_regular, read_json
from psf.data.panoptic_format import FLAG, LIST, NAME, name_notes, shorten, take
from psf.errors import UserError

__all__ = ["Classes", "named_classes", "parse_list", "read_classes", "show_color"]

_MOST_BYTES = 1_000_000  # of a CSV; 65,536 classes have less
_DELIMITERS = (",", ";", "\t")  # Excel's, by language; tabs in "Unicode text"
# Column -> the headers that name it.
_HEADERS = {
    "name": ("name", "class", "label"),
    "value": ("value", "id"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "color": ("color", "colour", "hex"),
    "isthing": ("isthing", "thing"),
    "ignore": ("ignore",),
}
_FLAGS = {"": False, "0": False, "false": False, "no": False, "1": True, "true": True, "yes": True}
_LARGEST_VALUE = 2**31 - 1
_HEX = re.compile("#?([0-9a-fA-F]{6})")


class Classes(NamedTuple):
    """The classes of label images.

    place: where they are from, for messages.
    categories: as in a panoptic JSON: id, name, isthing, and `color` if the table has colors.
    by_value, by_color: value, or color as 0xRRGGBB, -> category id; None: void.
    notes: text for the report -> count.
    """

    place: str
    categories: list[dict[str, Any]]
    by_value: Mapping[int, int | None]
    by_color: Mapping[int, int | None]
    notes: Counter[str]

    @property
    def things(self) -> list[int]:
        """Category ids of the things."""
        return [category["id"] for category in self.categories if category["isthing"]]

    def check_labels(self, labels: Iterable[str], place: str) -> None:
        """Raise a UserError that begins with `place` if a label is not the name of a class."""
        names = {category["name"] for category in self.categories}
        for label in labels:
            if label not in names:
                raise UserError(f"{place}: the label {shorten(label)} is not in {self.place}")


class _Row(NamedTuple):
    """One line of a table; without a value, a color or a kind: None."""

    place: str
    name: str
    value: int | None
    color: int | None
    is_thing: bool | None
    is_ignored: bool


def read_classes(path: Path, *, things: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> Classes:
    """Read a table of classes.

    A CSV has a header with `name`, then `value` or `r`, `g`, `b` or `color` (#rrggbb), and optionally `isthing` and
    `ignore`. Delimiter and encoding are those of Excel's exports or of plain CSV. Rows with one name are one class.
    A class may have neither value nor color, but label images need one (except for --encoding number).

    A file *.json is a config.json of Mapillary Vistas: the position of a label is its value.

    Category ids are the values (the first one of a class); without values they count from 1.

    Args:
        things: names of the things; None: as the column `isthing` states.
        ignore: further values ("255") and colors ("#ffffff") that become void.

    Raises:
        UserError: naming file and line, if the table is damaged, is contradictory or does not state which classes are
            things, or if an entry of `things` or `ignore` is invalid.
    """
    rows = list(_read_mapillary(path) if path.suffix.lower() == ".json" else _read_csv(path))
    kept = [row for row in rows if not row.is_ignored]
    if not kept:
        raise UserError(f"{path}: found no class that is not ignored, expected at least one")
    kinds = _kinds(str(path), kept, things)
    has_values = all(row.value is not None for row in kept)
    categories: dict[str, dict[str, Any]] = {}
    for row in kept:
        if row.name not in categories:
            own_id = row.value if has_values else len(categories) + 1
            category = {"id": own_id, "name": row.name, "supercategory": "", "isthing": int(kinds[row.name])}
            categories[row.name] = category if row.color is None else {**category, "color": list(_channels(row.color))}
    ids = {name: category["id"] for name, category in categories.items()}
    by_value = _lookup("value", {row.place: (row.value, _target(row, ids)) for row in rows})
    by_color = _lookup("color", {row.place: (row.color, _target(row, ids)) for row in rows})
    for text in ignore:
        if text.isdecimal() and len(text) < 10:
            by_value[int(text)] = None
        elif text.startswith("#") and (found := _HEX.fullmatch(text)):
            by_color[int(found[1], 16)] = None
        else:
            raise UserError(f"--ignore: found {shorten(text)}, expected values or colors such as 0,255 or #ffffff")
    return Classes(str(path), list(categories.values()), by_value, by_color, name_notes(list(categories)))


def named_classes(things: Sequence[str]) -> Classes:
    """Thing classes without values, with ids from 1 in this order; a UserError if a name is repeated or invalid."""
    for position, name in enumerate(things):
        if not NAME.accepts(name) or name in things[:position]:
            raise UserError(f"--things: {shorten(name)} is repeated or no name; expected names such as car,person")
    categories = [
        {"id": number, "name": name, "supercategory": "", "isthing": 1} for number, name in enumerate(things, 1)
    ]
    return Classes("--things", categories, {}, {}, name_notes(things))


def parse_list(text: str) -> list[str]:
    """Split a list of an argument at its commas; names with a comma have the quotes of CSV."""
    try:
        fields = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise UserError(f"{shorten(text)}: expected a list such as car,person ({error})") from error
    return [field.strip() for field in fields if field.strip()]


def show_color(color: int) -> str:
    """A color as #rrggbb (red, green, blue)."""
    return f"#{color:06x} {_channels(color)}"


def _channels(color: int) -> tuple[int, int, int]:
    return color >> 16, color >> 8 & 255, color & 255


def _target(row: _Row, ids: Mapping[str, int]) -> int | None:
    return None if row.is_ignored else ids[row.name]


def _lookup(column: str, entries: Mapping[str, tuple[int | None, int | None]]) -> dict[int, int | None]:
    """Value or color -> category id, from place -> (value or color, category id)."""
    found: dict[int, int | None] = {}
    for place, (key, target) in entries.items():
        if key is None:
            continue
        if key in found:
            shown = key if column == "value" else show_color(key)
            raise UserError(f"{place}: an earlier line has the same {column}, {shown}; keep one of them")
        found[key] = target
    return found


def _kinds(place: str, rows: Sequence[_Row], things: Sequence[str] | None) -> dict[str, bool]:
    """Whether each class is a thing."""
    if things is not None:
        unknown = [name for name in things if name not in {row.name for row in rows}]
        if unknown:
            raise UserError(f"--things: {', '.join(map(repr, unknown))}: {place} has no such class")
        return {row.name: row.name in things for row in rows}
    kinds: dict[str, bool] = {}
    for row in rows:
        if row.is_thing is None:
            raise UserError(
                f"{place}: found no column isthing, expected one (1 for things, 0 for stuff), or --things with the "
                'names of the things (--things "" if all classes are stuff)'
            )
        if kinds.setdefault(row.name, row.is_thing) != row.is_thing:
            raise UserError(f"{row.place}: {row.name!r} has another isthing than in an earlier line; correct one")
    return kinds


def _read_mapillary(path: Path) -> Iterator[_Row]:
    """Labels of a config.json of Mapillary Vistas; labels that are not evaluated become void."""
    content = read_json(path)
    labels = take(content, "labels", LIST, f"{path}: expected a config.json of Mapillary Vistas, or a CSV")
    # "Car" for "object--vehicle--car", if these are as distinct.
    short = [entry.get("readable") for entry in labels if isinstance(entry, dict)]
    has_short = all(map(NAME.accepts, short)) and len(set(short)) == len(labels)
    for position, entry in enumerate(labels):
        place = f"{path}: label {position}"
        name = str(take(entry, "name", NAME, place))
        is_evaluated = take({"evaluate": True, **entry}, "evaluate", FLAG, place)
        is_thing = bool(take(entry, "instances", FLAG, place))
        yield _Row(place, str(short[position]) if has_short else name, position, None, is_thing, not is_evaluated)


def _read_csv(path: Path) -> Iterator[_Row]:
    lines = _decode(path).splitlines()
    first = next((number for number, line in enumerate(lines) if line.strip(" \t,;")), None)
    if first is not None and lines[first].lower().startswith("sep="):  # for Excel
        first += 1
    header = lines[first] if first is not None and first < len(lines) else ""
    delimiter, columns = _columns(path, header)
    assert first is not None
    # A name cannot have a line break, so that a line is a row.
    for number, line in enumerate(lines[first + 1 :], first + 2):
        place = f"{path}, line {number}"
        try:
            fields = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True), [])
        except csv.Error as error:
            raise UserError(f"{place}: found {shorten(line)}, expected a line of a CSV ({error})") from error
        entry = {column: fields[index].strip() for column, index in columns.items() if index < len(fields)}
        if any(entry.values()):
            yield _parse_row(place, {**dict.fromkeys(_HEADERS, ""), **entry}, columns)


def _decode(path: Path) -> str:
    check_regular(path)
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise UserError(f"{path}: found more than {_MOST_BYTES} bytes, expected a CSV of classes")
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected a CSV of classes") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 ({error}); in Excel, save it as `CSV UTF-8`") from error


def _columns(path: Path, header: str) -> tuple[str, dict[str, int]]:
    """The delimiter, and column -> its position; other columns are not read."""
    for delimiter in _DELIMITERS:
        titles = [title.strip().strip('"').lower() for title in header.split(delimiter)]
        columns = {
            column: next(index for index, title in enumerate(titles) if title in names)
            for column, names in _HEADERS.items()
            if any(title in names for title in titles)
        }
        if "name" in columns and len(titles) > 1:
            return delimiter, columns
    raise UserError(f"{path}: found the first line {shorten(header)}, expected a header such as name,value,isthing")


def _parse_row(place: str, entry: Mapping[str, str], columns: Iterable[str]) -> _Row:
    is_ignored = _parse_flag(place, entry, "ignore")
    name = entry["name"]
    if not NAME.accepts(name) and not (is_ignored and not name):
        raise UserError(f"{place}: the name is {shorten(name)}, expected {NAME.expected}")
    value = _parse_number(place, entry, "value", _LARGEST_VALUE)
    channels = [_parse_number(place, entry, channel, 255) for channel in "rgb"]
    color = None
    if entry["color"]:
        found = _HEX.fullmatch(entry["color"])
        if not found or channels != [None] * 3:
            raise UserError(f"{place}: the color is {shorten(entry['color'])}, expected #rrggbb alone, or r, g and b")
        color = int(found[1], 16)
    elif channels != [None] * 3:
        if None in channels:
            raise UserError(f"{place}: found a part of r, g and b, expected all three")
        color = sum((channel or 0) << shift for channel, shift in zip(channels, (16, 8, 0)))
    is_thing = _parse_flag(place, entry, "isthing") if "isthing" in columns else None
    return _Row(place, name, value, color, is_thing, is_ignored)


def _parse_number(place: str, entry: Mapping[str, str], column: str, largest: int) -> int | None:
    text = entry[column]
    if text and not (text.isascii() and text.isdecimal() and len(text) < 11 and int(text) <= largest):
        raise UserError(f"{place}: {column} is {shorten(text)}, expected a whole number from 0 to {largest}")
    return int(text) if text else None


def _parse_flag(place: str, entry: Mapping[str, str], column: str) -> bool:
    text = entry[column].lower()
    if text not in _FLAGS:
        raise UserError(f"{place}: {column} is {shorten(entry[column])}, expected 0 or 1")
    return _FLAGS[text]
