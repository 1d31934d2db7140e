#!/usr/bin/env python3
"""Time and memory of psf's mask decoder against the plain decoder, after a comparison of masks, queries and gradients.

The plain decoder (plain_mask_decoder.py) has the same weights, and works like the released code: it materializes the
attention maps of each block, upsamples all heads of each level, and computes the masks of all layers. At test: the last
masks of 100 things and 53 stuff classes at 800 x 1216. In training: all masks of 7 and 53 at 512 x 768, and backward.

On a GPU, memory is the growth of allocated memory at its peak. "Kept" are all bytes that are alive between forward and
backward, outputs included; they are counted on any device.

    python benchmarks/mask_decoder.py --device cpu --threads 2
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from kept_memory import kept_bytes
from plain_mask_decoder import PlainMaskDecoder
from report import add_device, against, argument_parser, difference, report, time_in_turns
from tabulate import tabulate
from torch import Tensor, nn

from psf.modeling import MaskDecoder
from psf.structures import DecodedMasks, FeatureTokens

TEST_TIME_TARGET, TEST_MEMORY_TARGET = 0.35, 0.25  # on a GPU
TRAINING_TIME_TARGET, TRAINING_MEMORY_TARGET = 0.5, 0.35
KEPT_TARGET = 0.35
# Of each tensor. If the input of a ReLU is a rounding error away from 0, its gradient may differ between the decoders.
# Among millions of inputs in float32 there are such cases, so the tolerance is large.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-3, torch.bfloat16: 5e-2}


class Kind(NamedTuple):
    """Things or stuff: the decoder of the released R50 model, and its numbers of queries."""

    name: str
    num_layers: int
    self_attention: bool
    at_test: int
    in_training: int


KINDS = (Kind("things", 4, False, 100, 7), Kind("stuff", 6, True, 53, 53))
AT_TEST = [(100, 152), (50, 76), (25, 38)]
IN_TRAINING = [(64, 96), (32, 48), (16, 24)]
SMALL = [(6, 8), (3, 4), (2, 2)]


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=3)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    on_gpu = options.device != "cpu"
    for kind in KINDS:
        inputs = problem(kind, SMALL, kind.in_training, options.device, torch.float64)
        for run in (test, train):
            check(f"{kind.name}, float64", torch.float64, inputs, run)
    rows: list[list[Any]] = []
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        for which, run, shapes in (("test", test, AT_TEST), ("training", train, IN_TRAINING)):
            measurements = []
            for kind in KINDS:
                queries = kind.at_test if run is test else kind.in_training
                inputs = problem(kind, SMALL if options.quick else shapes, queries, options.device, torch.float32)
                case = f"{which}, {queries} {kind.name}"
                check(f"{case}, {dtype}", dtype, inputs, run)
                measurements.append(measure(dtype, inputs, run, options.rounds))
                rows += table_rows(case, dtype, measurements[-1:])
            rows += table_rows(f"{which}, both", dtype, measurements, with_targets=True, on_gpu=on_gpu)
    headers = ["case", "type", "", "plain", "psf", "psf / plain", "target"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=("", "", "", ".1f", ".1f", ".3f"))
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {options.threads} threads"
    text = f"{where}; masks, queries, gradients equal; median of {options.rounds} rounds\n\n{table}"
    report("mask_decoder", text, quick=options.quick)


class Inputs(NamedTuple):
    """A decoder and its arguments."""

    decoder: MaskDecoder
    queries: Tensor  # (1, N, D)
    features: FeatureTokens
    query_pos: Tensor  # (N, D)


def problem(kind: Kind, shapes: list[tuple[int, int]], num_queries: int, device: str, dtype: torch.dtype) -> Inputs:
    """The released model's decoder with random weights, and random tokens distributed as after LayerNorm."""
    torch.manual_seed(0)
    dim = 256
    decoder = MaskDecoder(
        dim=dim,
        num_heads=8,
        num_levels=3,
        num_layers=kind.num_layers,
        self_attention=kind.self_attention,
        feedforward_dim=4 * dim,
        mask_activation="relu",
        relu_gradient="plain",
        ignore_padding=False,
        position_in_stream=True,
        key_position=False,
    )
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("fuse.bias"):
                parameter += 0.1  # with negative inputs only, the ReLU would hide all errors
    tokens = torch.randn(1, sum(h * w for h, w in shapes), dim)
    like: dict[str, Any] = {"device": device, "dtype": dtype}
    features = FeatureTokens(
        tokens.to(**like).requires_grad_(),
        torch.zeros(1, 1, dim, **like),
        shapes,
        None,
        torch.ones(1, len(shapes), 2, **like),
    )
    queries, query_pos = (torch.randn(num_queries, dim).to(**like).requires_grad_() for _ in range(2))
    return Inputs(decoder.to(**like), queries[None], features, query_pos)


