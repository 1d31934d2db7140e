"""Two processes, one of which has a bad step: both learn of it in the same step, and do the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from psf.engine.train_step import TrainStep
from tests.forked_training import Running, fork

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked, to save their imports")

NAN, INF = float("nan"), float("inf")


def zero(weight: Tensor) -> Tensor:
    """0 with a gradient of 1, whatever the weight."""
    return weight.sum() - weight.detach().sum()


# Kind of step -> its second loss term.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "good": zero,
    "NaN": lambda weight: zero(weight) * NAN,
    "infinite": lambda weight: zero(weight) + INF,
    "negative infinite": lambda weight: zero(weight) - INF,
    "infinite gradient": lambda weight: zero(weight).sqrt(),
    "NaN gradient": lambda weight: zero(weight).sqrt() * 0,
    "overflow": lambda weight: zero(weight) * 1e35,  # times the first scale of float16, 65536, above float32's range
}
FULL = ["good", "NaN", "good", "infinite", "negative infinite", "good", "infinite gradient", "NaN gradient", "good"]
HALF = ["good", "overflow", "good", "infinite", "NaN", "NaN gradient", "good"]
HALF_AT_SCALE_1 = ["good", "NaN gradient", "infinite gradient", "good"]


class Model(nn.Module):
    """Two loss terms, and the statistics of a batch norm, which each forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.norm = nn.BatchNorm1d(1, affine=False)

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        self.norm(torch.tensor([[1.0], [2.0]]))
        return {"loss_good": self.weight.square().sum(), "loss_bad": LOSSES[batch[0]["kind"]](self.weight)}


class State(NamedTuple):
    """Of a process after a step."""

    values: list[Tensor]  # weights, statistics and momenta
    num_skipped: int
    scale: float  # of gradients


def run_steps(rank: int, guilty: int, kinds: list[str], dtype: torch.dtype | None, scale: float | None, folder: Path):
    """One process: a step of each kind in the guilty process, a good one in the other; its states go to a file."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    comm.create_local_process_group(2)
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger("psf").addHandler(handler)
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    batches = [
        [{"kind": kind if rank == guilty else "good", "file_name": f"{number}_{rank}.png"}]
        for number, kind in enumerate(kinds)
    ]
    how = {"dtype": dtype, "device_type": "cpu", "max_skipped": 10}
    step = TrainStep(DistributedDataParallel(model), batches, optimizer, **how)
    if scale is not None:
        state = step.state_dict()
        step.load_state_dict({**state, "grad_scaler": {**state["grad_scaler"], "scale": scale}})
    states = []
    with EventStorage() as storage:
        for step.iter in range(len(kinds)):
            step.run_step()
            momenta = [one["momentum_buffer"] for one in optimizer.state.values() if "momentum_buffer" in one]
            values = [value.clone() for value in (*model.state_dict().values(), *momenta)]
            skipped = int(storage.latest().get("num_skipped_steps", (0, 0))[0])
            states.append((values, skipped, float(step.state_dict()["grad_scaler"].get("scale", 0.0))))
    torch.save((states, messages), folder / f"found_{rank}.pth")


def both(
    folder: Path, guilty: int, kinds: list[str], dtype: torch.dtype | None = None, scale: float | None = None
) -> tuple[list[State], list[str]]:
    """The states after each step, which are those of both processes, and the messages of the first."""
    processes = [
        fork(lambda rank=rank: run_steps(rank, guilty, kinds, dtype, scale, folder), folder / f"{rank}.txt")
        for rank in range(2)
    ]
    codes = Running(processes).wait(60.0)
    assert codes == [0, 0], "".join((folder / f"{rank}.txt").read_text() for rank in range(2))
    (first, messages), (second, others) = (torch.load(folder / f"found_{rank}.pth") for rank in range(2))
    assert others == []  # the main process reports
    for kind, one, other in zip(kinds, first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True)), kind
        assert one[1:] == other[1:], kind
    return [State(*one) for one in first], messages


def is_changed(before: State, after: State) -> bool:
    assert all(value.isfinite().all() for value in after.values)
    return not all(torch.equal(a, b) for a, b in zip(before.values, after.values, strict=True))


@pytest.mark.parametrize("guilty", [0, 1])
def test_skipped_together(guilty: int, tmp_path: Path):
    states, messages = both(tmp_path, guilty, FULL)
    bad = [number for number, kind in enumerate(FULL) if kind != "good"]
    for number in range(1, len(FULL)):
        assert is_changed(states[number - 1], states[number]) == (number not in bad), FULL[number]
    assert [state.num_skipped for state in states] == [0, 1, 1, 2, 3, 3, 4, 5, 5]
    assert len(messages) == len(bad)
    for number, message in zip(bad, messages, strict=True):
        what = "gradients are not finite (of weight" if "gradient" in FULL[number] else "the loss is not finite"
        assert f"SKIPPED iteration {number}," in message and what in message, message
        # A loss is that of one process, which names its images. Gradients are those of both; the term of one.
        assert "loss_bad" in message and f"images {number}_{guilty}.png" in message, message


@pytest.mark.parametrize("guilty", [0, 1])
def test_gradients_of_float16_that_overflow_lower_the_scale(guilty: int, tmp_path: Path):
    """They need no report. A loss that is not finite does, and leaves the scale as it is."""
    states, messages = both(tmp_path, guilty, HALF, torch.float16)
    assert [state.scale for state in states] == [2.0**16, *[2.0**15] * 4, *[2.0**14] * 2]
    assert [state.num_skipped for state in states] == [0, 0, 0, 1, 2, 2, 2]
    weights = [state._replace(values=state.values[:1]) for state in states]  # an overflow changes the statistics
    assert [is_changed(*pair) for pair in pairwise(weights)] == [False, True, False, False, False, True]
    assert len(messages) == 2 and all("the loss is not finite (loss_bad" in message for message in messages)


def test_report_of_a_loss_after_an_overflow(tmp_path: Path):
    """The main process has a finite loss, and the overflowing gradients of the step before."""
    _, [message] = both(tmp_path, 1, ["good", "overflow", "NaN"], torch.float16)
    assert "the loss is not finite (loss_bad nan); images 2_1.png" in message


@pytest.mark.parametrize("guilty", [0, 1])
def test_gradients_of_float16_that_are_not_finite_at_scale_1(guilty: int, tmp_path: Path):
    """A lower scale would not help, so these steps count as skipped."""
    states, messages = both(tmp_path, guilty, HALF_AT_SCALE_1, torch.float16, scale=1.0)
    assert [is_changed(*pair) for pair in pairwise(states)] == [False, False, True]
    assert [state.num_skipped for state in states] == [0, 1, 2, 2]
    assert len(messages) == 2 and all("gradients are not finite (of weight; from loss_bad" in one for one in messages)
