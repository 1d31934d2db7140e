"""Read and write files: JSON, atomic writes, and the cache folder."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from psf.errors import UserError

__all__ = ["atomic_path", "cache_path", "cache_root", "read_json", "write_text"]


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        UserError: naming the file, if it is missing or damaged.
    """
    try:
        with PathManager.open(os.fspath(path), encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a JSON file ({error.strerror or error})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a valid JSON file ({error})") from error


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A temporary path to write a file or folder to, which then moves to `target` atomically.

    Missing parent folders are created. Several threads or processes may write the same target: each has its own
    temporary path. An existing file is replaced; an existing folder stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".psf-", dir=target.parent) as folder:
        path = Path(folder, target.name)
        yield path
        try:
            os.replace(path, target)
        except OSError:
            if not (path.is_dir() and target.is_dir()):  # otherwise another process has written the same content
                raise


def write_text(target: Path, text: str) -> None:
    """Write a text file in UTF-8 with `atomic_path`: readers get either the old or the new file."""
    with atomic_path(target) as path:
        path.write_text(text, encoding="utf-8")


def cache_root() -> Path:
    """The cache folder: $PSF_CACHE, or psf/ in the user's cache folder. Nothing is created."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "psf"
    return Path(os.environ.get("PSF_CACHE") or default).expanduser().absolute()


@contextmanager
def cache_path(target: Path) -> Iterator[Path]:
    """`atomic_path` for a file or folder below `cache_root()`.

    Raises:
        UserError: naming PSF_CACHE, if the target cannot be written.
    """
    try:
        with atomic_path(target) as path:
            yield path
    except OSError as error:
        raise UserError(f"cannot write {target} ({error}); set the variable PSF_CACHE to a writable folder") from error