@torch.no_grad()
def test(decoder: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The last masks and queries."""
    masks, queries = decoder(inputs.queries, inputs.features, inputs.query_pos, layer=-1)
    return [*masks, *queries]


def train(decoder: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All masks and queries, and the gradients of all parameters, tokens and positions."""
    decoded = forward(decoder, inputs)
    # Things have no loss on their queries; stuff has the class loss of each layer.
    loss = torch.stack([x.float().square().mean() for x in (*decoded.mask_scores, *decoded.refined_queries)]).sum()
    leaves = [*inputs.decoder.parameters(), inputs.features.tokens, inputs.query_pos]
    return [*decoded.mask_scores, *decoded.refined_queries, *torch.autograd.grad(loss, leaves)]


def forward(decoder: nn.Module, inputs: Inputs) -> DecodedMasks:
    decoded: DecodedMasks = decoder(inputs.queries, inputs.features, inputs.query_pos)
    return decoded


def with_type(dtype: torch.dtype, run: Callable[..., Any], decoder: nn.Module, inputs: Inputs) -> Any:
    """Call `run`, under autocast for bfloat16."""
    enabled = dtype == torch.bfloat16
    with torch.autocast(inputs.queries.device.type, torch.bfloat16, enabled=enabled, cache_enabled=False):
        return run(decoder, inputs)


def check(name: str, dtype: torch.dtype, inputs: Inputs, run: Callable[..., Any]) -> None:
    """End the script if the outputs of psf's decoder and of the plain decoder differ."""
    plain = run(PlainMaskDecoder(inputs.decoder), inputs)
    ours = with_type(dtype, run, inputs.decoder, inputs)
    worst = max(difference(x, y) for x, y in zip(ours, plain, strict=True))
    if not worst <= TOLERANCE[dtype]:
        sys.exit(f"{name}: psf and the plain decoder differ by {worst:.1e}")


class Measurements(NamedTuple):
    """Measurements of the plain decoder, then of psf's."""

    milliseconds: list[float]
    kept: list[int] | None  # bytes between forward and backward
    peak: list[int] | None  # bytes on a GPU


def measure(dtype: torch.dtype, inputs: Inputs, run: Callable[..., Any], rounds: int) -> Measurements:
    decoders = [PlainMaskDecoder(inputs.decoder), inputs.decoder]
    runs = [partial(with_type, dtype, run, decoder, inputs) for decoder in decoders]
    kept = peak = None
    if run is train:
        kept = [kept_bytes(partial(with_type, dtype, forward, decoder, inputs)) for decoder in decoders]
    if inputs.queries.is_cuda:
        peak = [peak_bytes(one) for one in runs]
    return Measurements(time_in_turns(runs, rounds), kept, peak)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Growth of the allocated GPU memory at its peak, in bytes."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def table_rows(
    case: str, dtype: torch.dtype, measurements: list[Measurements], *, with_targets: bool = False, on_gpu: bool = False
) -> list[list[Any]]:
    """Rows for time and memory of one decoder, or of several that run one after the other."""
    in_training = measurements[0].kept is not None
    time_target = TRAINING_TIME_TARGET if in_training else TEST_TIME_TARGET
    peak_target = TRAINING_MEMORY_TARGET if in_training else TEST_MEMORY_TARGET
    lines: list[tuple[str, list[float], float | None]] = []
    times = [sum(x) for x in zip(*(f.milliseconds for f in measurements), strict=True)]
    lines.append(("ms", times, time_target if on_gpu else None))
    kept = [f.kept for f in measurements if f.kept]
    if kept:
        lines.append(("kept, MB", [sum(x) / 1e6 for x in zip(*kept, strict=True)], KEPT_TARGET))
    peaks = [f.peak for f in measurements if f.peak]
    if peaks:
        # At test, one decoder's memory is free before the next starts; in training, the kept memory adds up.
        together = sum if in_training else max
        lines.append(("peak, MB", [together(x) / 1e6 for x in zip(*peaks, strict=True)], peak_target))
    rows: list[list[Any]] = []
    for what, (plain, ours), target in lines:
        ratio = ours / plain
        cell = against(target, ratio) if with_targets and target is not None else ""
        rows.append([case, str(dtype).removeprefix("torch."), what, plain, ours, ratio, cell])
    return rows


if __name__ == "__main__":
    main()
