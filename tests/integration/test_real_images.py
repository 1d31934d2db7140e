"""The whole road on real COCO images: train, checkpoint, resume, evaluate, demo; and a model that memorises four."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

R50 = "configs/coco/psf_R50_24ep.yaml"
SMALL = [
    *("MODEL.WEIGHTS", ""),
    *("DATASETS.TRAIN", "('coco_2017_val_panoptic',)"),
    *("DATASETS.TEST", "('coco_2017_val_panoptic',)"),
    *("INPUT.MIN_SIZE_TRAIN", "(128,)"),
    *("INPUT.MAX_SIZE_TRAIN", "192"),
    *("INPUT.MIN_SIZE_TEST", "128"),
    *("INPUT.MAX_SIZE_TEST", "192"),
    *("INPUT.CROP.ENABLED", "False"),
    *("SOLVER.IMS_PER_BATCH", "2"),
    *("DATALOADER.NUM_WORKERS", "1"),
    # After 20 iterations nothing is sure, and an evaluation without segments compares nothing.
    *("MODEL.PSF.POST_PROCESSOR.THINGS.T_CNF", "0.0001"),
    *("MODEL.PSF.POST_PROCESSOR.STUFF.T_CNF", "0.0001"),
]

# Detectron2's own evaluator on the same checkpoint, in the same process that its catalog finds the images.
COMPARE = """
import json, sys
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation import COCOPanopticEvaluator, inference_on_dataset
from psf.engine import Trainer, build_config
output, config, *opts = sys.argv[1:]
cfg = build_config(config, opts)
cfg.MODEL.DEVICE = "cpu"
model = Trainer.build_model(cfg)
DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
evaluator = COCOPanopticEvaluator("coco_2017_val_panoptic", output)
results = inference_on_dataset(model, Trainer.build_test_loader(cfg, "coco_2017_val_panoptic"), evaluator)
print(json.dumps(results["panoptic_seg"]))
"""

Run = Callable[..., str]


@pytest.fixture
def run(shared: Path, repository: Path) -> Run:
    """Run Python in the repository with Detectron2's catalog pointed to the real images; returns stdout."""
    coco25 = shared / "data" / "coco25"
    if not coco25.is_dir():
        pytest.skip(f"needs {coco25} (25 COCO images with panoptic ground truth)")
    environment = {**os.environ, "DETECTRON2_DATASETS": str(coco25)}

    def call(*command: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, *map(str, command)], cwd=repository, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    return call


def test_the_road_on_coco_images(run: Run, shared: Path, tmp_path: Path) -> None:
    output, demo = tmp_path / "run", tmp_path / "demo"
    common = ("--config-file", R50, "--num-gpus", "0", "OUTPUT_DIR", str(output), *SMALL)
    run("train_net.py", *common, "SOLVER.MAX_ITER", "20", "TEST.EVAL_PERIOD", "0")
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    losses = {key: value for line in lines for key, value in line.items() if "loss" in key}
    assert len(losses) == 1 + 3 * 6 + (4 + 5) + (6 + 7)  # total, L_det, things, stuff
    assert all(math.isfinite(value) for value in losses.values())
    assert (output / "model_final.pth").is_file()

    run("train_net.py", "--resume", *common, "SOLVER.MAX_ITER", "22")
    assert "Starting training from iteration 20" in (output / "log.txt").read_text()

    weights = ("MODEL.WEIGHTS", str(output / "model_final.pth"))
    run("train_net.py", "--eval-only", *common, *weights)
    results = json.loads((output / "results.json").read_text())
    assert set(results) == {"panoptic_seg", "panoptic_boundary", "segm", "bbox", "sem_seg"}  # from one JSON
    assert len((output / "per_class.csv").read_text().splitlines()) == 1 + 133
    ours = results["panoptic_seg"]
    theirs = json.loads(run("-c", COMPARE, tmp_path / "d2", R50, *SMALL, *weights).splitlines()[-1])
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key

    photos = [shared / "data" / "photos" / name for name in ("china.jpg", "flower.jpg", "skimage_chelsea.png")]
    run("demo/demo.py", "--config-file", R50, "--input", *photos, "--output", demo, "--opts", *SMALL, *weights)
    for photo in photos:
        assert (demo / f"{photo.stem}.jpg").is_file()
        assert (demo / f"{photo.stem}_panoptic.png").is_file()
        assert json.loads((demo / f"{photo.stem}.json").read_text())["height"] > 0
