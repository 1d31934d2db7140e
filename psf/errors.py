"""The exception class for user errors."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A user error: wrong keys, files or data.

    The message is one line with what was found, what was expected, and which key or file to change. Commands
    print it without a traceback. Every other exception is a bug in psf or in a library.

    A data loader re-raises a worker's error in the main process: same class, with one text argument that ends with
    "NAME: message". The constructor extracts the message.
    """

    def __init__(self, message: object = ""):
        text = str(message)
        if text.startswith(f"Caught {type(self).__name__} in "):
            text = text.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip()
        super().__init__(text)
