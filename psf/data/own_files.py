"""Files that psf may replace, because it has written them itself."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from psf.data.files import atomic_path, check_regular, sha256_of
from psf.errors import UserError

__all__ = [
    "begins_with",
    "check_replaceable",
    "free_name",
    "has_png_sign",
    "is_own",
    "own_path",
    "recorded",
    "save_signed_png",
    "write_own_text",
]

logger = logging.getLogger(__name__)

# In each folder that psf writes to: "SHA-256  NAME" of every file that it wrote there, as `sha256sum` prints it. A file
# counts as psf's own only while it has the content of the last line with its name: one that the user has edited since,
# or replaced by an earlier one, is the user's. Before psf replaces a file, the new content has a line that begins with
# "#", until the file is in its place: if psf is killed between, both contents are its own.
MANIFEST = ".psf-files"
PNG_SIGN = ("Software", "psf")  # a text in PNGs of large sets, which are recognised without a manifest


def is_own(path: Path) -> bool:
    """Whether psf wrote this file into this folder, and nobody has changed it since."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        known = _manifest(path).contents_of(path)
        return bool(known) and sha256_of(path) in known
    except OSError:
        return False


def save_signed_png(picture: Image.Image, target: Path) -> None:
    """Write a PNG with `PNG_SIGN`, atomically; the caller has checked `has_png_sign` of an existing file."""
    sign = PngInfo()
    sign.add_text(*PNG_SIGN)
    with atomic_path(target) as path:
        picture.save(path, format="PNG", pnginfo=sign)


def has_png_sign(path: Path) -> bool:
    """Whether a file is a PNG with `PNG_SIGN`."""
    key, value = PNG_SIGN
    try:
        with Image.open(path) as image:
            return image.format == "PNG" and image.info.get(key) == value
    except Exception:  # damaged, or not an image: Pillow may raise any error
        return False


def begins_with(path: Path, beginning: str) -> bool:
    """Whether a path is a regular file that begins with this text."""
    if not path.is_file():
        return False
    expected = beginning.encode()
    with path.open("rb") as file:
        return file.read(len(expected)) == expected


def check_replaceable(targets: Iterable[Path], *, overwrite: bool = False, way_out: str) -> None:
    """Check that all targets are free: they do not exist, or are psf's own (`is_own`).

    Args:
        targets: paths of files that will be written.
        overwrite: True: files that are not psf's may be replaced, too, but no folders, links or devices.
        way_out: what the user can do, for the message.

    Raises:
        UserError: naming the first file that psf has not written, and the number of the others.
    """
    foreign = [target for target in targets if os.path.lexists(target) and not is_own(target)]
    if overwrite:
        foreign = [target for target in foreign if target.is_symlink() or not target.is_file()]
        if foreign:
            raise UserError(
                f"{foreign[0]} is a folder, a link or a device, which --overwrite does not replace; move it away"
            )
    elif foreign:
        others = f" (and {len(foreign) - 1} others)" if len(foreign) > 1 else ""
        raise UserError(
            f"{foreign[0]}{others} exists, and psf has not written it, or it was changed since: it is not "
            f"overwritten; {way_out}"
        )


def free_name(target: Path, recognise: Callable[[Path], bool] = is_own) -> Path:
    """The target if it is free; otherwise NAME_2, NAME_3, ... of the same suffix, with a warning.

    For files at the end of long work, which must not fail because of an existing file.

    Args:
        target: path of a file that will be written.
        recognise: whether an existing file is psf's: `is_own` or `has_png_sign`.
    """
    name, number = target, 1
    while os.path.lexists(name) and not recognise(name):
        number += 1
        name = target.with_name(f"{target.stem}_{number}{target.suffix}")
    if name != target:
        logger.warning("%s exists, and psf has not written it, or it was changed since: writing %s", target, name)
    return name


@contextmanager
def own_path(target: Path, *, overwrite: bool = False, durable: bool = False) -> Iterator[Path]:
    """`atomic_path` for a file that a later run of psf may replace; it is recorded in the folder's manifest.

    Args:
        target: the final path.
        overwrite: as for `check_replaceable`.
        durable: as for `atomic_path`.

    Raises:
        UserError: if the target exists and may not be replaced.
    """
    check_replaceable([target], overwrite=overwrite, way_out="move it away, or write to another folder")
    manifest = _manifest(target)
    is_replaced = target.exists()
    with atomic_path(target, durable=durable) as path:
        yield path
        content = sha256_of(path)
        manifest.record(target, content, is_begun=is_replaced)  # a run that is killed here recognises its files
    if is_replaced:
        manifest.record(target, content)


def write_own_text(target: Path, text: str, *, overwrite: bool = False, durable: bool = False) -> None:
    """Write a text file in UTF-8 with `own_path`."""
    with own_path(target, overwrite=overwrite, durable=durable) as path:
        path.write_text(text, encoding="utf-8")


@contextmanager
def recorded(target: Path) -> Iterator[None]:
    """Record a file that a library writes at its final place, also if it ends with an error.

    `check_replaceable` comes before.
    """
    before = _state(target)
    try:
        yield
    finally:
        if target.is_file() and _state(target) != before:
            _manifest(target).record(target, sha256_of(target))


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes whenever a file is written or replaced; None without the file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class _Manifest:
    """The manifest of a folder in memory; several processes may add lines to the file.

    A file that has only grown is read from where the last reading ended, so that recording N files takes N steps.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._state: tuple[int, ...] | None = None
        self._end = 0  # of the last whole line that was read
        self._contents: dict[bytes, list[str]] = {}  # name -> SHA-256 of the content, and of one that is begun

    def contents_of(self, target: Path) -> list[str]:
        """SHA-256 of the contents with which a file is psf's own."""
        with self._lock:
            self._read()
            return self._contents.get(_name(target), [])

    def record(self, target: Path, content: str, *, is_begun: bool = False) -> None:
        """Add a line, unless the manifest has it."""
        with self._lock:
            known = self.contents_of(target)
            if known == [content] or (is_begun and content in known):
                return
            line = f"{'#' * is_begun}{content}  ".encode() + _name(target) + b"\n"
            if self._state is not None and self._state[2] != self._end:  # half a line is not continued
                line = b"\n" + line
            with self._path.open("ab") as file:  # one call of write: lines of several processes do not mix
                file.write(line)

    def _read(self) -> None:
        state = _state(self._path)
        if state == self._state:
            return
        if state is None or self._state is None or state[:2] != self._state[:2] or state[2] <= self._state[2]:
            self._end, self._contents = 0, {}
        if state is not None:
            check_regular(self._path, links=False)
        self._state = state
        if state is None:
            return
        with self._path.open("rb") as file:
            file.seek(self._end)
            lines = file.read(state[2] - self._end).split(b"\n")
        half = lines.pop()  # of a process that writes it now, or was stopped by a full disk
        self._end = state[2] - len(half)
        for line in lines:
            content, _, name = line.partition(b"  ")
            if content.startswith(b"#"):
                self._contents.setdefault(name, []).append(content[1:].decode(errors="replace"))
            else:
                self._contents[name] = [content.decode(errors="replace")]


@lru_cache(maxsize=256)  # folders; a dataset may have a folder of masks for each image
def _manifest_at(path: Path) -> _Manifest:
    return _Manifest(path)


def _manifest(target: Path) -> _Manifest:
    return _manifest_at(target.with_name(MANIFEST).absolute())


def _name(target: Path) -> bytes:
    return os.fsencode(target.name).replace(b"\n", rb"\n")
