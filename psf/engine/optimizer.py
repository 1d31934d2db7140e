"""The optimizer of Deformable DETR: lower learning rates of backbone and sampling points, full-model clipping.

Also its state in checkpoints.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.utils.logger import log_first_n
from torch import nn
from torch.optim import Optimizer

from psf.engine.config.checks import check_solver
from psf.errors import UserError
from psf.modeling.activation_checkpointing import BACKBONE_BLOCKS

__all__ = [
    "block_positions",
    "build_optimizer",
    "layer_decay_factors",
    "optimizer_state_for",
    "parameter_names",
]

_LEAST_SGD_RATE = 1e-3  # rates of AdamW, which normalizes the gradients, are below
logger = logging.getLogger(__name__)

_BLOCKS = tuple(end for end in BACKBONE_BLOCKS if not end.endswith("Stem"))


def block_positions(backbone: nn.Module) -> dict[str, int]:
    """Parameter name -> position: 0 in the stem, k in block k and between the blocks k and k + 1.

    Blocks are counted from 1, in the order of the backbone's modules. Class names identify the blocks of Detectron2's
    ResNet, of SwinBackbone and of timm's models. Of nested blocks, only the outermost counts.
    """
    positions: dict[str, int] = {}
    begun = 0

    def visit(module: nn.Module, prefix: str, in_block: bool) -> None:
        nonlocal begun
        if not in_block and type(module).__name__.endswith(_BLOCKS):
            in_block = True
            begun += 1
        positions.update({prefix + name: begun for name, _ in module.named_parameters(recurse=False)})
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.", in_block)

    visit(backbone, "", False)
    return positions


def layer_decay_factors(backbone: nn.Module, decay: float) -> dict[str, float]:
    """Parameter name -> factor of its learning rate, for SOLVER.BACKBONE_LAYER_DECAY.

    With N blocks, the factor is `decay` ** (N + 1 - position): `decay` for the last block and everything after it,
    `decay` ** N for the first block, `decay` ** (N + 1) for the stem.

    Raises:
        UserError: if `decay` is not in (0, 1], or the backbone has no known blocks.
    """
    if not 0 < decay <= 1:
        raise UserError(f"SOLVER.BACKBONE_LAYER_DECAY is {decay}: expected a factor in (0, 1]; 1 is off")
    positions = block_positions(backbone)
    num_blocks = max(positions.values(), default=0)
    if not num_blocks:
        raise UserError(
            f"SOLVER.BACKBONE_LAYER_DECAY is {decay}, but no known blocks in {type(backbone).__name__}: set it to 1.0"
        )
    return {name: decay ** (num_blocks + 1 - position) for name, position in positions.items()}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> Optimizer:
    """AdamW or SGD over the parameters that require gradients, by the keys under SOLVER.

    Learning rate: BASE_LR, times BACKBONE_MULTIPLIER and the factor of BACKBONE_LAYER_DECAY (`layer_decay_factors`)
    for parameters in `backbone.`, times SAMPLING_MULTIPLIER for `sampling_offsets` and `reference_points`, times
    BIAS_LR_FACTOR for biases. Weight decay: WEIGHT_DECAY, or WEIGHT_DECAY_NORM and WEIGHT_DECAY_BIAS.

    Clipping, if CLIP_GRADIENTS.ENABLED: as in Detectron2, CLIP_TYPE "value" limits each number to CLIP_VALUE and
    "norm" limits the norm of each parameter's gradient. "full_model", which is not in Detectron2, limits the norm of
    all gradients together.

    Raises:
        UserError: as `psf.engine.config.checks.check_solver`, or if BACKBONE_LAYER_DECAY does not fit.
    """
    check_solver(cfg)
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
    else:
        if solver.BASE_LR < _LEAST_SGD_RATE:
            log_first_n(
                logging.WARNING,
                f"SOLVER.OPTIMIZER is SGD, but SOLVER.BASE_LR is {solver.BASE_LR:g}, a learning rate for ADAMW: with "
                "SGD the model learns next to nothing; 0.01 is usual",
                key="message",
                name=__name__,
            )
        optimizer_class = torch.optim.SGD
        arguments.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)

    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":
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


def parameter_names(optimizer: Optimizer, model: nn.Module) -> list[str]:
    """Names of the optimizer's parameters, in the order of the numbers that its state dict gives them."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state_for(
    optimizer: Optimizer, model: nn.Module, stored: Mapping[str, Any], names: Sequence[str] | None
) -> dict[str, Any]:
    """The state of a checkpoint for an optimizer whose config may have changed, for `load_state_dict`.

    Moments are matched by the names of the parameters, because the groups depend on the config. Learning rates, weight
    decay and the other options are those of `optimizer`; a line in the log has the options that differ. The scheduler
    then sets the learning rates of the iteration.

    Args:
        optimizer: of this run.
        model: with its parameters.
        stored: the optimizer's state dict in the checkpoint.
        names: `parameter_names` in the checkpoint; None: unknown, so the groups must be the same.

    Raises:
        UserError: if the checkpoint's optimizer was of another kind, or its parameters were others.
    """
    own, own_names = optimizer.state_dict(), parameter_names(optimizer, model)
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (own, stored)]
    if names is None and sizes[0] == sizes[1]:
        names = own_names
    if names is None or set(names) != set(own_names):
        raise UserError(
            "cannot resume: the optimizer of the checkpoint has other parameters or groups of parameters; set the keys "
            "of frozen layers and under SOLVER as before, or start anew with the checkpoint as MODEL.WEIGHTS"
        )
    has_moments = any("exp_avg" in state for state in stored["state"].values())
    if stored["state"] and has_moments != isinstance(optimizer, torch.optim.AdamW):
        own_kind, stored_kind = ("SGD", "ADAMW") if has_moments else ("ADAMW", "SGD")
        raise UserError(
            f"cannot resume: SOLVER.OPTIMIZER is {own_kind!r}, but the checkpoint was trained with {stored_kind!r}; "
            "set it back, or start anew with the checkpoint as MODEL.WEIGHTS"
        )
    _log_changes(_options(stored, names), _options(own, own_names))
    by_name = {names[number]: state for number, state in stored["state"].items()}
    state = {number: by_name[name] for number, name in enumerate(own_names) if name in by_name}
    return {"state": state, "param_groups": own["param_groups"]}


def _options(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parameter name -> options of its group; "lr" is the learning rate before the scheduler."""
    options = {}
    for group in state["param_groups"]:
        values = {**group, "lr": group.get("initial_lr", group["lr"])}
        values = {key: value for key, value in values.items() if key not in ("params", "initial_lr")}
        options.update({names[number]: values for number in group["params"]})
    return options


def _log_changes(before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]]) -> None:
    changes = {
        f"{key} {before[name][key]} -> {value}": None
        for name, options in now.items()
        for key, value in options.items()
        if key in before[name] and before[name][key] != value
    }
    if changes:
        logger.warning("SOLVER has changed since the checkpoint, and the new values are used: %s", ", ".join(changes))
