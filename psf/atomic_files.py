"""Write files so that readers and killed processes see the old or the new one; the folder of psf's cache."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from psf.errors import UserError

__all__ = ["atomic_path", "cache_path", "cache_root", "naming_full_disk", "remove_stale_drafts", "write_text"]

# Folders of `atomic_path` have the names of the machine and the process in their own name.
_DRAFT = re.compile(r"\.psf-(?P<host>.*)-(?P<process>\d+)-\w+")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_WRITE = 3600  # seconds after which a draft is stale, whatever its process seems to do


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
    with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as folder, naming_full_disk(target):
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
def naming_full_disk(target: Path) -> Iterator[None]:
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
