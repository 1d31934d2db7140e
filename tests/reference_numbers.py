"""Reads the reference numbers of the released model from ../shared/golden, where that folder is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

__all__ = ["load_reference"]


def load_reference(shared: Path, name: str) -> tuple[dict[str, np.ndarray], ModuleType]:
    """The arrays of one .npz file, and the module that compares with them; skips the test without them."""
    folder = shared / "golden"
    if not (folder / name).is_file():
        pytest.skip(f"needs ../shared/golden/{name}, reference numbers of the released model")
    spec = importlib.util.spec_from_file_location("reference_load", folder / "load.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with np.load(folder / name) as arrays:
        return dict(arrays), module
