"""The command line of train_net.py and of `python -m psf.engine`, and what becomes of mistakes in one."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence

from psf.engine.arguments import argument_parser
from psf.engine.launch import launch
from psf.engine.trainer import main

__all__ = ["report_mistakes", "run_command_line"]


def run_command_line(words: Sequence[str] | None = None) -> int:
    """Train or evaluate as the command line says. Returns the exit code, see `report_mistakes`."""
    return report_mistakes(lambda: launch(main, argument_parser().parse_args(words)))


def report_mistakes(action: Callable[[], object]) -> int:
    """Do what a command is for. Returns its exit code: 2 after a mistake of the user's, else 0.

    Such a mistake is a ValueError of psf or of the config: it is one line on stderr. Other errors are raised, and so
    is what happens in processes that were started, whose traceback names the same line at its end.
    """
    try:
        action()
    except ValueError as error:
        if not _is_mistake_of_user(error):
            raise
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _is_mistake_of_user(error: ValueError) -> bool:
    """Whether psf or yacs, which reads configs, raised it: of other libraries a ValueError may be a fault of psf."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return innermost.f_globals["__name__"].partition(".")[0] in ("psf", "yacs")
