"""Read checkpoints safely: only tensors, arrays and plain values; no code is executed.

Objects that hold plain values, such as paths and configs, are read as these values.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psf.checkpoint.plain_objects import READ_AS, PlainUnpickler, revive
from psf.errors import UserError

__all__ = ["check_kind", "no_weight", "read_checkpoint", "read_state_dict", "wrong_entry"]

ZIP, PICKLE = b"PK", b"\x80"  # first bytes of torch.save's files, since and before torch 1.6
RESAVE = "If you trust its author, load it yourself and save only its state_dict"
DOWNLOAD = "download the file again"
MAX_SHOWN = 120  # characters of a value in a message
LARGEST_NUMBER = 8  # bytes; torch has no longer ones, such as NumPy's longdouble
# What a checkpoint of torch may have besides tensors and plain values, for example in training logs.
_TORCH_GLOBALS: list[Any] = [(value, name) for name, value in READ_AS.items()]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """All entries of a checkpoint, on the CPU: weights under "model" and other entries. No code is executed.

    Args:
        path: a dict written by torch.save; or, if the name ends with .pkl, a pickle of Detectron2's model zoo, with
            numpy arrays.

    Raises:
        UserError: if the file does not exist, is damaged, is not a dict, or contains more than tensors, arrays and
            plain values.
    """
    content = _load(Path(path))
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a dict of weights, found {type(content).__name__}")
    return dict(content)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name, on the CPU. No code in the file is executed.

    Args:
        path: as for `read_checkpoint`: a dict of tensors, or a dict that contains one as "state_dict" or "model".

    Raises:
        UserError: if the file does not exist, is damaged, has no weights, or may contain more than tensors and plain
            values (the message names the function or class that loading it would call, if known).
    """
    content = _load(Path(path))
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    is_dict = isinstance(content, Mapping) and len(content) > 0
    if not is_dict or not all(isinstance(value, Tensor) for value in content.values()):
        found = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f'{path}: expected a dict of tensors, or one under "state_dict" or "model"; found {found}')
    for name, value in content.items():
        if kind := no_weight(value):
            raise UserError(f"{path}: {name!r} is {kind}, expected a dense tensor of real numbers")
    return dict(content)


def no_weight(value: Any) -> str | None:
    """What a value of a checkpoint is instead of a dense tensor or array of real numbers; None if it is one."""
    if isinstance(value, np.ndarray):
        is_real = value.dtype.kind in "biuf" and value.dtype.itemsize <= LARGEST_NUMBER
        return None if is_real else f"an array of {value.dtype}"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested:
        return f"a tensor that is not dense ({value.layout})"
    if value.device.type != "cpu":
        return f"a tensor without values (on the device {value.device.type})"
    if value.is_quantized or value.is_complex():
        return f"a tensor of {value.dtype}"
    return None


def wrong_entry(name: str, found: Any, expected: str) -> UserError:
    """The error for an entry of a checkpoint that psf writes in another form."""
    shown = repr(found)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}..."
    return UserError(
        f"the checkpoint (MODEL.WEIGHTS) has {shown} under {name!r}: expected {expected}; save it without this entry, "
        "or name another"
    )


def check_kind(path: Path) -> bytes:
    """The first bytes of a file; a UserError if it is missing, cannot be read, or obviously is no checkpoint."""
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected a checkpoint file")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            start = file.read(1024)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if found := _other_kind(start):
        raise UserError(f"{path}: {found}")
    return start


def _load(path: Path) -> Any:
    start = check_kind(path)
    try:
        if path.suffix == ".pkl" and not start.startswith(ZIP):
            with path.open("rb") as file:
                return revive(PlainUnpickler(file, encoding="latin1").load())
        with warnings.catch_warnings(), torch.serialization.safe_globals(_TORCH_GLOBALS):
            warnings.simplefilter("ignore")  # of pickle protocols and sparse tensors
            return revive(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch and pickle may raise any error for a damaged file
        if reason := _refusal(start, error):
            raise UserError(
                f"{path}: refused, and nothing in it was executed: {reason}, but checkpoints may contain "
                f"only tensors and plain values. {RESAVE}"
            ) from error
        if _is_text(start):
            raise UserError(f"{path}: a text file; expected a checkpoint") from error
        raise UserError(
            f"{path}: damaged, or not written by torch.save ({type(error).__name__}): {DOWNLOAD}, or name another"
        ) from error


def _other_kind(start: bytes) -> str | None:
    """What a file is, by its first bytes, if these are no checkpoint's."""
    if not start:
        return f"damaged, or not written by torch.save: the file is empty; {DOWNLOAD}"
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer instead of the weights; run `git lfs pull` in its repository"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return f"damaged, or not written by torch.save: an HTML page; {DOWNLOAD}, from the address of the file itself"
    if start[8:10] == b'{"':
        return "a safetensors file; load it with safetensors.torch.load_file, and write its dict with torch.save"
    return None


def _is_text(start: bytes) -> bool:
    try:
        return start.decode("utf-8").replace("\n", "").replace("\r", "").replace("\t", "").isprintable()
    except UnicodeDecodeError:
        return False


def _refusal(start: bytes, error: Exception) -> str | None:
    """The object in a pickle that was not loaded; None if the file is damaged or not a pickle."""
    if called := re.search(r"GLOBAL (\S+)", str(error)):
        return f"loading it would call {called[1]}"
    if not start.startswith((PICKLE, ZIP)) or not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return f"it has what is not loaded ({found[1] if found else ' '.join(str(error).split())})"
