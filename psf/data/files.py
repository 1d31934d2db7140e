"""Read and write files: regular files and JSON, atomic and durable writes, downloads, and the cache folder."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.utils.file_io import PathManager

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


# Folders of `atomic_path` have the names of the machine and the process in their own name.
_DRAFT = re.compile(r"\.psf-(?P<host>.*)-(?P<process>\d+)-\w+")
_CHUNK = 2**20  # bytes
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_WRITE = 3600  # seconds after which a draft is stale, whatever its process seems to do


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


@contextmanager
def atomic_path(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """A temporary path to write a file or folder to, which then moves to `target` atomically.

    Missing parent folders are created. Several threads or processes may write the same target: each has its own
    temporary path. An existing file is replaced; an existing folder stays. A process that is killed leaves the old or
    the new content.

    Args:
        target: the final path.
        durable: True: so does a power failure, because a file is on the disk before it replaces another. For what
            cannot be made again quickly, such as checkpoints: it takes several times as long as a small file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".psf-{socket.gethostname()}-{os.getpid()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder, _naming(target):
        path = Path(folder, target.name)
        yield path
        if durable and path.is_file():
            _flush_to_disk(path)
        try:
            os.replace(path, target)
        except OSError:
            if not (path.is_dir() and target.is_dir()):  # otherwise another process has written the same content
                raise
        if durable:
            _flush_to_disk(target.parent)


@contextmanager
def _naming(target: Path) -> Iterator[None]:
    """Give errors of a full disk, which name no file, the name of the file that is written."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL and error.filename is None:
            error.filename = str(target)
        raise


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale_drafts(folder: Path) -> None:
    """Remove what killed processes have left of `atomic_path` in a folder; call it before this process writes there.

    A draft is stale if its process on this machine has ended, or after an hour, because the processes of another
    machine are unknown.
    """
    for path in folder.glob(".psf-*"):
        draft = _DRAFT.fullmatch(path.name)
        if draft is None:
            continue
        is_known = draft["host"] == socket.gethostname()
        try:
            is_old = time.time() - path.stat().st_mtime > _LONGEST_WRITE
        except FileNotFoundError:  # its process has finished it
            continue
        if is_old or (is_known and not _is_other_process(int(draft["process"]))):
            shutil.rmtree(path, ignore_errors=True)


def _is_other_process(number: int) -> bool:
    """Whether another process of this number runs; containers often give the same number to every run."""
    if number == os.getpid():
        return False
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True


def write_text(target: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file in UTF-8 with `atomic_path`: readers get either the old or the new file."""
    with atomic_path(target, durable=durable) as path:
        path.write_text(text, encoding="utf-8")


def sha256_of(path: str | os.PathLike[str], size: int | None = None) -> str:
    """SHA-256 of a file or of its first `size` bytes, in hexadecimal digits; a large file takes little memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(_CHUNK if size is None else min(_CHUNK, size)):
            digest.update(part)
            size = None if size is None else size - len(part)
    return digest.hexdigest()


def cache_root() -> Path:
    """The cache folder: $PSF_CACHE, or psf/ in the user's cache folder. Nothing is created.

    Raises:
        UserError: if the user, or another one whose folder a variable names (~name), has no home folder.
    """
    named, caches = os.environ.get("PSF_CACHE"), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = Path(named or f"{caches}/psf")
    try:
        return root.expanduser().absolute()
    except RuntimeError as error:
        raise UserError(
            f"the cache folder {root} is below a home folder that does not exist: set the variable PSF_CACHE to the "
            "path of a writable folder"
        ) from error


@contextmanager
def cache_path(target: Path) -> Iterator[Path]:
    """A durable `atomic_path` for a file or folder below `cache_root()`, which later runs trust.

    Raises:
        UserError: naming PSF_CACHE, if the target cannot be written.
    """
    try:
        with atomic_path(target, durable=True) as path:
            yield path
    except OSError as error:
        raise UserError(f"cannot write {target} ({error}); set the variable PSF_CACHE to a writable folder") from error
