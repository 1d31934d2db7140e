"""The number of processes and threads for a run on the CPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["CpuProcesses", "choose_processes", "usable_cores"]

# Each process holds a copy of the model and what it computes: the limit keeps machines with many cores from running out
# of memory.
MAX_PROCESSES = 8


class CpuProcesses(NamedTuple):
    """How a run uses the cores of one machine."""

    processes: int
    threads: int  # of each process
    cores: int  # that this run may use
    images_per_batch: int | None = None  # that more processes cannot share evenly; None: nothing prevents more

    def __str__(self) -> str:
        """One line for the log."""
        processes = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        cores = f"{self.cores} core{'s' if self.cores > 1 else ''}"
        line = f"{processes} of {threads}{' each' if self.processes > 1 else ''} on {cores}"
        if self.images_per_batch is not None:
            line += f" (SOLVER.IMS_PER_BATCH {self.images_per_batch} cannot be shared by more)"
        return line


def choose_processes(cores: int, images_per_batch: int, *, is_training: bool) -> CpuProcesses:
    """The number of processes that uses the cores best.

    Processes of few threads are faster than one process of many threads: only part of an iteration runs on several
    threads, and threads that wait for each other are slow as soon as another program uses a core.

    Args:
        cores: usable cores of this machine.
        images_per_batch: SOLVER.IMS_PER_BATCH, the batch of all processes.
        is_training: every process needs an equal share of the batch. Evaluation splits images, which any number can.
    """
    most = min(cores, MAX_PROCESSES)
    processes = most
    if is_training:
        processes = max((n for n in range(1, most + 1) if images_per_batch % n == 0), default=1)
    return CpuProcesses(processes, max(cores // processes, 1), cores, images_per_batch if processes < most else None)


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: the scheduler's affinity and, in a container, its CPU quota; at least 1.

    Args:
        cgroup: folder of the control group. Both versions of control groups are read.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    quota = _cgroup_quota(cgroup)
    return cores if quota is None else max(min(cores, int(quota)), 1)


def _cgroup_quota(folder: Path) -> float | None:
    """Cores that the quota allows, in CPU time per wall time; None: no quota."""
    try:
        if (folder / "cpu.max").is_file():  # version 2: "200000 100000" or "max 100000"
            limit, period = (folder / "cpu.max").read_text().split()
        else:  # version 1; -1 is no quota
            names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            limit, period = ((folder / "cpu" / name).read_text().strip() for name in names)
        quota = float("inf") if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no control groups, or of a kind that is not known
        return None
    return quota if 0 < quota < float("inf") else None
