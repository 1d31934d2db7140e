"""Shared code of the benchmarks: options, alternating timing, targets, and a dated file of results."""

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
    """Make a parser with the options of all benchmarks; `description` is the script's docstring.

    Also disables TF32, which cuDNN would use by default, so that float32 has full precision on a GPU.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed runs of each function, alternating")
    parser.add_argument("--quick", action="store_true", help="small sizes, only for the checks")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, for benchmarks that also run on a GPU."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")


def time_in_turns(functions: Sequence[Callable[[], Any]], rounds: int) -> list[float]:
    """Median milliseconds of each function, alternating (A B A B ...), after one warm-up round; synchronizes a GPU."""
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


def against(target: float, value: float) -> str:
    """A cell of a table: the target, and whether the value meets it."""
    return f"{target:g} {'met' if value <= target else 'MISSED'}"


def difference(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of `expected`; infinite if `expected` is 0, because zeros prove nothing."""
    norm = expected.double().norm()
    return ((ours.double() - expected.double()).norm() / norm).item() if norm else float("inf")


def report(name: str, text: str, *, quick: bool = False) -> None:
    """Print a table, and append it with time, machine, versions and commit to <date>_<name>.md.

    The files are in results/, or in the folder of the environment variable PSF_BENCHMARK_RESULTS. A table of quick
    sizes is only printed, unless this variable is set: docs/benchmarks.md is made from results/.
    """
    if quick and not os.environ.get("PSF_BENCHMARK_RESULTS"):
        print(text)
        return
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
    """Changes since the commit, without the results."""
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
