"""Checkpoints of strangers: what weights are comes out, what would run is refused, what is damaged is said to be."""

from __future__ import annotations

import argparse
import datetime
import functools
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
import zipfile
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


@pytest.mark.parametrize("ending", [b"r\xff\xff\xff\x7f.", b"p2147483647\n."])
def test_numbers_of_objects_take_no_memory(tmp_path: Path, ending: bytes) -> None:
    """Python's unpickler in C makes a table of as many entries as the highest number of an object."""
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}" + ending)
    tracemalloc.start()
    try:
        assert read_checkpoint(tmp_path / "a.pkl") == {}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("value", [frozenset, Counter])
def test_a_range_that_would_be_made_a_set(tmp_path: Path, value: Any) -> None:
    call = f"c{value.__module__}\n{value.__name__}\n(cbuiltins\nrange\n(I{10**12}\ntRtR."
    (tmp_path / "a.pkl").write_bytes(call.encode())
    with pytest.raises(UserError, match=r"a\.pkl"):
        read_checkpoint(tmp_path / "a.pkl")


def test_a_bytearray_longer_than_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x05\x96" + (2**60).to_bytes(8, "little") + b"a.")
    with pytest.raises(UserError, match=r"a\.pkl: damaged"):
        read_checkpoint(tmp_path / "a.pkl")


def in_archive(path: Path, stream: bytes) -> Path:
    """A file of torch.save with other instructions for its unpickler."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, stream if name.endswith("data.pkl") else data)
    return path


def pushed(value: Any) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def evil_array(code: str) -> bytes:
    """An array whose bytes become the addresses of objects, by a state of its type; NumPy reads them at the end."""
    kind = b"cnumpy\ndtype\n"
    state = [b"(" + pushed(3) + pushed("|") + b"N" + pushed(("a",)) + b"}" + pushed("a")]
    state += [b"(" + kind + pushed(("O", False, True)) + b"R" + pushed(0) + b"ts" + pushed(8) + pushed(1)]
    states = [b"".join(state) + pushed(flags) + b"tb" for flags in (0, 27)]
    array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + pushed((0,)) + pushed(b"b") + b"tR("
    array += pushed(1) + pushed((1,)) + b"h\xc8\x89" + pushed(b"A" * 8) + b"tb"
    made = kind + pushed((code, False, True)) + b"Rq\xc8"
    return b"\x80\x02(" + made + states[0] + array + b"h\xc8" + states[1] + b"t."


READ_ALL = """
import sys
from psf.checkpoint.reading import read_checkpoint
for path in sys.argv[1:]:
    try:
        read_checkpoint(path)
    except ValueError as error:
        print(error)
"""


def test_states_of_numpy_do_not_reach_it(tmp_path: Path) -> None:
    """In a process of its own, which would end by a signal."""
    paths = []
    for code in ("V8", "f8", "i8", "U2"):
        paths += [tmp_path / f"{code}.pkl", in_archive(tmp_path / f"{code}.pth", evil_array(code))]
        paths[-2].write_bytes(evil_array(code))
    ended = subprocess.run(
        [sys.executable, "-c", READ_ALL, *map(str, paths)], capture_output=True, text=True, check=False
    )
    lines = ended.stdout.splitlines()
    assert ended.returncode == 0 and len(lines) == len(paths)
    for path, line in zip(paths, lines, strict=True):
        assert line.startswith(f"{path}: refused, and nothing in it was executed")


@pytest.mark.parametrize(
    "stream",
    [
        b"cargparse\nNamespace\n(N}S'x'\nI1\nstb.",  # attributes of a class
        b"cpathlib\nPosixPath\n(N}S'__defaults__'\n(tstb.",  # and of a function
        b"cnumpy\ndtype\n(S'f8'\ntR(I3\nS'<'\n(cnumpy\ndtype\n(S'f4'\ntR(I2\nttNNI-1\nI-1\nI0\ntb.",  # subdtype
        b"cnumpy\ndtype\n(S'f8'\ntR(I4\nS'<'\nNNNI-1\nI-1\nI0\n(}S'a'\nI1\ns(S'D'\nI1\ntttb.",  # metadata
        b"cnumpy\ndtype\n(S'O8'\ntR.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(S'f8'\ntRS'1234'\ntR.",
        b"cnumpy.core.numeric\n_frombuffer\n(S'1234'\ncnumpy\ndtype\n(S'f4'\ntR(I-1\ntS'C'\ntR.",
        b"cnumpy.core.numeric\n_frombuffer\n(S'1234'\ncnumpy\ndtype\n(S'f4'\ntR(I2\ntS'C'\ntR.",
    ],
)
def test_states_and_sizes_that_are_refused(tmp_path: Path, stream: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + stream)
    with pytest.raises(UserError, match=r"a\.pkl: refused, and nothing in it was executed") as caught:
        read_checkpoint(tmp_path / "a.pkl")
    assert "\n" not in str(caught.value)


ARRAYS = {
    "scalar": np.array(2.5, np.float32),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "other axes": np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 0, 2),
    "big-endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3)),
    "half": np.ones(3, np.float16),
    "bool": np.array([True, False]),
    "bytes": np.array([b"ab", b"c"]),
    "texts": np.array(["ab", "c"]),
    "days": np.array(["2021-09-08"], "M8[D]"),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("core", [b"core", b"_core"])
def test_arrays_of_every_protocol_and_numpy(tmp_path: Path, protocol: int, core: bytes) -> None:
    content = {"model": ARRAYS, "in": [(1, ARRAYS["half"])], "number": np.float64(2), "__author__": "a"}
    data = pickle.dumps(content, protocol)
    if protocol < 4:  # later ones have the lengths of names
        data = re.sub(rb"numpy\._?core\.", b"numpy." + core + b".", data)
    (tmp_path / "a.pkl").write_bytes(data)
    read = read_checkpoint(tmp_path / "a.pkl")
    for name, array in ARRAYS.items():
        found = read["model"][name]
        assert found.dtype == array.dtype.newbyteorder("=") and found.flags.writeable
        np.testing.assert_array_equal(found, array)
    np.testing.assert_array_equal(read["in"][0][1], ARRAYS["half"])
    assert read["number"] == 2 and type(read["number"]) is np.float64 and read["__author__"] == "a"
