#!/usr/bin/env python3
"""The whole road on generated scenes: train, evaluate on held-out scenes, run the demo on some of them.

Leaves output/quickstart/{results.json,panel.png,model_final.pth} and output/quickstart/demo/. Options are passed on to
train_net.py as KEY VALUE pairs, for example SEED 1; all but OUTPUT_DIR.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

from detectron2.data import DatasetCatalog

from psf.data.shapes import NUM_SCENES

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/shapes/psf_tiny.yaml"
OUTPUT = Path("output/quickstart")
NUM_DEMO_IMAGES = 6


def main(options: list[str]) -> None:
    if "OUTPUT_DIR" in options[::2]:
        sys.exit(f"OUTPUT_DIR is always {OUTPUT} here; to train into another folder, run train_net.py")
    run("train_net.py", "--config-file", CONFIG, "--num-gpus", "0", "OUTPUT_DIR", str(OUTPUT), *options)
    held_out = [x["file_name"] for x in DatasetCatalog.get("psf_shapes_val")[:NUM_DEMO_IMAGES]]
    weights = ("--opts", "MODEL.WEIGHTS", str(OUTPUT / "model_final.pth"))
    run("demo/demo.py", "--config-file", CONFIG, "--input", *held_out, "--output", str(OUTPUT / "demo"), *weights)
    results = json.loads((ROOT / OUTPUT / "results.json").read_text())["panoptic_seg"]
    figures = ", ".join(f"{name} {results[name]:.1f}" for name in ("PQ", "PQ_th", "PQ_st"))
    print(f"\nOn {NUM_SCENES['val']} held-out scenes: {figures}")
    print(f"Look at {OUTPUT / 'panel.png'} (input | truth | prediction) and {OUTPUT / 'demo'}")


def run(*command: str) -> None:
    """Run one of the project's own commands from its root, and say which."""
    print("\n$ python " + shlex.join(command), flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
