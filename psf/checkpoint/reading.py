"""Read checkpoints safely: only tensors and plain values; no code is executed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from psf.errors import UserError

__all__ = ["read_checkpoint", "read_state_dict"]

ZIP, PICKLE = b"PK", b"\x80"  # first bytes of torch.save's files, since and before torch 1.6

# NumPy numbers, which training logs in checkpoints may contain; NumPy 2 renamed the function that creates them.
_MAKE_SCALAR = np.float64(0).__reduce__()[0]
_NUMPY_SCALARS: list[Any] = [
    (_MAKE_SCALAR, "numpy.core.multiarray.scalar"),
    (_MAKE_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")},
]


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """All entries of a checkpoint, on the CPU: weights under "model" and other entries. No code is executed.

    Args:
        path: a dict written by torch.save.

    Raises:
        UserError: if the file does not exist, is damaged, is not a dict, or contains more than tensors and plain
            values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: expected a dict, found {type(content).__name__}")
    return dict(content)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The weights in a checkpoint, by name, on the CPU. No code in the file is executed.

    Args:
        path: written by torch.save: a dict of tensors, or a dict that contains one as "state_dict" or "model".

    Raises:
        UserError: if the file does not exist, is damaged, has no weights, or may contain more than tensors and plain
            values (the message names the function or class that loading it would call, if known).
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    content = _load(path)
    if isinstance(content, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(x, Tensor) for x in content.values()):
        found = list(content)[:5] if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f'{path}: expected a dict of tensors, or one under "state_dict" or "model"; found {found}')
    return dict(content)


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch may raise any error for a damaged file
        if reason := _refusal(path, error):
            raise UserError(
                f"{path}: refused, and nothing in it was executed: {reason}, but checkpoints may contain "
                "only tensors and plain values. If you trust its author, load it yourself and save only its "
                "state_dict"
            ) from error
        raise UserError(f"{path}: damaged, or not written by torch.save ({type(error).__name__})") from error


def _refusal(path: Path, error: Exception) -> str | None:
    """The object in a pickle that torch refused to load; None if the file is damaged or not a pickle."""
    if called := re.search(r"GLOBAL (\S+)", str(error)):
        return f"loading it would call {called[1]}"
    with path.open("rb") as file:
        is_pickle = file.read(2).startswith((PICKLE, ZIP))
    if not is_pickle or not isinstance(error, UnpicklingError):
        return None
    found = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    return f"torch refused to load an object ({found[1] if found else error})"
