"""Check and read files: regular files, JSON, downloads, checksums; also has the names of `psf.atomic_files`."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

from psf.atomic_files import atomic_path, cache_path, cache_root, remove_stale_drafts, write_text
from psf.errors import UserError, printable

__all__ = [
    "atomic_path",
    "cache_path",
    "cache_root",
    "check_regular",
    "is_hidden",
    "local_path",
    "make_folder",
    "read_json",
    "remove_stale_drafts",
    "sha256_of",
    "write_text",
]

SECONDS_TO_ANSWER = 60.0  # an address that sends nothing for this long does not answer


def check_regular(path: str | os.PathLike[str], *, links: bool = True) -> None:
    """Raise a UserError if a path is a folder, a pipe or a device: reading a pipe would never end.

    A path that does not exist, or that has no file on this machine (s3://...), passes. Without `links`, for files that
    will be written, so does no link: its target may be anyone's.
    """
    if not links and os.path.islink(path):
        raise UserError(f"{os.fspath(path)}: a link, expected a regular file; move it away")
    if os.path.exists(path) and not os.path.isfile(path):
        kind = "a folder" if os.path.isdir(path) else "a pipe, a socket or a device"
        raise UserError(f"{os.fspath(path)}: {kind}, expected a regular file")


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether a file is hidden below a folder: macOS's copies (._a.png), or in a hidden folder (.ipynb_checkpoints)."""
    *parents, name = path.relative_to(folder).parts
    return name.startswith("._") or any(parent.startswith(".") and parent != ".." for parent in parents)


def make_folder(path: Path, flag: str) -> None:
    """Create a folder for results, with its parents; a UserError that names `flag` if a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{flag} {path}: expected a folder, found a file; name a folder") from error


_CHUNK = 2**20  # bytes


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: naming the file, if it is missing or damaged, if an object has a key twice, or if there are lists in
            lists to a depth of about 1000.
    """
    check_regular(path)
    try:
        with PathManager.open(os.fspath(path), encoding="utf-8-sig") as file, _without_collector():
            return json.load(file, object_pairs_hook=_unique_keys)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a JSON file ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a valid JSON file (expected UTF-8, {error})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a valid JSON file ({error})") from error
    except RecursionError as error:
        raise UserError(f"{path}: not a valid JSON file (its lists or objects are nested too deeply)") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One object of a JSON file; Python's own reader keeps the last of two values with one key."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"an object has the key {printable(repeated)[:80]!r} twice; keep one of them")
    return content


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause Python's search for cycles: JSON has none, and the search takes half of the reading time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def local_path(address: str) -> str:
    """Path of a file for Detectron2's PathManager: an address, such as https://..., is downloaded into its cache.

    Raises:
        UserError: naming the address, if it cannot be downloaded.
    """
    if "://" not in address:
        return address
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS_TO_ANSWER)
    try:
        path: str = PathManager.get_local_path(address)
    except UserError:
        raise
    except Exception as error:  # from the handlers of any project
        raise UserError(
            f"{address} cannot be downloaded ({' '.join(str(error).split())}): check the address and the network, or "
            "download the file yourself and give its path"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return path


def sha256_of(path: str | os.PathLike[str], size: int | None = None) -> str:
    """SHA-256 of a file or of its first `size` bytes, in hexadecimal digits; a large file takes little memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_CHUNK if size is None else min(_CHUNK, size)):
            digest.update(part)
            size = None if size is None else size - len(part)
    return digest.hexdigest()
