"""Compare a training step with the reference: losses, gradient norms, matchings and their costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from fidelity.description import Described
from fidelity.stored import Comparison, Report, StoredTensors, compare_arrays, compare_numbers
from fidelity.training import TrainingStep

__all__ = ["compare_costs", "compare_training"]

LOSS_TOLERANCE = 1e-3  # relative
LOSS_FLOOR = 1e-3  # smaller losses are compared as if they were this large
GRADIENT_TOLERANCE = 1e-2  # relative
COST_TOLERANCE = 2e-4  # of the largest cost

NUMBERS = ("losses", "total", "grad_norms", "all_grad_norms")
MATCHING = ("assigner", "num_queries", "pairs", "kept_queries")
FLOAT64 = "_float64"  # suffix of numbers that the reference computed in float64
DESCRIPTION = ("images", "pad", "index_fix", "corrected", "why")  # inputs of a case, not results

# Reasons for not comparing a number.
FAULT = "without things, the released loss lacks terms; the case's `corrected` is compared instead"
OTHER_PRECISION = "of the other precision"


def compare_training(name: str, found: TrainingStep, case: Described, float64: bool) -> Report:
    """Compare a training step with a case: losses, their sum, gradient norms, matchings.

    If a case has `corrected` values, they replace the released code's values, which are wrong there. With `float64`,
    values computed in float64 are preferred.

    Raises:
        UserError: if the case lacks losses, total, grad_norms or matching.
    """
    right = case.object("corrected") if "corrected" in case else case
    keys = {key: key + FLOAT64 if float64 and key + FLOAT64 in right else key for key in NUMBERS}
    # The released code multiplies the losses of the mask decoder's boxes and thing classes by zero; psf has none.
    losses = {key: value for key, value in right[keys["losses"]].items() if value != 0 or key in found.losses}
    total = {"total": right[keys["total"]]}
    comparisons = [
        compare_numbers(name, "losses", found.losses, losses, LOSS_TOLERANCE, LOSS_FLOOR),
        compare_numbers(name, "total", {"total": sum(found.losses.values())}, total, LOSS_TOLERANCE, LOSS_FLOOR),
        _compare_norms(name, "grad_norms", found.gradient_norms, right[keys["grad_norms"]]),
        _compare_matchings(name, found.matching.entries(), case["matching"]),
    ]
    if keys["all_grad_norms"] in right:
        norms = right[keys["all_grad_norms"]]
        comparisons.append(_compare_norms(name, "all_grad_norms", found.gradient_norms, norms))
    numbers = {key + suffix for key in NUMBERS for suffix in ("", FLOAT64)}
    skipped = {f"{name}: {key}": OTHER_PRECISION for key in right if key in numbers and key not in keys.values()}
    if right is not case:
        skipped.update({f"{name}: {key}": FAULT for key in case if key in numbers})
    known = {*numbers, *DESCRIPTION, "matching"}
    unknown = [f"{name}: {key}" for key in {**case, **right} if key not in known]
    others = {key: None for entry in case["matching"] for key in entry if key not in MATCHING}
    return Report(comparisons, skipped, unknown + [f"{name}: matching: {key}" for key in others])


def _compare_norms(
    case: str, name: str, found: dict[str, float | None], expected: dict[str, float | None]
) -> Comparison:
    """Compare norms; no gradient differs from a gradient of zero, unless psf lacks the parameter."""
    wanted = {key for key, value in expected.items() if key in found or value}
    ours, theirs = (
        {key: -1.0 if value is None else value for key, value in norms.items() if key in wanted}
        for norms in (found, expected)
    )
    # The gradient of the keys' bias before a softmax is only rounding.
    floor = 1e-6 * max((abs(value) for value in theirs.values()), default=1.0)
    return compare_numbers(case, name, ours, theirs, GRADIENT_TOLERANCE, floor)


def _compare_matchings(case: str, found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> Comparison:
    """Share of matchings whose entries differ from the reference, in any order of the images in a layer."""
    left = list(found)
    num_missing = 0
    for entry in expected:
        wanted = {key: value for key, value in entry.items() if key in MATCHING}
        same = next((own for own in left if wanted == {key: own.get(key) for key in wanted}), None)
        if same is None:
            num_missing += 1
        else:
            left.remove(same)
    return Comparison(case, "matching", (num_missing + len(left)) / max(len(expected), 1), np.nan, 0.0)


def compare_costs(name: str, found: TrainingStep, stored: StoredTensors) -> list[Comparison]:
    """Compare the cost matrices of a case with one image, and their assignments, with the reference."""
    if not any(stored_name.startswith(f"{name}_") for stored_name in stored.names):
        return []
    comparisons = []
    for key, value in found.matching.costs().items():
        if f"{name}_{key}" in stored:
            tolerance = COST_TOLERANCE if key.endswith("_cost") else 0.0
            comparisons.append(compare_arrays(name, f"costs {key}", value, stored[f"{name}_{key}"], tolerance))
    return comparisons
