"""Bytes that a forward pass keeps for backward, counted on any device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["kept_bytes"]


def kept_bytes(forward: Callable[[], Any]) -> int:
    """Bytes of the storages that `forward` allocates and that are alive after it, its outputs included.

    Hooks on saved tensors would not see what a checkpoint or a closure holds.
    """
    with _Made() as made:
        outputs = forward()
    total = sum(size for storage, size in made.sizes.items() if not storage.expired())
    del outputs
    return total


class _Made(TorchDispatchMode):
    """Records each new storage, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[StorageWeakRef, int] = {}
        self.old: set[StorageWeakRef] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor) and StorageWeakRef(x.untyped_storage()) not in self.sizes:
                self.old.add(StorageWeakRef(x.untyped_storage()))  # parameters and inputs
        output = function(*args, **(kwargs or {}))
        for x in tree_leaves(output):
            if isinstance(x, Tensor):
                storage = StorageWeakRef(x.untyped_storage())
                if storage not in self.old:
                    self.sizes[storage] = x.untyped_storage().nbytes()
        return output
