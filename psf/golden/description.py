"""JSON files that describe cases, and say in which place they lack something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psf.data.json_file import read_json

__all__ = ["Described", "read_described"]


class Described(dict[str, Any]):
    """A JSON object that knows where it stands; to ask for a key that it lacks is a ValueError that says so.

    Args:
        entries: of the object.
        place: the file and the keys that lead here.
    """

    def __init__(self, entries: dict[str, Any], place: str):
        super().__init__({key: _described(value, f"{place}: {key}") for key, value in entries.items()})
        self.place = place

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"{self.place}: expected a key {key!r}, found {list(self)[:10] or 'nothing'}")

    def object(self, key: str) -> Described:
        """The object under a key; an empty one without the key.

        Raises:
            ValueError: if there is something else.
        """
        value = self.get(key, Described({}, f"{self.place}: {key}"))
        if not isinstance(value, Described):
            raise ValueError(f"{self.place}: {key}: expected a JSON object, found {str(value)[:100]}")
        return value

    def objects(self) -> dict[str, Described]:
        """All its entries, which must be objects.

        Raises:
            ValueError: if one is not.
        """
        return {key: self.object(key) for key in self}


def read_described(file: Path) -> Described:
    """A JSON object.

    Raises:
        ValueError: naming the file if there is none in it.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found a {type(content).__name__}")
    return Described(content, str(file))


def _described(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return Described(value, place)
    if isinstance(value, list):
        return [_described(item, f"{place}[{i}]") for i, item in enumerate(value)]
    return value
