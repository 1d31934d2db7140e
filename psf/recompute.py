"""Less memory for more time: backward makes what lies inside a block again, instead of keeping it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
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
    all results stay as they are, dropout too.

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


@functools.cache
def _recomputing(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a block, but for its forward."""

    class Recomputing(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled():
                return super().forward(*args, **kwargs)
            return checkpoint(super().forward, *args, use_reentrant=False, **kwargs)

    Recomputing.__name__ = Recomputing.__qualname__ = kind.__name__
    return Recomputing
