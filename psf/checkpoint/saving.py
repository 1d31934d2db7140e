"""Write checkpoints that are whole or absent, and find damage in them."""

from __future__ import annotations

import hashlib
import os
import struct
import zipfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from psf.checkpoint.reading import no_weight, read_checkpoint
from psf.data.files import atomic_path, sha256_of
from psf.errors import UserError

__all__ = [
    "FoundCheckpoint",
    "find_damage",
    "has_checksum",
    "newest_sound_checkpoint",
    "non_finite_names",
    "write_checkpoint",
]

TAG = "last_checkpoint"  # file with the name of the newest checkpoint, as in Detectron2

# The files of torch.save are zip archives. A comment at the end of the archive has the checksum of everything before
# it; torch and other programs ignore the comment.
_MARK = b"psf-sha256:"
_COMMENT_SIZE = len(_MARK) + 2 * hashlib.sha256().digest_size
_LENGTH = struct.Struct("<H")  # of the comment; the last field before it
_END_OF_ARCHIVE = b"PK\x05\x06"
_END_SIZE = 22  # bytes from there to the end, without a comment

# What a run reads when it is resumed, with the types of the values. A list has any number of such entries. Files of
# Detectron2 and of earlier versions lack some.
_STEP = {"optimizer": {"state": Mapping, "param_groups": [Mapping]}}
_HOOKS = {"CheckpointHook": {"recent": [str]}, "LRScheduler": Mapping}
_LOADER = (Mapping, type(None))
_ENTRIES = {
    "iteration": int,
    "trainer": {"iteration": int, "_trainer": _STEP, "hooks": _HOOKS},
    "processes": [{"loader": _LOADER, "random": Mapping}],
}
_OPTIONAL = {"hooks", "processes", *_HOOKS}
_NAMES_OF_TYPES = {int: "a whole number", str: "a name", list: "a list", Mapping: "a dict", _LOADER: "a dict or None"}


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint with torch.save, and a checksum for `find_damage`.

    The file appears when it is complete and on the disk (`psf.data.files.atomic_path`). An error or a kill leaves an
    earlier file of this name as it was.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_path(path, durable=True) as draft:
        with draft.open("wb") as file:
            _save(dict(content), file)
        size = draft.stat().st_size - _LENGTH.size
        with draft.open("r+b") as file:
            file.seek(-_END_SIZE, 2)
            end = file.read()
            assert end.startswith(_END_OF_ARCHIVE) and end.endswith(_LENGTH.pack(0)), "torch.save wrote a comment"
            checksum = sha256_of(draft, size).encode()
            file.seek(size)
            file.write(_LENGTH.pack(_COMMENT_SIZE) + _MARK + checksum)


def _save(content: dict[str, Any], file: BinaryIO) -> None:
    """torch.save to an open file; torch hides the reason of an error if it opens the file, and often otherwise."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # it could not write, and then could not end the file
            raise error.__context__ from None
        raise


def find_damage(path: Path) -> str | None:
    """What is wrong with the bytes of a checkpoint, in a few words; None if nothing is.

    Files without psf's checksum, which Detectron2 or an earlier psf wrote, are checked by the CRC-32 of each tensor.
    """
    try:
        size = path.stat().st_size
        if not size:
            return "empty"
        with zipfile.ZipFile(path) as archive:
            comment = archive.comment
            if comment.startswith(_MARK):
                if len(comment) != _COMMENT_SIZE:
                    return "torn or not written by torch.save"
                is_sound = comment[len(_MARK) :] == sha256_of(path, size - _LENGTH.size - len(comment)).encode()
                return None if is_sound else "its checksum is wrong"
            entry = archive.testzip()
        return None if entry is None else f"the checksum of {entry} is wrong"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
        return "torn or not written by torch.save"


def has_checksum(path: Path) -> bool:
    """Whether a file has the checksum that `write_checkpoint` writes; it may be wrong (`find_damage`)."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - _COMMENT_SIZE, 0))
        return file.read().startswith(_MARK)


class FoundCheckpoint(NamedTuple):
    """The checkpoint from which a run is resumed."""

    path: Path
    content: dict[str, Any]
    refused: list[str]  # why newer files are not used, each with the file's name


