#!/usr/bin/env python3
"""Time and memory of the released R50 model at test, 800 x 1216, relative to its own backbone.

The random weights are changed until 40 of the 100 things and 13 of the 53 stuff classes are confident and a fifth of
the mask scores is above the threshold, so that no work is skipped. Post-processing gets the candidates of a synthetic
scene, because the model's own masks are too similar (scenes.py, released_model.py). The script first compares the
model's own candidates with a baseline that has the same weights, grid_sample and the plain mask decoder.

On a CPU: total time, and peak resident memory of a process that builds the model and runs it once. On a GPU: time under
bfloat16 over the baseline with the official kernels, if torch-ms-deform-attn is installed.

    python benchmarks/whole_model.py --device cpu --threads 2
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peers import Attend
from released_model import given_candidates, make_plausible, plain_baselines, plain_parts, released_model
from report import add_device, against, argument_parser, difference, report, time_in_turns
from scenes import blob_candidates, training_input
from tabulate import tabulate

from psf import PanopticSegFormer
from psf.structures import Candidates
from psf.tools.analysis import measure_stages, peak_memory

BACKBONE_TARGET, MEMORY_TARGET = 2.8, 1.5  # CPU: times the backbone; GB (stretch of the former: 2.5)
OFFICIAL_TARGET = 0.6  # GPU
TOLERANCE = 2e-2  # rounding may swap two equally confident things, whose masks then count as wrong

Inputs = list[dict[str, Any]]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=3)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--peak", choices=("float32", "bfloat16"), help="only run once and print the peak, in GB")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    size = (128, 192) if options.quick else (800, 1216)
    model = released_model(options.device).eval()
    inputs = [training_input(*size)]
    scene = blob_candidates((size[0] // 8, size[1] // 8), device=options.device)
    with torch.no_grad(), given_candidates(model, scene) as own:
        if options.peak:
            return print_peak(model, inputs, options.peak == "bfloat16")
        make_plausible(model, inputs)
        what = compare(model, inputs, own)
        table = (measure_cpu if options.device == "cpu" else measure_gpu)(model, inputs, options)
    text = f"R50, {size[0]} x {size[1]}, {what}; median of {options.rounds} rounds\n\n{table}"
    report("whole_model", text, quick=options.quick)


def run(model: PanopticSegFormer, inputs: Inputs, *, half: bool = False) -> dict[str, Any]:
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
        return model(inputs)[0]


def compare(model: PanopticSegFormer, inputs: Inputs, own: list[Candidates]) -> str:
    """End the script if the baseline's candidates differ; returns a summary. `own`: from `given_candidates`."""
    result = run(model, inputs)
    [ours] = own
    with plain_parts(model):
        run(model, inputs)
    [expected] = own
    run(model, inputs, half=True)
    [half] = own
    worst, worst_half = (
        max(difference(getattr(x, name), getattr(expected, name)) for name in ("class_scores", "mask_scores"))
        for x in (ours, half)
    )
    if not worst <= TOLERANCE:
        sys.exit(f"the candidates of psf and of the plain parts differ by {worst:.1e}")
    segments = len(result["panoptic_seg"][1])
    if segments < 3:
        sys.exit(f"{segments} segments: too few for meaningful times of post-processing")
    return (
        f"{segments} segments, {len(result['instances'])} instances; deviation of the candidates from the plain parts: "
        f"{worst:.0e}, under bfloat16 {worst_half:.0e}"
    )


def measure_cpu(model: PanopticSegFormer, inputs: Inputs, options: argparse.Namespace) -> str:
    rows = []
    backbone = 0.0
    for name in ("float32", "bfloat16"):
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "bfloat16", cache_enabled=False):
            times = measure_stages(model, inputs, repeats=options.rounds)
        own = times.parts["backbone"]
        backbone = backbone or own
        gigabytes = peak_of_fresh_process(name, options)
        targets = [against(BACKBONE_TARGET, times.total / own), against(MEMORY_TARGET, gigabytes)]
        if name != "float32":
            targets = ["", ""]
        rows.append([name, 1e3 * own, 1e3 * times.total, times.total / own, targets[0], times.total / backbone])
        rows[-1] += [gigabytes, targets[1]]
        parts = ", ".join(f"{part} {seconds / own:.2f}" for part, seconds in times.parts.items())
        print(f"{name}, in units of its backbone: {parts}")
    headers = ["type", "backbone ms", "total ms", "x own backbone", "target", "x float32 backbone", "peak GB", "target"]
    return f"CPU, {options.threads} threads\n\n" + tabulate(
        rows, headers, tablefmt="pipe", floatfmt=("", ".0f", ".0f", ".2f", "", ".2f", ".2f")
    )


def peak_of_fresh_process(name: str, options: argparse.Namespace) -> float:
    """Peak memory of a new process in GB (10^9 bytes), Python and libraries included."""
    command = [sys.executable, str(Path(__file__).resolve()), "--device", "cpu", "--peak", name]
    command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    finished = subprocess.run(command, capture_output=True, text=True)
    found = re.search(r"peak ([\d.]+) GB", finished.stdout)
    if finished.returncode or not found:
        sys.exit(f"the process for the peak memory failed:\n{finished.stderr}")
    return float(found[1])


def print_peak(model: PanopticSegFormer, inputs: Inputs, half: bool) -> None:
    print(f"peak {peak_memory(model.device, lambda: run(model, inputs, half=half)) / 1e9:.3f} GB")


def measure_gpu(model: PanopticSegFormer, inputs: Inputs, options: argparse.Namespace) -> str:
    baselines = plain_baselines(options.device)
    rows = []
    for half in (False, True):
        for name, attend in baselines.items():

            def baseline(attend: Attend | None = attend, half: bool = half) -> None:
                with plain_parts(model, attend):
                    run(model, inputs, half=half)

            def ours(half: bool = half) -> None:
                run(model, inputs, half=half)

            baseline_ms, our_ms = time_in_turns([baseline, ours], options.rounds)
            peaks = [peak_memory(model.device, x) / 1e9 for x in (baseline, ours)]
            target = against(OFFICIAL_TARGET, our_ms / baseline_ms) if half and attend is not None else ""
            times = [baseline_ms, our_ms, our_ms / baseline_ms]
            rows.append(["bfloat16" if half else "float32", name, *times, target, *peaks])
    headers = ["type", "baseline", "baseline ms", "psf ms", "psf / baseline", "target", "baseline GB", "psf GB"]
    return f"{torch.cuda.get_device_name()}\n\n" + tabulate(
        rows, headers, tablefmt="pipe", floatfmt=("", "", ".1f", ".1f", ".3f", "", ".2f", ".2f")
    )


if __name__ == "__main__":
    main()
