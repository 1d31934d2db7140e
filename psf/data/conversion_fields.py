"""Entries of annotation files that other programs wrote, checked before they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["CATEGORY_ID", "FLAG", "IMAGE_ID", "LIST", "SIDE", "TEXT", "are_coordinates", "shorten", "take"]

# In pixels. What is farther away or larger is a mistake, and to draw it would take as long as it is far.
_MAX_COORDINATE = 1_000_000
_MAX_SHOWN = 60  # characters of a value in a message


class Kind(NamedTuple):
    """What a value must be: in words, and as a question."""

    expected: str
    accepts: Callable[[Any], bool]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


IMAGE_ID = Kind("a whole number or a text", lambda value: _is_int(value) or isinstance(value, str))
CATEGORY_ID = Kind("a whole number", _is_int)
SIDE = Kind(  # some programs write 40.0
    f"a whole number of pixels from 1 to {_MAX_COORDINATE}",
    lambda value: (_is_int(value) or isinstance(value, float)) and 1 <= value <= _MAX_COORDINATE and value % 1 == 0,
)
TEXT = Kind("a text", lambda value: isinstance(value, str) and value != "")
LIST = Kind("a list", lambda value: isinstance(value, list))
FLAG = Kind("0 or 1", lambda value: value in (0, 1))


def take(entry: Any, key: str, kind: Kind, place: str) -> Any:
    """entry[key]; a ValueError that begins with `place`, if it is not there or of another kind."""
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is {shorten(entry)}, expected an object with {key!r}")
    if key not in entry:
        raise ValueError(f"{place} has no {key!r}, expected {kind.expected}")
    if not kind.accepts(entry[key]):
        raise ValueError(f"{place}: {key!r} is {shorten(entry[key])}, expected {kind.expected}")
    return entry[key]


def are_coordinates(values: Any) -> bool:
    """Whether this is a list of numbers, finite and not farther away than any image is large."""
    return isinstance(values, list) and all(
        type(value) in (int, float) and -_MAX_COORDINATE <= value <= _MAX_COORDINATE for value in values
    )


def shorten(value: Any) -> str:
    """A value as Python writes it, or the beginning of that."""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
