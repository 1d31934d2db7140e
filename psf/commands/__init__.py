"""The command `psf`: one module or package per sub-command.

Each has `build_parser()`, its arguments, and `main(words)`, which runs it and returns the exit code. A module is
imported only when its command is used: `psf --help` and `psf doctor` need neither torch nor Detectron2.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from psf.errors import UserError, escape_controls, printable, without_worker

__all__ = [
    "COMMANDS",
    "GROUPS",
    "MODEL_HELP",
    "add_config_arguments",
    "add_max_pixels_flag",
    "add_num_images_flag",
    "add_workers_flag",
    "command_parser",
    "echo",
    "interruptible",
    "load_command",
    "log_to_screen",
    "not_negative",
    "open_streams",
    "positive",
    "run_command",
]

# Package of psf.commands -> its commands, each with its help text. Module names have "_" instead of "-".
GROUPS = {
    "predicting": {
        "predict": "segment images, a dataset, a video or a camera",
        "serve": "segment images over HTTP, with a page",
    },
    "training": {
        "train": "train a model, and evaluate it at the end",
        "quickstart": "train on generated scenes, evaluate, and draw predictions",
        "replay": "repeat a training step that was skipped because it was not finite",
    },
    "evaluating": {
        "evaluate": "evaluate a checkpoint on DATASETS.TEST",
        "robustness": "evaluate under image corruptions (COCO-C)",
        "tune-merging": "search the thresholds and exponents of mask-wise merging",
        "benchmark": "measure time per part of the model, images per second and memory",
        "analyze": "count parameters and FLOPs",
    },
    "datasets": {
        "validate": "validate a panoptic dataset",
        "convert-dataset": "convert label images, masks or annotations to a panoptic dataset",
    },
    "models": {
        "info": "show what is inside a model file",
        "model-zoo": "list published models, or download their weights",
        "convert-weights": "convert published checkpoints and ImageNet backbones",
    },
    "": {"doctor": "check the environment and print the command that fixes each problem"},
}
COMMANDS = {name: text for group in GROUPS.values() for name, text in group.items()}


DETAILS = ("psf.ops.dispatch", "psf.engine.merging")  # `psf doctor` and `psf info` show what these log
MODEL_HELP = "a model file of psf, or the name of a published model such as R50 (psf model-zoo)"


def load_command(name: str) -> ModuleType:
    """The module of a sub-command, such as "convert-dataset"."""
    [group] = [package for package, commands in GROUPS.items() if name in commands]
    return importlib.import_module(".".join(filter(None, ["psf.commands", group, name.replace("-", "_")])))


def command_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """An empty parser for one sub-command, which keeps the line breaks of its description."""
    return argparse.ArgumentParser(
        prog=f"psf {name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def positive(text: str) -> int:
    """Parse a number from 1."""
    return _whole_number(text, 1)


def not_negative(text: str) -> int:
    """Parse a number from 0."""
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a number from {least}, found {printable(text)!r}")
    return int(text)


def add_config_arguments(parser: argparse.ArgumentParser, opts: str = "opts", *, has_model: bool = False) -> None:
    """Add `--config-file`, `--register`, `--import` and, last, the config options, for `psf.engine.build_config`.

    Args:
        parser: of a command.
        opts: "opts" for positional KEY VALUE pairs; "--opts" where the command has other positional arguments, or
            flags with any number of values.
        has_model: the command has `--model`, and `--config-file` may be left out.
    """
    from psf.engine import add_import_flag, add_register_flag

    if has_model:
        parser.add_argument("--model", metavar="FILE", help=MODEL_HELP)
    help_text = "a yaml, or the name of a config of psf" + "; with --model: in place of the config inside" * has_model
    parser.add_argument("--config-file", required=not has_model, metavar="FILE", help=help_text)
    add_register_flag(parser)
    add_import_flag(parser)
    default: list[str] | None = None if opts == "opts" else []
    parser.add_argument(
        opts, nargs=argparse.REMAINDER, default=default, metavar="KEY VALUE", help="config options; last"
    )


def add_num_images_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--num-images`, 1 or more; None if it is not given."""
    help_text = "number of images, spread evenly over the dataset (default: all)"
    parser.add_argument("--num-images", type=positive, help=help_text)


