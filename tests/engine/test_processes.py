"""How many processes a run on the CPU starts, and how many cores it counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from psf.engine.processes import choose_processes, usable_cores


@pytest.mark.parametrize(
    ("cores", "batch", "expected"),
    [
        (2, 4, (2, 1, 2, None)),
        (1, 4, (1, 1, 1, None)),
        (2, 3, (1, 2, 2, 3)),  # 2 does not divide 3
        (6, 4, (4, 1, 6, 4)),  # not 5 or 6; 6 // 4 threads
        (8, 4, (4, 2, 8, 4)),
        (16, 16, (8, 2, 16, None)),  # no more than 8
        (16, 12, (6, 2, 16, 12)),
    ],
)
def test_training(cores: int, batch: int, expected: tuple[int, int, int, int | None]):
    assert choose_processes(cores, batch, is_training=True) == expected


@pytest.mark.parametrize(("cores", "expected"), [(1, (1, 1)), (3, (3, 1)), (8, (8, 1)), (40, (8, 5))])
def test_evaluation(cores: int, expected: tuple[int, int]):
    assert choose_processes(cores, 1, is_training=False) == (*expected, cores, None)


def test_text():
    assert str(choose_processes(2, 4, is_training=True)) == "2 processes of 1 thread each on 2 cores"
    assert str(choose_processes(2, 1, is_training=True)) == (
        "1 process of 2 threads on 2 cores (SOLVER.IMS_PER_BATCH 1 cannot be shared by more)"
    )


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 6),
        ({"cpu.max": "max 100000\n"}, 6),
        ({"cpu.max": "250000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),  # half a core
        ({"cpu.max": "900000 100000\n"}, 6),
        ({"cpu.max": "what\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 6),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "0\n"}, 6),
    ],
)
def test_quota(files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == expected


def test_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert usable_cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert usable_cores(tmp_path) == 7
