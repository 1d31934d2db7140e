#!/usr/bin/env python3
"""How often mask heads die at the start of training, with both gradients of ReLU masks and with sigmoid masks.

Each run trains configs/shapes/psf_tiny.yaml without its keys for short training: with learned queries and masks at
stride 8, as in the released recipe. It takes a few iterations on one CPU thread in this process. A head is dead if all
of its masks had scores of 0 in the last 10 iterations. Losses are loss_seg_things of each layer and the tail, averaged
over these iterations; with empty masks, the loss is 2 times the things' share of the segments
(MODEL.PSF.LOSS.BALANCE). "Above 0.5" is the share of pixels of the thing masks with such a score.

    python benchmarks/dead_mask_heads.py                                        # psf_shapes_tune
    python benchmarks/dead_mask_heads.py --dataset nuclei_train --register nuclei_train=JSON,PNGS,IMAGES
"""

from __future__ import annotations

import argparse
import copy
import logging
import random
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from report import report
from tabulate import tabulate
from torch import Tensor, nn

from psf.data import build_mapper, load_dataset, register_from_config
from psf.engine import Checkpointer, Trainer, add_register_flag, build_config, build_optimizer
from psf.modeling.mask_decoder import MaskHead

VARIANTS = {"relu, plain": ("relu", "plain"), "relu, revive": ("relu", "revive"), "sigmoid": ("sigmoid", "revive")}
WINDOW = 10  # iterations at the end that are evaluated


class Run(NamedTuple):
    """Measurements of the last iterations of a training."""

    dead: list[str]  # names of heads
    losses: dict[str, float]  # loss_seg_things of each layer
    share_above: float  # share of the pixels of all thing masks with a score above 0.5, in [0, 1]


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = parse(words)
    torch.set_num_threads(1)
    for name in ("psf", "detectron2", "fvcore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    start = time.perf_counter()
    cfg = config(options)
    images = read_images(cfg, options)
    rows = []
    for rate in options.rates:
        for variant in options.variants:
            runs = []
            for seed in range(options.seeds):
                runs.append(train(variant_config(cfg, variant, rate), images, seed, options))
                print(f"{variant}, learning rate {rate:g}, seed {seed}: {describe(runs[-1])}", flush=True)
            rows.append(row(variant, rate, runs))
    names = list(runs[0].losses)
    header = ["masks", "learning rate", "runs with a dead head", "dead heads", *names, "above 0.5"]
    table = tabulate(rows, header, tablefmt="pipe", floatfmt=".2f", disable_numparse=[1])
    report(
        "dead_mask_heads",
        f"`python benchmarks/dead_mask_heads.py {shlex.join(words)}`\n\n{options.dataset}, {len(images)} images with a "
        f"short side of {options.size} pixels, {options.iterations} iterations of {options.batch} images, "
        f"{options.seeds} seeds each; {time.perf_counter() - start:.0f} s\n\n{table}",
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_register_flag(parser)
    parser.add_argument("--dataset", default="psf_shapes_tune", help="training dataset [%(default)s]")
    parser.add_argument("--num-images", type=int, default=64, help="images chosen at random [%(default)s]")
    parser.add_argument("--size", type=int, default=96, help="short side of an image in pixels [%(default)s]")
    parser.add_argument("--batch", type=int, default=4, help="images per iteration [%(default)s]")
    parser.add_argument("--iterations", type=int, default=80, help="per run [%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant [%(default)s]")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.002], help="learning rates [%(default)s]")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    options = parser.parse_args(words)
    if options.iterations < WINDOW:
        parser.error(f"--iterations is {options.iterations}: expected {WINDOW} or more, which are evaluated")
    return options


