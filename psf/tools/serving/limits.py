"""What the server accepts, and how it refuses the rest."""

from __future__ import annotations

import dataclasses

from psf.errors import UserError, printable

__all__ = ["CLIENT_GONE", "Limits", "Refusal"]

CLIENT_GONE = 499  # as nginx counts requests whose client has closed the connection; nobody reads the answer


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one server; each is an option of `psf serve`.

    Raises:
        UserError: if a limit is out of range.
    """

    max_bytes: int = 20_000_000  # of an upload
    max_pixels: int = 50_000_000  # of an image
    max_queue: int = 16  # uploads and images that wait for the network, beside the one that it works on
    queue_seconds: float = 30.0  # longest time that an image waits
    upload_seconds: float = 30.0  # longest time for the body of a request
    max_kept_bytes: int = 512_000_000  # of the results that are kept for other thresholds; 0: none are kept
    max_connections: int = 256
    shutdown_seconds: float = 60.0  # longest time that a stopping server waits for its requests

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name in ("max_queue", "max_kept_bytes") else 1
            if not least <= value < 1e15:  # NaN fails, too
                raise UserError(f"{field.name} is {value}: expected a number from {least}")


class Refusal(Exception):
    """A refused request: an HTTP status and a one-line reason."""

    def __init__(self, status: int, reason: object, retry_seconds: int | None = None) -> None:
        self.status, self.reason = status, printable(reason)
        self.headers = {} if retry_seconds is None else {"Retry-After": str(retry_seconds)}
        super().__init__(self.reason)
