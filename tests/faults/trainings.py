"""All faults of trainings, as rows of the table."""

from __future__ import annotations

import math
import random
import time
from pathlib import Path

from tests.faults.kills import CONFIG, Reference, damage_checkpoints, kill, kill_while_saving
from tests.faults.machine import (
    fill_disk,
    limit_file_size,
    run_side_by_side,
    spoil_steps,
    take_port,
    take_shared_memory,
)
from tests.faults.report import Scenario
from tests.forked_training import mini_runs

__all__ = ["fault_trainings"]


NUM_ROWS = 11


def fault_trainings(
    number: int, seed: int, folder: Path, *, seconds: float = math.inf, side_by_side: bool = True
) -> list[Scenario]:
    """Try all faults of trainings; a row for each.

    Args:
        number: of kills, of all rows together; of other faults in proportion.
        seed: of their moments, and of damages.
        folder: of the runs.
        seconds: shared by the rows; each has at least one try.
        side_by_side: also start jobs whose processes import torch anew, which takes longer than all others.
    """
    chance, start = random.Random(seed), time.monotonic()
    folder.mkdir(parents=True)
    rows: list[Scenario] = []

    def row(name: str) -> Scenario:
        rows.append(Scenario(name, start + seconds * (len(rows) + 1) / NUM_ROWS))
        return rows[-1]

    some, few = max(number // 4, 1), max(number // 20, 1)
    with mini_runs(folder, CONFIG) as runs:
        one, two = (Reference.train(runs, processes, 1) for processes in (1, 2))
        kill(row("SIGKILL at random moments, then --resume"), runs, one, some, chance)
        kill_while_saving(row("SIGKILL within a save, then --resume"), runs, one, some, chance)
        kill(row("SIGKILL of both processes, then --resume"), runs, two, some, chance)
        kill(row("SIGKILL of one of two processes, then --resume"), runs, two, some, chance, one_rank=True)
        damage_checkpoints(row("damaged checkpoint or tag, then --resume"), runs, one, some, chance)
        limit_file_size(row("files may not grow (EFBIG), then --resume"), runs, one, few, chance)
        fill_disk(row("disk full (ENOSPC), then --resume"), runs, one, few, chance)
        take_shared_memory(row("no shared memory for loader workers, then --resume"), runs, one, few, chance)
        spoil_steps(row("NaN in losses or gradients"), runs, one, few, chance)
        take_port(row("port of --dist-url is taken"), runs, one, few)
        if side_by_side:
            run_side_by_side(row("two jobs of two processes side by side"), runs, max(number // 100, 1))
    return rows
