"""What benchmarks share: their options, timing in turns, bars, and a dated file of the figures."""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent


def argument_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """The options that each benchmark has; `description` is the script's docstring.

    What each needs besides is done here, too: float32 is float32 on a GPU, not TF32, which cuDNN would take by default.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed runs of each, in turns")
    parser.add_argument("--quick", action="store_true", help="sizes so small that only the checks mean anything")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device, for what runs on a GPU too."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")


def time_in_turns(functions: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median milliseconds of each function: A B A B ..., after one round that is not counted. A GPU is waited for."""
    times: list[list[float]] = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, own in zip(functions, times, strict=True):
            _wait()
            start = time.perf_counter()
            function()
            _wait()
            if number:
                own.append(1000 * (time.perf_counter() - start))
    return [statistics.median(own) for own in times]


def _wait() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def against(bar: float, figure: float) -> str:
    """A table's cell: the bar, and whether the figure is within it."""
    return f"{bar:g} {'met' if figure <= bar else 'MISSED'}"


def difference(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected; infinite where that is 0, in which nothing shows."""
    norm = expected.double().norm()
    return ((ours.double() - expected.double()).norm() / norm).item() if norm else float("inf")


def report(name: str, text: str) -> None:
    """Print a table, and append it with time, machine, versions and commit to <date>_<name>.md.

    The files lie in results/, or in the folder that the environment variable PSF_BENCHMARK_RESULTS names.
    """
    now = datetime.datetime.now(datetime.timezone.utc)
    commit = _run("git", "rev-parse", "--short", "HEAD") + ("-dirty" if _changes() else "")
    machine = f"{_processor()}, Python {platform.python_version()}, torch {torch.__version__}"
    if torch.cuda.is_initialized():
        machine += f", {torch.cuda.get_device_name()}"
    folder = Path(os.environ.get("PSF_BENCHMARK_RESULTS") or HERE / "results")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}_{name}.md"
    with path.open("a", encoding="utf-8") as file:
        file.write(f"## {now:%Y-%m-%d %H:%M} UTC, commit {commit or 'unknown'}\n\n{machine}\n\n{text}\n\n")
    print(f"{text}\n\nappended to {path}")


def _changes() -> str:
    """What differs from the commit; the results themselves do not count."""
    return _run("git", "status", "--porcelain", "--", ":/", ":(exclude)results")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({len(names)} logical cores)" if names else platform.processor() or platform.machine()


def _run(*command: str) -> str:
    try:
        found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=30)
    except OSError:
        return ""
    return found.stdout.strip()
