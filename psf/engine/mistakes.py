"""Which errors are mistakes of the user, and how a process tells them to the process that started it."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

__all__ = ["mistake_of", "read_mistake", "run_and_note_mistakes"]

_PACKAGE = Path(__file__).resolve().parents[1]
# What torch makes of an error in a worker of a DataLoader: one text, the worker's traceback in it.
_FROM_WORKER = re.compile(r"Caught ValueError in DataLoader worker")
_FRAME = re.compile(r'^  File "(.+?)", line \d+', re.MULTILINE)
_NAME = re.compile(r"^ValueError: ", re.MULTILINE)
_FILE = "mistake.txt"


def mistake_of(error: ValueError) -> str | None:
    """The text of a mistake of the user's, which psf or the config raised, also in a worker that loads data.

    None for other errors: a ValueError of another library may be a fault of psf.
    """
    text = str(error)
    return _in_worker(text) if _FROM_WORKER.match(text) else _here(error)


def run_and_note_mistakes(main: Callable[..., object], folder: str, *arguments: object) -> None:
    """Run `main(*arguments)` in a process that was started; a mistake of the user's ends it with exit code 2.

    The text is left in `folder` for `read_mistake`. Where several processes find mistakes, the first one counts.
    """
    try:
        main(*arguments)
    except ValueError as error:
        text = mistake_of(error)
        if text is None:
            raise
        try:
            with Path(folder, _FILE).open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            pass
        sys.exit(2)


def read_mistake(folder: str) -> str | None:
    """What `run_and_note_mistakes` left in `folder`; None if it left nothing."""
    path = Path(folder, _FILE)
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _here(error: ValueError) -> str | None:
    """What psf or yacs, which reads configs, says; None of other libraries."""
    *_, (innermost, _) = traceback.walk_tb(error.__traceback__)
    return str(error) if innermost.f_globals["__name__"].partition(".")[0] in ("psf", "yacs") else None


def _in_worker(text: str) -> str | None:
    """What psf says in a text that ends with a worker's traceback; None of other libraries."""
    *_, innermost = _FRAME.finditer(text)
    if _PACKAGE not in Path(innermost[1]).resolve().parents:
        return None
    return _NAME.split(text[innermost.end() :], maxsplit=1)[-1].strip()
