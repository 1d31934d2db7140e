"""The figures of an evaluation, for programs (results.json, a line of metrics.json) and for people (a table)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import EventStorage, JSONWriter
from tabulate import tabulate

from psf.engine.empty_results import EMPTY_RESULT

__all__ = ["append_metrics", "results_table", "write_results"]


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write nested results as one JSON object, in one go: a reader sees the old file or the new one.

    Numbers that could not be computed (NaN) become null.
    """
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(_plain(results), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def append_metrics(path: Path, results: Mapping[str, Any], iteration: int) -> None:
    """Add one line of JSON to a file, as Detectron2's training does: "panoptic_seg/PQ" and so on, and "iteration"."""
    writer = JSONWriter(str(path))
    with EventStorage(iteration) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        writer.write()
    writer.close()


def results_table(results: Mapping[str, Any]) -> str:
    """One line per task with its main metrics, those without a class name in theirs ("AP-person").

    Why a result is empty stands in the log, and is no line.
    """
    rows = []
    for task, metrics in _tasks(results):
        main = {key: value for key, value in metrics.items() if "-" not in key}
        rows.append([task, "  ".join(f"{key} {value:.2f}" for key, value in main.items())])
    return tabulate(rows, ["task", "results"], tablefmt="pipe")


def _tasks(results: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, float]]]:
    """Detectron2 nests results by data set where there are several."""
    found = []
    for key, value in results.items():
        if key == EMPTY_RESULT:
            continue
        if any(isinstance(inner, Mapping) for inner in value.values()):
            found += _tasks(value, f"{prefix}{key} ")
        else:
            found.append((prefix + key, value))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None
