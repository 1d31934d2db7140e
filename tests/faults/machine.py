"""What a machine, and a bad batch, can do to a training: no room for files, no shared memory, taken ports, NaN."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import resource
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from psf.checkpoint import read_checkpoint
from psf.engine.train_step import TrainStep
from tests.faults.kills import MAX_ITER, PATIENCE, Reference, clear, finish, half_run
from tests.faults.report import Scenario
from tests.forked_training import PsfTestNoisyModel, Runs

__all__ = ["fill_disk", "limit_file_size", "run_side_by_side", "spoil_steps", "take_port", "take_shared_memory"]

# Bytes: of a batch, which is shared as a file, at most; and of a checkpoint, at least.
BATCH_SIZE, CHECKPOINT_SIZE = 20_000, 35_000


def one_line(runs: Runs, name: str, codes: list[int | None], *expected: str) -> str | None:
    """What is wrong with a run that should have ended with exit code 2 and one line with these texts; None: nothing."""
    log = runs.log(name)
    lines = [line for line in log.splitlines() if line.startswith("error: ")]
    if codes != [2] or len(lines) != 1 or "Traceback" in log or not all(text in lines[0] for text in expected):
        return f"{name}: ends with {codes}, {log[-6000:]!a}"
    return None


def _fail_and_finish(
    scenario: Scenario, runs: Runs, reference: Reference, name: str, fail: Callable[[], object], *expected: str
) -> None:
    """A half run is resumed with a fault, ends with one line, and is resumed to its end without the fault."""
    half_run(runs, reference, name)
    printed, to_pipe = os.pipe()  # a file could not take what the process prints
    fcntl.fcntl(to_pipe, fcntl.F_SETPIPE_SZ, 1 << 20)

    def before() -> None:
        for descriptor in (1, 2):
            os.dup2(to_pipe, descriptor)
        fail()

    running = runs.start("--resume", *reference.words, output=name, before=before)
    os.close(to_pipe)
    codes = running.wait(PATIENCE)
    with open(printed, "rb") as file:
        (runs.folder / f"{name}_0.txt").write_bytes(file.read())
    lost = None if codes == [0] else one_line(runs, name, codes, *expected)
    scenario.count(lost or finish(runs, name, reference))
    clear(runs, name)


def limit_file_size(scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random) -> None:
    """The system refuses to make any file longer than some bytes, fewer than a checkpoint has."""
    while scenario.goes_on(number):
        name = f"limited_{scenario.tries}"
        limit = chance.randrange(BATCH_SIZE, CHECKPOINT_SIZE)
        fail = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
        _fail_and_finish(scenario, runs, reference, name, fail, "File too large")


def fill_disk(scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random) -> None:
    """From some moment on, what is written does not reach the disk."""
    while scenario.goes_on(number):
        fail = partial(_fail_from, chance.randrange(1, 12))
        _fail_and_finish(scenario, runs, reference, f"full_{scenario.tries}", fail, "No space left on device")


def _fail_from(first: int) -> None:
    plain, calls = os.fsync, []

    def fsync(file: int) -> None:
        calls.append(file)
        if len(calls) >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(file)

    os.fsync = fsync


def take_shared_memory(
    scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random
) -> None:
    """A worker of the loader cannot share a batch."""
    while scenario.goes_on(number):
        fail = partial(_no_memory_from, chance.randrange(1, 30))
        _fail_and_finish(
            scenario, runs, reference, f"memory_{scenario.tries}", fail, "/dev/shm", "DATALOADER.NUM_WORKERS"
        )


def _no_memory_from(first: int) -> None:
    plain, calls, main_process = torch.UntypedStorage._share_fd_cpu_, [], os.getpid()

    def share(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        if len(calls) >= first and os.getpid() != main_process:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )
        return plain(*arguments, **keywords)

    torch.UntypedStorage._share_fd_cpu_ = share


def spoil_steps(scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random) -> None:
    """Losses or gradients of some iterations, or of all after one, are not finite: no such weight is ever saved."""
    while scenario.goes_on(number):
        count = scenario.tries
        name, is_for_ever = f"spoiled_{count}", count % 3 == 2
        first = chance.randrange(MAX_ITER // 2)
        spoiled = set(range(first, MAX_ITER)) if is_for_ever else set(chance.sample(range(MAX_ITER), 4))
        spoil = partial(_spoil, spoiled, "gradient" if count % 2 else "loss")
        codes = runs.start(*reference.words, output=name, before=spoil).wait(PATIENCE)
        lost = None
        if is_for_ever:
            lost = one_line(runs, name, codes, "steps in a row were skipped")
        elif codes != [0] or runs.log(name).count("SKIPPED iteration") != len(spoiled):
            lost = f"{name}: ends with {codes}, {runs.log(name)[-300:]!a}"
        for path in (runs.folder / name).glob("*.pth"):
            if not all(value.isfinite().all() for value in read_checkpoint(path)["model"].values()):
                lost = f"{name}: {path.name} has weights that are not finite"
        scenario.count(lost)
        clear(runs, name)


def _spoil(iterations: set[int], what: str) -> None:
    """Spoil the model in these iterations; the trainer may call it twice in one of them."""
    plain_step, plain_losses, place = TrainStep.run_step, PsfTestNoisyModel.losses, {"iteration": -1}

    def run_step(self: TrainStep) -> None:
        place["iteration"] += 1
        plain_step(self)

    def losses(self: nn.Module, batch: list[dict]) -> dict[str, torch.Tensor]:
        terms = plain_losses(self, batch)
        if place["iteration"] in iterations:
            weight = self.classifier.weight.sum()
            # The square root has an infinite slope at 0, and 0 times infinity is NaN.
            bad = weight * float("nan") if what == "loss" else (weight * 0).sqrt()
            terms["loss_class"] = terms["loss_class"] + bad
        return terms

    TrainStep.run_step, PsfTestNoisyModel.losses = run_step, losses


def take_port(scenario: Scenario, runs: Runs, reference: Reference, number: int) -> None:
    """Another program has the port of --dist-url."""
    while scenario.goes_on(number):
        name = f"port_{scenario.tries}"
        with socket.create_server(("127.0.0.1", 0)) as other:
            url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
            words = (f"--dist-url={url}", "--num-processes=2", *reference.words)
            codes = runs.start(*words, output=name).wait(PATIENCE)
        scenario.count(one_line(runs, name, codes, url, "Address already in use"))


def run_side_by_side(scenario: Scenario, runs: Runs, number: int) -> None:
    """Two equal jobs of two processes, at the same time: both end, with the same weights."""
    words = ("--num-processes=2", "SEED", "1", "DATALOADER.NUM_WORKERS", "0", "SOLVER.MAX_ITER", "4")
    while scenario.goes_on(number):
        names = [f"job_{scenario.tries}_{job}" for job in range(2)]
        running = [runs.start(*words, output=name) for name in names]
        codes = [job.wait(2 * PATIENCE)[0] for job in running]
        if codes != [0, 0]:
            scenario.count(f"{names}: end with {codes}, {[runs.log(name)[-300:] for name in names]!a}")
            continue
        first, second = (read_checkpoint(runs.folder / name / "model_final.pth")["model"] for name in names)
        is_same = all(torch.equal(value, second[key]) for key, value in first.items())
        scenario.count(None if is_same else f"{names}: the weights differ")
