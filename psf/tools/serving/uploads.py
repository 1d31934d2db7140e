"""Receive an image from a request, in memory and within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from psf.tools.serving.limits import CLIENT_GONE, Limits, Refusal

__all__ = ["FIELD", "receive_image"]

FIELD = "image"  # of multipart/form-data
MULTIPART, BYTES = "multipart/form-data", "application/octet-stream"
MAX_FRAME = 4096  # bytes of multipart/form-data around the image


class _ParserInMemory(MultiPartParser):
    spool_max_size = 0  # never a file on disk: `receive_image` limits the size

    def close(self) -> None:
        """Drop all files, also those of a form that has no end."""
        for file in self._files_to_close_on_error:
            file.close()


async def receive_image(request: Request, limits: Limits) -> bytes:
    """The bytes of the image in a request: its body, or the file `image` of a form.

    The size is checked while the body arrives, so that no more than the limit is held in memory. Nothing is written
    to disk.

    Raises:
        Refusal: 408, 413, 415 or 422.
    """
    kind = request.headers.get("content-type", BYTES).partition(";")[0].strip().lower()
    if kind != MULTIPART and kind != BYTES and not kind.startswith("image/"):
        raise Refusal(
            415,
            f"the content type is {kind[:80]!r}: expected {MULTIPART} with the file {FIELD!r}, or the bytes of the "
            f"image as {BYTES} or image/jpeg, image/png, ...",
        )
    most = limits.max_bytes + (MAX_FRAME if kind == MULTIPART else 0)
    if int(request.headers.get("content-length", 0)) > most:
        raise _too_large(limits)
    parts = _limited(request, most, limits)
    receiving = _file_of_form(request, parts) if kind == MULTIPART else _joined(parts)
    try:
        data = await asyncio.wait_for(receiving, limits.upload_seconds)
    except asyncio.TimeoutError as error:
        raise Refusal(408, f"the upload has taken more than {limits.upload_seconds:g} s, the limit") from error
    except ClientDisconnect as error:
        raise Refusal(CLIENT_GONE, "the client has closed the connection before the end of the upload") from error
    if len(data) > limits.max_bytes:
        raise _too_large(limits)
    if not data:
        raise Refusal(422, "the upload is empty: expected the bytes of an image")
    return data


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the upload has more than {limits.max_bytes / 1e6:g} MB, the limit: send a smaller image")


async def _limited(request: Request, most: int, limits: Limits) -> AsyncGenerator[bytes, None]:
    received = 0
    async for part in request.stream():
        received += len(part)
        if received > most:
            raise _too_large(limits)
        yield part


async def _joined(parts: AsyncGenerator[bytes, None]) -> bytes:
    data = bytearray()
    async for part in parts:
        data += part
    return bytes(data)


async def _file_of_form(request: Request, parts: AsyncGenerator[bytes, None]) -> bytes:
    parser = _ParserInMemory(request.headers, parts, max_files=1, max_fields=0)
    try:
        form = await parser.parse()
        file = form.get(FIELD)
        if not isinstance(file, UploadFile):
            names = ", ".join(repr(name[:80]) for name in form) or "nothing"
            raise Refusal(422, f"the form has {names}: expected one file named {FIELD!r}")
        return await file.read()
    except MultiPartException as error:
        raise Refusal(
            422, f"the form cannot be used ({error.message.rstrip('.')}): expected one file named {FIELD!r}"
        ) from error
    finally:
        parser.close()
