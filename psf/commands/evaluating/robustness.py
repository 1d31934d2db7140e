"""Measure panoptic quality under 16 corruptions at 5 severities (COCO-C, table 11 of the paper).

psf robustness --config-file coco/psf_R50_24ep.yaml --num-images 2000 \\
    MODEL.WEIGHTS model_final.pth OUTPUT_DIR output/robustness

Evaluates on the first dataset of DATASETS.TEST. Reports PQ, or PQ_th for a model without stuff and PQ_st for a model
without things. Writes OUTPUT_DIR/robustness.json, .md and .png after each evaluation; the same command continues an
interrupted run. Frost uses generated crystals instead of the published photographs: compare it only with other results
of this command.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from psf.commands import add_num_images_flag, echo, run_command
from psf.commands.training import train
from psf.engine import (
    Trainer,
    build_checkpointer,
    build_config,
    check_run,
    launch,
    output_folder,
    panoptic_test_set,
    resolve_num_queries,
    setup,
)
from psf.meta_arch import classes_from_config
from psf.tools.robustness import (
    CORRUPTIONS,
    SEVERITIES,
    RobustnessRecord,
    describe_measurement,
    evaluate_robustness,
    write_report,
)

__all__ = ["build_parser", "main"]

FOLDER = "robustness"  # below OUTPUT_DIR, if the command line has none


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `psf train`, with arguments to select images and corruptions."""
    parser = train.build_parser("robustness", __doc__)
    add_num_images_flag(parser)
    for flag, known in (("--corruptions", list(CORRUPTIONS)), ("--severities", [str(one) for one in SEVERITIES])):
        choose = partial(some_of, known=known)
        parser.add_argument(flag, type=choose, default=known, metavar="NAMES", help="comma-separated (default: all)")
    return parser


def some_of(text: str, known: Sequence[str]) -> list[str]:
    """Parse comma-separated names; repeated names count once."""
    chosen = list(dict.fromkeys(text.split(",")))
    unknown = [one for one in chosen if one not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"found {', '.join(unknown)}, expected some of {', '.join(known)}")
    return chosen


def check_and_launch(args: argparse.Namespace) -> None:
    """Check the record before several processes start, so that a mismatch is one line and not a traceback."""
    check_run(args, is_training=False)
    cfg = build_config(args.config_file, args.opts, args.register, args.imports)
    resolve_num_queries(cfg)
    cfg.MODEL.DEVICE = "cpu" if args.num_gpus == 0 else cfg.MODEL.DEVICE  # as `setup` sets it
    cfg.OUTPUT_DIR = output_folder(cfg, args.opts, FOLDER)
    open_record(panoptic_alone(cfg), args)
    launch(run, args, is_training=False)


def run(args: argparse.Namespace) -> None:
    """One process of the evaluation."""
    cfg = panoptic_alone(setup(args, is_training=False, folder_name=FOLDER))
    record, folder, metric = open_record(cfg, args), Path(cfg.OUTPUT_DIR), main_metric(cfg)
    model = Trainer.build_model(cfg)
    build_checkpointer(cfg, model).load(cfg.MODEL.WEIGHTS)
    report = partial(write_report, record, args.severities, folder, metric)
    chosen = {"corruptions": args.corruptions, "severities": args.severities, "num_images": args.num_images}
    evaluate_robustness(cfg, model, cfg.DATASETS.TEST[0], record, after_each=report, **chosen)
    if comm.is_main_process():
        title = f"{cfg.DATASETS.TEST[0]}, {cfg.MODEL.WEIGHTS}"
        echo(f"{title}\n\n{report()}\n\nAlso in {folder}: robustness.json, .md and .png")


def panoptic_alone(cfg: CfgNode) -> CfgNode:
    """A copy of the config that enables only panoptic results."""
    cfg = cfg.clone()
    cfg.defrost()
    test = cfg.MODEL.PSF.TEST
    test.PANOPTIC_ON, test.INSTANCE_ON, test.SEMANTIC_ON = True, False, False
    return cfg


def open_record(cfg: CfgNode, args: argparse.Namespace) -> RobustnessRecord:
    about = describe_measurement(cfg, panoptic_test_set(cfg), args.num_images)
    return RobustnessRecord(Path(cfg.OUTPUT_DIR, "robustness.json"), about)


def main_metric(cfg: CfgNode) -> str:
    """PQ; PQ_th or PQ_st if the model has only things or only stuff."""
    classes = classes_from_config(cfg)
    if not classes.stuff_ids:
        return "PQ_th"
    return "PQ" if classes.thing_ids else "PQ_st"


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    args.severities = [int(one) for one in args.severities]
    return run_command(lambda: check_and_launch(args))
