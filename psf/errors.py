"""The exception class for user errors, and text that is safe to print."""

from __future__ import annotations

import re

__all__ = ["UserError", "escape_controls", "printable", "without_worker"]

# Control characters, line separators, marks that reverse the direction of text, and halves of surrogate pairs, which
# no encoding accepts: a name from a file could move the cursor of a terminal, or begin a second line.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MAX_LENGTH = 2000  # characters of a message
_FROM_WORKER = re.compile(r"Caught (\w+) in .*\nOriginal Traceback ")


def escape_controls(text: str) -> str:
    """The text with control characters, line breaks included, as Python escapes them."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable(text: object) -> str:
    """One line of at most about 2000 characters.

    Line breaks become spaces, other control characters are escaped, and the middle of a longer text is cut.
    """
    shown = escape_controls(" ".join(line.strip() for line in str(text).split("\n")))
    if len(shown) > _MAX_LENGTH:
        half = _MAX_LENGTH // 2
        shown = f"{shown[:half]} [... {len(shown) - 2 * half} characters ...] {shown[-half:]}"
    return shown


def without_worker(text: str) -> str:
    """The message of an error that torch has raised again for a worker of a loader; other text is unchanged."""
    if (found := _FROM_WORKER.match(text)) is None:
        return text
    return re.split(rf"^(?:[\w.]+\.)?{found[1]}: ", text, flags=re.MULTILINE)[-1].strip()


class UserError(ValueError):
    """A user error: wrong keys, files or data.

    The message is one `printable` line with what was found, what was expected, and which key or file to change.
    Commands print it without a traceback. Every other exception is a bug in psf or in a library.

    A data loader re-raises a worker's error in the main process: same class, with the traceback as the message. The
    constructor extracts the message (`without_worker`).
    """

    def __init__(self, message: object = ""):
        super().__init__(printable(without_worker(str(message))))
