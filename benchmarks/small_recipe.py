#!/usr/bin/env python3
"""Effect of each key of the small recipe: trainings with one key changed, several seeds each.

    python benchmarks/small_recipe.py    # psf_shapes_train, evaluated on psf_shapes_tune
    python benchmarks/small_recipe.py --config small/psf_small.yaml --train mine_train --test mine_tune \\
        --register mine_train=JSON,PNGS,IMAGES --register mine_tune=JSON,PNGS,IMAGES

Every run calls train_net.py on the CPU and has its own folder. A run with a results.json is not repeated, so the script
resumes an interrupted study. The table has the mean, the smallest and the largest value over the seeds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from report import HERE, report
from tabulate import tabulate

from psf.engine import add_register_flag

VARIANTS = {
    "the recipe": [],
    "learned queries": ["MODEL.PSF.LOCATION_DECODER.TWO_STAGE", "False"],
    "no box prior": ["MODEL.PSF.MASK_DECODER.BOX_PRIOR", "False"],
    "attention at stride 8": ["MODEL.PSF.FINE_FEATURE", ""],
    "masks not refined": ["MODEL.PSF.MASK_FEATURE", ""],
    "two location layers": ["MODEL.PSF.LOCATION_DECODER.NUM_LAYERS", "2"],
    "two queries per thing": ["MODEL.PSF.MATCHER.QUERIES_PER_THING", "2"],
    "ReLU masks": ["MODEL.PSF.MASK_DECODER.MASK_ACTIVATION", "relu"],
    "half the learning rate": ["SOLVER.BASE_LR", "0.001"],
}
METRICS = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ_th": ("panoptic_seg", "PQ_th"),
    "PQ_st": ("panoptic_seg", "PQ_st"),
    "mask AP": ("segm", "AP"),
    "mask AP50": ("segm", "AP50"),
}

Results = dict[str, dict[str, float]]  # task -> metric -> value


def main(words: Sequence[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    options = parse(words)
    rows = []
    for variant in options.variants:
        results = [results_of(variant, seed, options) for seed in range(1, options.seeds + 1)]
        rows.append([variant, *(spread([result[task][name] for result in results]) for task, name in METRICS.values())])
        print(*rows[-1], sep="  ", flush=True)
    table = tabulate(rows, ["", *METRICS], tablefmt="pipe")
    report(
        "small_recipe",
        f"`python benchmarks/small_recipe.py {shlex.join(words)}`\n\n{options.config}, {options.iterations} iterations "
        f"on {options.train}, evaluated on {options.test}; {options.seeds} seeds: mean (least to largest)\n\n{table}",
    )


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_register_flag(parser)
    parser.add_argument("--config", default="shapes/psf_tiny.yaml", help="[%(default)s]")
    parser.add_argument("--train", default="psf_shapes_train", help="dataset to train on [%(default)s]")
    parser.add_argument("--test", default="psf_shapes_tune", help="dataset to evaluate on [%(default)s]")
    parser.add_argument("--iterations", type=int, default=300, help="per run [%(default)s]")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each variant [%(default)s]")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--output", type=Path, default=Path("output/small_recipe"), help="folder of runs [%(default)s]")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs for every run; last")
    return parser.parse_args(words)


def results_of(variant: str, seed: int, options: argparse.Namespace) -> Results:
    """results.json of one run; trains the run if the file is missing."""
    what = json.dumps([options.config, options.register, options.train, options.test, options.iterations, options.opts])
    study = hashlib.sha256(what.encode()).hexdigest()[:8]  # each study has its own folder of runs
    folder = options.output / study / f"{variant.replace(' ', '_')}_{seed}"
    results = folder / "results.json"
    if not results.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        register = [word for value in options.register for word in ("--register", value)]
        keys = ["DATASETS.TRAIN", options.train, "DATASETS.TEST", options.test, "OUTPUT_DIR", str(folder)]
        keys += ["SOLVER.MAX_ITER", str(options.iterations), "SEED", str(seed), *VARIANTS[variant], *options.opts]
        words = ["--config-file", options.config, "--num-gpus", "0", "--overwrite"]  # of an interrupted run
        train([*words, *register, *keys], folder / "stdout.txt")
    content: Results = json.loads(results.read_text())
    return content


def train(words: Sequence[str], log: Path) -> None:
    """Run train_net.py with its output in `log`."""
    with log.open("w") as file:
        command = [sys.executable, str(HERE.parent / "train_net.py"), *words]
        subprocess.run(command, check=True, stdout=file, stderr=subprocess.STDOUT)


def spread(values: Sequence[float]) -> str:
    """Mean, smallest and largest."""
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
