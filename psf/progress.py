"""Progress of a command: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

__all__ = ["Progress"]

SECONDS = 30.0  # between the lines


class Progress(tqdm):
    """tqdm's bar. If standard error is no terminal, a line every 30 seconds; none if all is done before.

    A bar in a log file would be a single line of thousands of states.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        self._has_lines = not (options.get("file") or sys.stderr).isatty()
        if self._has_lines:
            options = {"mininterval": SECONDS, "delay": SECONDS, "ncols": 80, **options}
        super().__init__(*args, **options)

    def clear(self, nolock: bool = False) -> None:
        """Remove a bar; lines stay."""
        if not self._has_lines:
            super().clear(nolock)

    def refresh(self, nolock: bool = False, lock_args: tuple[float, ...] | None = None) -> None:
        """Show the state; a bar also after another program's line, which is what `nolock` means."""
        if not (self._has_lines and nolock):
            super().refresh(nolock, lock_args)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the state."""
        if self._has_lines:
            self.fp.write(f"{msg or self}\n")
            self.fp.flush()
        else:
            super().display(msg, pos)
