"""What every request and every answer of the server passes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Collection
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from psf.tools.serving.limits import Refusal
from psf.tools.serving.service import Service

__all__ = ["Gate", "refuse"]

logger = logging.getLogger(__name__)

DISCARD_SECONDS = 2.0
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def refuse(refusal: Refusal) -> JSONResponse:
    """The answer for a refusal: its status, and {"detail": reason}."""
    return JSONResponse({"detail": refusal.reason}, refusal.status, refusal.headers)


class Gate:
    """ASGI middleware: checks of headers, metrics, headers against misuse, and errors as one line.

    Args:
        app: the application.
        service: of the server.
        hosts: names that the Host header may have, in lower case; empty: any. A page of another site can make its own
            name lead to this machine (DNS rebinding), and would then count as the same site.
    """

    def __init__(self, app: ASGIApp, service: Service, hosts: Collection[str] = ()) -> None:
        self.app, self.service, self.hosts = app, service, frozenset(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = _Request(scope, receive, send)
        begin = time.perf_counter()
        try:
            refusal = self._check(scope)
            if refusal is not None:
                await refuse(refusal)(scope, request.receive, request.send)
            else:
                self.service.num_active += 1
                try:
                    await self.app(scope, request.receive, request.send)
                finally:
                    self.service.num_active -= 1
        except Exception:
            logger.exception("%s failed", scope["path"][:200].encode("unicode_escape").decode())
            if request.status is None:
                error = Refusal(500, "an error of the server; its log has the details")
                await refuse(error)(scope, request.receive, request.send)
        finally:
            status = request.status or 500
            self.service.metrics.record(scope["method"], scope["path"], status, time.perf_counter() - begin)

    def _check(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host = _without_port(headers.get("host", ""))
        if self.hosts and host not in self.hosts:
            return Refusal(
                400, f"the host is {host[:80]!r}: expected {', '.join(sorted(self.hosts))}; --allowed-host adds one"
            )
        if scope["method"] == "POST" and headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return Refusal(403, "requests from pages of other sites are refused")
        if self.service.is_closing and scope["path"] != "/metrics":
            return Refusal(503, "the server is stopping", 5)
        return None


def _without_port(host: str) -> str:
    """The name or address in a Host header; "" if what follows it is no port."""
    found = re.fullmatch(r"(\[[^\]]*\]|[^:]*)(:\d{1,5})?", host.strip().lower())
    return found[1] if found else ""


class _Request:
    """Follows a request: its status, and whether all of its body has arrived."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._has_body = scope["method"] in ("POST", "PUT", "PATCH")
        self.status: int | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._has_body = False
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(SECURITY_HEADERS)
            headers["Cache-Control"] = "no-store" if self._scope["path"].startswith("/v1/") else "no-cache"
            if self._has_body and self.status != 408:  # this client has had its time
                await self._discard()
        await self._send(message)

    async def _discard(self) -> None:
        """Receive the rest of the body: a client that still sends it would find the connection closed, and no answer.

        Clients that ask before they send (Expect: 100-continue) need no such care.
        """
        if "expect" in Headers(scope=self._scope):
            return
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._receive_all(), DISCARD_SECONDS)

    async def _receive_all(self) -> None:
        while self._has_body:
            await self.receive()
