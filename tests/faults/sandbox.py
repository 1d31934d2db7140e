"""Judge one call of a reader: a result or one line, no code executed, no file outside of a folder."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from psf.errors import UserError, escape_controls

__all__ = ["Sandbox"]

MAX_LINE = 2100  # characters of a message
# Python's audit events (https://docs.python.org/3/library/audit_events.html) of a program that is started, of a
# connection, and of a pickle that looks up a class by Python's own, unsafe way.
EXECUTION = (
    *("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"),
    *("socket.connect", "ftplib.connect", "urllib.Request", "pickle.find_class"),
)
# Event -> how many of its first arguments are paths that it changes.
CHANGES = {
    **{f"os.{name}": 1 for name in ("remove", "mkdir", "rmdir", "truncate", "chmod", "chown", "utime", "mkfifo")},
    **{f"os.{name}": 2 for name in ("rename", "link", "symlink")},
    **{f"shutil.{name}": 2 for name in ("copyfile", "copymode", "copystat", "copytree", "move")},
    "shutil.rmtree": 1,
}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Sandbox:
    """Watches the calls of readers in this process by Python's audit events, for as long as the process lives.

    Args:
        folder: the only one below which files may be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = os.path.realpath(folder)
        self._is_watching = False
        self._found: list[str] = []
        sys.addaudithook(self._audit)

    def judge(self, read: Callable[[], Any]) -> str | None:
        """Call a reader. Returns what was lost in one line, or None: it has given a result, or one `UserError`."""
        self._found.clear()
        lost = None
        with self._watch():
            try:
                read()
            except UserError as error:
                text = str(error)
                if not text or len(text) > MAX_LINE or escape_controls(text) != text:
                    lost = f"message is not one line: {text[:200]!a}"
            except BaseException as error:
                frames = [
                    f"{Path(one.filename).name}:{one.lineno}" for one in traceback.extract_tb(error.__traceback__)
                ]
                lost = f"traceback: {type(error).__name__}: {str(error)[:200]!a} at {' '.join(frames[-4:])}"
        return "; ".join(self._found[:3]) if self._found else lost

    @contextlib.contextmanager
    def _watch(self) -> Iterator[None]:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            self._is_watching = True
            try:
                yield
            finally:
                self._is_watching = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._is_watching:
            return
        if event in EXECUTION:
            self._found.append(f"executed: {event} {str(arguments)[:200]!a}")
            raise PermissionError(f"{event} in a sandbox")  # not really executed
        if event == "open":
            path, _, flags = arguments
            changed = [path] if flags & WRITES else []
        else:
            changed = list(arguments[: CHANGES.get(event, 0)])
        for path in changed:
            if isinstance(path, (str, bytes, os.PathLike)) and not self._is_inside(os.fsdecode(path)):
                self._found.append(f"outside of the output folder: {event} {os.fsdecode(path)!a}")

    def _is_inside(self, path: str) -> bool:
        path = os.path.realpath(path)
        return path == "/dev/null" or os.path.commonpath((path, self.folder)) == self.folder
