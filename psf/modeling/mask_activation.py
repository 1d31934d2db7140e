"""From fused attention maps to mask scores: sigmoid, or a ReLU whose gradient can wake a dead mask head.

A ReLU has no gradient below 0. Once a mask head's fused map is below 0 at every pixel of every query, all its masks are
empty, its dice loss stays at the loss of an empty mask, and no gradient ever changes that: the head is dead. Small
things on a large background make this likely (docs/fidelity.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from psf.ops import is_traced

__all__ = ["mask_activation", "revivable_relu"]

ACTIVATIONS = ("relu", "sigmoid")
RELU_GRADIENTS = ("plain", "revive")
# Share of a raising gradient that passes below 0. An empty mask asks for more with the full strength of its dice loss,
# a mask that covers the image for less with a tiny one, as its gradient has the squared area in the denominator. With
# a slope of 1 or 0.1 the first outweighs the second, and masks grow over the whole image instead.
REVIVE_SLOPE = 0.01


def mask_activation(name: str, relu_gradient: str) -> Callable[[Tensor], Tensor]:
    """The function from a fused map (B, N, h, w) to mask scores of the same shape.

    Args:
        name: "sigmoid": scores in [0, 1]; "relu": scores >= 0 (released recipe).
        relu_gradient: backward of "relu": "plain", the derivative, or "revive", see `revivable_relu`; "sigmoid" ignores
            it.

    Raises:
        ValueError: if either word is unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f'MODEL.PSF.MASK_DECODER.MASK_ACTIVATION is "{name}": expected one of {list(ACTIVATIONS)}')
    if relu_gradient not in RELU_GRADIENTS:
        raise ValueError(
            f'MODEL.PSF.MASK_DECODER.RELU_GRADIENT is "{relu_gradient}": expected one of {list(RELU_GRADIENTS)}'
        )
    if name == "sigmoid":
        return torch.sigmoid
    return revivable_relu if relu_gradient == "revive" else F.relu


def revivable_relu(fused: Tensor) -> Tensor:
    """ReLU, bit by bit; backward also passes a small gradient at scores of 0, where it would raise them.

    The gradient of `fused` is that of the scores where they are above 0; elsewhere its negative part times
    `REVIVE_SLOPE`. In an empty mask the dice loss has the gradient -2 t / sum(t^2), where t is the ground truth: it
    asks for more inside a segment and for nothing outside, and the plain derivative drops that.

    Without gradients, and in traced or exported graphs, this is `F.relu`.

    Args:
        fused: of any floating type and shape.

    Returns:
        max(fused, 0).
    """
    if is_traced() or not torch.is_grad_enabled():
        return F.relu(fused)
    scores: Tensor = _RevivableReLU.apply(fused)
    return scores


class _RevivableReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Tensor) -> Tensor:
        scores = F.relu(fused)
        ctx.save_for_backward(scores)
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (scores,) = ctx.saved_tensors
        return torch.where(scores > 0, gradient, REVIVE_SLOPE * gradient.clamp(max=0.0))