def newest_sound_checkpoint(folder: Path, parameters: Collection[str] = ()) -> FoundCheckpoint | None:
    """The checkpoint that the file last_checkpoint names, or the newest other one if that is damaged or missing.

    Args:
        folder: OUTPUT_DIR of the run.
        parameters: as for `non_finite_names`.

    Returns:
        None if the folder has neither last_checkpoint nor any .pth file.

    Raises:
        UserError: if there are files, but none is a sound checkpoint of a training run; if last_checkpoint names a
            file elsewhere, or one that is no .pth file.
    """
    files = list(folder.glob("*.pth"))
    refused: list[str] = []
    tag = folder / TAG
    if tag.is_file():
        name = tag.read_text(encoding="utf-8", errors="replace").strip().strip("\0")
        is_file = name.endswith(".pth") and name.isprintable()
        if Path(name).name != name or (not is_file and os.path.exists(folder / name) and name):
            raise UserError(f"{tag} has {name[:80]!a}: expected the name of a .pth file in this folder")
        if is_file:
            try:
                return FoundCheckpoint(folder / name, _read_sound(folder / name, parameters), refused)
            except UserError as error:
                refused.append(str(error))
        else:
            refused.append(f"{tag} has {name[:80]!a}, which is no .pth file" if name else f"{tag}: empty")
        files = [path for path in files if path.name != name]
    elif files:
        refused.append(f"{tag}: missing")
    else:
        return None
    for path in _newest_first(files, refused):
        try:
            return FoundCheckpoint(path, _read_sound(path, parameters), refused)
        except UserError as error:
            refused.append(str(error))
    raise UserError(
        f"cannot resume: no sound checkpoint of a training run in {folder} ({'; '.join(refused)}); restore one, or "
        "name another OUTPUT_DIR and train without --resume"
    )


def _newest_first(files: Iterable[Path], refused: list[str]) -> list[Path]:
    """Checkpoints of a training run, by their iteration; the reasons against other files go to `refused`."""
    iterations = {}
    for path in files:
        try:
            if damage := find_damage(path):
                raise UserError(f"{path}: {damage}")
            content = read_checkpoint(path)
            _check_entries(content, path)
            iterations[path] = content["iteration"]
        except UserError as error:
            refused.append(str(error))
    return sorted(iterations, key=lambda path: iterations[path], reverse=True)


def _check_entries(content: Mapping[str, Any], path: Path) -> None:
    """Raise a UserError if what a run reads beside the weights, when it is resumed, is missing or of another type."""
    if not {"iteration", "trainer"} <= content.keys():
        raise UserError(f"{path}: no iteration and trainer, so no checkpoint of a training run")
    if wrong := next(_wrong_entries(content, _ENTRIES), None):
        raise UserError(f"{path}: {wrong}")


def _wrong_entries(value: Any, expected: Any, name: str = "") -> Iterator[str]:
    """Where a value differs from `_ENTRIES` or a part of it."""
    kind: Any = list if isinstance(expected, list) else Mapping if isinstance(expected, Mapping) else expected
    if not isinstance(value, kind) or isinstance(value, bool):
        yield f"{name} is {repr(value)[:40]}, expected {_NAMES_OF_TYPES[kind]}"
    elif kind is list:
        for index, inner in enumerate(value):
            yield from _wrong_entries(inner, expected[0], f"{name}.{index}")
    elif kind is int and value < -1:  # -1: before the first iteration
        yield f"{name} is {value}, expected the number of an iteration"
    elif isinstance(expected, Mapping):
        for key, part in expected.items():
            inner_name = f"{name}.{key}".removeprefix(".")
            if key in value:
                yield from _wrong_entries(value[key], part, inner_name)
            elif key not in _OPTIONAL:
                yield f"no {inner_name}, so no checkpoint of a training run"


def _read_sound(path: Path, parameters: Collection[str]) -> dict[str, Any]:
    """The content of a checkpoint, after checks of its bytes and numbers.

    Raises:
        UserError: naming the file and the reason.
    """
    if damage := find_damage(path):
        raise UserError(f"{path}: {damage}")
    content = read_checkpoint(path)
    _check_entries(content, path)
    weights = content.get("model")
    if not isinstance(weights, Mapping):
        raise UserError(f'{path}: no weights of a model under "model"')
    if wrong := [f"{name} is {found}" for name, value in weights.items() if (found := no_weight(value))]:
        raise UserError(f"{path}: {wrong[0]}, expected a dense tensor of real numbers")
    if names := [*non_finite_names(weights, parameters), *_names_with_nan(content.get("trainer"), "trainer")]:
        raise UserError(f"{path}: holds NaN or infinity, in {names[0]} and {len(names) - 1} other tensors")
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
        if not no_weight(value) and value.is_floating_point() and value.isnan().any():
            yield name
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _names_with_nan(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _names_with_nan(inner, f"{name}.{index}")
