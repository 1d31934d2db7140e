"""Checkpoints of strangers: what weights are comes out, what would run is refused, what is damaged is said to be."""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import pickle
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PureWindowsPath
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode

from psf.checkpoint import read_checkpoint, read_state_dict
from psf.errors import UserError

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def saved(folder: Path, content: Any, **options: Any) -> Path:
    path = folder / "checkpoint.pth"
    torch.save(content, path, **options)
    return path


class Touch:
    """Unpickled by creating a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_weights_come_out(tmp_path: Path, key: str | None, is_zip: bool) -> None:
    content = WEIGHTS if key is None else {key: WEIGHTS, "epoch": 24}
    read = read_state_dict(saved(tmp_path, content, _use_new_zipfile_serialization=is_zip))
    assert list(read) == list(WEIGHTS)
    assert all(torch.equal(read[name], x) and read[name].dtype == x.dtype for name, x in WEIGHTS.items())


def test_plain_values_and_numbers_of_numpy_beside_them(tmp_path: Path) -> None:
    meta = {"time": "today", "classes": ("cat", "dog"), "losses": [np.float64(0.5), np.float32(2), np.int64(3)]}
    meta |= {"done": np.bool_(True), "step": np.int32(4), "array": np.arange(3), "names": np.array(["a", "b"])}
    meta |= {"day": datetime.date(2021, 9, 8), "at": datetime.datetime(2021, 9, 8, tzinfo=datetime.timezone.utc)}
    meta |= {"took": datetime.timedelta(hours=3)}
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)]).state_dict()
    read = read_state_dict(saved(tmp_path, {"meta": meta, "state_dict": WEIGHTS, "optimizer": optimizer}))
    assert list(read) == list(WEIGHTS)


class Settings(dict):
    """Stands for the config class of a library that need not be installed."""

    __module__, __qualname__ = "mmengine.config.config", "ConfigDict"

    def __reduce__(self) -> Any:
        return Settings, (dict(self),)


OBJECTS = {  # what programs store beside the weights -> what is read
    "path": (Path("work", "a.py"), "work/a.py"),
    "windows": (PureWindowsPath("work", "a.py"), "work\\a.py"),
    "default": (defaultdict(list, {"a": [1]}), {"a": [1]}),
    "default int": (defaultdict(int, {"a": 1}), {"a": 1}),
    "ordered": (OrderedDict(a=1), {"a": 1}),
    "counts": (Counter("aab"), {"a": 2, "b": 1}),
    "window": (deque([1, 2], maxlen=5), [1, 2]),
    "arguments": (argparse.Namespace(lr=1, out=Path("a")), argparse.Namespace(lr=1, out="a")),
    "simple": (SimpleNamespace(lr=1), argparse.Namespace(lr=1)),
    "config": (CfgNode({"A": {"B": 1}}), {"A": {"B": 1}}),
    "settings": (Settings(a=Settings(b=1)), {"a": {"b": 1}}),
    "ids": (frozenset({1}), frozenset({1})),
    "range": (range(3), range(3)),
    "slice": (slice(1, 2), slice(1, 2)),
    "at": (datetime.datetime(2021, 9, 8, 7), datetime.datetime(2021, 9, 8, 7)),
    "date of numpy": (np.datetime64("2021-09-08"), np.datetime64("2021-09-08")),
    "complex": (np.complex64(1j), np.complex64(1j)),
    "dtype": (np.dtype("f4"), np.dtype("f4")),
}


@pytest.mark.parametrize("suffix", ["zip", "before torch 1.6", "pkl"])
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_that_hold_plain_values(
    tmp_path: Path, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("mmengine", "mmengine.config", "mmengine.config.config"):
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    sys.modules["mmengine.config.config"].ConfigDict = Settings
    stored, expected = OBJECTS[name]
    path = tmp_path / f"checkpoint.{'pkl' if suffix == 'pkl' else 'pth'}"
    content = {"model": {"a": np.zeros(2)} if suffix == "pkl" else WEIGHTS, "meta": stored}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=suffix == "zip")
    found = read_checkpoint(path)["meta"]
    assert found == expected
    assert type(found) is type(expected) or (isinstance(expected, dict) and type(found) in (OrderedDict, Counter))


@pytest.mark.parametrize("is_pkl", [True, False])
@pytest.mark.parametrize(
    "value", [print, functools.partial(print), torch.nn.Identity()], ids=["print", "partial", "module"]
)
def test_functions_and_modules_are_refused(tmp_path: Path, value: Any, is_pkl: bool) -> None:
    path = tmp_path / ("a.pkl" if is_pkl else "a.pth")
    if is_pkl:
        path.write_bytes(pickle.dumps({"model": {"a": np.zeros(2)}, "meta": value}))
    else:
        torch.save({"model": WEIGHTS, "meta": value}, path)
    with pytest.raises(ValueError, match="refused, and nothing in it was executed"):
        read_checkpoint(path)


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_the_other_numpy(tmp_path: Path, module: str) -> None:
    """NumPy 2 calls the module of its scalars otherwise: either name is read by either version."""
    old = saved(tmp_path, {"meta": np.float64(1), "model": WEIGHTS}, _use_new_zipfile_serialization=False)
    here = np.float64(1).__reduce__()[0].__module__
    old.write_bytes(old.read_bytes().replace(f"c{here}\n".encode(), f"c{module}\n".encode()))
    assert list(read_state_dict(old)) == list(WEIGHTS)


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_what_would_run_is_refused(tmp_path: Path, is_zip: bool) -> None:
    evil = {"state_dict": WEIGHTS, "meta": Touch(tmp_path / "executed")}
    path = saved(tmp_path, evil, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(ValueError, match=r"checkpoint\.pth: refused, .* loading it would call posix\.mkdir"):
        read_state_dict(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("protocol", [4, pickle.HIGHEST_PROTOCOL])
def test_pickles_that_torch_does_not_even_parse_are_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "checkpoint.pth"
    evil = {"state_dict": WEIGHTS, "meta": Touch(tmp_path / "executed")}
    path.write_bytes(pickle.dumps(evil, protocol=protocol))
    refused = r"checkpoint\.pth: refused, and nothing in it was executed: .* \(Unsupported operand 149\)"
    with pytest.raises(ValueError, match=refused):
        read_state_dict(path)
    with pytest.raises(ValueError, match=refused):
        read_state_dict(saved(tmp_path, evil, pickle_protocol=protocol))
    assert not (tmp_path / "executed").exists()


def test_the_permission_for_numbers_ends(tmp_path: Path) -> None:
    before = {str(x) for x in torch.serialization.get_safe_globals()}  # torch keeps them in no order
    read_state_dict(saved(tmp_path, WEIGHTS))
    assert {str(x) for x in torch.serialization.get_safe_globals()} == before


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "before torch 1.6"])
def test_damaged(tmp_path: Path, is_zip: bool) -> None:
    path = saved(tmp_path, {"a": torch.zeros(1000)}, _use_new_zipfile_serialization=is_zip)
    content = path.read_bytes()
    for part in (content[: len(content) // 2], b"", b"<html>404</html>" * 9, b"\x80\x04N."):
        path.write_bytes(part)
        with pytest.raises(ValueError, match=r"checkpoint\.pth: damaged, or not written by torch\.save"):
            read_state_dict(path)


def test_no_such_file(tmp_path: Path) -> None:
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "none.pth", "no such file")):
        with pytest.raises(ValueError, match=message):
            read_state_dict(path)


@pytest.mark.parametrize("content", [{}, {"state_dict": {"epoch": 3}}, [torch.zeros(1)], {"optimizer": {}}])
def test_without_weights(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match="expected a dict of tensors"):
        read_state_dict(saved(tmp_path, content))


def test_a_pickle_that_would_take_all_memory(tmp_path: Path) -> None:
    """Python's unpickler makes a table of as many entries as the highest number of an object."""
    path = tmp_path / "large.pkl"
    for number in (b"r\xff\xff\xff\x7f", b"p2147483647\n"):
        path.write_bytes(b"\x80\x02}" + number + b".")
        with pytest.raises(
            UserError, match=r"large\.pkl: damaged \(its \d+ bytes have an object of number 2147483647\)"
        ):
            read_checkpoint(path)
