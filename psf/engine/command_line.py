"""The command line of train_net.py and of `python -m psf.engine`, and what becomes of mistakes in one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from psf.engine.arguments import argument_parser
from psf.engine.launch import launch
from psf.engine.mistakes import mistake_of
from psf.engine.trainer import main

__all__ = ["report_mistakes", "run_command_line"]


def run_command_line(words: Sequence[str] | None = None) -> int:
    """Train or evaluate as the command line says. Returns the exit code, see `report_mistakes`."""
    return report_mistakes(lambda: launch(main, argument_parser().parse_args(words)))


def report_mistakes(action: Callable[[], object]) -> int:
    """Do what a command is for. Returns its exit code: 2 after a mistake of the user's, else 0.

    Such a mistake is a ValueError of psf or of the config, also in a worker that loads data or in a process that
    `launch` started: it is one line on stderr. Other errors are raised.
    """
    try:
        action()
    except ValueError as error:
        message = mistake_of(error)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return 2
    return 0
