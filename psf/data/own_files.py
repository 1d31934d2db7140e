"""Which files psf may replace: those that it has written itself."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from psf.data.files import atomic_path
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
# counts as psf's own only while it has this content: one that the user has edited since is the user's.
MANIFEST = ".psf-files"
PNG_SIGN = ("Software", "psf")  # a text in PNGs of large sets, which are recognised without a manifest


def is_own(path: Path) -> bool:
    """Whether psf wrote this file into this folder, and nobody has changed it since."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        manifest = Path(path.parent, MANIFEST).read_bytes()
        return _manifest_line(path.name, path) in manifest
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
        overwrite: True: existing files that are not psf's are allowed, and count as psf's own from now on.
        way_out: what the user can do, for the message.

    Raises:
        UserError: naming the first file that psf has not written, and the number of the others.
    """
    foreign = [target for target in targets if not _is_free(target)]
    if overwrite:
        for target in foreign:
            if target.is_file():
                _record(target, target)
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
def own_path(target: Path) -> Iterator[Path]:
    """`atomic_path` for a file that a later run of psf may replace; it is recorded in the folder's manifest.

    Raises:
        UserError: if the target exists and is not psf's own.
    """
    check_replaceable([target], way_out="move it away, or write to another folder")
    with atomic_path(target) as path:
        yield path
        _record(path, target)  # first: a run that is killed here leaves no file that it does not recognise


def write_own_text(target: Path, text: str) -> None:
    """Write a text file in UTF-8 with `own_path`."""
    with own_path(target) as path:
        path.write_text(text, encoding="utf-8")


@contextmanager
def recorded(target: Path) -> Iterator[None]:
    """Record a file that a library writes at its final place, also if it ends with an error.

    `check_replaceable` comes before.
    """
    try:
        yield
    finally:
        if target.is_file():
            _record(target, target)


def _is_free(target: Path) -> bool:
    return not os.path.lexists(target) or is_own(target)


def _record(content: Path, target: Path) -> None:
    """Add a line to the manifest of the target's folder; lines of several processes do not mix."""
    line, manifest = _manifest_line(target.name, content), target.with_name(MANIFEST)
    if manifest.is_file() and line in manifest.read_bytes():
        return
    file = os.open(manifest, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line)
    finally:
        os.close(file)


def _manifest_line(name: str, content: Path) -> bytes:
    digest = hashlib.sha256()
    with content.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest().encode() + b"  " + os.fsencode(name).replace(b"\n", rb"\n") + b"\n"
