#!/usr/bin/env python3
"""Memory and time of a training step of the released R50 model, for settings of MODEL.PSF.ACTIVATION_CHECKPOINTING.

The script first checks that each setting gives the losses of the model without it. "Kept" are all bytes that are alive
between forward and backward, counted on any device. On a GPU the peak is that of the whole step, weights included; the
first and the last setting are also measured in float32.

    python benchmarks/training_memory.py                         GPU: 800 x 1216, batch 1 and 2, bfloat16
    python benchmarks/training_memory.py --device cpu            CPU: 512 x 768, batch 1, float32
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from kept_memory import kept_bytes
from released_model import released_model
from report import add_device, argument_parser, report, time_in_turns
from scenes import training_input
from tabulate import tabulate
from torch import Tensor

from psf import PanopticSegFormer
from psf.modeling.activation_checkpointing import PARTS
from psf.tools.analysis import peak_memory

SETTINGS = ((), *((part,) for part in PARTS), ("backbone", "pixel_encoder"), tuple(PARTS))
TOLERANCE = 1e-5  # of each loss; the forward pass is the same

Inputs = list[dict[str, Any]]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=2)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    on_gpu = options.device != "cpu"
    size = (128, 192) if options.quick else (800, 1216) if on_gpu else (512, 768)
    batches = (1, 2) if on_gpu else (1,)
    nothing_and_all = SETTINGS[:: len(SETTINGS) - 1]
    settings = nothing_and_all if options.quick else SETTINGS
    rows: list[list[Any]] = []
    expected: dict[str, float] = {}
    for parts in settings:
        model = released_model(options.device, "MODEL.PSF.ACTIVATION_CHECKPOINTING", str(list(parts))).train()
        losses = {name: loss.item() for name, loss in forward(model, [training_input(*size)], torch.float32).items()}
        expected = expected or losses
        check(parts, losses, expected)
        dtypes = [torch.bfloat16] if on_gpu else []
        if parts in nothing_and_all or not on_gpu:
            dtypes.append(torch.float32)
        for batch in batches:
            inputs = [training_input(*size) for _ in range(batch)]
            for dtype in dtypes:
                rows.append([*describe(parts, batch, dtype), *measure(model, inputs, dtype, options.rounds)])
        del model
    headers = ["checkpointed", "batch", "type", "kept GB", "peak GB", "ms"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=("", "", "", ".2f", ".2f", ".0f"))
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} threads"
    text = f"{where}; R50, {size[0]} x {size[1]}; losses equal; median of {options.rounds} rounds\n\n{table}"
    report("training_memory", text, quick=options.quick)


def describe(parts: Sequence[str], batch: int, dtype: torch.dtype) -> list[str]:
    names = "all" if set(parts) == set(PARTS) else ", ".join(parts) or "nothing"
    return [names, f"batch {batch}", str(dtype).removeprefix("torch.")]


def forward(model: PanopticSegFormer, inputs: Inputs, dtype: torch.dtype) -> dict[str, Tensor]:
    torch.manual_seed(0)  # the same dropout for each setting
    with torch.autocast(model.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        return model(inputs)


def step(model: PanopticSegFormer, inputs: Inputs, dtype: torch.dtype) -> None:
    model.zero_grad(set_to_none=True)
    torch.stack(list(forward(model, inputs, dtype).values())).sum().backward()


def check(parts: Sequence[str], losses: dict[str, float], expected: dict[str, float]) -> None:
    """End the script if checkpointing changes a loss."""
    for name, loss in expected.items():
        if not abs(losses[name] - loss) <= TOLERANCE * max(1.0, abs(loss)):
            sys.exit(f"{name} with {list(parts)} checkpointed: {losses[name]}, but {loss} without")


def measure(model: PanopticSegFormer, inputs: Inputs, dtype: torch.dtype, rounds: int) -> list[Any]:
    """Kept and peak memory in GB (10^9 bytes), milliseconds; "out of memory" instead of them."""
    try:
        kept = kept_bytes(lambda: forward(model, inputs, dtype)) / 1e9
        [milliseconds] = time_in_turns([lambda: step(model, inputs, dtype)], rounds)
        # On a CPU, only the peak over the whole life of the process is available.
        peak = peak_memory(model.device, lambda: step(model, inputs, dtype)) / 1e9 if _on_gpu(model) else None
    except torch.OutOfMemoryError:
        return ["out of memory", None, None]
    return [kept, peak, milliseconds]


def _on_gpu(model: PanopticSegFormer) -> bool:
    return model.device.type == "cuda"


if __name__ == "__main__":
    main()
