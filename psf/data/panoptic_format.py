"""The JSON schema of panoptic datasets: the checks of the loader, the validator and the converters."""

from __future__ import annotations

import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from psf.errors import UserError, escape_controls

__all__ = [
    "FILE_NAME",
    "FLAG",
    "IMAGE_ID",
    "INTEGER",
    "LIST",
    "MAX_SEGMENT_ID",
    "NAME",
    "OBJECT",
    "SCHEMA",
    "SIDE",
    "SINGULAR",
    "TEXT",
    "Kind",
    "Problem",
    "are_coordinates",
    "check_segment_ids",
    "distinct_names",
    "find_problem",
    "find_problems",
    "image_key",
    "is_integer",
    "name_notes",
    "parse_number",
    "shorten",
    "take",
    "with_slashes",
]

# In pixels. A larger number is a mistake, and drawing a polygon that far away would take minutes.
_MAX_COORDINATE = 1_000_000
_MAX_SHOWN = 60  # characters of a value in a message
_MAX_NAME = 255  # characters of the name of a class or of an image id
_MAX_PATH = 4096
_MAX_INTEGER = 2**63 - 1  # of NumPy and COCO's evaluation
MAX_SEGMENT_ID = 256**3 - 1  # of a pixel with 8 bits per channel
_DRIVE = re.compile(r"[A-Za-z]:(/|$)")  # of Windows


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


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_NAME and value == escape_controls(value)


def _is_file_name(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_PATH or value != escape_controls(value):
        return False
    path = value.replace("\\", "/")
    return not path.startswith("/") and not _DRIVE.match(path) and ".." not in path.split("/")


INTEGER = Kind(
    "a whole number of at most 63 bits", lambda value: is_integer(value) and -_MAX_INTEGER <= value <= _MAX_INTEGER
)
IMAGE_ID = Kind(
    f"a whole number or a text of at most {_MAX_NAME} characters",
    lambda value: is_integer(value) or (isinstance(value, str) and len(value) <= _MAX_NAME),
)
NAME = Kind(f"a text of 1 to {_MAX_NAME} characters, without control characters", _is_name)
# A file that is not below its folder could be any file of the machine: the validator draws images into its page.
FILE_NAME = Kind("a text: a path below its folder, such as 'city/1.jpg'", _is_file_name)
TEXT = Kind("a text", lambda value: isinstance(value, str) and value != "")
SIDE = Kind(f"a whole number of pixels from 1 to {_MAX_COORDINATE}", _is_side)
# "0" is refused: Python would read it as true.
FLAG = Kind("0 or 1 (or false or true)", lambda value: isinstance(value, int) and value in (0, 1))
LIST = Kind("a list", lambda value: isinstance(value, list))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_NUMBER = Kind("a number of pixels", _is_number)
_COLOR = Kind("[red, green, blue], each 0 to 255", _is_color)

# List in the JSON -> required keys of its entries.
SCHEMA = {
    "categories": {"id": INTEGER, "name": NAME, "isthing": FLAG},
    "images": {"id": IMAGE_ID, "file_name": FILE_NAME, "height": SIDE, "width": SIDE},
    "annotations": {"image_id": IMAGE_ID, "file_name": FILE_NAME, "segments_info": LIST},
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


def parse_number(text: str) -> float | None:
    """The number in a text, to be checked by `are_coordinates`; None if it has none."""
    try:
        return float(text)
    except ValueError:
        return None


def image_key(image_id: int | str) -> int | str:
    """The image id, converted from digits to a number: COCO's evaluation cannot read ids that are text."""
    text = str(image_id)
    return int(text) if text.isascii() and text.isdigit() else image_id


def shorten(value: Any) -> str:
    """The repr of a value, truncated if it is long, large or deeply nested."""
    text = _SHORT.repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


# Its limits keep the work small, too: a value may have megabytes, or lists in lists that `repr` cannot print.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 4 * _MAX_SHOWN
_SHORT.maxlist = _SHORT.maxdict = _MAX_SHOWN


def with_slashes(entries: Iterable[Any]) -> int:
    """Replace each backslash (Windows) in the entries' file_name by a slash, in place; returns how many had one."""
    number = 0
    for entry in entries:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if isinstance(name, str) and "\\" in name:
            entry["file_name"] = name.replace("\\", "/")
            number += 1
    return number


def check_segment_ids(ids: Sequence[int], place: str) -> None:
    """Raise a UserError that begins with `place` if an image's segment ids are repeated or not from 1 to 2^24 - 1."""
    wrong = [one for one in ids if not 0 < one <= MAX_SEGMENT_ID]
    if wrong:
        raise UserError(f"{place}: segments_info has the id {wrong[0]}, expected 1 to {MAX_SEGMENT_ID}")
    if len(set(ids)) < len(ids):
        repeated = sorted(one for one, number in Counter(ids).items() if number > 1)
        raise UserError(f"{place}: segments_info has duplicate ids: {repeated[:10]}")


def name_notes(names: Sequence[str]) -> Counter[str]:
    """Text -> number of categories, for names that are equal, or that differ only in spaces or case."""
    notes = Counter({f"categories are called {name!r}": n for name, n in Counter(names).items() if n > 1})
    alike: dict[str, set[str]] = {}
    for name in names:
        alike.setdefault("".join(name.split()).casefold(), set()).add(name)
    for group in alike.values():
        if len(group) > 1:
            notes[f"categories differ only in spaces or case: {', '.join(map(repr, sorted(group)))}"] = len(group)
    return notes


def distinct_names(names: Sequence[str], ids: Sequence[int] | None = None) -> list[str]:
    """The names, with the id added to each name that occurs more than once: results are stored by name.

    Args:
        names: of classes.
        ids: of the same classes; None: their positions.
    """
    numbers = Counter(names)
    if len(numbers) == len(names):
        return list(names)
    own_ids = range(len(names)) if ids is None else ids
    return [name if numbers[name] == 1 else f"{name} (id {own_id})" for name, own_id in zip(names, own_ids)]
