"""The optimizer of Deformable DETR's family: slower backbone and sampling points, gradients clipped as a whole."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn
from torch.optim import Optimizer

from psf.engine.layer_decay import layer_decay_factors

__all__ = ["build_optimizer"]


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """AdamW or SGD over the parameters that require gradients, by the keys under SOLVER.

    Learning rate: BASE_LR, times BACKBONE_MULTIPLIER and BACKBONE_LAYER_DECAY's power (`psf.engine.layer_decay`) for
    what lies in `backbone.`, times SAMPLING_MULTIPLIER for `sampling_offsets` and `reference_points`, times
    BIAS_LR_FACTOR for biases. Weight decay: WEIGHT_DECAY, or WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS.

    Clipping, where CLIP_GRADIENTS.ENABLED: CLIP_TYPE "norm" scales all gradients together to a norm of at most
    CLIP_VALUE, and so does "full_model", other projects' word for it. In Detectron2's own build_optimizer, "norm" is
    that of each parameter by itself, and "full_model" an error. "value" is the same in both.

    Raises:
        ValueError: if SOLVER.OPTIMIZER is neither "ADAMW" nor "SGD", or BACKBONE_LAYER_DECAY does not fit.
    """
    solver = cfg.SOLVER
    params = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=_learning_rate_factor(solver, model),
    )
    optimizer_class: type[Optimizer]
    arguments: dict[str, Any] = {"lr": solver.BASE_LR, "weight_decay": solver.WEIGHT_DECAY}
    if solver.OPTIMIZER == "ADAMW":
        optimizer_class = torch.optim.AdamW
    elif solver.OPTIMIZER == "SGD":
        optimizer_class = torch.optim.SGD
        arguments.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    else:
        raise ValueError(f'SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}, known are "ADAMW" and "SGD"')

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE in ("norm", "full_model"):
        optimizer_class = _clipping_full_model(optimizer_class, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        optimizer_class = maybe_add_gradient_clipping(cfg, optimizer_class)
    return optimizer_class(params, **arguments)


def _learning_rate_factor(solver: CfgNode, model: nn.Module) -> Callable[[str], float]:
    decay = solver.BACKBONE_LAYER_DECAY
    in_backbone = {} if decay == 1 else layer_decay_factors(model.get_submodule("backbone"), decay)

    def factor(name: str) -> float:
        result = 1.0
        if name.startswith("backbone."):
            result = solver.BACKBONE_MULTIPLIER * in_backbone.get(name.removeprefix("backbone."), 1.0)
        if "sampling_offsets" in name or "reference_points" in name:
            result *= solver.SAMPLING_MULTIPLIER
        if name.endswith(".bias"):
            result *= solver.BIAS_LR_FACTOR
        return result

    return factor


def _clipping_full_model(base: type[Optimizer], max_norm: float, norm_type: float) -> type[Optimizer]:
    class FullModelClipping(base):  # type: ignore[misc, valid-type]
        def step(self, closure: Callable[[], float] | None = None) -> Any:
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            nn.utils.clip_grad_norm_(params, max_norm, norm_type)
            return super().step(closure)

    return FullModelClipping