def add_workers_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, the number of threads that read and write images."""
    parser.add_argument(
        "--workers",
        type=positive,
        default=min(os.cpu_count() or 1, 16),
        metavar="N",
        help="images that are processed at a time (default: one per processor, at most 16)",
    )


def add_max_pixels_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--max-pixels`, for commands without a config."""
    from psf.config import SHARED_KEYS

    default = SHARED_KEYS["INPUT.PSF_MAX_PIXELS"]
    help_text = "largest number of pixels of an image, as INPUT.PSF_MAX_PIXELS of a config (default: %(default)s)"
    parser.add_argument("--max-pixels", type=positive, default=default, metavar="N", help=help_text)


def _is_for_screen(record: logging.LogRecord) -> bool:
    is_own = record.name.startswith("psf") and record.name not in DETAILS
    return is_own or record.levelno >= logging.WARNING


def log_to_screen() -> None:
    """Show psf's own messages, and warnings of other packages, unless the caller has set up the root logger."""
    handler = logging.StreamHandler()
    handler.addFilter(_is_for_screen)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", handlers=[handler])


def echo(text: object = "") -> None:
    """Write a command's result to standard output, at once.

    Control characters of names are escaped, and so are characters that the output cannot encode. If nobody reads the
    output any more (`| head`), the command goes on: it may still have files to write.
    """
    lines = "\n".join(map(escape_controls, str(text).split("\n")))
    encoding = sys.stdout.encoding or "utf-8"
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.write(f"{lines}\n".encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()


class _UnreadOutput(io.FileIO):
    """Standard output that accepts everything after its reader has gone."""

    def write(self, data: Any) -> Any:
        try:
            return super().write(data)
        except BrokenPipeError:
            return len(data)


def open_streams() -> None:
    """Replace standard streams that the caller has closed (`>&-`) by ones that discard everything.

    They take the closed descriptors, so that no file gets these, which libraries in C write messages to.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            raw = io.FileIO(descriptor, mode, closefd=False)
            stream = io.TextIOWrapper(
                io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw), "utf-8", "replace"
            )
            setattr(sys, name, stream)


def tolerate_output() -> None:
    """Make standard output accept what it cannot encode or deliver: text of libraries, too, ends no command."""
    if sys.stdout is not sys.__stdout__ or sys.stdout is None or not hasattr(sys.stdout, "reconfigure"):
        return  # it belongs to a caller
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        before, raw = sys.stdout, _UnreadOutput(sys.stdout.fileno(), "w", closefd=False)
        sys.stdout = io.TextIOWrapper(
            raw if before.write_through else io.BufferedWriter(raw),  # as Python itself does
            before.encoding,
            "backslashreplace",
            line_buffering=before.line_buffering,
            write_through=before.write_through,
        )


@contextlib.contextmanager
def interruptible(describe: Callable[[], str]) -> Iterator[None]:
    """If Ctrl-C ends the block, the command's last line also has what is saved, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(describe()) from None


def run_command(action: Callable[[], int | None]) -> int:
    """Run a command's action, and report user errors.

    Returns:
        The action's exit code (None counts as 0); 2 after a user error, a file system error or a lack of memory, which
        is printed as one line on stderr; 130 after Ctrl-C, with the text of the KeyboardInterrupt (`interruptible`), if
        it has one.
    """
    open_streams()
    tolerate_output()
    try:
        return action() or 0
    except KeyboardInterrupt as interrupt:
        what = f": {interrupt}" if str(interrupt) else ""
        sys.stderr.write(f"stopped by Ctrl-C{what}\n")
        return 130
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {printable(without_worker(str(error)))}\n")
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_lack_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
        what = f" ({printable(reason)})" if reason else ""
        sys.stderr.write(f"error: not enough memory{what}: take smaller images, a smaller batch or fewer workers\n")
        return 2


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether Python, or torch on a CPU or GPU, could not allocate memory; torch need not be loaded."""
    is_torch = type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)
    return isinstance(error, MemoryError) or is_torch
