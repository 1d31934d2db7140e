"""Write checkpoints that are whole or absent, and find damage in them."""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psf.checkpoint.reading import read_checkpoint
from psf.data.files import atomic_path
from psf.errors import UserError

__all__ = ["find_damage", "non_finite_names", "read_sound_checkpoint", "write_checkpoint"]

# The files of torch.save are zip archives. A comment at the end of the archive has the checksum of everything before
# it; torch and other programs ignore the comment.
_MARK = b"psf-sha256:"
_COMMENT_SIZE = len(_MARK) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.Struct("<H")  # of the comment; the last field before it
_END_OF_ARCHIVE = b"PK\x05\x06"
_END_SIZE = 22  # bytes from there to the end, without a comment
_CHUNK = 1 << 20


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint with torch.save, and a checksum for `find_damage`.

    The file appears when it is complete and on the disk (`psf.data.files.atomic_path`). An error or a kill leaves an
    earlier file of this name as it was.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_path(path) as draft:
        with draft.open("wb") as file:  # torch hides the reason of an error if it opens the file
            torch.save(dict(content), file)
        size = draft.stat().st_size - _LENGTH.size
        with draft.open("r+b") as file:
            file.seek(-_END_SIZE, 2)
            end = file.read()
            assert end.startswith(_END_OF_ARCHIVE) and end.endswith(_LENGTH.pack(0)), "torch.save wrote a comment"
            checksum = _checksum(draft, size)
            file.seek(size)
            file.write(_LENGTH.pack(_COMMENT_SIZE) + _MARK + checksum)


def find_damage(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, in a few words; None if nothing is.

    Files without psf's checksum, which Detectron2 or an earlier psf wrote, are checked by the CRC-32 of each tensor.
    """
    try:
        size = path.stat().st_size
        if not size:
            return "empty"
        with path.open("rb") as file:
            file.seek(max(size - _COMMENT_SIZE - _LENGTH.size, 0))
            length, comment = file.read(_LENGTH.size), file.read()
        if comment.startswith(_MARK):
            is_sound = length == _LENGTH.pack(_COMMENT_SIZE) and comment[len(_MARK) :] == _checksum(
                path, size - _LENGTH.size - _COMMENT_SIZE
            )
            return None if is_sound else "its checksum is wrong"
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
        return None if entry is None else f"the checksum of {entry} is wrong"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return "torn or not written by torch.save"


def _checksum(path: Path, size: int) -> bytes:
    """SHA-256 of the first `size` bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, _CHUNK))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest().encode()


def read_sound_checkpoint(path: Path, parameters: Collection[str] = ()) -> dict[str, Any]:
    """The content of a checkpoint of a training run, after checks of its bytes and numbers.

    Args:
        path: of a file that psf's or Detectron2's trainer wrote.
        parameters: as for `non_finite_names`.

    Raises:
        UserError: naming the file and the reason, if it is missing, damaged or holds NaN.
    """
    if damage := find_damage(path):
        raise UserError(f"{path}: {damage}")
    content = read_checkpoint(path)
    weights = content.get("model")
    if not isinstance(weights, Mapping):
        raise UserError(f'{path}: no weights of a model under "model"')
    if names := [*non_finite_names(weights, parameters), *_names_with_nan(content.get("trainer"), "trainer")]:
        raise UserError(f"{path}: {names[0]} and {len(names) - 1} other tensors hold NaN or infinity")
    return content


def non_finite_names(weights: Mapping[str, Any], parameters: Collection[str] = ()) -> list[str]:
    """Names of tensors with NaN, and of parameters with infinity (a buffer may contain it on purpose).

    Args:
        weights: state dict of a model.
        parameters: names of the entries that are parameters.
    """
    return [
        name
        for name, value in weights.items()
        if isinstance(value, Tensor)
        and value.is_floating_point()
        and not (value.isfinite().all() if name in parameters else not value.isnan().any())
    ]


def _names_with_nan(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.isnan().any():
            yield name
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _names_with_nan(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _names_with_nan(inner, f"{name}.{index}")
