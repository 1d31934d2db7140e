"""Compare the start of training: the distribution of every parameter, and its optimizer settings."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode

from fidelity.stored import Comparison
from psf.engine import build_optimizer
from psf.meta_arch import PanopticSegFormer

__all__ = ["compare_initialisation", "compare_optimizer"]

STANDARD_ERRORS = 5
STD_TOLERANCE = 0.05  # relative


def compare_initialisation(
    model: PanopticSegFormer, parts: dict[str, list[str]], expected: dict[str, dict[str, Any]]
) -> tuple[list[Comparison], dict[str, str]]:
    """Compare mean, standard deviation and bounds of the parameters outside the backbone, up to random variation.

    Args:
        model: freshly built.
        parts: released name -> psf's names.
        expected: by released name, `shape`, `mean`, `std`, `min`, `max` of another random initialization.

    Returns:
        The comparisons, and the reason for each parameter that was not compared, by name.
    """
    parameters = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    comparisons, skipped = [], {}
    for name, statistics in expected.items():
        if name.startswith("backbone."):
            continue  # it starts from ImageNet
        if not parts[name]:
            skipped[name] = "dropped on purpose"
            continue
        found = np.concatenate([parameters[part].reshape(-1) for part in parts[name]])
        if found.size == 1:
            weight = expected[name.removesuffix("bias") + "weight"]
            away = _away_one(found.item(), statistics["mean"], num_inputs=int(np.prod(weight["shape"][1:])))
        else:
            away = _away(found, statistics)
        comparisons.append(Comparison("initialisation", name, away, np.nan, 1.0))
    return comparisons, skipped


def _away_one(found: float, expected: float, num_inputs: int) -> float:
    """Deviation of a bias with one element: torch draws it from +-1 / root(inputs); beyond that, it is a constant."""
    bound = num_inputs**-0.5
    if abs(expected) > bound:
        return 0.0 if np.isclose(found, expected) else np.inf
    return abs(found) / bound


def _away(found: np.ndarray, statistics: dict[str, Any]) -> float:
    """Deviation of the statistics; 1 is the largest that two draws from one distribution may have."""
    number, mean, std = found.size, statistics["mean"], statistics["std"]
    if number != np.prod(statistics["shape"]):
        return np.inf
    values = (statistics["min"], statistics["max"])
    if std == 0 or (set(np.unique(found)) <= set(values) and number > 2):
        # Constants, and biases with fixed initial values.
        same = np.allclose([found.mean(), found.std(ddof=1), found.min(), found.max()], [mean, std, *values], atol=1e-6)
        return 0.0 if same else np.inf
    error = std * (2 / number) ** 0.5  # of the difference of two means
    std_error = std / number**0.5  # of the difference of two standard deviations; upper bound
    return max(
        abs(found.mean() - mean) / (STANDARD_ERRORS * error),
        abs(found.std(ddof=1) - std) / (STD_TOLERANCE * std + STANDARD_ERRORS * std_error),
    )


def compare_optimizer(
    cfg: CfgNode, model: PanopticSegFormer, parts: dict[str, list[str]], expected: dict[str, Any]
) -> list[Comparison]:
    """Compare type and settings of the optimizer, and learning rate and weight decay of every trained parameter."""
    optimizer = build_optimizer(cfg, model)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    wrong = [
        part
        for released, (rate, decay) in expected["groups"].items()
        for part in parts[released]
        if part in found and not np.allclose(found.pop(part), (rate, decay), rtol=1e-6)
    ]
    kinds = [kind.__name__ for kind in type(optimizer).__mro__]
    settings = {key: expected["defaults"][key] for key in ("lr", "betas", "eps", "weight_decay", "amsgrad")}
    different = [key for key, value in settings.items() if not np.allclose(optimizer.defaults[key], value)]
    is_other = float(expected["type"] not in kinds)
    return [
        Comparison("optimizer", "type and settings", is_other + len(different) / len(settings), np.nan, 0.0),
        # The parameters that remain are in no group of the reference.
        Comparison("optimizer", "groups", (len(wrong) + len(found)) / len(expected["groups"]), np.nan, 0.0),
    ]
