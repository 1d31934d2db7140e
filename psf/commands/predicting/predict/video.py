"""Segment a video or a camera stream."""

from __future__ import annotations

import argparse
import logging
import os
from itertools import islice
from pathlib import Path

from detectron2.utils.video_visualizer import VideoVisualizer

from psf.commands import echo
from psf.commands.predicting.predict.inputs import check_apart
from psf.commands.predicting.predict.model import build_predictor
from psf.data.files import make_folder
from psf.data.own_files import check_replaceable, recorded
from psf.errors import UserError
from psf.output import Camera, TimedFrame, VideoFile, VideoWriter, drawable_metadata
from psf.progress import Progress

__all__ = ["segment_video"]

logger = logging.getLogger("psf.predict")


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
        progress = Progress(islice(frames, args.max_frames), total=min(known_lengths, default=None), unit="frame")
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
