"""The images of a command line: files, folders, globs, or a dataset."""

from __future__ import annotations

import argparse
import glob
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from psf.data import PanopticSet, image_suffixes, load_dataset, register_panoptic
from psf.data.files import is_hidden
from psf.engine import build_config
from psf.errors import UserError
from psf.output import AnnotatedImage

__all__ = ["InputImages", "check_apart", "find_input"]

logger = logging.getLogger("psf.predict")

CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+")


class InputImages(NamedTuple):
    """The images of a run.

    images: at least one, in order, each once.
    root: the folder that their `file_name` is relative to: of the dataset, or the deepest one with all images.
    unmatched: arguments that match no image.
    """

    images: list[AnnotatedImage]
    root: Path
    unmatched: list[str]


def find_input(args: argparse.Namespace) -> InputImages:
    """The images of --dataset or of --input; a UserError if there is none."""
    if args.dataset is not None:
        return _of_dataset(args)
    paths, unmatched = find_images(args.input)
    folders = {os.path.abspath(path.parent) for path in paths}
    root = Path(os.path.commonpath(folders))
    files = [Path(os.path.relpath(os.path.abspath(path), root)).as_posix() for path in paths]
    return InputImages(_named(paths, files, range(1, len(paths) + 1)), root, unmatched)


def _of_dataset(args: argparse.Namespace) -> InputImages:
    """The images of --dataset, which --register, the config or psf itself has registered; ground truth is not read."""
    for text in args.register:
        register_panoptic(*PanopticSet.parse(text))
    if args.dataset not in DatasetCatalog and args.config_file is not None:
        build_config(args.config_file, args.opts, args.register, args.imports, warn=False)
    if args.dataset not in DatasetCatalog:
        raise UserError(
            f"--dataset: no dataset is called {args.dataset!r}: add --register {args.dataset}=JSON,PNGS,IMAGES"
        )
    dicts = load_dataset(args.dataset)
    paths = [Path(one["file_name"]) for one in dicts]
    common = os.path.commonpath([os.path.abspath(path.parent) for path in paths])
    root = Path(MetadataCatalog.get(args.dataset).get("image_root") or common)
    files = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    return InputImages(_named(paths, files, [one["image_id"] for one in dicts]), root, [])


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
            unmatched.append(pattern)
            hint = f"; sub-folders are not searched; use --input '{path}/**/*'" if path.is_dir() else ""
            if hint or len(patterns) > 1:
                logger.error("--input %s: no image found%s", pattern, hint)
        for match in sorted(matches):
            images.setdefault(os.path.realpath(match), match)
    if not images:
        folders = [pattern for pattern in patterns if os.path.isdir(os.path.expanduser(pattern))]
        kinds = f"; a folder may have {' '.join(sorted(suffixes))}" if folders else ""
        raise UserError(f"no image found in {' '.join(patterns)}: expected image files, folders or quoted globs{kinds}")
    return list(images.values()), unmatched


def _named(paths: Sequence[Path], file_names: Sequence[str], ids: Iterable[int | str]) -> list[AnnotatedImage]:
    """The images with a name for their output files: the stem, with a number if an earlier image has this stem."""
    seen = set()
    images = []
    for path, file_name, image_id in zip(paths, file_names, ids, strict=True):
        name, number = path.stem, 1
        while name.lower() in seen:
            number += 1
            name = f"{path.stem}_{number}"
        seen.add(name.lower())
        images.append(AnnotatedImage(path, name, file_name, image_id))
    return images


def check_apart(sources: Iterable[Path], *folders: Path) -> None:
    """Refuse an input in an output folder: results could overwrite it or a related file (a.json of a.png)."""
    taken = {os.path.realpath(folder) for folder in folders}
    for source in sources:
        if taken & {os.path.realpath(source.parent), os.path.dirname(os.path.realpath(source))}:
            raise UserError(f"{source} is in the output folder, where it could be overwritten: change --output")
