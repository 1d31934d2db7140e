"""The one reader of JSON files that somebody gives us."""

from __future__ import annotations

import json
import os
from typing import Any

from detectron2.utils.file_io import PathManager

__all__ = ["read_json"]


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file, which is UTF-8.

    Raises:
        ValueError: naming the file, if it is missing or damaged.
    """
    try:
        with PathManager.open(os.fspath(path), encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read as a JSON file ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a valid JSON file ({error})") from error
