"""A training step against a case, by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fidelity import Report
from fidelity.description import Described
from fidelity.training import TrainingStep
from fidelity.training_comparison import FAULT, OTHER_PRECISION, compare_training

NUMBERS = {"losses": {"loss_cls": 2.0, "loss_dropped": 0.0}, "total": 2.0, "grad_norms": {"a": 1.0, "gone": 0.0}}
ENTRIES = [
    {"assigner": "assigner_filter", "num_queries": 300, "pairs": [[7, 0]], "kept_queries": [7]},
    {"assigner": "assigner_with_mask", "num_queries": 1, "pairs": [[0, 0]]},
]
CASE = {"images": [], "pad": None, "index_fix": False, **NUMBERS, "matching": ENTRIES}


def check(changes: dict[str, Any], float64: bool = False) -> Report:
    matching = SimpleNamespace(entries=lambda: [dict(entry) for entry in ENTRIES])
    step = TrainingStep({"loss_cls": 2.0}, {"a": 1.0, "b": None}, matching)  # type: ignore[arg-type]
    return compare_training("case", step, Described({**CASE, **changes}, "train.json: case"), float64)


def beyond(report: Report) -> list[str]:
    return [comparison.name for comparison in report.comparisons if not comparison.passed]


def test_as_it_should_be() -> None:
    assert beyond(check({})) == [] and check({})[1:] == ({}, [])


@pytest.mark.parametrize("norm", [1e-12, 3.0])
def test_a_parameter_that_psf_lacks_must_have_no_gradient(norm: float) -> None:
    assert beyond(check({"grad_norms": {"a": 1.0, "gone": None}})) == []
    assert beyond(check({"grad_norms": {"a": 1.0, "gone": norm}})) == ["grad_norms"]


def test_no_gradient_is_not_a_gradient_of_zero() -> None:
    assert beyond(check({"grad_norms": {"a": 1.0, "b": None}})) == []
    assert beyond(check({"grad_norms": {"a": 1.0, "b": 0.0}})) == ["grad_norms"]
    assert beyond(check({"all_grad_norms": {"b": None}})) == []


@pytest.mark.parametrize("key, value", [("num_queries", 2), ("pairs", []), ("kept_queries", [0])])
def test_matchings_by_all_that_is_said_of_them(key: str, value: Any) -> None:
    assert beyond(check({"matching": [ENTRIES[0], {**ENTRIES[1], key: value}]})) == ["matching"]
    without = [{k: v for k, v in entry.items() if k != key} for entry in ENTRIES]
    assert beyond(check({"matching": without})) == []
    assert beyond(check({"matching": ENTRIES[:1]})) == ["matching"]


def test_a_corrected_case_says_what_of_the_released_one_is_not_compared() -> None:
    wrong = {"losses": {"loss_cls": 9.0}, "total": 9.0, "all_grad_norms": {"a": 9.0}}
    report = check({**wrong, "corrected": {"why": "a fault", **NUMBERS}})
    assert beyond(report) == [] and len(report.comparisons) == 4 and not report.unknown
    assert report.skipped == {f"case: {key}": FAULT for key in ("losses", "total", "grad_norms", "all_grad_norms")}
    assert "losses" in beyond(check({"corrected": {**NUMBERS, "losses": {"loss_cls": 9.0}}}))


def test_numbers_of_either_precision() -> None:
    both = {"total_float64": 9.0}
    assert beyond(check(both)) == [] and check(both).skipped == {"case: total_float64": OTHER_PRECISION}
    report = check(both, float64=True)
    assert beyond(report) == ["total"] and report.skipped == {"case: total": OTHER_PRECISION}


def test_what_psf_does_not_know() -> None:
    report = check({"momentum": 1, "corrected": {**NUMBERS, "shares": {}}, "matching": [{**ENTRIES[0], "cost": 1.0}]})
    assert report.unknown == ["case: momentum", "case: shares", "case: matching: cost"]


@pytest.mark.parametrize("key", ["losses", "total", "grad_norms", "matching"])
def test_a_key_that_is_missing_is_named(key: str) -> None:
    case = Described({name: value for name, value in CASE.items() if name != key}, "train.json: case")
    matching = SimpleNamespace(entries=list)
    with pytest.raises(ValueError, match=f"train.json: case: expected a key '{key}', found"):
        compare_training("case", TrainingStep({}, {}, matching), case, False)  # type: ignore[arg-type]
