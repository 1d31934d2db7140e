"""What the entries of a panoptic JSON have to be: the loader refuses what the validator names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["NEEDED", "SINGULAR", "Problem", "find_problems", "image_key", "is_integer"]


class _Rule(NamedTuple):
    is_met: Callable[[Any], bool]
    text: str


def is_integer(value: Any) -> bool:
    """Whether it is a whole number; `true`, which Python takes for 1, is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_color(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_number(one) and 0 <= one <= 255 for one in value)


_INTEGER = _Rule(is_integer, "a whole number")
_IMAGE_ID = _Rule(lambda value: is_integer(value) or isinstance(value, str), "a whole number or a text")
_TEXT = _Rule(lambda value: isinstance(value, str) and value != "", "a text")
_SIDE = _Rule(lambda value: is_integer(value) and value > 0, "pixels, a whole number above 0")
# "0" is none: it would be true.
_FLAG = _Rule(lambda value: isinstance(value, int) and value in (0, 1), "0 or 1 (or false or true)")
_NUMBER = _Rule(_is_number, "a number of pixels")
_COLOR = _Rule(_is_color, "[red, green, blue], each 0 to 255")
_LIST = _Rule(lambda value: isinstance(value, list), "a list")

NEEDED = {
    "categories": {"id": _INTEGER, "name": _TEXT, "isthing": _FLAG},
    "images": {"id": _IMAGE_ID, "file_name": _TEXT, "height": _SIDE, "width": _SIDE},
    "annotations": {"image_id": _IMAGE_ID, "file_name": _TEXT, "segments_info": _LIST},
    "segments_info": {"id": _INTEGER, "category_id": _INTEGER},
}
_OPTIONAL = {"categories": {"color": _COLOR}, "segments_info": {"iscrowd": _FLAG, "area": _NUMBER}}
SINGULAR = {
    "categories": "category",
    "images": "image",
    "annotations": "annotation",
    "segments_info": "segment",
}


class Problem(NamedTuple):
    """key: of the entry, "" for the entry as a whole. is_lacking: it is not there. text: what is wrong with it."""

    key: str
    is_lacking: bool
    text: str


def find_problems(name: str, entry: Any) -> list[Problem]:
    """What is wrong with one entry of the list `name` ("categories", "images", "annotations", "segments_info")."""
    if not isinstance(entry, dict):
        return [Problem("", False, f"is {_short(entry)}, expected an entry with {', '.join(NEEDED[name])}")]
    problems = []
    for key, rule in NEEDED[name].items():
        if key not in entry:
            problems.append(Problem(key, True, f"lacks {key}"))
        elif not rule.is_met(entry[key]):
            problems.append(Problem(key, False, f"{key} is {_short(entry[key])}, expected {rule.text}"))
    for key, rule in _OPTIONAL.get(name, {}).items():
        if key in entry and not rule.is_met(entry[key]):
            problems.append(Problem(key, False, f"{key} is {_short(entry[key])}, expected {rule.text}"))
    return problems


def image_key(image_id: int | str) -> int | str:
    """The image id as a number where it is one: some JSONs write it as text, which COCO's evaluation is not for."""
    text = str(image_id)
    return int(text) if text.isascii() and text.isdigit() else image_id


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
