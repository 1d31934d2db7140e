#!/usr/bin/env python3
"""Panoptic quality under 16 corruptions at 5 severities (COCO-C, table 11 of the paper).

python tools/eval_robustness.py --config-file configs/coco/psf_R50_24ep.yaml --num-images 2000 \\
    MODEL.WEIGHTS model_final.pth OUTPUT_DIR output/robustness

Evaluates the first of DATASETS.TEST. Writes OUTPUT_DIR/robustness.json after each evaluation, robustness.md and
robustness.png at the end; the same command again goes on where the last one stopped. Frost is of generated crystals,
not of the published photographs: compare its figures among models that this tool has measured.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm

from psf.checkpoint import class_names_from_config
from psf.data import check_dataset
from psf.engine import Checkpointer, Trainer, argument_parser, launch, setup
from psf.robustness import CORRUPTIONS, SEVERITIES, RobustnessRecord, draw_chart, evaluate_robustness, robustness_table


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argument_parser()
    parser.description, parser.epilog = __doc__, None
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--num-images", type=int, help="so many, spread evenly over the data set (default: all)")
    parser.add_argument(
        "--corruptions", default=",".join(CORRUPTIONS), metavar="NAMES", help="with commas between (default: all 16)"
    )
    parser.add_argument(
        "--severities",
        default=",".join(map(str, SEVERITIES)),
        metavar="NUMBERS",
        help="with commas (default: 1,2,3,4,5)",
    )
    args = parser.parse_args(words)
    args.corruptions, args.severities = args.corruptions.split(","), args.severities.split(",")
    for name, chosen, known in (
        ("corruptions", args.corruptions, list(CORRUPTIONS)),
        ("severities", args.severities, [str(one) for one in SEVERITIES]),
    ):
        unknown = [one for one in chosen if one not in known]
        if unknown:
            parser.error(f"--{name}: no such {', '.join(unknown)}; there are {', '.join(known)}")
    args.severities = [int(one) for one in args.severities]
    if args.num_images is not None and args.num_images < 1:
        parser.error(f"--num-images: expected 1 or more, found {args.num_images}")
    return args


def run(args: argparse.Namespace) -> None:
    """One process of the evaluation."""
    cfg = setup(args)
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: name a data set to evaluate")
    name = cfg.DATASETS.TEST[0]
    check_dataset(name)
    folder = Path(cfg.OUTPUT_DIR)
    record = RobustnessRecord(folder / "robustness.json", describe(cfg, name, args.num_images))
    model = Trainer.build_model(cfg)
    Checkpointer(model, class_names=class_names_from_config(cfg)).load(cfg.MODEL.WEIGHTS)
    chosen = {"corruptions": args.corruptions, "severities": args.severities}
    evaluate_robustness(cfg, model, name, record, num_images=args.num_images, **chosen)
    if comm.is_main_process():
        table = robustness_table(record, args.severities)
        (folder / "robustness.md").write_text(table + "\n", encoding="utf-8")
        draw_chart(record, args.severities, folder / "robustness.png")
        print(f"{name}, {cfg.MODEL.WEIGHTS}\n\n{table}\n\nAlso in {folder}: robustness.json, .md and .png")


def describe(cfg: CfgNode, dataset_name: str, num_images: int | None) -> dict[str, Any]:
    """What is measured; a record of anything else is not gone on with."""
    model = cfg.MODEL.clone()
    model.defrost()
    del model["DEVICE"]  # does not change what is measured
    settings = model.dump() + cfg.INPUT.dump()
    return {
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": dataset_name,
        "num_images": num_images,
        "settings": f"{zlib.crc32(settings.encode()):08x}",
    }


def main(words: Sequence[str] | None = None) -> int:
    args = parse_arguments(words)
    try:
        launch(run, args)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
