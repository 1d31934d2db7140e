"""Download a large file: resumed after a break, within limits, and with one line for every failure.

None of the libraries that psf requires resumes a download: iopath's and torch.hub's begin again.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from psf.atomic_files import write_text
from psf.data.files import SECONDS_TO_ANSWER, check_regular, read_json
from psf.errors import UserError
from psf.progress import Progress

__all__ = ["download", "forget_part"]

logger = logging.getLogger(__name__)

MAX_BYTES = 8 * 2**30  # of a file; the largest published model has 0.9 GB of weights
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before another attempt, after a connection has broken
LEAST_PACE = 1024  # bytes in a second, over SECONDS_TO_ANSWER; slower is a broken connection
_CHUNK = 2**20  # bytes
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})")
_WITH_WAIT = (403, 429, 503)  # statuses that may say how long to wait


class _Broken(Exception):
    """The connection has ended before the file: another attempt may continue."""


class _Remote(NamedTuple):
    """The remote file of a partial download, in a JSON next to the part."""

    url: str
    size: int | None  # in bytes; None: unknown
    validator: str | None  # for If-Range: a strong ETag, or the date of the last change; None: cannot be resumed


def download(url: str, part: Path, way_out: str) -> None:
    """Download a file, or what is missing of it.

    A second file, `part` with .json, has what a later call needs to continue. The server must still have the same file,
    and understand ranges; otherwise the download begins again. An https address is never followed to another protocol.

    Args:
        url: http:// or https://.
        part: file to write; complete when the function returns.
        way_out: what a user can do if it fails, for messages.

    Raises:
        UserError: if the file cannot be downloaded or written, what has arrived stays; if `part` is a link, a folder or
            a pipe.
    """
    check_regular(part, links=False)
    reasons: list[str] = []  # of the last break, and of what came after it
    for pause in (0.0, *PAUSES):
        if reasons:
            logger.warning("%s: %s; continuing in %g s", url, ", then ".join(reasons), pause)
        time.sleep(pause)
        try:
            return _attempt(url, part)
        except _Broken as error:
            reasons = [str(error)]
        except HTTPError as error:
            error.close()
            raise UserError(f"{url} cannot be downloaded ({_status(error)}): {way_out}") from error
        except (URLError, HTTPException, OSError) as error:  # no answer
            if (reason := _reason(error)) not in reasons[-1:]:
                reasons.append(reason)
            if not part.exists() or not part.stat().st_size:
                break
    done = part.stat().st_size if part.exists() else 0
    kept = f"; the next try continues after {done:,} bytes" if done else ""
    raise UserError(f"{url} cannot be downloaded ({', then '.join(reasons)}{kept}): {way_out}")


def forget_part(part: Path) -> None:
    """Remove a part and its JSON."""
    for path in (_beside(part), part):
        path.unlink(missing_ok=True)


def _attempt(url: str, part: Path) -> None:
    """One connection."""
    known = _known_remote(part, url)
    done = part.stat().st_size if known else 0
    if known and known.size == done:
        return
    request = Request(url, headers={"User-Agent": "psf", "Accept-Encoding": "identity"})
    if known and known.validator and done:
        request.add_header("Range", f"bytes={done}-")
        request.add_header("If-Range", known.validator)
    try:
        response = _open(request)
    except HTTPError as error:
        if error.code != 416:  # the file has become shorter
            raise
        error.close()
        forget_part(part)
        raise _Broken("the file on the server has changed") from error
    with response:
        done, remote = _agree(response, part, known, done, url)
        logger.info("downloading %s to %s%s", url, part.parent, f", from byte {done:,}" if done else "")
        _receive(response, part, done, remote)


def _open(request: Request) -> HTTPResponse:
    """The answer to a request, after redirects."""
    try:
        response: HTTPResponse = _opener().open(request, timeout=SECONDS_TO_ANSWER)
        return response
    except UserError:
        raise
    except ValueError as error:  # a host that is no name, here or in a redirect
        raise URLError(f"a wrong address, {error}") from error


def _agree(response: HTTPResponse, part: Path, known: _Remote | None, done: int, url: str) -> tuple[int, _Remote]:
    """The byte that the answer begins with, and the file that it belongs to; the part is ready for it."""
    headers = response.headers
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise UserError(f"{url}: the server sends the file with the encoding {encoding}, expected the file as it is")
    if response.status == 206 and known:
        found = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        if found and int(found[1]) == done and known.size in (None, int(found[2])):
            return done, known._replace(size=int(found[2]))
        forget_part(part)
        raise _Broken("the server has sent another part than the one it was asked for")
    if response.status != 200:
        raise UserError(f"{url}: the server answers with HTTP {response.status}, expected the file")
    length, etag = headers.get("Content-Length", ""), headers.get("ETag", "")
    size = int(length) if length.isdecimal() and len(length) < 20 else None
    _check_size(size or 0, url)
    remote = _Remote(url, size, etag if etag.startswith('"') else headers.get("Last-Modified"))
    try:
        part.write_bytes(b"")
        write_text(_beside(part), json.dumps(remote._asdict()))
    except OSError as error:
        raise _not_written(part, error) from error
    return 0, remote


def _receive(response: HTTPResponse, part: Path, done: int, remote: _Remote) -> None:
    """Add the body of an answer to the part."""
    name = urlsplit(remote.url).path.rpartition("/")[2]
    bar = Progress(desc=name, total=remote.size, initial=done, unit="B", unit_scale=True)
    try:
        with bar, part.open("ab") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                done += len(chunk)
                bar.update(len(chunk))
                _check_size(done, remote.url)
    except OSError as error:  # of the disk: those of the network are `_Broken`
        raise _not_written(part, error) from error
    if remote.size is not None and done < remote.size:
        raise _Broken(f"the connection ended after {done:,} of {remote.size:,} bytes")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """What arrives, as it arrives."""
    begin, amount = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _Broken(f"the connection broke, {_reason(error)}") from error
        if not chunk:
            return
        yield chunk
        amount += len(chunk)
        if (seconds := time.monotonic() - begin) > SECONDS_TO_ANSWER:
            if amount < LEAST_PACE * seconds:
                raise _Broken(f"only {amount:,} bytes in {seconds:.0f} s")
            begin, amount = time.monotonic(), 0


def _check_size(size: int, url: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{url} has {size:,} bytes or more, expected at most {MAX_BYTES:,}: not a published checkpoint")


def _known_remote(part: Path, url: str) -> _Remote | None:
    """The remote file of a partial download; None if there is nothing to continue."""
    try:
        content: Any = read_json(_beside(part))
        known = _Remote(**content)
    except (UserError, TypeError):
        return None
    is_sound = known.url == url and type(known.size) in (int, type(None)) and part.is_file()
    is_sound &= known.validator is None or (isinstance(known.validator, str) and known.validator.isprintable())
    return known if is_sound else None


def _beside(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


class _Response(HTTPResponse):
    """An answer whose headers, and lengths of chunks, must arrive in time.

    The timeout of a socket is for each piece: a server that sends a byte now and then would hold a reader for ever.
    """

    def __init__(self, sock: socket.socket, *arguments: Any, **others: Any) -> None:
        super().__init__(sock, *arguments, **others)
        self._socket = sock

    def begin(self) -> None:
        with self._deadline("headers"):
            super().begin()

    def read1(self, n: int = -1) -> bytes:
        with self._deadline("next piece") if self.chunked else nullcontext():
            return super().read1(n)

    @contextmanager
    def _deadline(self, what: str) -> Iterator[None]:
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            with suppress(OSError):  # closed in the meantime
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

        timer = threading.Timer(SECONDS_TO_ANSWER, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, HTTPException):
            if not is_late.is_set():
                raise
        finally:
            timer.cancel()
        if is_late.is_set():  # what has been read may be cut
            raise TimeoutError(f"its {what} did not arrive in {SECONDS_TO_ANSWER:.0f} s")


class _HttpConnection(HTTPConnection):
    response_class = _Response


class _HttpsConnection(HTTPSConnection):
    response_class = _Response


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HttpConnection, req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(_HttpsConnection, req)


class _Redirects(HTTPRedirectHandler):
    """Redirects that stay with https, if the address has it."""

    http_error_308 = HTTPRedirectHandler.http_error_302  # Python 3.10 does not know it

    def redirect_request(self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        target = urlsplit(newurl)
        if target.scheme not in ("https", req.type):
            fp.close()
            raise UserError(
                f"{req.full_url}: the server redirects to {target.scheme}://{target.hostname}, expected https://"
            )
        return super().redirect_request(req, fp, 307 if code == 308 else code, msg, headers, newurl)


def _opener() -> OpenerDirector:
    """urllib's opener, without its handlers of files, FTP and data."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        _Http(),
        _Https(),
        _Redirects(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _status(error: HTTPError) -> str:
    if 300 <= error.code < 400:
        return f"HTTP {error.code}, too many redirects"
    wait = str(error.headers.get("Retry-After", ""))[:40] if error.code in _WITH_WAIT else ""
    unit = " seconds" if wait.isdecimal() else ""
    return f"HTTP {error.code} {error.reason}" + (
        f"; the server asks to wait, Retry-After: {wait}{unit}" if wait else ""
    )


def _reason(error: BaseException) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    return str(getattr(reason, "strerror", None) or reason or type(reason).__name__)


def _not_written(part: Path, error: OSError) -> UserError:
    return UserError(
        f"{part} cannot be written ({error.strerror or error}): make room, or set the variable PSF_CACHE to a writable "
        "folder; what has arrived stays"
    )
