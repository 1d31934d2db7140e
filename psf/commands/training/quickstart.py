"""Train on generated scenes, evaluate on held-out scenes, and draw predictions of some of them.

Writes output/quickstart/results.json, panel.png, model_final.pth and demo/, and replaces those of an earlier
quickstart. KEY VALUE pairs are passed on to the training, for example SEED 1.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from psf.checkpoint.saving import TAG
from psf.commands import command_parser, echo, run_command
from psf.data.own_files import check_replaceable
from psf.engine.hooks import ForwardedSignals, Stopped
from psf.errors import UserError

__all__ = ["build_parser", "main"]

CONFIG = "shapes/psf_tiny.yaml"
OUTPUT = Path("output/quickstart")
NUM_DEMO_IMAGES = 6


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; the only arguments are KEY VALUE pairs."""
    parser = command_parser("quickstart", __doc__)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config options of the training")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    return run_command(lambda: run(args.opts))


def run(opts: Sequence[str]) -> int:
    """Train, evaluate and draw, each with a command of psf in its own process."""
    if "OUTPUT_DIR" in opts[::2]:
        raise UserError(f"OUTPUT_DIR is always {OUTPUT} here; to train into another folder: psf train")
    check_replaceable([OUTPUT / "config.yaml", OUTPUT / "results.json"], way_out=f"move {OUTPUT} away")
    # Its config is psf's own, so the folder holds an earlier quickstart, and nothing else is lost.
    again = ["--overwrite"] if (OUTPUT / "config.yaml").is_file() else []
    if code := run_psf("train", "--config-file", CONFIG, "--num-gpus", "0", *again, "OUTPUT_DIR", str(OUTPUT), *opts):
        return code
    held_out = held_out_images()
    model, output = str(OUTPUT / "model_final.pth"), str(OUTPUT / "demo")
    if code := run_psf("predict", "--model", model, *held_out[:NUM_DEMO_IMAGES], "--output", output):
        return code
    results = json.loads((OUTPUT / "results.json").read_text(encoding="utf-8"))["panoptic_seg"]
    metrics = ", ".join(f"{name} {results[name]:.1f}" for name in ("PQ", "PQ_th", "PQ_st"))
    echo(f"\nOn {len(held_out)} held-out scenes: {metrics}")
    echo(f"See {OUTPUT / 'panel.png'} (input | ground truth | prediction) and {OUTPUT / 'demo'}")
    return 0


def held_out_images() -> list[str]:
    """Files of the scenes of psf_shapes_val."""
    from detectron2.data import DatasetCatalog

    import psf.data  # noqa: F401  (registers the dataset)

    return [x["file_name"] for x in DatasetCatalog.get("psf_shapes_val")]


def run_psf(*words: str) -> int:
    """Print a command of psf, run it in its own process, and return its exit code.

    The process receives the signals of this one, and ends in its own time: a training saves first. Then one line on
    stderr says how to go on.
    """
    echo(f"\n$ {shlex.join(['psf', *words])}")
    with ForwardedSignals() as signals:
        # In a session of its own, or Ctrl-C would reach it twice: from the terminal and from here.
        child = subprocess.Popen([sys.executable, "-m", "psf", *words], start_new_session=True)
        signals.others.append(child.pid)
        code = child.wait()
    if signals.received is None:
        return code
    stopped = Stopped(signals.received)
    sys.stderr.write(f"stopped by {stopped.signal_name}: {how_to_go_on(words)}\n")
    return stopped.code


def how_to_go_on(words: Sequence[str]) -> str:
    """What is saved after a command was stopped, and how to continue."""
    tag = OUTPUT / TAG
    if not tag.is_file():
        return "nothing is saved; start again with psf quickstart"
    saved = f"{OUTPUT / tag.read_text(encoding='utf-8').strip()} is saved"
    if words[0] != "train":
        return f"{saved}; to repeat this step: {shlex.join(['psf', *words])}"
    options = [word for word in words[1:] if word != "--overwrite"]
    return f"{saved}; to continue: {shlex.join(['psf', 'train', '--resume', *options])}"
