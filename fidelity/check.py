#!/usr/bin/env python3
"""Compare psf with a folder of reference numbers of the released model: every tensor, loss, gradient and assignment.

Exit code 1 if a deviation exceeds its tolerance, 2 if the folder cannot be read. Entries that psf cannot compare
(folders of a newer format) are listed as UNKNOWN and do not change the exit code.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch

sys.path[0] = str(Path(__file__).resolve().parents[1])  # as a script: import from the root of the repository

from fidelity import Comparison, check_folder, record_folder  # noqa: E402
from psf.commands import run_command  # noqa: E402


def main() -> int:
    """Run the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder that holds cases.json")
    parser.add_argument("--float64", action="store_true", help="compute in float64; default: float32")
    parser.add_argument("--record", action="store_true", help="overwrite the reference numbers with those of psf")
    args = parser.parse_args()
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Compare with the reference numbers, or record them; returns the exit code."""
    if args.record:
        print(*record_folder(args.folder), sep="\n")
        return 0
    return check(args.folder, torch.float64 if args.float64 else torch.float32)


def check(folder: Path, dtype: torch.dtype) -> int:
    """Compare, print a table and a summary; returns 1 if a deviation exceeds its tolerance, or nothing is compared."""
    print(f"{'case':<20} {'tensor':<58} {'largest':>9} {'rms':>9} {'tolerance':>9}")
    comparisons: list[Comparison] = []
    skipped: dict[str, list[str]] = {}  # by reason
    unknown: list[str] = []
    for report in check_folder(folder, dtype):
        for comparison in report.comparisons:
            print(line(comparison), flush=True)
        comparisons += report.comparisons
        for name, reason in report.skipped.items():
            skipped.setdefault(reason, []).append(name)
        unknown += report.unknown
    beyond = [comparison for comparison in comparisons if not comparison.passed]
    print()
    for reason, names in skipped.items():
        print(f"not compared: {len(names)} ({reason}): {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    for name in unknown:
        print(f"UNKNOWN to psf, not compared: {name}")
    for comparison in beyond:
        print(line(comparison))
    num_skipped = sum(map(len, skipped.values()))
    print(
        f"{len(comparisons)} compared, {len(beyond)} beyond tolerance, "
        f"{num_skipped} not compared on purpose, {len(unknown)} unknown"
    )
    return 1 if beyond or not comparisons else 0


def line(comparison: Comparison) -> str:
    """A row: deviations relative to the largest reference value; for maps and masks, the share that differs."""
    rms = "-" if math.isnan(comparison.rms) else f"{comparison.rms:.1e}"
    verdict = "" if comparison.passed else "  BEYOND"
    return (
        f"{comparison.case:<20} {comparison.name:<58} {comparison.largest:9.1e} {rms:>9} "
        f"{comparison.tolerance:9.0e}{verdict}"
    )


if __name__ == "__main__":
    sys.exit(main())
