#!/usr/bin/env python3
"""Detectron2's own Mask R-CNN as a baseline of psf: same backbone, images, augmentation and training time.

    python benchmarks/mask_rcnn_peer.py --minutes 20 --num-processes 2 \\
        --register my_train=train.json,train_pngs,train_images --register my_val=val.json,val_pngs,val_images \\
        DATASETS.TRAIN my_train DATASETS.TEST my_val OUTPUT_DIR output/mask_rcnn

Network, losses and optimizer (SGD with momentum) are Detectron2's, unchanged, with the settings of mask_rcnn_peer.yaml.
The panoptic ground truth becomes instances: things are masks with boxes, crowds are dropped. With --minutes, a
temporary model runs a few iterations to measure the time per iteration, which determines SOLVER.MAX_ITER. These
iterations and the evaluation do not count as training time. The score threshold of the panoptic map is chosen on
training images.

Prints a row of a table, appends it to benchmarks/results, and writes OUTPUT_DIR/results.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from mask_rcnn_model import benchmark_instances, load_backbone
from panoptic_instances import JointClasses, choose_threshold, evaluate, panoptic_classes
from report import report
from tabulate import tabulate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from psf.commands import run_command
from psf.data import build_test_loader, load_dataset, spread_evenly
from psf.engine import Trainer, add_import_flag, add_register_flag, build_config, launch, setup
from psf.engine.arguments import write_config
from psf.errors import UserError
from psf.evaluation import has_panoptic_gt

CONFIG = Path(__file__).with_suffix(".yaml")
BASE_LR_PER_IMAGE = 0.02 / 16  # the linear scaling rule of Detectron2's Mask R-CNN models
# Timed iterations, and slower ones before them.
TIMED, UNTIMED = 20, 5
THRESHOLD_IMAGES = 60  # training images for choosing the score threshold, spread evenly
# Config key -> the flag that sets it.
FLAGS = {"SOLVER.MAX_ITER": "--iterations or --minutes", "SOLVER.BASE_LR": "--lr", "SEED": "--seed"}
COLUMNS = ("model", "seed", "iterations", "seconds", "s/iteration", "AP", "AP50", "box AP", "PQ", "PQ_th", "lr")


class _Clock(HookBase):
    """Wall time of the training loop, in seconds, without the hooks that follow it."""

    seconds = 0.0

    def before_train(self) -> None:
        self._start = time.perf_counter()

    def after_train(self) -> None:
        self.seconds = time.perf_counter() - self._start


class MaskRCNNTrainer(Trainer):
    """psf's trainer (loader, optimizer from SOLVER, schedule, processes on the CPU) with Detectron2's Mask R-CNN."""

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """Build the detector, load MODEL.WEIGHTS into its backbone, and set the memory format of the config."""
        model = super().build_model(cfg)
        if cfg.MODEL.WEIGHTS:
            load_backbone(model, cfg.MODEL.WEIGHTS)
        if cfg.MODEL.PSF.CHANNELS_LAST:
            model.to(memory_format=torch.channels_last)
        return model

    def build_hooks(self) -> list[HookBase]:
        """The trainer's hooks, after a clock."""
        self.clock = _Clock()
        return [self.clock, *super().build_hooks()]

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> dict[str, Any]:
        """Choose the score threshold on training images and evaluate DATASETS.TEST; {} outside the main process."""
        [train], [test] = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
        classes = panoptic_classes(train)
        plain = model.module if isinstance(model, DistributedDataParallel) else model
        detector = JointClasses(plain, classes)
        images = spread_evenly(load_dataset(train), THRESHOLD_IMAGES)
        threshold = choose_threshold(detector, _test_loader(cfg, images), train, classes)
        batches = _test_loader(cfg, load_dataset(test))
        results = evaluate(detector, batches, test, classes, threshold, Path(cfg.OUTPUT_DIR))
        return results and {**results, "painting": {"threshold": threshold}}


class _Probe(MaskRCNNTrainer):
    """A trainer without hooks, which writes no files."""

    def build_hooks(self) -> list[HookBase]:
        return []


def _test_loader(cfg: CfgNode, images: Sequence[dict[str, Any]]) -> Iterable[Any]:
    return build_test_loader(cfg, images, benchmark_instances(cfg, False))


def seconds_per_iteration(cfg: CfgNode) -> float:
    """Mean wall time in seconds of TIMED training iterations of a temporary model, after UNTIMED ones.

    All processes call this together, and get the longest of their times.
    """
    trainer = _Probe(cfg)
    times = []
    with EventStorage(0):
        for trainer.iter in range(UNTIMED + TIMED):
            start = time.perf_counter()
            trainer.run_step()
            trainer.scheduler.step()
            times.append(time.perf_counter() - start)
    return max(comm.all_gather(sum(times[UNTIMED:]) / TIMED))


