"""Segment images, a video or a camera stream with a trained model, and write the results.

    psf predict --model model.pth photo.jpg
    psf predict --config-file FILE --input photos/ --output out --opts MODEL.WEIGHTS old_model.pth

A model file of psf needs neither a config nor a dataset: both are inside. For an image NAME.*, writes NAME.jpg (drawn
segments), NAME_panoptic.png (segment ids in COCO's encoding) and NAME.json (class, score, area and box of each
segment). --save selects these files or binary masks. --task instance writes instances, which may overlap, with their
masks in the JSON; --task semantic writes the class of each pixel to NAME_semantic.png. For an image without segments,
the log has the best candidates and what rejected them. For a video or a camera, writes a drawn video without sound;
Ctrl-C ends it properly. Inputs must not be in the output folder. If files there that psf has not written would be
replaced, the command stops before the first image; so it does for results of another image of the same name.
--overwrite replaces both.
Exit code: 0 success; 1 an input could not be read, or not to its end (it is named, the others are processed);
2 the command could not start, or could not write the results.
"""

from __future__ import annotations

import argparse
import errno
import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils.video_visualizer import VideoVisualizer
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from psf.checkpoint import check_same_classes
from psf.commands import add_config_arguments, command_parser, echo, not_negative, positive, run_command
from psf.data import image_suffixes
from psf.data.files import is_hidden, make_folder
from psf.data.own_files import check_replaceable, recorded
from psf.engine import build_config
from psf.engine.config.checks import check_device
from psf.errors import UserError, printable
from psf.output import (
    FILE_KINDS,
    TASKS,
    Camera,
    TimedFrame,
    VideoFile,
    VideoWriter,
    check_output,
    drawable_metadata,
    write_output,
)
from psf.prediction import ModelFile, PanopticResult, Predictor, read_model_file

__all__ = ["build_parser", "main"]

logger = logging.getLogger("psf.predict")

