"""Stored reference tensors, and the deviation of our tensors from them.

In an .npz a tensor `x` is stored whole; as every k-th element (`x__flat`, `x__stride`, `x__shape`); or, a mask, as bits
(`x__packed`, `x__shape`). `x__stats` are mean, standard deviation and sum of absolute values of the whole tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from psf.errors import UserError

__all__ = ["Comparison", "Report", "StoredTensors", "compare_arrays", "compare_numbers"]

SUFFIXES = ("__flat", "__stride", "__shape", "__packed", "__stats")


class Comparison(NamedTuple):
    """One line of the report."""

    case: str
    name: str
    largest: float  # largest |difference| over the largest |expected|; for integers and masks, the share that differs
    rms: float  # root of the mean squared difference, over the largest |expected|; NaN where `largest` is a share
    tolerance: float  # of `largest`

    @property
    def passed(self) -> bool:
        return self.largest <= self.tolerance  # False for NaN


class Report(NamedTuple):
    """Results of a check. Names are "case: tensor"."""

    comparisons: list[Comparison]
    skipped: dict[str, str]  # name -> reason for not comparing it
    unknown: list[str]  # in the folder, but unknown to psf


class StoredTensors:
    """The tensors of .npz files, with a record of the compared ones.

    Args:
        files: paths of the files; no tensor name may occur in two of them.

    Raises:
        UserError: if a file is missing or cannot be read.
    """

    def __init__(self, files: Iterable[Path]):
        self._files = list(files)
        self._arrays: dict[str, np.ndarray] = {}
        for file in self._files:
            try:
                with file.open("rb") as stream, np.load(stream) as arrays:
                    self._arrays.update(arrays)
            except Exception as error:  # numpy raises various exceptions for damaged files
                found = f"{type(error).__name__}: {error}"
                raise UserError(f"{file}: expected an .npz file of reference tensors; {found}") from error
        self._compared: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(dict.fromkeys(_without_suffix(name) for name in self._arrays))

    @property
    def left(self) -> list[str]:
        """Names of the tensors that have not been compared."""
        return [name for name in self.names if name not in self._compared]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        """A tensor that is stored whole, or as bits.

        Raises:
            UserError: if it is missing or stored in parts.
        """
        self._compared.add(name)
        if name + "__packed" in self._arrays:
            shape = self._array(name + "__shape")
            return np.unpackbits(self._array(name + "__packed"))[: np.prod(shape)].reshape(shape).astype(bool)
        return self._array(name)

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            files = ", ".join(map(str, self._files))
            raise UserError(f"{files}: expected an array {name}, found {len(self._arrays)} others")
        return self._arrays[name]

    def compare(
        self, case: str, name: str, found: Any, tolerance: float, counts: np.ndarray | None = None
    ) -> Comparison:
        """Compare a whole tensor of ours with the stored elements, and with the stored statistics.

        Args:
            case: for the report.
            name: of the tensor.
            found: the whole tensor.
            tolerance: of the largest deviation.
            counts: bool, in the shape of the tensor: elements to compare; None: all elements and the statistics.
        """
        found = np.asarray(found)
        expected, shape, stride = self._stored(name)
        if found.shape != shape:
            return Comparison(case, name, np.inf, np.inf, tolerance)
        kept = slice(None) if counts is None else counts.reshape(-1)[::stride]
        result = compare_arrays(case, name, found.reshape(-1)[::stride][kept], expected[kept], tolerance)
        if counts is None and name + "__stats" in self._arrays and np.isfinite(result.largest):
            away = _statistics_away(found.astype(np.float64), self._arrays[name + "__stats"])
            result = result._replace(largest=max(result.largest, away / _size(expected)))
        return result

    def _stored(self, name: str) -> tuple[np.ndarray, tuple[int, ...], int]:
        """The stored elements of a tensor, flattened; the tensor's shape; and the stride of the stored elements."""
        if name + "__flat" not in self._arrays:
            return self[name].reshape(-1), self[name].shape, 1
        self._compared.add(name)
        shape = tuple(self._array(name + "__shape").tolist())
        return self._arrays[name + "__flat"], shape, int(self._array(name + "__stride"))


def compare_arrays(case: str, name: str, found: np.ndarray, expected: np.ndarray, tolerance: float) -> Comparison:
    """Compare element by element; the deviation of another shape is infinite."""
    if found.shape != expected.shape:
        return Comparison(case, name, np.inf, np.inf, tolerance)
    if expected.dtype.kind in "iub":
        share = float((found != expected).mean()) if expected.size else 0.0
        return Comparison(case, name, share, np.nan, tolerance)
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)) / _size(expected)
    if not difference.size:
        return Comparison(case, name, 0.0, 0.0, tolerance)
    return Comparison(case, name, float(difference.max()), float(np.sqrt(np.mean(difference**2))), tolerance)


def compare_numbers(
    case: str, name: str, found: dict[str, float], expected: dict[str, float], tolerance: float, floor: float
) -> Comparison:
    """Compare numbers by name, relative to their size or `floor`; the deviation is infinite if the names differ."""
    if found.keys() != expected.keys() or not expected:
        return Comparison(case, name, np.inf, np.inf, tolerance)
    away = np.array([abs(found[key] - value) / max(abs(value), floor) for key, value in expected.items()])
    return Comparison(case, name, float(away.max()), float(np.sqrt(np.mean(away**2))), tolerance)


def _statistics_away(found: np.ndarray, statistics: np.ndarray) -> float:
    """Largest deviation of mean, standard deviation and mean absolute value."""
    own = np.array([found.mean(), found.std(), np.abs(found).sum()])
    scale = np.array([1.0, 1.0, 1.0 / found.size])
    return float((np.abs(own - statistics) * scale).max())


def _size(expected: np.ndarray) -> float:
    return max(float(np.abs(expected).max()), 1e-12) if expected.size else 1.0


def _without_suffix(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
