"""The JSON schema of panoptic datasets: the checks of the loader, the validator and the converters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from psf.errors import UserError

__all__ = [
    "FLAG",
    "IMAGE_ID",
    "INTEGER",
    "LIST",
    "SCHEMA",
    "SIDE",
    "SINGULAR",
    "TEXT",
    "Kind",
    "Problem",
    "are_coordinates",
    "find_problem",
    "find_problems",
    "image_key",
    "is_integer",
    "shorten",
    "take",
]

# In pixels. A larger number is a mistake, and drawing a polygon that far away would take minutes.
_MAX_COORDINATE = 1_000_000
_MAX_SHOWN = 60  # characters of a value in a message


class Kind(NamedTuple):
    """A kind of value: its description for messages, and a test."""

    expected: str
    accepts: Callable[[Any], bool]


class Problem(NamedTuple):
    """A problem of an entry.

    key: of the entry; "" for the entry as a whole. text: what was found and expected, without the place.
    """

    key: str
    is_missing: bool
    text: str


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number; `true` does not count as 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return is_integer(value) or isinstance(value, float)


def _is_side(value: Any) -> bool:
    return _is_number(value) and 1 <= value <= _MAX_COORDINATE and value % 1 == 0  # some programs write 40.0


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(one) and 0 <= one <= 255 for one in value)


INTEGER = Kind("a whole number", is_integer)
IMAGE_ID = Kind("a whole number or a text", lambda value: is_integer(value) or isinstance(value, str))
TEXT = Kind("a text", lambda value: isinstance(value, str) and value != "")
SIDE = Kind(f"a whole number of pixels from 1 to {_MAX_COORDINATE}", _is_side)
# "0" is refused: Python would read it as true.
FLAG = Kind("0 or 1 (or false or true)", lambda value: isinstance(value, int) and value in (0, 1))
LIST = Kind("a list", lambda value: isinstance(value, list))
_NUMBER = Kind("a number of pixels", _is_number)
_COLOR = Kind("[red, green, blue], each 0 to 255", _is_color)

# List in the JSON -> required keys of its entries.
SCHEMA = {
    "categories": {"id": INTEGER, "name": TEXT, "isthing": FLAG},
    "images": {"id": IMAGE_ID, "file_name": TEXT, "height": SIDE, "width": SIDE},
    "annotations": {"image_id": IMAGE_ID, "file_name": TEXT, "segments_info": LIST},
    "segments_info": {"id": INTEGER, "category_id": INTEGER},
}
_OPTIONAL = {"categories": {"color": _COLOR}, "segments_info": {"iscrowd": FLAG, "area": _NUMBER}}
SINGULAR = {
    "categories": "category",
    "images": "image",
    "annotations": "annotation",
    "segments_info": "segment",
}


def find_problem(entry: Any, key: str, kind: Kind) -> Problem | None:
    """Check one key of an entry; None if its value is of the kind."""
    if not isinstance(entry, dict):
        return Problem("", False, f"found {shorten(entry)}, expected an object with {key!r}")
    if key not in entry:
        return Problem(key, True, f"{key!r} is missing, expected {kind.expected}")
    if not kind.accepts(entry[key]):
        return Problem(key, False, f"{key!r} is {shorten(entry[key])}, expected {kind.expected}")
    return None


def find_problems(name: str, entry: Any) -> list[Problem]:
    """Check one entry of the list `name` (a key of SCHEMA) against the schema."""
    if not isinstance(entry, dict):
        return [Problem("", False, f"found {shorten(entry)}, expected an object with {', '.join(SCHEMA[name])}")]
    optional = {key: kind for key, kind in _OPTIONAL.get(name, {}).items() if key in entry}
    problems = (find_problem(entry, key, kind) for key, kind in (SCHEMA[name] | optional).items())
    return [problem for problem in problems if problem is not None]


def take(entry: Any, key: str, kind: Kind, place: str) -> Any:
    """entry[key], checked.

    Raises:
        UserError: beginning with `place`, if the key is missing or its value is of another kind.
    """
    if problem := find_problem(entry, key, kind):
        raise UserError(f"{place}: {problem.text}")
    return entry[key]


def are_coordinates(values: Any) -> bool:
    """Whether a value is a list of finite numbers in the range of image coordinates."""
    return isinstance(values, list) and all(
        _is_number(value) and -_MAX_COORDINATE <= value <= _MAX_COORDINATE for value in values
    )


def image_key(image_id: int | str) -> int | str:
    """The image id, converted from digits to a number: COCO's evaluation cannot read ids that are text."""
    text = str(image_id)
    return int(text) if text.isascii() and text.isdigit() else image_id


def shorten(value: Any) -> str:
    """The repr of a value, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
