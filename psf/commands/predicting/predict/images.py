"""Segment images, and write their files and those of the whole run."""

from __future__ import annotations

import argparse
import errno
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from tqdm.contrib.logging import logging_redirect_tqdm

from psf.commands import echo, interruptible
from psf.commands.predicting.predict.inputs import check_apart, find_input
from psf.commands.predicting.predict.model import build_predictor
from psf.data.files import make_folder
from psf.errors import UserError, printable
from psf.output import (
    ANNOTATION_KINDS,
    FILE_KINDS,
    AnnotatedImage,
    AnnotationWriter,
    annotation_writer,
    check_output,
    write_output,
)
from psf.prediction import PanopticResult, Predictor
from psf.progress import Progress

__all__ = ["segment_images"]

logger = logging.getLogger("psf.predict")

MAX_EXPLAINED = 10  # images without segments


def segment_images(args: argparse.Namespace) -> int:
    """Write the files of every image; an image that cannot be used is named and skipped. Returns the exit code."""
    if args.max_frames is not None:
        raise UserError("--max-frames needs --video-input or --webcam: --input uses all images")
    kinds = args.save or ["picture", "json"] + ["png"] * (args.task != "instance")
    if args.task == "instance" and "png" in kinds:
        raise UserError("--save png has no effect with --task instance: masks may overlap; use --save masks")
    writers = _annotation_writers(args, kinds)
    found = find_input(args)
    run = _Run(args, [kind for kind in kinds if kind in FILE_KINDS], writers, len(found.images), found.unmatched)
    folders = [folder for writer in writers for folder in writer.image_folders()]
    check_apart((image.path for image in found.images), args.output, *args.output.glob("*_masks"), *folders)
    make_folder(args.output, "--output")
    run.check(found.images)
    with interruptible(lambda: f"{run.summary}; the same command starts again"):
        predictor = build_predictor(args)
        try:
            run.write(predictor, found.images)
        except OSError as error:
            raise UserError(
                f"{error.filename or args.output} cannot be written ({error.strerror or error}): make room, or change "
                f"--output; {run.summary}; the same command starts again"
            ) from error
    echo(run.summary)
    if run.skipped:
        echo(f"skipped: {', '.join(run.skipped)}")
    if writers:
        echo(f"image paths in {', '.join(writer.kind for writer in writers)} are relative to {found.root}")
    return 1 if run.skipped else 0


def _annotation_writers(args: argparse.Namespace, kinds: Sequence[str]) -> list[AnnotationWriter]:
    """A writer for each kind in ANNOTATION_KINDS; a UserError if a kind or a flag does not fit the others."""
    chosen = [kind for kind in dict.fromkeys(kinds) if kind in ANNOTATION_KINDS]
    if args.shapes is not None and not {"coco-instance", "labelme", "cvat", "label-studio"} & set(chosen):
        raise UserError("--shapes needs --save coco-instance, labelme, cvat or label-studio")
    if args.image_prefix is not None and "label-studio" not in chosen:
        raise UserError("--image-prefix needs --save label-studio")
    settings = {"shapes": args.shapes or "masks", "image_prefix": args.image_prefix, "overwrite": args.overwrite}
    writers = [annotation_writer(kind, args.output, **settings) for kind in chosen]
    for writer in writers:
        if args.task not in writer.tasks:
            raise UserError(
                f"--save {writer.kind} has no effect with --task {args.task}: expected --task "
                + " or ".join(writer.tasks)
            )
    return writers


class _Run:
    """The state of a run over images."""

    def __init__(
        self,
        args: argparse.Namespace,
        kinds: Sequence[str],
        writers: Sequence[AnnotationWriter],
        num_images: int,
        unmatched: Sequence[str],
    ) -> None:
        self._args, self._kinds, self._writers, self._num_images = args, kinds, writers, num_images
        self._num_written, self._num_empty = 0, 0
        self.skipped = list(unmatched)

    def check(self, images: Sequence[AnnotatedImage]) -> None:
        """Check that no file of the user would be replaced; see `check_output` and `AnnotationWriter.check`."""
        args = self._args
        for image in images:
            check_output(
                args.output, image.name, source=image.path, task=args.task, kinds=self._kinds, overwrite=args.overwrite
            )
        for writer in self._writers:
            writer.check(images)

    def write(self, predictor: Predictor, images: Sequence[AnnotatedImage]) -> None:
        """Segment the images, one after the other."""
        with logging_redirect_tqdm(), ExitStack() as stack:
            for writer in self._writers:
                stack.enter_context(writer.writing(predictor.metadata))
            for image in Progress(images, unit="image"):
                try:
                    self._write_image(predictor, image)
                except (UserError, OSError) as error:
                    if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
                        raise  # such as a full disk, which the next image would meet, too
                    logger.error("%s: skipped: %s", printable(image.path), printable(error))
                    self.skipped.append(str(image.path))

    def _write_image(self, predictor: Predictor, image: AnnotatedImage) -> None:
        args = self._args
        result = predictor(image.path, tasks=[args.task])
        output = result.task_output(args.task)
        if self._kinds:
            write_output(
                output,
                result.picture,
                source=image.path,
                folder=args.output,
                name=image.name,
                kinds=self._kinds,
                overwrite=args.overwrite,
            )
        for writer in self._writers:
            writer.add(image, output)
        self._num_written += 1
        if result.is_empty(args.task):
            self._num_empty += 1
            self._explain(result, image.path)

    def _explain(self, result: PanopticResult, path: Path) -> None:
        """Log why an image has no segments; only of the first ones, as it takes longer than the results."""
        with suppress(UserError):  # of models that do not explain it
            if self._num_empty <= MAX_EXPLAINED:
                logger.warning("%s: %s", printable(path), result.explain(self._args.task).summary)

    @property
    def summary(self) -> str:
        """What is written."""
        without = f", {self._num_empty} without segments" if self._num_empty else ""
        return f"{self._num_written} of {self._num_images} images written to {self._args.output}{without}"
