"""Give damaged and hostile inputs to every reader, in processes that are watched from outside."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple

from tests.faults.annotations import ANNOTATIONS
from tests.faults.mutations import CANARY
from tests.faults.pictures import PICTURES
from tests.faults.reader import Reader
from tests.faults.report import Scenario
from tests.faults.run_inputs import RUN_INPUTS
from tests.faults.sandbox import Sandbox
from tests.forked_training import fork_process

__all__ = ["FUZZ", "READERS", "fuzz"]

READERS = (*ANNOTATIONS, *PICTURES, *RUN_INPUTS)
assert sum(reader.share for reader in READERS) == 1000

FUZZ = "fuzz: "  # before the names of readers
BATCH = 500  # inputs of one process
MEMORY = 8 << 30  # bytes of address space of a process; torch takes half of it
HANG = 20.0  # seconds of computing for one input
STUCK = 300.0  # seconds for one input on a busy machine, whatever it does
ERROR = "error.txt"  # traceback of a mistake in this package


class Batch(NamedTuple):
    """Inputs that one process tries."""

    reader: Reader
    number: int
    seed: int


@dataclass
class Worker:
    """A process that tries a batch."""

    batch: Batch
    folder: Path
    process: int
    answers: Connection
    num_judged: int = 0
    alive_at: float = field(default_factory=time.monotonic)
    computed: float = 0.0  # seconds, when it answered last

    def seconds_computed(self) -> float:
        """User and system time of the process (Linux)."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(
    number: int, seed: int, folder: Path, *, num_workers: int, seconds: float = math.inf, named: str = ""
) -> list[Scenario]:
    """Try inputs with all readers; a row for each.

    Args:
        number: of inputs, of all readers together; each has at least one.
        seed: of the inputs.
        folder: for inputs; lost inputs are in lost/READER_NUMBER.
        num_workers: processes at a time.
        seconds: after which no further batch is started; each reader has at least one.
        named: only rows with this text in their names; the others' inputs are left out.
    """
    end = time.monotonic() + seconds
    readers = [reader for reader in READERS if named in f"{FUZZ}{reader.name}"]
    scenarios = {reader.name: Scenario(f"{FUZZ}{reader.name}") for reader in readers}
    batches, workers, num_started = _batches(readers, number, seed), [], 0
    lost = folder / "lost"
    lost.mkdir(parents=True)
    while True:
        while len(workers) < num_workers and (num_started < len(readers) or time.monotonic() < end):
            batch = next(batches, None)
            if batch is None:
                break
            workers.append(_start(batch, folder))
            num_started += 1
        if not workers:
            return list(scenarios.values())
        wait([worker.answers for worker in workers], timeout=1.0)
        for worker in list(workers):
            if _follow(worker, scenarios[worker.batch.reader.name], lost):
                workers.remove(worker)
                shutil.rmtree(worker.folder)


def _batches(readers: list[Reader], number: int, seed: int) -> Iterator[Batch]:
    """All batches, the readers in turn, so that a time limit cuts all of them."""
    left = {reader: max(number * reader.share // 1000, 1) for reader in readers}
    while any(left.values()):
        for reader in readers:
            if size := min(left[reader], BATCH):
                left[reader] -= size
                seed += 1
                yield Batch(reader, size, seed)


def _start(batch: Batch, folder: Path) -> Worker:
    place = Path(tempfile.mkdtemp(dir=folder))
    answers, to_parent = Pipe(duplex=False)
    sys.stdout.flush()
    process = fork_process()
    if not process:
        _try_batch(batch, place, to_parent)
    to_parent.close()
    return Worker(batch, place, process, answers)


def _try_batch(batch: Batch, folder: Path, to_parent: Connection) -> None:
    """In the new process: try the inputs in their own folder, and end."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # libraries in C write there, too
        os.dup2(nowhere, descriptor)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    code = 1
    try:
        os.chdir(folder)
        sound = batch.reader.prepare()
        sandbox = Sandbox(folder / "out")
        known = {*batch.reader.files, "out", *(path.name for path in Path().iterdir())}

        def judge(content: bytes) -> None:
            shutil.rmtree("out", ignore_errors=True)
            for name in batch.reader.files:
                Path(name).write_bytes(content)
            lost = sandbox.judge(batch.reader.read)
            if Path(CANARY).exists() or Path("out", CANARY).exists():
                lost = "executed: the canary file exists"
            to_parent.send(lost)

        batch.reader.generate(sound, batch.number, batch.seed, judge)
        # Files of libraries in C, which Python does not see.
        to_parent.send(sorted({path.name for path in Path().iterdir()} - known))
        code = 0
    except BaseException:
        (folder / ERROR).write_text(traceback.format_exc())
    os._exit(code)


def _follow(worker: Worker, scenario: Scenario, lost: Path) -> bool:
    """Count the answers of a worker that have arrived; returns whether it has ended."""
    try:
        while worker.answers.poll():
            answer = worker.answers.recv()
            worker.alive_at, worker.computed = time.monotonic(), worker.seconds_computed()
            if isinstance(answer, list):
                if answer:
                    scenario.count(f"seed {worker.batch.seed}: outside of the output folder: {answer[:5]}")
                continue
            worker.num_judged += 1
            scenario.count(answer and f"seed {worker.batch.seed}, input {worker.num_judged}: {answer}")
    except EOFError:
        _, status = os.waitpid(worker.process, 0)
        if status:
            scenario.count(_keep(worker, lost, f"the process ended with {os.waitstatus_to_exitcode(status)}"))
        return True
    if worker.seconds_computed() - worker.computed > HANG or time.monotonic() - worker.alive_at > STUCK:
        os.kill(worker.process, signal.SIGKILL)
        os.waitpid(worker.process, 0)
        scenario.count(_keep(worker, lost, "hangs"))
        return True
    return False


def _keep(worker: Worker, lost: Path, reason: str) -> str:
    """Keep the last input of a worker that did not judge it; returns the reason, with the file."""
    target = lost / f"{worker.batch.seed}_{worker.num_judged + 1}"
    for source, kept in ((worker.batch.reader.files[0], target), (ERROR, target.with_suffix(".txt"))):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(worker.folder / source, kept)
    return f"seed {worker.batch.seed}, input {worker.num_judged + 1} ({target}): {reason}"
