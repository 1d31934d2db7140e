"""JSON files that describe cases. Errors name the place of a missing key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from psf.data.files import read_json
from psf.errors import UserError

__all__ = ["Described", "read_described"]


class Described(dict[str, Any]):
    """A JSON object with its place in the file; reading a missing key raises a UserError that names the place.

    Args:
        entries: of the object.
        place: the file and the path of keys to this object.
    """

    def __init__(self, entries: dict[str, Any], place: str):
        super().__init__({key: _described(value, f"{place}: {key}") for key, value in entries.items()})
        self.place = place

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self.place}: expected a key {key!r}, found {list(self)[:10] or 'nothing'}")

    def object(self, key: str) -> Described:
        """The object under a key; empty if the key is missing.

        Raises:
            UserError: if the value is not an object.
        """
        value = self.get(key, Described({}, f"{self.place}: {key}"))
        if not isinstance(value, Described):
            raise UserError(f"{self.place}: {key}: expected a JSON object, found {str(value)[:100]}")
        return value

    def objects(self) -> dict[str, Described]:
        """All entries, which must be objects.

        Raises:
            UserError: if an entry is not an object.
        """
        return {key: self.object(key) for key in self}


def read_described(file: Path) -> Described:
    """Read a JSON object from a file.

    Raises:
        UserError: if the file does not hold one.
    """
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"{file}: expected a JSON object, found a {type(content).__name__}")
    return Described(content, str(file))


def _described(value: Any, place: str) -> Any:
    if isinstance(value, dict):
        return Described(value, place)
    if isinstance(value, list):
        return [_described(item, f"{place}[{i}]") for i, item in enumerate(value)]
    return value
