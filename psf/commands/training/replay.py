"""Repeat a training step that was skipped because its loss or its gradients were not finite.

psf replay output/tiny/skipped_steps/iteration_0000123_process_0.pth --config-file output/tiny/config.yaml

Loads the last checkpoint of the run (or that of --opts MODEL.WEIGHTS FILE), runs the stored images forward and backward
once in training mode, and prints the loss terms, the norm of the gradients, and what is not finite. Nothing is written.
The exit code is 0 if all is finite now, 1 if not, 2 after a mistake of the user.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor, nn

from psf.checkpoint import newest_sound_checkpoint, read_checkpoint
from psf.commands import add_config_arguments, command_parser, echo, run_command
from psf.data import RandomState
from psf.engine import Trainer, build_checkpointer, build_config, resolve_num_queries
from psf.engine.config.checks import check_device
from psf.engine.train_step import SKIPPED_FOLDER, autocast_dtype
from psf.errors import UserError

__all__ = ["build_parser", "main"]

STRUCTURES = [
    BitMasks,
    Boxes,
    Instances,
    PolygonMasks,
]  # of Detectron2, in the inputs of other models: they hold tensors
MAX_NAMES = 10


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = command_parser("replay", __doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="in OUTPUT_DIR/skipped_steps")
    parser.add_argument("--num-gpus", type=int, choices=(0, 1), default=min(torch.cuda.device_count(), 1))
    add_config_arguments(parser, "--opts")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    step = read_step(args.file)
    cfg = build_config(args.config_file, args.opts, args.register, args.imports)
    if args.num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    check_device(cfg.MODEL.DEVICE, "MODEL.DEVICE", must_exist=True)
    dtype = autocast_dtype(cfg)
    cfg.MODEL.WEIGHTS = find_weights(cfg, args.opts, args.file)
    resolve_num_queries(cfg)
    model = Trainer.build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    terms = ", ".join(f"{name} {value:g}" for name, value in step["terms"].items())
    echo(f"Iteration {step['iteration']}: {', '.join(str(one.get('file_name', '?')) for one in step['batch'])}")
    echo(f"Not finite, or with gradients that are not, in training: {terms or '?'}")
    echo(f"Weights now: {cfg.MODEL.WEIGHTS or 'random'}\n")
    if "random" in step:
        RandomState.of_entry(step["random"]).restore()
    with EventStorage(step["iteration"]):  # models may write to it
        return report(model.train(), step["batch"], dtype)


def read_step(path: Path) -> dict[str, Any]:
    """A skipped step, written by `psf.engine.train_step.TrainStep`: iteration, batch, terms and random.

    Raises:
        UserError: if the file is missing, damaged, of another kind, or not safe to read.
    """
    with torch.serialization.safe_globals(STRUCTURES):
        step = read_checkpoint(path)
    batch = step.get("batch")
    is_step = isinstance(step.get("iteration"), int) and isinstance(step.get("terms"), dict)
    if not is_step or not isinstance(batch, list) or not all(isinstance(one, dict) and "image" in one for one in batch):
        raise UserError(f"{path}: expected a file of OUTPUT_DIR/skipped_steps, found the entries {list(step)[:5]}")
    return step


def find_weights(cfg: CfgNode, opts: Sequence[str], file: Path) -> str:
    """MODEL.WEIGHTS of the command line; else the last sound checkpoint of the run; else MODEL.WEIGHTS of the config.

    Args:
        cfg: its OUTPUT_DIR is that of the run, unless the file of the step lies in a folder skipped_steps.
        opts: KEY VALUE pairs of the command line.
        file: the step's.
    """
    if "MODEL.WEIGHTS" in opts[::2]:
        return str(cfg.MODEL.WEIGHTS)
    is_beside = file.absolute().parent.name == SKIPPED_FOLDER  # the run's folder may have been moved
    found = newest_sound_checkpoint(file.absolute().parents[1] if is_beside else Path(cfg.OUTPUT_DIR))
    return str(cfg.MODEL.WEIGHTS if found is None else found.path)


def report(model: nn.Module, batch: list[dict[str, Any]], dtype: torch.dtype | None) -> int:
    """Run a step, and print what it computes; returns the exit code.

    Args:
        model: in training mode.
        batch: its inputs.
        dtype: of autocast; None: full precision.
    """
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    device_type = next(iter(parameters.values())).device.type
    with torch.autocast(device_type, dtype=dtype, enabled=dtype is not None):
        losses: dict[str, Tensor] = model(batch)
    losses["total"] = torch.stack([value.float() for value in losses.values()]).sum()
    gradients = gradients_of(losses["total"], parameters)
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    bad = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
    guilty = [name for name, value in losses.items() if not value.isfinite()]
    if bad and not guilty:  # one backward pass for each term is slow
        guilty = [name for name, value in losses.items() if name != "total" and has_bad_gradients(value, parameters)]
    rows = [(name, f"{value.item():g}", "<-" if name in guilty else "") for name, value in losses.items()]
    rows.append(("norm of the gradients", f"{norm.item():g}", "<-" if bad else ""))
    echo(tabulate(rows, ("loss term", "value", "not finite"), disable_numparse=True))
    if bad:
        more = f"\n  and {len(bad) - MAX_NAMES} more" if len(bad) > MAX_NAMES else ""
        echo("\nParameters with gradients that are not finite:\n  " + "\n  ".join(bad[:MAX_NAMES]) + more)
    if guilty or not norm.isfinite():
        echo(f"\nNot finite: {', '.join(guilty) or 'the norm'}. Training would skip this step.")
        return 1
    echo("\nAll is finite now.")
    return 0


def gradients_of(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Gradients of a loss term, by the names of the parameters that it depends on."""
    if not value.requires_grad:
        return {}
    gradients = torch.autograd.grad(value, list(parameters.values()), retain_graph=True, allow_unused=True)
    return {name: one for name, one in zip(parameters, gradients, strict=True) if one is not None}


def has_bad_gradients(value: Tensor, parameters: Mapping[str, nn.Parameter]) -> bool:
    """Whether a gradient of a loss term is not finite."""
    return not all(one.isfinite().all() for one in gradients_of(value, parameters).values())
