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
from pathlib import Path

import torch

from tests.faults.fuzz import fuzz
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

PARTS = ("trainings", "fuzz")
NUM_ROWS = 11  # of trainings


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=int, default=40, metavar="N", help="of trainings; other faults in proportion [%(default)s]")
    add("--inputs", type=int, default=20_000, metavar="N", help="of all readers together [%(default)s]")
    add("--seconds", type=float, default=math.inf, metavar="S", help="fewer tries, to end after about this time")
    add("--seed", type=int, default=1, metavar="N", help="of moments, damages and inputs [%(default)s]")
    add("--only", choices=PARTS, help="one part")
    add("--reader", default="", metavar="TEXT", help="only readers with this text in their names")
    add("--folder", type=Path, metavar="FOLDER", help="for files of the runs, which stay [a temporary folder]")
    return parser


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


def run(args: argparse.Namespace, folder: Path) -> list[Scenario]:
    """All scenarios, each with at least one try."""
    scenarios = []
    if args.only in (None, "trainings"):
        scenarios += fault_trainings(args.kills, args.seed, folder / "trainings", seconds=0.6 * args.seconds)
    if args.only in (None, "fuzz"):
        workers = min(len(os.sched_getaffinity(0)), 2)
        scenarios += fuzz(
            args.inputs, args.seed, folder / "fuzz", num_workers=workers, seconds=0.4 * args.seconds, named=args.reader
        )
    return scenarios


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
