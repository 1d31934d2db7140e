"""What the objects in a checkpoint are read as: plain values, and arrays that psf builds itself from their bytes.

A pickle can call what it finds, with any arguments, and set any state. NumPy and others trust that state, so none of
their objects is within reach while a file is read: stand-ins collect the values, and `revive` makes the arrays at the
end.
"""

from __future__ import annotations

import argparse
import codecs
import datetime
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any, ClassVar

import numpy as np

__all__ = ["READ_AS", "PlainUnpickler", "revive"]

_PLAIN_DTYPE = re.compile(r"b1|[iufc]\d{1,2}|[SU]\d{1,9}|[Mm]8")  # NumPy's codes: numbers, texts, dates
_DATE_UNITS = ("Y", "M", "W", "D", "h", "m", "s", "ms", "us", "ns", "ps", "fs", "as", "generic")
_MAX_RANGE = 1_000_000  # a range is a few bytes in a file, and may be made a set of all its numbers


class _Dtype:
    """Stands for a numpy.dtype of plain values."""

    def __init__(self, code: Any = None, *flags: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(self.code, str) or not _PLAIN_DTYPE.fullmatch(self.code):
            raise pickle.UnpicklingError(f"an array of NumPy's type {str(self.code)[:40]!r}, which is no plain value")
        self.order, self.unit = "=", ""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, order, subdtype, names, fields, _, _, _, *metadata = state
        if (subdtype, names, fields) != (None, None, None):
            raise pickle.UnpicklingError("a structured array of NumPy, which is no plain value")
        order = order.decode("ascii") if isinstance(order, bytes) else order
        if order not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"a damaged type of NumPy (byte order {order!r})")
        self.order = order
        if metadata not in ([], [None]):
            self.unit = self._read_unit(metadata)

    def _read_unit(self, metadata: list[Any]) -> str:
        """Of a date, such as [10s]; the only metadata that is read."""
        [(others, (unit, count, *_))] = metadata
        unit = unit.decode("ascii") if isinstance(unit, bytes) else unit
        if self.code[0] not in "Mm" or others or unit not in _DATE_UNITS or type(count) is not int or count < 1:
            raise pickle.UnpicklingError("a type of NumPy with metadata, which is no plain value")
        return "" if unit == "generic" else f"[{count}{unit}]"

    def revive(self) -> np.dtype[Any]:
        return np.dtype(f"{self.order}{self.code}{self.unit}")


class _Array:
    """Stands for a numpy.ndarray, which is made empty, and gets its state after."""

    __hash__: ClassVar[None] = None  # type: ignore[assignment]  # no key of a dict

    def __init__(self, *empty: object) -> None:
        self._array: np.ndarray[Any, Any] = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        self._array = _build_array(data, dtype, shape, "F" if is_fortran else "C")

    def revive(self) -> np.ndarray[Any, Any]:
        return self._array


def _build_array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    """An array in the byte order of this machine, of data that have exactly its size."""
    if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        raise pickle.UnpicklingError("a damaged array of NumPy")
    data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
    real = dtype.revive()
    if not isinstance(data, (bytes, bytearray)) or min(shape, default=0) < 0:
        raise pickle.UnpicklingError("an array of NumPy without the bytes of plain values")
    if len(data) != math.prod(shape) * real.itemsize:
        raise pickle.UnpicklingError(f"a damaged array of NumPy ({len(data)} bytes for the shape {shape})")
    stored: np.ndarray[Any, Any] = np.ndarray(shape, real, data, order="F" if order == "F" else "C")
    return stored.astype(real.newbyteorder("="), order="K")


