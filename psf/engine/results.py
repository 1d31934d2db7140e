"""Results of an evaluation: results.json, a line of metrics.json, and a table for the log."""

from __future__ import annotations

import importlib
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import default_writers
from detectron2.evaluation.evaluator import inference_context
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.events import EventStorage, EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from tabulate import tabulate

from psf.data.own_files import free_name, write_own_text
from psf.inference import KEPT, CandidateOutcomes, PostProcessor, RejectionSummary, summarise_rejections
from psf.meta_arch import PanopticSegFormer

__all__ = [
    "EMPTY_RESULT",
    "append_metrics",
    "as_numbers",
    "build_writers",
    "describe_empty_results",
    "explain_empty_results",
    "results_table",
    "write_results",
]

logger = logging.getLogger(__name__)

EMPTY_RESULT = "empty_result"  # key of the explanation, next to the tasks of an evaluation
NUM_IMAGES = 16  # that the model runs on again
FREQUENT = 0.25  # least share of candidates that a reason rejects for the message to have advice on it


def explain_empty_results(
    model: PanopticSegFormer, data_loader: Iterable[list[dict[str, Any]]], kinds: Sequence[str]
) -> dict[str, RejectionSummary]:
    """Run the model again on the first images of a dataset, and count what rejects its candidates.

    Args:
        model: the model; it is in evaluation mode during the call.
        data_loader: test batches of the dataset.
        kinds: some of "things", "stuff" and "instances", without any prediction in the evaluation.

    Returns:
        A summary for each kind with candidates; a model without things, for example, has no thing candidates.
    """
    images: list[dict[str, CandidateOutcomes]] = []
    with inference_context(model), torch.no_grad():
        for batch in data_loader:
            images += model.explain(batch)
            if len(images) >= NUM_IMAGES:
                break
    summaries = {}
    for kind in kinds:
        result = "instances" if kind == "instances" else "panoptic_seg"
        summaries[kind] = summarise_rejections([one[result] for one in images], kind != "stuff")
    return {kind: one for kind, one in summaries.items() if one.num_candidates}


def as_numbers(summaries: dict[str, RejectionSummary]) -> dict[str, dict[str, Any]]:
    """Convert the summaries to nested dicts of numbers for results.json."""
    return {
        kind: {
            "images": one.num_images,
            "candidates": one.num_candidates,
            "largest_confidence": one.largest_confidence,
            "largest_class_score": one.largest_class_score,
            "largest_mask_score": one.largest_mask_score,
            "rejected_by": {reason: count for reason, count in one.counts.items() if reason != KEPT},
        }
        for kind, one in summaries.items()
    }


def describe_empty_results(dataset_name: str, summaries: dict[str, RejectionSummary], processor: PostProcessor) -> str:
    """One line for the log: what rejected the candidates, and the keys to change."""
    return f"{dataset_name}: " + "; ".join(_describe(kind, one, processor) for kind, one in summaries.items())


def _describe(kind: str, summary: RejectionSummary, processor: PostProcessor) -> str:
    counts = ", ".join(f"{count} by {reason}" for reason, count in summary.counts.items())
    frequent = [reason for reason, count in summary.counts.items() if count >= FREQUENT * summary.num_candidates]
    keys = [text for reason in frequent for text in _advice(reason, kind, summary, processor)]
    advice = f"; train for longer, or lower {' and '.join(keys)}" if keys else ""
    return (
        f"no {kind} were predicted; of {summary.num_candidates} candidates in {summary.num_images} images these were "
        f"rejected: {counts}{advice}"
    )


def _advice(reason: str, kind: str, summary: RejectionSummary, processor: PostProcessor) -> list[str]:
    """The key behind a reason, its value, and the best value of the candidates."""
    numbers = processor.stuff if kind == "stuff" else processor.things
    confidence = f"the largest confidence is {summary.largest_confidence:.3g}"
    if reason == "empty_mask":
        score = f"the largest mask score is {summary.largest_mask_score:.3g}"
        return [f"MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD ({processor.mask_threshold}; {score})"]
    if reason == "SCORE_THRESH":
        return [f"MODEL.PSF.TEST.INSTANCE.SCORE_THRESH ({processor.instance.score_thresh}; {confidence})"]
    if reason == "T_CNF":
        return [f"MODEL.PSF.POST_PROCESSOR.{kind.upper()}.T_CNF ({numbers.t_cnf:g}; {confidence})"]
    if reason == "T_KEEP":
        return [f"MODEL.PSF.POST_PROCESSOR.{kind.upper()}.T_KEEP ({numbers.t_keep:g})"]
    return []


def write_results(folder: str, results: Mapping[str, Any]) -> Path:
    """Write nested results as one JSON object to results.json in a folder; returns the path (`free_name`).

    Numbers that could not be computed (NaN) become null.
    """
    path = free_name(Path(folder, "results.json"))
    write_own_text(path, json.dumps(_plain(results), indent=2, allow_nan=False) + "\n")
    return path


class MetricsWriter(JSONWriter):
    """Detectron2's writer of metrics.json, in strict JSON: numbers that are not finite become null."""

    _last_write: int  # iteration

    def write(self) -> None:
        lines: dict[int, dict[str, float | None]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                line = lines.setdefault(iteration, {"iteration": iteration})
                line[name] = value if math.isfinite(value) else None
        for iteration in sorted(lines):
            self._file_handle.write(json.dumps(lines[iteration], sort_keys=True, allow_nan=False) + "\n")
            self._last_write = iteration
        self._file_handle.flush()


def append_metrics(folder: str, results: Mapping[str, Any], iteration: int) -> None:
    """Add one line to metrics.json, as Detectron2's training does: "panoptic_seg/PQ" and so on, and "iteration".

    A file of other content stays as it is; the line then goes to metrics_2.json.
    """
    path, number = Path(folder, "metrics.json"), 1
    while path.exists() and not _holds_metrics(path):
        number += 1
        path = Path(folder, f"metrics_{number}.json")
    writer = MetricsWriter(str(path))
    with EventStorage(iteration) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        writer.write()
    writer.close()


def _holds_metrics(path: Path) -> bool:
    """Whether the first line of a file is one of Detectron2's metrics; a file without lines may become one."""
    with path.open("rb") as file:
        line = file.readline()
    return not line or (line.startswith(b"{") and b'"iteration":' in line and line.rstrip().endswith(b"}"))


def build_writers(folder: str, max_iter: int) -> list[EventWriter]:
    """Detectron2's writers of a training: log, metrics.json (`MetricsWriter`) and, if installed, TensorBoard."""
    writers: list[EventWriter] = []
    for writer in default_writers(folder, max_iter):
        if isinstance(writer, JSONWriter):
            writer.close()
            writer = MetricsWriter(str(Path(folder, "metrics.json")))
        writers.append(writer)
    try:
        importlib.import_module("torch.utils.tensorboard")
    except ImportError as error:
        logger.warning("No TensorBoard curves are written (%s): pip install tensorboard", error)
        writers = [writer for writer in writers if not isinstance(writer, TensorboardXWriter)]
    return writers


def results_table(results: Mapping[str, Any]) -> str:
    """One line per task with its main metrics, without those of single classes ("AP-person").

    The log explains empty results; the table does not.
    """
    rows = []
    for task, metrics in _tasks(results):
        main = {key: value for key, value in metrics.items() if "-" not in key}
        rows.append([task, "  ".join(f"{key} {value:.2f}" for key, value in main.items())])
    return tabulate(rows, ["task", "results"], tablefmt="pipe")


def _tasks(results: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, float]]]:
    """Detectron2 nests results by dataset where there are several."""
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
