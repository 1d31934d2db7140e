"""Kill trainings and damage their checkpoints; then `--resume` has to give the losses of an unbroken run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from psf.checkpoint.saving import TAG, find_damage
from tests.faults.report import Scenario
from tests.forked_training import MINI_CONFIG, Runs

__all__ = ["CONFIG", "MAX_ITER", "PATIENCE", "Reference", "damage_checkpoints", "kill", "kill_while_saving"]

MAX_ITER, PERIOD, KEPT = 40, 3, 3
CONFIG = (
    MINI_CONFIG.replace("MAX_ITER: 9, CHECKPOINT_PERIOD: 5", f"MAX_ITER: {MAX_ITER}, CHECKPOINT_PERIOD: {PERIOD}")
    .replace("EVAL_PERIOD: 4", "EVAL_PERIOD: 20")
    .replace("STEPS: []", f"STEPS: [], CHECKPOINTS_TO_KEEP: {KEPT}")
)
SAVING = ("fsync", "replace", "unlink")  # functions of `os` around which a save is killed
PATIENCE = 120.0  # seconds for a run that takes two


class Reference(NamedTuple):
    """An unbroken run: the losses of each process by iteration, and its duration in seconds."""

    losses: list[dict[int, str]]
    seconds: float
    words: tuple[str, ...]
    num_processes: int

    @classmethod
    def train(cls, runs: Runs, num_processes: int, num_workers: int) -> Reference:
        """Train an unbroken run."""
        words = ("SEED", "1", "DATALOADER.NUM_WORKERS", str(num_workers))
        name, start = f"unbroken_{num_processes}_{num_workers}", time.monotonic()
        codes = runs.start(*words, output=name, num_processes=num_processes).wait(PATIENCE)
        losses = [dict(runs.losses(name, rank)) for rank in range(num_processes)]
        if any(codes) or any(len(one) != MAX_ITER for one in losses):
            raise RuntimeError(f"the unbroken run ends with {codes}: {runs.log(name)[-2000:]}")
        return cls(losses, time.monotonic() - start, words, num_processes)


def what_is_wrong(runs: Runs, name: str, reference: Reference, resumed_at: int | None = None) -> str | None:
    """What a broken and resumed run has lost so far; None: nothing.

    Args:
        name: of the run.
        resumed_at: iteration of the newest checkpoint when the run was started for the last time.
    """
    for rank, losses in enumerate(reference.losses):
        found = runs.losses(name, rank)
        if wrong := [iteration for iteration, loss in found if losses.get(iteration) != loss]:
            return f"{name}: losses of process {rank} differ at iteration {wrong[0]}"
    folder = runs.folder / name
    for path in folder.glob("model_*.pth"):
        if damage := find_damage(path):
            return f"{name}: {path.name} is {damage}"
    newest = tagged(folder)
    if resumed_at is not None and (newest is None or newest < resumed_at):
        return f"{name}: the checkpoint of iteration {resumed_at} is lost, there is {newest}"
    return None


def tagged(folder: Path) -> int | None:
    """The iteration of the checkpoint that the tag names, if both are there."""
    tag = folder / TAG
    if not tag.is_file() or not (path := folder / tag.read_text()).is_file():
        return None
    return int(torch.load(path, weights_only=True)["iteration"])


def finish(runs: Runs, name: str, reference: Reference, *, must_warn: str = "") -> str | None:
    """Resume to the end; returns what is wrong, as `what_is_wrong`. `must_warn`: a text in the log of the run."""
    running = runs.start("--resume", *reference.words, output=name, num_processes=reference.num_processes)
    codes = running.wait(PATIENCE)
    if any(codes) or "Traceback" in runs.log(name):
        return f"{name}: --resume ends with {codes}: {runs.log(name)[-500:]!a}"
    if must_warn and must_warn not in runs.log(name):
        return f"{name}: no {must_warn!r} in the log"
    return compare(runs, name, reference)


def compare(runs: Runs, name: str, reference: Reference) -> str | None:
    """What a run that has ended has lost; None: it has all losses of the unbroken run, and a sound last checkpoint."""
    for rank, losses in enumerate(reference.losses):
        if dict(runs.losses(name, rank)) != losses:
            return f"{name}: losses of process {rank} are not those of the unbroken run"
    return what_is_wrong(runs, name, reference, MAX_ITER - 1)


def kill(
    scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random, *, one_rank: bool = False
) -> None:
    """Kill a training at random moments, resume it, kill it again, and so on to its end; then the next one.

    Args:
        number: of kills.
        one_rank: kill one process only; the others must end by themselves.
    """
    num_runs = 0
    while scenario.goes_on(number):
        num_runs += 1
        name = f"{'rank' if one_rank else 'killed'}_{reference.num_processes}_{num_runs}"
        lost = None
        is_ended = False
        while scenario.goes_on(number) and not is_ended and lost is None:
            before = tagged(runs.folder / name)
            running = runs.start("--resume", *reference.words, output=name, num_processes=reference.num_processes)
            time.sleep(chance.uniform(0, reference.seconds))
            running.kill([chance.randrange(reference.num_processes)] if one_rank else None)
            codes = running.wait(PATIENCE)
            if None in codes:
                lost = f"{name}: a process hangs after the other was killed"
            is_ended = -signal.SIGKILL not in codes
            lost = lost or what_is_wrong(runs, name, reference, before)
            if not is_ended or lost:
                scenario.count(lost)
        if lost is None:
            lost = compare(runs, name, reference) if is_ended else finish(runs, name, reference)
            if lost is not None:
                scenario.count(lost)
        clear(runs, name)


def kill_while_saving(scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random) -> None:
    """A training kills itself before or after a call of the file system, in the middle of a save; and so on."""
    name, num_runs = "", 0
    while scenario.goes_on(number):
        if not name or tagged(runs.folder / name) == MAX_ITER - 1:
            if name and (lost := finish(runs, name, reference)):
                scenario.count(lost)
            num_runs += 1
            name = f"saving_{num_runs}"
        before = tagged(runs.folder / name)
        place, count, is_after = chance.choice(SAVING), chance.randrange(1, 12), chance.random() < 0.5
        running = runs.start(
            "--resume", *reference.words, output=name, before=partial(_die, place, count, is_after=is_after)
        )
        codes = running.wait(PATIENCE)
        lost = what_is_wrong(runs, name, reference, before)
        if codes not in ([-signal.SIGKILL], [0]):
            lost = f"{name}: ends with {codes}: {runs.log(name)[-300:]!a}"
        scenario.count(lost)
    if name and (lost := finish(runs, name, reference)):
        scenario.count(lost)


def _die(place: str, count: int, *, is_after: bool) -> None:
    """Make this process kill itself around the `count`-th call of a function of `os`."""
    plain: Callable[..., Any] = getattr(os, place)
    calls = []

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(place)
        if len(calls) == count and not is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = plain(*arguments, **keywords)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(os, place, call)


def half_run(runs: Runs, reference: Reference, name: str) -> str:
    """A copy of a run that was killed half-way; returns its name."""
    source = "half"
    if not (runs.folder / source).is_dir():
        codes = runs.start(*reference.words, output=source, at=MAX_ITER // 2).wait(PATIENCE)
        assert codes == [-signal.SIGKILL], runs.log(source)
    shutil.copytree(runs.folder / source, runs.folder / name, ignore=shutil.ignore_patterns(".psf-lock"))
    shutil.copy(runs.folder / f"{source}_losses_0.txt", runs.folder / f"{name}_losses_0.txt")
    return name


def damage_checkpoints(
    scenario: Scenario, runs: Runs, reference: Reference, number: int, chance: random.Random
) -> None:
    """Damage the newest checkpoint or the tag of a killed run; `--resume` names it and takes the newest sound one."""
    while scenario.goes_on(number):
        name = half_run(runs, reference, f"damaged_{scenario.tries}")
        what = _damage(runs.folder / name, chance)
        lost = finish(runs, name, reference, must_warn="NOT USED: ")
        scenario.count(lost and f"{what}: {lost}")
        clear(runs, name)


def _damage(folder: Path, chance: random.Random) -> str:
    """Damage the newest checkpoint or the tag in a folder; returns what was done."""
    tag = folder / TAG
    newest = folder / tag.read_text()
    content = newest.read_bytes()
    kinds: dict[str, Callable[[], Any]] = {
        "cut": lambda: newest.write_bytes(content[: chance.randrange(len(content))]),
        "emptied": lambda: newest.write_bytes(b""),
        "one bit": lambda: newest.write_bytes(_with_one_bit(content, chance)),
        "zeros": lambda: newest.write_bytes(bytes(len(content))),
        "removed": newest.unlink,
        "tag emptied": lambda: tag.write_bytes(b""),
        "tag removed": tag.unlink,
        "tag names no file": lambda: tag.write_text("model_9999999.pth"),
    }
    kind = chance.choice(list(kinds))
    kinds[kind]()
    return kind


def _with_one_bit(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(data)


def clear(runs: Runs, name: str) -> None:
    """Remove the files of a run, and those of a two-process meeting."""
    shutil.rmtree(runs.folder / name, ignore_errors=True)
    for path in [*runs.folder.glob(f"{name}_*.txt"), *runs.folder.glob("meeting_*")]:
        path.unlink()
