"""Segment images, a video or a camera stream with a trained model, and write the results.

    psf predict --model model.pth photo.jpg
    psf predict --model model.pth photos/ --output out --save coco-panoptic,cvat
    psf predict --config-file FILE --input photos/ --output out --opts MODEL.WEIGHTS old_model.pth

A model file of psf needs neither a config nor a dataset: both are inside. For an image NAME.*, writes NAME.jpg (drawn
segments), NAME_panoptic.png (segment ids in COCO's encoding) and NAME.json (class, score, area and box of each
segment). --save selects these files, binary masks, or the formats of annotation tools, each in a folder of its own.
--task instance writes instances, which may overlap, with their masks in the JSON; --task semantic writes the class of
each pixel to NAME_semantic.png. For an image without segments,
the log has the best candidates and what rejected them. For a video or a camera, writes a drawn video without sound;
Ctrl-C ends it properly. Inputs must not be in the output folder. If files there that psf has not written would be
replaced, the command stops before the first image; so it does for results of another image of the same name.
--overwrite replaces both.
Exit code: 0 success; 1 an input could not be read, or not to its end (it is named, the others are processed);
2 the command could not start, or could not write the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from psf.commands import add_config_arguments, command_parser, log_to_screen, not_negative, positive, run_command
from psf.commands.predicting.predict.images import segment_images
from psf.commands.predicting.predict.video import segment_video
from psf.errors import UserError
from psf.output import ANNOTATION_KINDS, FILE_KINDS, TASKS
from psf.output.annotations import LOCAL_FILES, SHAPES

__all__ = ["build_parser", "main"]

KINDS = (*FILE_KINDS, *ANNOTATION_KINDS)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    log_to_screen()
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Segment images or a video; returns the exit code."""
    args.input = [*args.images, *args.input]
    is_video = args.video_input is not None or args.webcam is not None
    if (is_video or args.dataset is not None) == bool(args.input):
        found = "both" if args.input else "neither"
        raise UserError(
            f"found {found}: name images, as in psf predict --model FILE photo.jpg, or --dataset, --video-input or "
            "--webcam"
        )
    if args.model is None and args.config_file is None:
        raise UserError(
            "--model is missing: expected a model file, such as output/mine/model_final.pth; or, for a file without a "
            "config inside, --config-file FILE ... --opts MODEL.WEIGHTS model.pth"
        )
    return segment_video(args) if is_video else segment_images(args)


def build_parser() -> argparse.ArgumentParser:
    """Build the argument parser."""
    parser = command_parser("predict", __doc__)
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="images, folders of images, or quoted globs")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--input", nargs="+", default=[], metavar="PATH", help="the same as IMAGE")
    source.add_argument("--dataset", metavar="NAME", help="all images of a dataset, such as one of --register")
    source.add_argument("--video-input", type=Path, metavar="FILE", help="a video file")
    source.add_argument(
        "--webcam", nargs="?", type=not_negative, const=0, metavar="INDEX", help="a camera, counted from 0"
    )
    add("--output", type=Path, default="output/demo", metavar="PATH", help="folder, or a video file [%(default)s]")
    add("--task", choices=TASKS, default="panoptic", help="kind of results [%(default)s]")
    add(
        "--save",
        type=_file_kinds,
        metavar="KIND,KIND",
        help="files of an image [picture,png,json]: "
        + "; ".join(map(": ".join, FILE_KINDS.items()))
        + ". Files of annotation tools, in a folder of the name of the kind: "
        + "; ".join(map(": ".join, ANNOTATION_KINDS.items())),
    )
    add(
        "--shapes",
        choices=SHAPES,
        help="of annotation tools: exact masks, or polygons, which are easier to edit [masks]",
    )
    add(
        "--image-prefix",
        metavar="TEXT",
        help=f"of label-studio: beginning of an image's address, before its path below their folder [{LOCAL_FILES}]",
    )
    add("--confidence-threshold", type=_confidence, metavar="T", help="drop segments below it [T_CNF of the config]")
    add("--device", help="cpu, cuda, cuda:1, ... [MODEL.DEVICE of the config, cpu without a GPU]")
    add("--max-frames", type=positive, metavar="N", help="end a video or camera after N frames")
    add(
        "--overwrite",
        action="store_true",
        help="replace files in --output of another image, or not written by psf",
    )
    add_config_arguments(parser, "--opts", has_model=True)
    return parser


def _confidence(text: str) -> float:
    try:
        if 0 <= (value := float(text)) <= 1:
            return value
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1")


def _file_kinds(text: str) -> list[str]:
    kinds = text.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return kinds
