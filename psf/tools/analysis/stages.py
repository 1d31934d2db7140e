"""Measure time per part of the model at test, and peak memory."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import nn

from psf.meta_arch import PanopticSegFormer

__all__ = ["StageTimes", "measure_stages", "peak_memory", "stage_table"]

STAGES = ("backbone", "neck", "pixel_encoder", "location_decoder", "thing_decoder", "stuff_decoder")
CANDIDATES, REST = "candidates", "candidates and post-processing"


class StageTimes(NamedTuple):
    """Medians over the repeats, in seconds per batch."""

    parts: dict[str, float]  # in order of execution; the last is the time between and after them
    total: float
    num_images: int


@torch.no_grad()
def measure_stages(
    model: PanopticSegFormer,
    inputs: list[dict[str, Any]],
    *,
    repeats: int,
    warm_ups: int = 1,
    post_processing: bool = True,
) -> StageTimes:
    """Run the model in eval mode on a batch, and time its parts.

    On a GPU, each part is synchronized, so the total is slightly larger than without measurement.

    Args:
        model: on its device.
        inputs: Detectron2's input dicts.
        repeats: timed runs.
        warm_ups: runs before them.
        post_processing: False: without it, as its time means nothing if the weights are random, and no mask is kept.
    """
    model.eval()
    parts, rest = _parts(model), REST if post_processing else CANDIDATES
    runs = []
    for _ in range(warm_ups + repeats):
        spent = dict.fromkeys(parts, 0.0)
        handles = [h for name, part in parts.items() for h in _timed(part, name, spent, model.device)]
        try:
            start = _now(model.device)
            model(inputs) if post_processing else list(model.candidates_by_image(inputs))
            total = _now(model.device) - start
        finally:
            for handle in handles:
                handle.remove()
        runs.append({**spent, rest: total - sum(spent.values()), "total": total})
    medians = {name: statistics.median(run[name] for run in runs[warm_ups:]) for name in runs[0]}
    return StageTimes({name: medians[name] for name in (*parts, rest)}, medians["total"], len(inputs))


def _parts(model: PanopticSegFormer) -> dict[str, nn.Module]:
    return {name: part for name in STAGES if (part := getattr(model, name)) is not None}


def _timed(part: nn.Module, name: str, spent: dict[str, float], device: torch.device) -> list[Any]:
    started: list[float] = []

    def before(*_: Any) -> None:
        started.append(_now(device))

    def after(*_: Any) -> None:
        spent[name] += _now(device) - started.pop()

    return [part.register_forward_pre_hook(before), part.register_forward_hook(after)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_memory(device: torch.device, run: Callable[[], Any]) -> float:
    """Peak memory in bytes: on a GPU, of all tensors during `run`; on a CPU, of the process since its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return float(torch.cuda.max_memory_allocated(device))
    run()
    status = Path("/proc/self/status")
    if status.exists():  # getrusage may report the parent process
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024.0 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def stage_table(times: StageTimes) -> str:
    """A text table of milliseconds, share of the total, and multiple of the backbone's time."""
    rows = [
        (name, 1e3 * seconds, 100 * seconds / times.total, seconds / times.parts["backbone"])
        for name, seconds in {**times.parts, "total": times.total}.items()
    ]
    table = tabulate(rows, ("part", "ms", "%", "x backbone"), tablefmt="github", floatfmt=("", ".1f", ".1f", ".2f"))
    return f"{table}\n\n{times.num_images / times.total:.2f} images/s"