def config(options: argparse.Namespace) -> CfgNode:
    """psf_tiny.yaml with learned queries and no box prior, for small images; registers the dataset."""
    keys: dict[str, Any] = {
        "MODEL.PSF.NUM_THING_QUERIES": 200,
        "MODEL.PSF.LOCATION_DECODER.NUM_LAYERS": 2,
        "MODEL.PSF.LOCATION_DECODER.TWO_STAGE": False,
        "MODEL.PSF.MASK_DECODER.BOX_PRIOR": False,
        "MODEL.PSF.FINE_FEATURE": "",
        "MODEL.DEVICE": "cpu",
        "DATASETS.TRAIN": (options.dataset,),
        "DATASETS.TEST": (),
        "INPUT.MIN_SIZE_TRAIN": (options.size,),
        "INPUT.MAX_SIZE_TRAIN": 2 * options.size,
    }
    cfg = build_config("shapes/psf_tiny.yaml", [word for pair in keys.items() for word in pair], options.register)
    register_from_config(cfg)
    return cfg


def variant_config(cfg: CfgNode, variant: str, rate: float) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.PSF.MASK_DECODER
    node.MASK_ACTIVATION, node.RELU_GRADIENT = VARIANTS[variant]
    cfg.SOLVER.BASE_LR = rate
    return cfg


def read_images(cfg: CfgNode, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Images as the loader gives them, read and flipped once: all runs get the same images, in different orders."""
    dataset, mapper = load_dataset(options.dataset), build_mapper(cfg, True)
    seed_all_rng(0)  # of flips
    chosen = random.Random(0).sample(range(len(dataset)), min(options.num_images, len(dataset)))
    return [mapper(dataset[i]) for i in chosen]


def train(cfg: CfgNode, images: list[dict[str, Any]], seed: int, options: argparse.Namespace) -> Run:
    """One run from the backbone's ImageNet weights, with the optimizer and the schedule of the trainer."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    heads = {name: module for name, module in model.named_modules() if isinstance(module, MaskHead)}
    masks: dict[str, Tensor] = {}
    for name, head in heads.items():
        head.register_forward_hook(lambda _, inputs, scores, name=name: masks.update({name: scores.detach()}))
    optimizer = build_optimizer(cfg, model)
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    choose = random.Random(seed)
    alive: set[str] = set()
    losses: dict[str, list[float]] = {}
    shares = []
    model.train()
    for iteration in range(options.iterations):
        terms = step(model, copy.deepcopy(choose.sample(images, min(options.batch, len(images)))), optimizer)
        schedule.step()
        if iteration < options.iterations - WINDOW:
            continue
        alive |= {name for name, scores in masks.items() if (scores > 0).any()}
        shares += [(masks[name] > 0.5).float().mean().item() for name in heads if name.startswith("thing")]
        for name, value in terms.items():
            if name.startswith("loss_seg_things"):
                losses.setdefault(name.removeprefix("loss_seg_"), []).append(value.item())
    means = {name: statistics.mean(values) for name, values in losses.items()}
    return Run([name for name in heads if name not in alive], means, statistics.mean(shares))


def step(model: nn.Module, batch: list[dict[str, Any]], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    terms: dict[str, Tensor] = model(batch)
    optimizer.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    optimizer.step()
    return terms


def describe(run: Run) -> str:
    losses = ", ".join(f"{name} {value:.2f}" for name, value in run.losses.items())
    return f"dead: {', '.join(run.dead) or 'none'}; {losses}; above 0.5: {run.share_above:.3f}"


def row(variant: str, rate: float, runs: list[Run]) -> list[Any]:
    """A row of the table: numbers of runs with dead heads and of dead heads, and medians of the other numbers."""
    num_dead = sum(bool(run.dead) for run in runs)
    losses = [statistics.median(run.losses[name] for run in runs) for name in runs[0].losses]
    share = statistics.median(run.share_above for run in runs)
    return [variant, f"{rate:g}", f"{num_dead} of {len(runs)}", sum(len(run.dead) for run in runs), *losses, share]


if __name__ == "__main__":
    main()
