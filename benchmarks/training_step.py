#!/usr/bin/env python3
"""Time of one training step (forward and backward) of the released R50 model, 512 x 768, against plain parts.

The baseline is the same model with the same weights, dropout and ground truth (7 things, 8 stuff segments), but with
grid_sample for deformable attention and the plain mask decoder; on a GPU also with the official kernels, if
torch-ms-deform-attn is installed. The script first compares losses and gradients.

    python benchmarks/training_step.py --device cpu --threads 2      half a minute per round
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from peers import Attend
from released_model import plain_baselines, plain_parts, released_model
from report import add_device, against, argument_parser, difference, report, time_in_turns
from scenes import training_input
from tabulate import tabulate
from torch import Tensor

from psf import PanopticSegFormer
from psf.tools.analysis import peak_memory

TARGET_RATIO = 0.55
LOSS_TOLERANCE = 1e-4
# Of all gradients together. If two matchings have equal costs or a ReLU is at 0, rounding changes the result.
GRADIENT_TOLERANCE = 1e-2

Inputs = list[dict[str, Any]]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=3)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    size = (128, 192) if options.quick else (512, 768)
    model = released_model(options.device).train()
    inputs = [training_input(*size)]
    what = compare(model, inputs)
    on_gpu = options.device != "cpu"
    rows = []
    for half in (False, True) if on_gpu else (False,):
        for name, attend in plain_baselines(options.device).items():
            measured = measure(model, inputs, attend, half, options.rounds)
            rows.append(["bfloat16" if half else "float32", name, *measured])
    headers = ["type", "baseline", "baseline ms", "psf ms", "psf / baseline", "target", "baseline GB", "psf GB"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=("", "", ".0f", ".0f", ".3f", "", ".2f", ".2f"))
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} threads"
    report(
        "training_step",
        f"{where}; R50, {size[0]} x {size[1]}, batch 1; {what}; median of {options.rounds} rounds\n\n{table}",
        quick=options.quick,
    )


def step(model: PanopticSegFormer, inputs: Inputs, *, half: bool = False) -> dict[str, Tensor]:
    """Compute the losses, and the gradients in the parameters."""
    torch.manual_seed(0)  # the same dropout for both
    model.zero_grad(set_to_none=True)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=half):
        losses = model(inputs)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def compare(model: PanopticSegFormer, inputs: Inputs) -> str:
    """End the script if losses or gradients differ; returns a summary."""
    with plain_parts(model):
        expected = step(model, inputs)
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
    losses = step(model, inputs)
    ours = [p.grad for p in model.parameters() if p.grad is not None]
    for name, loss in losses.items():
        if not abs(loss.item() - expected[name].item()) <= LOSS_TOLERANCE * max(1.0, abs(expected[name].item())):
            sys.exit(f"{name}: {loss.item()}, but {expected[name].item()} with plain parts")
    if len(ours) != len(gradients):
        sys.exit(f"{len(ours)} parameters have a gradient, {len(gradients)} with plain parts")
    worst = difference(*(torch.cat([g.flatten() for g in found]) for found in (ours, gradients)))
    if not worst <= GRADIENT_TOLERANCE:
        sys.exit(f"the gradients differ by {worst:.1e}")
    return f"{len(losses)} losses equal, all gradients together within {worst:.0e}"


def measure(model: PanopticSegFormer, inputs: Inputs, attend: Attend | None, half: bool, rounds: int) -> list[Any]:
    def baseline() -> None:
        with plain_parts(model, attend):
            step(model, inputs, half=half)

    def ours() -> None:
        step(model, inputs, half=half)

    baseline_ms, our_ms = time_in_turns([baseline, ours], rounds)
    ratio = our_ms / baseline_ms
    # On a CPU, only the peak over the whole life of the process is available.
    peaks = [peak_memory(model.device, x) / 1e9 for x in (baseline, ours)] if model.device.type == "cuda" else ["", ""]
    return [baseline_ms, our_ms, ratio, against(TARGET_RATIO, ratio) if attend is None and not half else "", *peaks]


if __name__ == "__main__":
    main()
