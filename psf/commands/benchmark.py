"""Measure the time of each part of a model at test, images per second, and peak memory.

psf benchmark --config-file coco/released/psf_R50_24ep.yaml --device cpu

Uses random weights and random images; needs no dataset and no checkpoint. On a CPU, peak memory is that of the whole
process, including Python and libraries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from detectron2.modeling import build_model

from psf.commands import add_config_arguments, command_parser, echo, positive, run_command
from psf.engine import build_config, resolve_num_queries
from psf.ops import describe_implementation
from psf.tools.analysis import measure_stages, peak_memory, stage_table

__all__ = ["build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser; `main` checks the values."""
    parser = command_parser("benchmark", __doc__)
    default_device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default_device, help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--input-size", nargs=2, type=positive, default=(800, 1216), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch-size", type=positive, default=1)
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--amp", choices=("float16", "bfloat16"), help="autocast to this type")
    add_config_arguments(parser)
    return parser


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(words)
    if args.device not in ("cpu", "cuda"):
        parser.error(f"--device: expected cpu or cuda, found {args.device!r}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: found 'cuda', but torch finds no GPU; expected cpu (psf doctor shows the reason)")
    if args.device == "cpu" and args.amp == "float16":
        parser.error("--amp: found float16 with --device cpu; expected bfloat16 there")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = parse_arguments(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cfg = build_config(args.config_file, [*args.opts, "MODEL.DEVICE", args.device], args.register, args.imports)
    resolve_num_queries(cfg)
    model = build_model(cfg).eval()
    size = (len(model.pixel_mean), *args.input_size)
    inputs = [{"image": torch.randint(0, 256, size, dtype=torch.uint8)} for _ in range(args.batch_size)]
    autocast = torch.autocast(
        model.device.type, getattr(torch, args.amp or "float32"), enabled=args.amp is not None, cache_enabled=False
    )
    with torch.no_grad(), autocast:
        peak = peak_memory(model.device, lambda: model(inputs))
        times = measure_stages(model, inputs, repeats=args.repeats, warm_ups=0)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {args.threads} threads"
    echo(f"{args.config_file}, {args.batch_size} x {args.input_size[0]} x {args.input_size[1]}, {device}")
    echo(f"deformable attention: {describe_implementation(model.device.type, cfg.MODEL.PSF.MSDA)}\n")
    echo(f"{stage_table(times)}, peak memory {peak / 2**30:.2f} GiB")
