"""Count where a program would wait for a GPU, on a machine without one.

A GPU works through a queue. Reading one of its values on the host (`.item()`, `bool(...)`, `nonzero()`, ...) waits
until the queue is empty, and copying Python numbers to it (`torch.tensor(...)`, indexing with a list) waits for the
copy. `count_host_waits` counts both on any device, by the line of psf that causes them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import psf
from psf.ops import operator

ROOT = Path(psf.__file__).parent
# Functions whose result on the host depends on values on the device, or whose size does.
READS = {
    *("item", "tolist", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__", "is_nonzero"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal", "allclose"),
}
INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put"}


# Files whose calls look like waits but are none: optimizers count their steps on the host, and norms of gradients and
# padded images are "moved" to the device that they are on.
DO_NOT_WAIT = ("torch/optim/optimizer.py", "torch/nn/utils/clip_grad.py", "detectron2/layers/wrappers.py")


class count_host_waits(TorchFunctionMode):
    """Count waits in a block of code: `with count_host_waits() as waits: ...`.

    On a machine without a GPU, nothing shows on which device a tensor would be. So `.to(device)` always counts, and
    `.numpy()` never does: on a GPU it needs a `.cpu()` before it. torch hides what an operator of psf does from such
    modes, so its functions are entered separately.

    Attributes:
        by_line: "file.py:line function" -> number of waits; the line is the innermost one of psf.
        copies: the same for copies with `non_blocking=True`, which do not wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_line: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()

    @property
    def total(self) -> int:
        return sum(self.by_line.values())

    def __enter__(self) -> count_host_waits:
        self._functions = operator._functions
        operator._functions = lambda name: tuple(map(self._seen, self._functions(name)))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        operator._functions = self._functions

    def _seen(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with _Inside(self):
                return function(*args)

        return run

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        if name == "to" and kwargs.get("non_blocking"):
            self.copies[f"{_line()} {name}"] += 1
        elif not sys._getframe(1).f_code.co_filename.endswith(DO_NOT_WAIT) and _waits(name, args, kwargs):
            self.by_line[f"{_line()} {name}"] += 1
        return func(*args, **kwargs)

    def __str__(self) -> str:
        return "\n".join(f"{number:4d} x {line}" for line, number in self.by_line.most_common())


class _Inside(TorchFunctionMode):
    """Hands all calls over to a counter that is active already, but not within an operator."""

    def __init__(self, counter: count_host_waits) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(self, *call: Any, **named: Any) -> Any:
        return self._counter.__torch_function__(*call, **named)


def _waits(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if name in READS or name in ("new_tensor", "cuda"):
        return True
    if name in ("tensor", "as_tensor"):  # without a device they stay on the host
        return kwargs.get("device") is not None
    if name == "to":
        return any(isinstance(x, (torch.device, str)) for x in (*args[1:], kwargs.get("device")))
    if name == "where":
        return len(args) + len(kwargs) == 1
    if name == "repeat_interleave":
        return any(isinstance(x, Tensor) for x in args[1:]) and "output_size" not in kwargs
    return name in INDEXING and _index_waits(args[1])


def _index_waits(index: Any) -> bool:
    """Masks need a count, lists a copy, and an integer tensor without dimensions is read."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, (list, np.ndarray))
        or (isinstance(part, Tensor) and (part.dtype in (torch.bool, torch.uint8) or part.dim() == 0))
        for part in parts
    )


def _line() -> str:
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT):
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside psf"
