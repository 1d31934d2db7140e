"""Do to psf what goes wrong in use, and count what is lost: kills, damaged files, full disks, hostile inputs.

python -m tests.faults --seconds 450                  # make test-faults
python -m tests.faults --kills 200 --inputs 100000    # the table of docs/reliability.md

Prints scenario | tries | survived | lost as a table; what is lost is printed at once. Exit code 1 if anything is lost.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.faults.fuzz import FUZZ, fuzz
from tests.faults.kills import CONFIG, Reference, damage_checkpoints, kill, kill_while_saving
from tests.faults.machine import (
    fill_disk,
    limit_file_size,
    run_side_by_side,
    spoil_steps,
    take_port,
    take_shared_memory,
)
from tests.faults.report import Scenario, table
from tests.forked_training import mini_runs


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=int, default=40, metavar="N", help="of trainings; other faults in proportion [%(default)s]")
    add("--inputs", type=int, default=20_000, metavar="N", help="of all readers together [%(default)s]")
    add("--seconds", type=float, default=math.inf, metavar="S", help="fewer tries, to end after about this time")
    add("--seed", type=int, default=1, metavar="N", help="of moments, damages and inputs [%(default)s]")
    add("--only", default="", metavar="TEXT", help='scenarios with this text in their names, such as "fuzz: images"')
    add("--folder", type=Path, metavar="FOLDER", help="for files of the runs, which stay [a temporary folder]")
    return parser


def fault_trainings(
    number: int, seed: int, folder: Path, *, seconds: float = math.inf, named: str = "", side_by_side: bool = True
) -> list[Scenario]:
    """Try all faults of trainings; a row for each.

    Args:
        number: of kills, of all rows together; of other faults in proportion.
        seed: of their moments, and of damages.
        folder: of the runs.
        seconds: shared by the rows; each has at least one try.
        named: only rows with this text in their names.
        side_by_side: also start jobs whose processes import torch anew, which takes longer than all others.
    """
    chance, start = random.Random(seed), time.monotonic()
    some, few = max(number // 4, 1), max(number // 20, 1)
    folder.mkdir(parents=True)
    with mini_runs(folder, CONFIG) as runs:
        one, two = (Reference.train(runs, processes, 1) for processes in (1, 2))
        trials: dict[str, Callable[[Scenario], None]] = {
            "SIGKILL at random moments, then --resume": lambda row: kill(row, runs, one, some, chance),
            "SIGKILL within a save, then --resume": lambda row: kill_while_saving(row, runs, one, some, chance),
            "SIGKILL of both processes, then --resume": lambda row: kill(row, runs, two, some, chance),
            "SIGKILL of one of two processes, then --resume": (
                lambda row: kill(row, runs, two, some, chance, one_rank=True)
            ),
            "damaged checkpoint or tag, then --resume": lambda row: damage_checkpoints(row, runs, one, some, chance),
            "files may not grow (EFBIG), then --resume": lambda row: limit_file_size(row, runs, one, few, chance),
            "disk full (ENOSPC), then --resume": lambda row: fill_disk(row, runs, one, few, chance),
            "no shared memory for loader workers, then --resume": (
                lambda row: take_shared_memory(row, runs, one, few, chance)
            ),
            "NaN in losses or gradients": lambda row: spoil_steps(row, runs, one, few, chance),
            "port of --dist-url is taken": lambda row: take_port(row, runs, one, few),
        }
        if side_by_side:
            trials["two jobs of two processes side by side"] = lambda row: run_side_by_side(
                row, runs, max(number // 100, 1)
            )
        chosen = {name: trial for name, trial in trials.items() if named in name}
        rows = []
        for position, (name, trial) in enumerate(chosen.items(), 1):
            rows.append(Scenario(name, start + seconds * position / len(chosen)))
            trial(rows[-1])
    return rows


def run(args: argparse.Namespace, folder: Path) -> list[Scenario]:
    """All scenarios, or those of `--only`, each with at least one try."""
    start, workers = time.monotonic(), min(len(os.sched_getaffinity(0)), 2)
    scenarios = []
    if not args.only.startswith(FUZZ):
        how = {"seconds": 0.6 * args.seconds, "named": args.only}
        scenarios += fault_trainings(args.kills, args.seed, folder / "trainings", **how)
    how = {"seconds": args.seconds - (time.monotonic() - start), "named": args.only}
    return scenarios + fuzz(args.inputs, args.seed, folder / "readers", num_workers=workers, **how)


def main() -> int:
    args = build_parser().parse_args()
    torch.set_num_threads(1)  # processes are forked, and threads are not
    logging.getLogger().setLevel(logging.ERROR)
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="psf_faults_") as temporary:
        scenarios = run(args, args.folder or Path(temporary))
    sys.stdout.write(f"{table(scenarios)}\n\n{time.monotonic() - start:.0f} s\n")
    return 1 if any(scenario.lost for scenario in scenarios) else 0


if __name__ == "__main__":
    sys.exit(main())
