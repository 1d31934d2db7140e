"""Less memory for more time: backward makes what lies inside a block again, instead of keeping it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = ["BACKBONE_BLOCKS", "recompute_blocks"]

PARTS = {
    "backbone": ["backbone"],
    "pixel_encoder": ["pixel_encoder"],
    "location_decoder": ["location_decoder"],
    "mask_decoder": ["thing_decoder", "stuff_decoder"],
}
# Ends of the class names of the blocks that backbones consist of, in Detectron2 and timm.
BACKBONE_BLOCKS = ("Block", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv", "CondConvResidual", "BasicStem")


def recompute_blocks(model: nn.Module, parts: Iterable[str]) -> None:
    """Let the blocks of some parts keep their inputs alone for backward.

    The layers of encoder and decoders are blocks; of a backbone those that are called so. Parameters, their names and
    all results stay as they are, dropout and the running statistics of norms too.

    Args:
        model: has the parts as attributes, with `layers` but for the backbone.
        parts: names of parts (MODEL.PSF.RECOMPUTE).

    Raises:
        ValueError: if there is no such part, or a backbone has no blocks that are known.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f'MODEL.PSF.RECOMPUTE holds "{part}": expected some of {list(PARTS)}')
        for module in (getattr(model, name) for name in PARTS[part]):
            blocks = _backbone_blocks(module) if part == "backbone" else getattr(module, "layers", [])
            if part == "backbone" and not blocks:
                raise ValueError(
                    f'MODEL.PSF.RECOMPUTE holds "backbone", and {type(module).__name__} has no blocks that are known: '
                    "leave it out"
                )
            for block in blocks:
                block.__class__ = _recomputing(type(block))  # type: ignore[arg-type]


def _backbone_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The outermost modules that are called blocks."""
    blocks: list[nn.Module] = []
    for child in backbone.children():
        own = type(child).__name__.endswith(BACKBONE_BLOCKS)
        blocks.extend([child] if own else _backbone_blocks(child))
    return blocks


class _StatisticsKept:
    """While it is entered, norms in training update copies of their running statistics, which are then dropped."""

    def __init__(self, norms: list[nn.Module]):
        self.norms = norms
        self.originals: list[dict[str, Tensor]] = []

    def __enter__(self) -> None:
        self.originals = [dict(norm.named_buffers(recurse=False)) for norm in self.norms]
        for norm, buffers in zip(self.norms, self.originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for norm, buffers in zip(self.norms, self.originals, strict=True):
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


@functools.cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a block, but for its forward; pickled as that class and what makes this one of it."""

    class Recomputing(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            is_frozen = not any(p.requires_grad for p in self.parameters())  # keeps less than its inputs
            if is_frozen or not torch.is_grad_enabled():
                return super().forward(*args, **kwargs)
            norms = [m for m in self.modules() if m.training and getattr(m, "track_running_stats", False)]
            if norms:  # else not an argument at all: torch.compile knows few kinds of context
                kwargs["context_fn"] = functools.partial(_contexts, norms)
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

        def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
            _, (_, *args), *state = super().__reduce_ex__(max(protocol, 2))
            return (_make_recomputing, (kind, *args), *state)

    Recomputing.__name__ = Recomputing.__qualname__ = kind.__name__
    return Recomputing


def _contexts(norms: list[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first forward, and of the one that backward calls for."""
    return contextlib.nullcontext(), _StatisticsKept(norms)


def _make_recomputing(kind: type[nn.Module], *args: Any) -> nn.Module:
    """An empty block, for pickle to fill."""
    recomputing = _recomputing(kind)  # type: ignore[arg-type]
    return recomputing.__new__(recomputing, *args)
