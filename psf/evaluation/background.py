"""Evaluate in the background: a thread measures a batch while the model segments the next ones."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.structures import Instances

from psf.evaluation.ground_truth import READ_AHEAD, PanopticGroundTruth

__all__ = ["MAX_WAITING_BYTES", "BackgroundEvaluators"]

# Results that wait for the evaluators may take this much memory, 512 MiB; a larger batch waits alone. An image of 640 x
# 480 pixels with 100 instances takes 32 MiB.
MAX_WAITING_BYTES = 2**29
MAX_WAITING = 8  # batches

Batch = list[dict[str, Any]]


class _Waiting(NamedTuple):
    """A batch that the evaluators have not finished; num_bytes: of its tensors."""

    done: Future[None]
    num_bytes: int


class BackgroundEvaluators(DatasetEvaluators):
    """Detectron2's DatasetEvaluators, whose `process` returns as soon as the results are in the host's memory.

    One thread runs the evaluators batch by batch, in order, so that results are those of DatasetEvaluators. Another one
    reads the ground truth of the batches, once for all evaluators (`PanopticGroundTruth.of`). An error of an evaluator
    is raised by a later `process`, or by `evaluate`. The threads exist from the first `process` to `evaluate`, `reset`
    or `close`: a loader that forks worker processes must start them before or after.

    Evaluators get `sem_seg` as (H, W) classes, because (K, H, W) scores are too large to wait in memory.

    Args:
        evaluators: their `evaluate` runs in the caller's thread.
        gt: of the dataset; None: evaluators that need ground truth read it themselves.
        in_foreground: run in the caller's thread, with the model's unchanged outputs.
    """

    def __init__(
        self,
        evaluators: Sequence[DatasetEvaluator],
        gt: PanopticGroundTruth | None = None,
        *,
        in_foreground: Sequence[DatasetEvaluator] = (),
    ) -> None:
        super().__init__([*evaluators, *in_foreground])
        self._in_background, self._in_foreground = list(evaluators), list(in_foreground)
        self._gt = gt
        self._waiting: deque[_Waiting] = deque()
        self._threads: tuple[ThreadPoolExecutor, ThreadPoolExecutor] | None = None

    def reset(self) -> None:
        self.close()
        super().reset()

    def process(self, inputs: Batch, outputs: Batch) -> None:
        """Queue a batch, and wait if too many batches are queued.

        Raises:
            Exception: of an evaluator in this or an earlier batch.
        """
        for evaluator in self._in_foreground:
            evaluator.process(inputs, outputs)
        if not self._in_background:
            return
        on_host = [_to_host(output) for output in outputs]
        num_bytes = sum(_num_bytes(value) for one in (*inputs, *on_host) for value in one.values())
        self._wait(MAX_WAITING - 1, MAX_WAITING_BYTES - num_bytes)
        if self._threads is None:
            self._threads = ThreadPoolExecutor(1, "psf-evaluators"), ThreadPoolExecutor(1, "psf-ground-truth")
        evaluators, reader = self._threads
        if self._gt is not None:
            inputs = [{**one, READ_AHEAD: reader.submit(self._gt.read, one["image_id"]).result} for one in inputs]
        self._waiting.append(_Waiting(evaluators.submit(self._evaluate_batch, inputs, on_host), num_bytes))

    def _evaluate_batch(self, inputs: Batch, outputs: Batch) -> None:
        for evaluator in self._in_background:
            evaluator.process(inputs, outputs)

    def _wait(self, max_number: int, max_bytes: int) -> None:
        """Wait until at most so much is waiting; raise the error of a batch that has failed."""
        try:
            while self._waiting and (
                self._waiting[0].done.done()
                or len(self._waiting) > max_number
                or sum(one.num_bytes for one in self._waiting) > max_bytes
            ):
                self._waiting[0].done.result()
                self._waiting.popleft()
        except BaseException:  # also Ctrl-C
            self.close()
            raise

    def evaluate(self) -> OrderedDict[str, Any]:
        """Wait for all batches; return the results of all evaluators."""
        self._wait(0, 0)
        self.close()
        results: OrderedDict[str, Any] = super().evaluate()
        return results

    def close(self) -> None:
        """End the threads; drop the batches that they have not begun."""
        for executor in self._threads or ():
            executor.shutdown(wait=False, cancel_futures=True)
        for executor in self._threads or ():
            executor.shutdown(wait=True)
        self._threads = None
        self._waiting.clear()


def _to_host(output: dict[str, Any]) -> dict[str, Any]:
    """The results in the host's memory, with classes for semantic scores."""
    with torch.no_grad():
        result = dict(output)
        if "panoptic_seg" in output:
            ids, segments = output["panoptic_seg"]
            result["panoptic_seg"] = ids.cpu(), segments
        if "instances" in output:
            result["instances"] = output["instances"].to("cpu")
        if "sem_seg" in output:
            sem_seg = output["sem_seg"]
            result["sem_seg"] = (sem_seg.argmax(dim=0) if sem_seg.ndim == 3 else sem_seg).cpu()
    return result


def _num_bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, Instances):
        return sum(_num_bytes(field) for field in value.get_fields().values())
    return sum(map(_num_bytes, value)) if isinstance(value, tuple) else 0
