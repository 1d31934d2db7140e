"""Measure the time of each part of a model at test, images per second, and peak memory.

psf benchmark --model output/mine/model_final.pth --image photo.jpg
psf benchmark --config-file coco/released/psf_R50_24ep.yaml --device cpu

A config is measured with random weights: that needs no dataset and no checkpoint, but leaves out post-processing, whose
time depends on what the model has learned. Without --image, the images are random. On a CPU, peak memory is that of the
whole process, including Python and libraries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from psf.commands import add_config_arguments, command_parser, echo, positive, run_command
from psf.engine import build_config, resolve_num_queries
from psf.errors import UserError
from psf.meta_arch import PanopticSegFormer
from psf.ops import describe_implementation
from psf.prediction import Predictor, read_model_file
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
    parser.add_argument("--image", type=Path, metavar="FILE", help="measure with this image, at its size at test")
    add_config_arguments(parser, has_model=True)
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
    predictor = _read_model(args) if args.model else None
    cfg = _read_config(args) if predictor is None else predictor.cfg
    model = build_model(cfg).eval() if predictor is None else predictor.model
    if not isinstance(model, PanopticSegFormer):
        raise UserError(f"MODEL.META_ARCHITECTURE is {type(model).__name__}: expected PanopticSegFormer")
    if args.image is None:
        size = (len(model.pixel_mean), *args.input_size)
        inputs = [{"image": torch.randint(0, 256, size, dtype=torch.uint8)} for _ in range(args.batch_size)]
    elif predictor is None:
        raise UserError("--image needs --model: a config has no weights that an image could be measured with")
    else:
        inputs = [predictor.load_image(args.image).model_input] * args.batch_size
    autocast = torch.autocast(
        model.device.type, getattr(torch, args.amp or "float32"), enabled=args.amp is not None, cache_enabled=False
    )
    trained = predictor is not None
    with torch.no_grad(), autocast:
        peak = peak_memory(model.device, lambda: model(inputs) if trained else list(model.candidates_by_image(inputs)))
        times = measure_stages(model, inputs, repeats=args.repeats, warm_ups=0, post_processing=trained)
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {args.threads} threads"
    height, width = inputs[0]["image"].shape[1:]
    echo(f"{args.model or args.config_file}, {args.batch_size} x {height} x {width}, {device}")
    echo(f"deformable attention: {describe_implementation(model.device.type, cfg.MODEL.PSF.MSDA)}\n")
    echo(f"{stage_table(times)}, peak memory {peak / 2**30:.2f} GiB")
    if not trained:
        echo("Random weights: without post-processing; --model FILE measures a trained model with it.")


def _read_config(args: argparse.Namespace) -> CfgNode:
    if args.config_file is None:
        raise UserError("--model or --config-file is missing: expected a model file, or a config")
    cfg = build_config(args.config_file, [*args.opts, "MODEL.DEVICE", args.device], args.register, args.imports)
    resolve_num_queries(cfg)
    return cfg


def _read_model(args: argparse.Namespace) -> Predictor:
    """The model of --model, with its weights."""
    file = read_model_file(
        args.model,
        config_file=args.config_file,
        options=args.opts,
        imports=args.imports,
        register=args.register,
        device=args.device,
    )
    return Predictor.of_model_file(file)
