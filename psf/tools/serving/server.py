"""Run the application: the socket, signals, and the end."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Collection
from types import FrameType
from typing import NamedTuple

import uvicorn

from psf.errors import UserError, printable
from psf.tools.serving.app import build_app
from psf.tools.serving.service import Service

__all__ = ["Listener", "bind", "serve"]

logger = logging.getLogger(__name__)

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_SECONDS = 5  # a connection without a request is closed
LAST_SECONDS = 5  # to send the last answers


class Listener(NamedTuple):
    """A bound socket."""

    socket: socket.socket
    address: str  # "http://127.0.0.1:8000"
    is_loopback: bool  # reached from this machine alone


def bind(host: str, port: int) -> Listener:
    """Take an address, without listening yet; port 0 is any free one.

    Raises:
        UserError: if the host is unknown, or the port is in use or not allowed.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}: expected a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host is {printable(host)!r}: expected an address or a name of this machine") from error
    own = socket.socket(family, kind, protocol)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        own.close()
        raise UserError(
            f"cannot listen at {host} port {port} ({os.strerror(error.errno or 0)}): choose others with --host, --port"
        ) from error
    name, number = own.getsockname()[:2]
    shown = f"[{name}]" if family == socket.AF_INET6 else name
    return Listener(own, f"http://{shown}:{number}", ipaddress.ip_address(name.partition("%")[0]).is_loopback)


def serve(
    service: Service, listener: Listener, *, allowed_hosts: Collection[str] = (), say: Callable[[str], None]
) -> bool:
    """Answer requests until SIGTERM or Ctrl-C, and then finish the requests in progress; a second signal ends at once.

    Returns:
        Whether all requests were finished. If not, a thread may still run.

    Args:
        service: of the server.
        listener: of `bind`.
        allowed_hosts: more names that the Host header may have; at an address that other machines reach, all names are
            allowed if there are none.
        say: shows a line to the user.
    """
    hosts = {name.lower() for name in allowed_hosts}
    if listener.is_loopback:
        hosts.update(LOOPBACK_NAMES)
    else:
        logger.warning("other machines may use %s: there is no authentication (docs/serving.md)", listener.address)
    config = uvicorn.Config(
        build_app(service, hosts),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=service.limits.max_connections,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_SECONDS,
    )
    server = _Server(config, service, lambda: say(f"{service.model.name} at {listener.address} (Ctrl-C stops it)"))
    try:
        server.run(sockets=[listener.socket])
    finally:
        service.close()
    number = service.num_segmented
    say(f"stopped, after {number} image{'' if number == 1 else 's'}")
    return not server.is_cut


class _Server(uvicorn.Server):
    """Closes in two steps: requests that have begun are answered, new ones refused; then the connections end."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._on_ready = service, on_ready
        self._deadline = float("inf")
        self.is_cut = False  # requests were not finished

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._service.is_closing:
            self.should_exit = self.force_exit = self.is_cut = True
        self._service.is_closing = True
        self._deadline = time.monotonic() + self._service.limits.shutdown_seconds

    async def on_tick(self, counter: int) -> bool:
        is_late = time.monotonic() > self._deadline
        if self._service.is_closing and (is_late or not self._service.num_active):
            if self._service.num_active:
                self.is_cut = True
                logger.warning("%d requests were not finished in time", self._service.num_active)
            self.should_exit = True
        return await super().on_tick(counter)
