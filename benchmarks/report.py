"""What benchmarks share: timing in turns, and a dated file of the figures."""

from __future__ import annotations

import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def time_in_turns(functions: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median milliseconds of each function: A B A B ..., after one round that is not counted."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if number:
                own.append(1000 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def report(name: str, text: str) -> None:
    """Print a table, and append it with time, machine, versions and commit to results/<date>_<name>.md."""
    now = datetime.datetime.now(datetime.timezone.utc)
    commit = _run("git", "rev-parse", "--short", "HEAD") + ("-dirty" if _run("git", "status", "--porcelain") else "")
    machine = f"{_processor()}, Python {platform.python_version()}, torch {torch.__version__}"
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{now:%Y-%m-%d}_{name}.md"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"## {now:%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}\n\n{machine}\n\n{text}\n\n")
    print(f"{text}\n\nappended to {path}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} logical cores)" if names else platform.processor() or platform.machine()


def _run(*command: str) -> str:
    try:
        found = subprocess.run(command, cwd=RESULTS.parent, capture_output=True, text=True, timeout=30)
    except OSError:
        return ""
    return found.stdout.strip()