MAX_EXPLAINED = 10  # images without segments
CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+")


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = build_parser().parse_args(words)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    return run_command(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Segment images or a video; returns the exit code."""
    args.input = [*args.images, *args.input]
    is_video = args.video_input is not None or args.webcam is not None
    if is_video == bool(args.input):
        found = "both" if is_video else "neither"
        raise UserError(
            f"found {found}: name images, as in psf predict --model FILE photo.jpg, or --video-input or --webcam"
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
        help="files of an image [picture,png,json]: " + "; ".join(map(": ".join, FILE_KINDS.items())),
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
    if unknown := [kind for kind in kinds if kind not in FILE_KINDS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FILE_KINDS)}")
    return kinds


def build_predictor(args: argparse.Namespace) -> Predictor:
    """Build a predictor from --model or --config-file, with the given device, task and threshold."""
    file = _read_model(args)
    cfg = file.cfg
    _set_threshold(cfg, args.task, args.confidence_threshold)
    # Enable only the requested result, and no semantic scores: those of one large photograph take gigabytes.
    for task in TASKS:
        cfg.MODEL.PSF.TEST[f"{task.upper()}_ON"] = task == args.task
    predictor = Predictor.of_model_file(file)
    processor = getattr(predictor.model, "post_processor", None)
    if processor is not None and args.task == "instance" and args.confidence_threshold is None:
        threshold = max(processor.things.t_cnf, cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH)  # of the checkpoint, if tuned
        processor.instance = processor.instance._replace(score_thresh=threshold)
    if processor is not None and args.confidence_threshold is not None:  # also if the checkpoint stores tuned ones
        processor.things, processor.stuff = (
            numbers._replace(t_cnf=args.confidence_threshold) for numbers in (processor.things, processor.stuff)
        )
    return predictor


def _read_model(args: argparse.Namespace) -> ModelFile:
    if args.model is not None:
        device = _choose_device(args.device, "cuda")
        return read_model_file(
            args.model,
            config_file=args.config_file,
            options=args.opts,
            imports=args.imports,
            register=args.register,
            device=device,
        )
    cfg = build_config(args.config_file, args.opts, args.register, args.imports)
    if not cfg.DATASETS.TEST and not cfg.MODEL.PSF.CLASSES:
        raise UserError(f"{args.config_file}: DATASETS.TEST is empty; class names come from its first dataset")
    check_same_classes((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST[:1]))
    cfg.MODEL.DEVICE = _choose_device(args.device, cfg.MODEL.DEVICE)
    return ModelFile(cfg.MODEL.WEIGHTS, cfg, {})


def _set_threshold(cfg: CfgNode, task: str, threshold: float | None) -> None:
    """Set the confidence threshold of panoptic segments and instances."""
    merging = cfg.MODEL.PSF.POST_PROCESSOR
    if task == "semantic" and threshold is not None:
        raise UserError(
            "--confidence-threshold has no effect with --task semantic: each pixel gets its most likely class"
        )
    if threshold is not None:
        merging.THINGS.T_CNF = merging.STUFF.T_CNF = cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH = threshold


def _choose_device(requested: str | None, configured: str) -> str:
    device = requested or configured
    check_device(device, "--device" if requested else "MODEL.DEVICE")
    if device.startswith("cuda") and not torch.cuda.is_available():
        if requested:
            raise UserError(f"--device {requested}: torch finds no CUDA GPU")
        logger.info("no CUDA GPU found: running on the CPU")
        return "cpu"
    logger.info("running on %s", device)
    return device


def segment_images(args: argparse.Namespace) -> int:
    """Write the files of every image of --input; an image that cannot be used is named and skipped."""
    if args.max_frames is not None:
        raise UserError("--max-frames needs --video-input or --webcam: --input uses all images")
    kinds = args.save or ["picture", "json"] + ["png"] * (args.task != "instance")
    if args.task == "instance" and "png" in kinds:
        raise UserError("--save png has no effect with --task instance: masks may overlap; use --save masks")
    images, skipped = find_images(args.input)
    check_apart(images, args.output, *args.output.glob("*_masks"))
    make_folder(args.output, "--output")
    names = choose_names(images)
    for path, name in names.items():
        check_output(args.output, name, source=path, task=args.task, kinds=kinds, overwrite=args.overwrite)
    predictor = build_predictor(args)
    num_written, empty = 0, list[Path]()
    with logging_redirect_tqdm():
        for path, name in tqdm(names.items(), unit="image"):
            try:
                result = predictor(path, tasks=[args.task])
                output = result.task_output(args.task)
                write_output(
                    output,
                    result.picture,
                    source=path,
                    folder=args.output,
                    name=name,
                    kinds=kinds,
                    overwrite=args.overwrite,
                )
                num_written += 1
                if result.is_empty(args.task):
                    empty.append(path)
                    _explain(result, args.task, path, is_first=len(empty) <= MAX_EXPLAINED)
            except (UserError, OSError) as error:
                if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                    raise  # such as a full disk, which the next image would meet, too
                logger.error("%s: skipped: %s", printable(path), printable(error))
                skipped.append(str(path))
    without = f", {len(empty)} without segments" if empty else ""
    echo(f"{num_written} of {len(images)} images written to {args.output}{without}")
    if skipped:
        echo(f"skipped: {', '.join(skipped)}")
    return 1 if skipped else 0


def _explain(result: PanopticResult, task: str, path: Path, *, is_first: bool) -> None:
    """Log why an image has no segments; only of the first ones, as it takes longer than the results."""
    with suppress(UserError):  # of models that do not explain it
        if is_first:
            logger.warning("%s: %s", printable(path), result.explain(task).summary)


def find_images(patterns: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Find the files that match the patterns, each once and in order; also return the patterns without a match.

    A folder matches its files with a suffix of `image_suffixes` or, if there are none, its .npy arrays; the number of
    its other files is logged. A path or a glob matches files with any suffix.

    Raises:
        UserError: if no pattern has a match, or a pattern is a config key.
    """
    images: dict[str, Path] = {}  # by the real path, of `os.path`: pathlib raises for links in a circle
    unmatched = []
    suffixes = image_suffixes()
    for pattern in patterns:
        path = Path(os.path.expanduser(pattern))  # pathlib raises for an unknown ~user
        if path.is_dir():
            files = [file for file in path.iterdir() if file.is_file() and not is_hidden(file, path)]
            matches = [file for file in files if file.suffix.lower() in suffixes]
            matches = matches or [file for file in files if file.suffix.lower() == ".npy"]
            if others := sorted({file.suffix or file.name for file in set(files) - set(matches)}):
                number = len(files) - len(matches)
                logger.info("--input %s: %d files are no images (%s)", pattern, number, ", ".join(others[:10]))
        elif path.exists():
            matches = [path]
        else:
            matches = [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
        if not matches and CONFIG_KEY.fullmatch(pattern):
            raise UserError(f"--input contains {pattern}, a config key: config options come last, after --opts")
        if not matches:
            hint = f"; sub-folders are not searched; use --input '{path}/**/*'" if path.is_dir() else ""
            logger.error("--input %s: no image found%s", pattern, hint)
            unmatched.append(pattern)
        for match in sorted(matches):
            images.setdefault(os.path.realpath(match), match)
    if not images:
        raise UserError(f"no image found; --input takes files, globs, and folders with {' '.join(sorted(suffixes))}")
    return list(images.values()), unmatched


def choose_names(images: Sequence[Path]) -> dict[Path, str]:
    """A name for each image's output files: its stem, with a number if an earlier image has this stem."""
    names: dict[Path, str] = {}
    seen = set()
    for image in images:
        name, number = image.stem, 1
        while name.lower() in seen:
            number += 1
            name = f"{image.stem}_{number}"
        seen.add(name.lower())
        names[image] = name
    return names


def check_apart(sources: Iterable[Path], *folders: Path) -> None:
    """Refuse an input in an output folder: results could overwrite it or a related file (a.json of a.png)."""
    taken = {os.path.realpath(folder) for folder in folders}
    for source in sources:
        if taken & {os.path.realpath(source.parent), os.path.dirname(os.path.realpath(source))}:
            raise UserError(f"{source} is in the output folder, where it could be overwritten: change --output")


def segment_video(args: argparse.Namespace) -> int:
    """Write the drawn video of --video-input or --webcam; of a damaged file, the frames before the damage."""
    if args.save is not None:
        raise UserError("--save needs --input: --video-input and --webcam write one drawn video")
    source = Camera(args.webcam) if args.video_input is None else VideoFile(args.video_input)
    target = _video_target(args)
    num_written, is_complete = 0, True
    with source as frames, recorded(target), VideoWriter(target, frames.rate) as writer:
        predictor = build_predictor(args)
        if predictor.cfg.INPUT.FORMAT == "BANDS":
            raise UserError("INPUT.FORMAT is 'BANDS': expected 'BGR', 'RGB' or 'L' for a video")
        visualizer = VideoVisualizer(drawable_metadata(predictor.metadata))
        known_lengths = [length for length in (frames.num_frames, args.max_frames) if length is not None]
        progress = tqdm(islice(frames, args.max_frames), total=min(known_lengths, default=None), unit="frame")
        try:
            for image_rgb, seconds in progress:
                output = predictor(image_rgb, tasks=[args.task]).task_output(args.task)
                writer.write(TimedFrame(output.frame(visualizer, image_rgb), seconds))
                num_written += 1
        except KeyboardInterrupt:
            logger.info("stopped")
        except UserError as error:
            if not num_written:
                raise
            logger.error("%s", error)
            is_complete = False
    if not num_written:
        raise UserError(f"{args.video_input or 'the camera'}: no frame could be read")
    echo(f"{num_written} frames written to {target}")
    return 0 if is_complete else 1


def _video_target(args: argparse.Namespace) -> Path:
    """The output file: --output itself or, if it is a folder, a file in it."""
    source: Path | None = args.video_input
    target: Path = args.output
    if target.is_dir() or not target.suffix:
        check_apart([source] if source else [], target)
        make_folder(target, "--output")
        target /= f"camera{args.webcam}.mp4" if source is None else f"{source.stem}.mp4"
    if source is not None and os.path.realpath(target) == os.path.realpath(source):
        raise UserError(f"the result would overwrite {source}: change --output")
    way_out = "change --output, or use --overwrite"
    check_replaceable([target], overwrite=args.overwrite, way_out=way_out)
    make_folder(target.parent, "the folder of --output,")
    return target