def baseline_config(cfg: CfgNode, args: argparse.Namespace) -> CfgNode:
    """The config of a run, with the number of classes of its dataset and the values of the flags."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(panoptic_classes(cfg.DATASETS.TRAIN[0]).thing_ids)
    cfg.SOLVER.BASE_LR = BASE_LR_PER_IMAGE * cfg.SOLVER.IMS_PER_BATCH if args.lr is None else args.lr
    cfg.SOLVER.MAX_ITER = args.iterations or UNTIMED + TIMED
    cfg.freeze()
    return cfg


def run(args: argparse.Namespace) -> None:
    """One process: train, evaluate, report."""
    cfg = baseline_config(setup(args), args)
    if args.minutes is not None:
        iterations = max(round(60 * args.minutes / seconds_per_iteration(cfg)), 1)
        cfg.defrost()
        cfg.SOLVER.MAX_ITER = iterations
        cfg.freeze()
        seed_all_rng(cfg.SEED + comm.get_rank())  # same state as a run with --iterations
    write_config(cfg)
    trainer = MaskRCNNTrainer(cfg)
    results = trainer.train()
    if comm.is_main_process():
        _report(cfg, results, trainer.clock.seconds)


def _report(cfg: CfgNode, results: dict[str, Any], seconds: float) -> None:
    panoptic = results["panoptic_seg"]
    iterations = cfg.SOLVER.MAX_ITER
    has_rest = len(panoptic_classes(cfg.DATASETS.TRAIN[0]).stuff_ids) <= 1  # otherwise no stuff, see `paint`
    pq = panoptic["PQ"] if has_rest else None
    segm, box_ap = results["segm"], results["bbox"]["AP"]
    row = (
        *("Mask R-CNN", cfg.SEED, iterations, seconds, seconds / iterations, segm["AP"], segm["AP50"], box_ap),
        *(pq, panoptic["PQ_th"], cfg.SOLVER.BASE_LR),
    )
    formats = ("", "", "", ".0f", ".3f", ".2f", ".2f", ".2f", ".2f", ".2f", "g")
    table = tabulate([row], COLUMNS, tablefmt="pipe", floatfmt=formats, missingval="-")
    threads = f"{comm.get_world_size()} processes of {torch.get_num_threads()} threads"
    settings = (
        f"{cfg.DATASETS.TRAIN[0]}, {cfg.DATASETS.TEST[0]}; batch {cfg.SOLVER.IMS_PER_BATCH}, {threads} on "
        f"{cfg.MODEL.DEVICE}; score threshold of the panoptic map {results['painting']['threshold']}"
    )
    content = {**dict(zip(COLUMNS, row)), "results": results}
    path = Path(cfg.OUTPUT_DIR, "results.json")
    path.write_text(json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    report("mask_rcnn_peer", f"{settings}\n\n{table}")


def _without_nan(value: Any) -> Any:
    """Replace NaN by None, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=_positive(float), help="wall time of training")
    budget.add_argument("--iterations", type=_positive(int), help="training iterations")
    parser.add_argument("--lr", type=_positive(float), help="(default: 0.02 / 16 for each image of a batch)")
    parser.add_argument("--seed", type=int, default=0, help="0 or more (%(default)s)")
    parser.add_argument("--config-file", default=str(CONFIG), help="(%(default)s)")
    parser.add_argument("--num-gpus", type=int, default=0, help="(%(default)s: the CPU)")
    parser.add_argument("--num-processes", type=_positive(int), default=1, help="on the CPU (%(default)s)")
    add_register_flag(parser)
    add_import_flag(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, in pairs")
    parser.set_defaults(num_machines=1, machine_rank=0, dist_url="auto", resume=False, eval_only=False)
    args = parser.parse_args(words)
    for key, flag in FLAGS.items():
        if key in args.opts[::2]:
            parser.error(f"found {key} among the config keys, expected {flag}")
    if args.seed < 0:
        parser.error(f"--seed: found {args.seed}, expected 0 or more")
    args.opts += ["SEED", str(args.seed)]
    return args


def _positive(kind: type) -> Any:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"found {text}, expected more than 0")
        return value

    return number


def check_datasets(args: argparse.Namespace) -> None:
    """Check, before processes start, that DATASETS.TRAIN and TEST each have one dataset with things.

    Raises:
        UserError: if not.
    """
    cfg = build_config(args.config_file, args.opts, args.register)
    for key in ("TRAIN", "TEST"):
        names = cfg.DATASETS[key]
        if len(names) != 1:
            raise UserError(f"DATASETS.{key}: found {list(names)}, expected one dataset")
        panoptic_classes(names[0])
        if not has_panoptic_gt(names[0]):
            raise UserError(f"DATASETS.{key}: {names[0]} has no panoptic JSON and PNGs as ground truth: use --register")


def main(words: Sequence[str] | None = None) -> int:
    """Run the script; returns the exit code, 2 after a user's mistake."""
    args = parse_arguments(words)

    def check_and_launch() -> None:
        check_datasets(args)
        launch(run, args)

    return run_command(check_and_launch)


if __name__ == "__main__":
    sys.exit(main())
