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
import sys
import tempfile
import time
from pathlib import Path

import torch

from tests.faults.fuzz import fuzz
from tests.faults.report import Scenario, table
from tests.faults.trainings import fault_trainings

PARTS = ("trainings", "fuzz")


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
    add("--folder", type=Path, metavar="FOLDER", help="for files of the runs, which stay [a temporary folder]")
    return parser


def run(args: argparse.Namespace, folder: Path) -> list[Scenario]:
    """All scenarios, each with at least one try."""
    scenarios = []
    if args.only in (None, "trainings"):
        scenarios += fault_trainings(args.kills, args.seed, folder / "trainings", seconds=0.6 * args.seconds)
    if args.only in (None, "fuzz"):
        workers = min(len(os.sched_getaffinity(0)), 2)
        scenarios += fuzz(args.inputs, args.seed, folder / "fuzz", num_workers=workers, seconds=0.4 * args.seconds)
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
