"""The command line of train_net.py and of `python -m psf.engine`, and what becomes of mistakes in one."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from psf.engine.arguments import argument_parser
from psf.engine.launch import launch
from psf.engine.trainer import main

__all__ = ["report_mistakes", "run_command_line"]

_PACKAGE = Path(__file__).resolve().parents[1]
# What torch makes of an error in a worker of a DataLoader: one text, the worker's traceback in it.
_FROM_WORKER = re.compile(r"Caught ValueError in DataLoader worker")
_FRAME = re.compile(r'^  File "(.+?)", line \d+', re.MULTILINE)
_NAME = re.compile(r"^ValueError: ", re.MULTILINE)


def run_command_line(words: Sequence[str] | None = None) -> int:
    """Train or evaluate as the command line says. Returns the exit code, see `report_mistakes`."""
    return report_mistakes(lambda: launch(main, argument_parser().parse_args(words)))


def report_mistakes(action: Callable[[], object]) -> int:
    """Do what a command is for. Returns its exit code: 2 after a mistake of the user's, else 0.

    Such a mistake is a ValueError of psf or of the config, also in a worker that loads data: it is one line on stderr.
    Other errors are raised, and so is what happens in processes that were started, whose traceback names the same line
    at its end.
    """
    try:
        action()
    except ValueError as error:
        message = _mistake_in_worker(str(error)) if _FROM_WORKER.match(str(error)) else _mistake(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return 2
    return 0


def _mistake(error: ValueError) -> str | None:
    """What psf or yacs, which reads configs, says; None of other libraries, whose ValueError may be a fault of psf."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return str(error) if innermost.f_globals["__name__"].partition(".")[0] in ("psf", "yacs") else None


def _mistake_in_worker(text: str) -> str | None:
    """What psf says in a text that ends with a worker's traceback; None of other libraries."""
    *_, innermost = _FRAME.finditer(text)
    if _PACKAGE not in Path(innermost[1]).resolve().parents:
        return None
    return _NAME.split(text[innermost.end() :], maxsplit=1)[-1].strip()
