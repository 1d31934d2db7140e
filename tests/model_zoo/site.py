"""A web server on 127.0.0.1 that can do what servers, proxies and networks do to a download."""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site:
    """What the server has, and how it behaves; `requests` has the path and the headers of each request."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = '"first"'
        self.modified: str | None = None
        self.has_ranges = True
        self.declared: int | None = None  # Content-Length; -1: none; None: the real one
        self.cuts: list[int] = []  # the first answers end after so many bytes
        self.is_reset = False  # whether they end with a reset of the connection
        self.pause = 0.0  # seconds between two pieces
        self.piece = 2**16
        self.statuses: list[tuple[int, dict[str, str]]] = []  # of the first answers; the last one of all further ones
        self.extra: dict[str, str] = {}  # headers
        self.chunked = False
        self.content_range: str | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    @property
    def ranges(self) -> list[str | None]:
        """The ranges that were asked for."""
        return [headers.get("Range") for _, headers in self.requests]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        site = self.site
        site.requests.append((self.path, dict(self.headers)))
        self.close_connection = True
        if site.statuses:
            code, headers = site.statuses.pop(0) if len(site.statuses) > 1 else site.statuses[0]
            if code != 200:
                self.send_response(code)
                for name, value in {"Content-Length": "0", **headers}.items():
                    self.send_header(name, value.format(url=site.url))
                self.end_headers()
                return
        body, first = site.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        is_same = self.headers.get("If-Range") in (site.etag, site.modified)
        if site.has_ranges and asked and is_same:
            first = int(asked[1])
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        self.send_response(206 if asked and site.has_ranges and is_same else 200)
        if self._status == 206:
            self.send_header("Content-Range", site.content_range or f"bytes {first}-{len(body) - 1}/{len(body)}")
        self._send_headers(len(body) - first)
        self._send_body(body[first:])

    def send_response(self, code: int, message: str | None = None) -> None:
        self._status = code
        super().send_response(code, message)

    def _send_headers(self, length: int) -> None:
        site = self.site
        if site.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif site.declared != -1:
            self.send_header("Content-Length", str(length if site.declared is None else site.declared))
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.modified:
            self.send_header("Last-Modified", site.modified)
        for name, value in site.extra.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, body: bytes) -> None:
        site = self.site
        cut = site.cuts.pop(0) if site.cuts else None
        try:
            for start in range(0, len(body) if cut is None else cut, site.piece):
                piece = body[start : min(start + site.piece, len(body) if cut is None else cut)]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if site.chunked else piece)
                self.wfile.flush()
                time.sleep(site.pause)
            if site.chunked and cut is None:
                self.wfile.write(b"0\r\n\r\n")
        except OSError:  # the client has gone
            return
        if cut is not None and site.is_reset:
            time.sleep(0.1)  # a reset also discards what the client has not read
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def serving(content: bytes) -> Iterator[Site]:
    """A running server."""
    site = Site(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # of connections that the client has closed
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