def _scalar(dtype: Any, data: Any) -> Any:
    return _build_array(data, dtype, (), "C")[()]


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray[Any, Any]:
    """Arrays since protocol 5."""
    array = _build_array(data, dtype, shape, order)
    return array if axes is None else array.transpose(axes)


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Bytes in protocols before 3."""
    return codecs.latin_1_encode(text)[0]


def _empty_bytes() -> bytes:
    """Of an empty array in protocols before 3."""
    return b""


def _dict(*arguments: Any) -> OrderedDict[Any, Any]:
    return OrderedDict(*(one for one in arguments if isinstance(one, (dict, list, tuple))))


def _empty_dict(*factory: object) -> dict[Any, Any]:
    return {}


def _empty_list(*limits: object) -> list[Any]:
    return []


def _frozenset(values: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(values)


def _range(*limits: int) -> range:
    numbers = range(*limits)
    if len(numbers) > _MAX_RANGE:
        raise pickle.UnpicklingError(f"a range of {len(numbers)} numbers")
    return numbers


def _posix_path(*parts: str) -> str:
    return str(PurePosixPath(*parts))


def _windows_path(*parts: str) -> str:
    return str(PureWindowsPath(*parts))


def _nothing(*arguments: object) -> None:
    """Stands for a type, such as the factory of a defaultdict: it makes nothing of what the file says."""


_DATES = (datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone)
_BUILTINS = ("builtins", "__builtin__")
# Objects of NumPy, Python and config libraries that training programs store with the weights -> what they are read as.
# NumPy 2 renamed the modules of the functions that create its numbers and arrays.
READ_AS: dict[str, Any] = {
    **{
        f"numpy.{core}.{name}": value
        for core in ("core", "_core")
        for name, value in (
            ("multiarray.scalar", _scalar),
            ("multiarray._reconstruct", _Array),
            ("numeric._frombuffer", _from_buffer),
        )
    },
    "numpy.ndarray": _nothing,  # an argument of _reconstruct
    "numpy.dtype": _Dtype,
    **{
        f"{module}.{name}": _posix_path
        for module in ("pathlib", "pathlib._local")
        for name in ("PosixPath", "PurePosixPath")
    },
    **{
        f"{module}.{name}": _windows_path
        for module in ("pathlib", "pathlib._local")
        for name in ("WindowsPath", "PureWindowsPath")
    },
    "collections.Counter": _dict,
    "collections.OrderedDict": OrderedDict,
    "collections.defaultdict": _empty_dict,
    "collections.deque": _empty_list,
    "argparse.Namespace": argparse.Namespace,
    "types.SimpleNamespace": argparse.Namespace,
    **{
        name: OrderedDict
        for name in (
            "addict.addict.Dict",
            "detectron2.config.config.CfgNode",
            "easydict.EasyDict",
            "fvcore.common.config.CfgNode",
            "mmcv.utils.config.ConfigDict",
            "mmengine.config.config.ConfigDict",
            "yacs.config.CfgNode",
        )
    },
    **{
        f"{module}.{name}": _nothing
        for module in _BUILTINS
        for name in ("bool", "dict", "float", "int", "list", "str", "tuple")
    },
    **{
        f"{module}.{name}": value
        for module in _BUILTINS
        for name, value in (
            ("bytes", _empty_bytes),
            ("frozenset", _frozenset),
            ("range", _range),
            ("xrange", _range),
            ("slice", slice),
        )
    },
    **{f"datetime.{kind.__name__}": kind for kind in _DATES},
    "_codecs.encode": _encode,
}


class PlainUnpickler(pickle._Unpickler):
    """Unpickler of Detectron2's model zoo; `revive` makes arrays of what it gives.

    It is Python's own in Python: the one in C would make a table for all numbers of objects up to the highest, so that
    a few bytes take all memory, and would set the attributes of any class or function that the file names.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]

    def find_class(self, module: str, name: str) -> Any:
        if (found := READ_AS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is refused")
        return found

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, (_Array, _Dtype)):
            target.__setstate__(state)
        elif type(target) is argparse.Namespace and isinstance(state, dict):
            vars(target).update(state)
        elif type(target) is not OrderedDict:  # attributes of a dict are no values
            raise pickle.UnpicklingError(f"an object of the type {type(target).__name__} with a state")

    def _load_bytearray(self) -> None:
        """Python's own would first fill as much memory as the file says."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _load_bytearray,
    }


def revive(value: Any, seen: dict[int, Any] | None = None) -> Any:
    """The value with arrays and types of NumPy instead of their stand-ins, also in lists, dicts and namespaces.

    Args:
        value: as it was read; its lists and dicts are changed in place.
        seen: values of this call by id.
    """
    seen = {} if seen is None else seen
    if isinstance(value, (_Array, _Dtype)):
        return value.revive()
    if id(value) in seen or not isinstance(value, (dict, list, tuple, set, frozenset, argparse.Namespace)):
        return seen.get(id(value), value)
    seen[id(value)] = value
    if isinstance(value, list):
        value[:] = [revive(one, seen) for one in value]
    elif isinstance(value, (dict, argparse.Namespace)):
        content = value if isinstance(value, dict) else vars(value)
        for key in content:
            content[key] = revive(content[key], seen)
    elif any(isinstance(one, (_Array, _Dtype, dict, list, tuple, frozenset, argparse.Namespace)) for one in value):
        seen[id(value)] = type(value)([revive(one, seen) for one in value])
    return seen[id(value)]
