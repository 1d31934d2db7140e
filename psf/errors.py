"""The one exception class for mistakes of the user."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(ValueError):
    """A mistake of the user: wrong keys, files or data.

    The message is one line that says what was found, what was expected, and which key or file to change. Commands
    print it without a traceback. Every other exception is a fault of psf or of a library.

    A data loader raises an error of a worker again in the main process: an exception of the same class, whose only
    argument is a text that ends with "NAME: message". The message is taken out of it.
    """

    def __init__(self, message: object = ""):
        text = str(message)
        if text.startswith(f"Caught {type(self).__name__} in "):
            text = text.rpartition(f"{type(self).__module__}.{type(self).__qualname__}: ")[2].strip()
        super().__init__(text)
