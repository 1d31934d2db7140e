"""Activation checkpointing: a block stores only its inputs and runs again in backward; less memory, more time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psf.errors import UserError

__all__ = ["BACKBONE_BLOCKS", "PARTS", "checkpoint_activations"]

PARTS = {
    "backbone": ["backbone"],
    "pixel_encoder": ["pixel_encoder"],
    "location_decoder": ["location_decoder"],
    "mask_decoder": ["thing_decoder", "stuff_decoder"],
}
# Class names of the blocks of Detectron2's and timm's backbones end in one of these.
BACKBONE_BLOCKS = ("Block", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv", "CondConvResidual", "BasicStem")


def checkpoint_activations(model: nn.Module, parts: Iterable[str]) -> None:
    """Turn on activation checkpointing for the blocks of the given parts.

    The blocks of encoder and decoders are their `layers`; those of a backbone are found by class name. Parameters,
    their names and all results stay the same, including dropout and the running statistics of norms. If a module in a
    block checkpoints itself (its attribute `activation_checkpointing` is True), that is switched off, so that nothing
    runs more than twice.

    Args:
        model: has the parts as attributes; a part that is None is skipped.
        parts: names of parts (MODEL.PSF.ACTIVATION_CHECKPOINTING).

    Raises:
        UserError: if a name is unknown or the part has no blocks.
    """
    for part in parts:
        if part not in PARTS:
            raise UserError(f'MODEL.PSF.ACTIVATION_CHECKPOINTING contains "{part}": expected some of {list(PARTS)}')
        for module in (getattr(model, name) for name in PARTS[part]):
            if module is not None:
                for block in _blocks(part, module):
                    _checkpoint_block(block)


def _blocks(part: str, module: nn.Module) -> list[nn.Module]:
    found: Any = _backbone_blocks(module) if part == "backbone" else getattr(module, "layers", None)
    blocks: list[Any] = list(found) if isinstance(found, (list, tuple, nn.ModuleList, nn.Sequential)) else [None]
    if not all(isinstance(block, nn.Module) for block in blocks) or (part == "backbone" and not blocks):
        expected = "known blocks" if part == "backbone" else "attribute `layers`, a list of blocks"
        raise UserError(
            f'MODEL.PSF.ACTIVATION_CHECKPOINTING contains "{part}", but {type(module).__name__} has no {expected}: '
            f'remove "{part}"'
        )
    return blocks


def _backbone_blocks(backbone: nn.Module) -> list[nn.Module]:
    """The outermost modules whose class is named like a block."""
    blocks: list[nn.Module] = []
    for child in backbone.children():
        is_block = type(child).__name__.endswith(BACKBONE_BLOCKS)
        blocks.extend([child] if is_block else _backbone_blocks(child))
    return blocks


def _checkpoint_block(block: nn.Module) -> None:
    """Replace `forward` of this module only: its class and parameter names stay."""
    block.forward = functools.partial(_checkpointed, block)
    for module in block.modules():
        if hasattr(module, "activation_checkpointing"):
            setattr(module, "activation_checkpointing", False)  # noqa: B010 (mypy: not every module has it)


def _checkpointed(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The block's checkpointed `forward`; a module-level function, so that pickle and deepcopy keep it in copies."""
    forward = functools.partial(type(block).forward, block)
    is_frozen = not any(p.requires_grad for p in block.parameters())  # a frozen block stores less than its inputs
    if is_frozen or not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    norms = [m for m in block.modules() if m.training and getattr(m, "track_running_stats", False)]
    if norms:  # without norms no context at all: torch.compile supports few kinds
        kwargs["context_fn"] = functools.partial(_contexts, norms)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)


def _contexts(norms: list[nn.Module]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """One context for forward, and one for the second forward in backward."""
    return contextlib.nullcontext(), _UnchangedStatistics(norms)


class _UnchangedStatistics:
    """Context in which norms in training update copies of their running statistics, which are then discarded."""

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
