"""Results of an evaluation: results.json, a line of metrics.json, and a table for the log; writers of a training."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.evaluation.evaluator import inference_context
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)
from tabulate import tabulate

from psf.data.files import write_text
from psf.data.own_files import free_name, write_own_text
from psf.inference import KEPT, CandidateOutcomes, PostProcessor, RejectionSummary, summarise_rejections
from psf.meta_arch import PanopticSegFormer

__all__ = [
    "EMPTY_RESULT",
    "append_metrics",
    "as_numbers",
    "build_writers",
    "describe_empty_results",
    "drop_later_metrics",
    "explain_empty_results",
    "report",
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


def report(folder: str, results: Mapping[str, Any]) -> None:
    """In the main process, write results.json and log a table."""
    if comm.is_main_process():
        path = write_results(folder, results)
        logger.info("Results, also in %s:\n%s", path, results_table(results))


class MetricsWriter(JSONWriter):
    """Detectron2's writer of metrics.json, in strict JSON: numbers that are not finite become null.

    The first line chooses the file (`metrics_path`), so that a run can move an earlier one before
    (`drop_later_metrics`).
    """

    _last_write: int  # iteration

    def __init__(self, folder: str, window_size: int = 20) -> None:
        self._folder, self._window_size, self._last_write = folder, window_size, -1
        self._path: Path | None = None

    def write(self) -> None:
        lines: dict[int, dict[str, float | None]] = {}
        latest = get_event_storage().latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in latest.items():
            if iteration > self._last_write:
                line = lines.setdefault(iteration, {"iteration": iteration})
                line[name] = value if math.isfinite(value) else None
        if self._path is None:
            self._path = metrics_path(self._folder)
        with self._path.open("a", encoding="utf-8") as file:
            for iteration in sorted(lines):
                file.write(json.dumps(lines[iteration], sort_keys=True, allow_nan=False) + "\n")
                self._last_write = iteration

    def close(self) -> None:
        """Nothing: each call of `write` has closed the file."""


def metrics_path(folder: str, *, or_half_a_line: bool = False) -> Path:
    """metrics.json in a folder, or metrics_2.json and so on if that file has other content (`_holds_metrics`)."""
    return next(path for path in _metrics_paths(folder) if not path.exists() or _holds_metrics(path, or_half_a_line))


def _metrics_paths(folder: str) -> Iterator[Path]:
    yield Path(folder, "metrics.json")
    yield from (Path(folder, f"metrics_{number}.json") for number in itertools.count(2))


def drop_later_metrics(folder: str, num_iterations: int, *, is_finished: bool) -> None:
    """Remove from metrics.json what a run writes again, and what a killed run has left of a line.

    A file of other content stays as it is. Without any iteration to continue from, the lines of the earlier run are not
    lost: the file becomes metrics_2.json, or metrics_3.json and so on.

    Args:
        folder: OUTPUT_DIR.
        num_iterations: of the checkpoint; lines of later iterations are removed, but not the evaluation after them.
        is_finished: whether no iterations are left: the evaluation is repeated, too.
    """
    path = metrics_path(folder, or_half_a_line=True)
    if not path.is_file():
        return
    if not num_iterations:
        if path.stat().st_size:
            path.replace(next(name for name in _metrics_paths(folder) if not name.exists()))
        return
    kept = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = _parse_metrics(text)
        if line is None:
            continue
        is_evaluation = line["iteration"] == num_iterations and "lr" not in line  # training always has a learning rate
        if line["iteration"] < num_iterations or (is_evaluation and not is_finished):
            kept.append(f"{text}\n")
    write_text(path, "".join(kept), durable=True)


def _parse_metrics(text: str) -> dict[str, Any] | None:
    """A line of metrics.json; None if it is only a part of one."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("iteration"), int) else None


def append_metrics(folder: str, results: Mapping[str, Any], iteration: int) -> None:
    """In the main process, add one line to metrics.json, as Detectron2's training does.

    It has "panoptic_seg/PQ" and so on, and "iteration". A file of other content stays as it is; the line then goes
    to metrics_2.json.
    """
    if not comm.is_main_process():
        return
    writer = MetricsWriter(folder)
    with EventStorage(iteration) as storage:
        storage.put_scalars(**flatten_results_dict(results), smoothing_hint=False)
        writer.write()
    writer.close()


def _holds_metrics(path: Path, or_half_a_line: bool) -> bool:
    """Whether the first line of a file is one of Detectron2's metrics; a file without lines may become one.

    With `or_half_a_line`, also whether the file is only the beginning of such a line.
    """
    with path.open("rb") as file:
        line = file.readline()
    is_half = line.startswith(b'{"') and not line.endswith((b"}", b"\n"))
    return (
        not line
        or (line.startswith(b"{") and b'"iteration":' in line and line.rstrip().endswith(b"}"))
        or (or_half_a_line and is_half)
    )


class CurvesWriter(TensorboardXWriter):
    """Detectron2's writer of TensorBoard events, which hides what a killed run has written after its checkpoint.

    Args:
        log_dir: folder of the events.
        first_iteration: tells the first iteration of this run, when the first event is written.
    """

    _writer_args: dict[str, Any]  # of the SummaryWriter, which the first event creates

    def __init__(self, log_dir: str, first_iteration: Callable[[], int]) -> None:
        super().__init__(log_dir)
        self._first_iteration = first_iteration

    def write(self) -> None:
        self._writer_args.setdefault("purge_step", self._first_iteration())
        super().write()


def build_writers(folder: str, max_iter: int, first_iteration: Callable[[], int] = lambda: 0) -> list[EventWriter]:
    """Detectron2's writers of a training: log, metrics.json (`MetricsWriter`) and, if installed, TensorBoard.

    Args:
        folder: OUTPUT_DIR.
        max_iter: for the remaining time in the log.
        first_iteration: of the run, for `CurvesWriter`.
    """
    writers: list[EventWriter] = [CommonMetricPrinter(max_iter), MetricsWriter(folder)]
    try:
        importlib.import_module("torch.utils.tensorboard")
        writers.append(CurvesWriter(folder, first_iteration))
    except ImportError as error:
        logger.warning("No TensorBoard curves are written (%s): pip install tensorboard", error)
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
