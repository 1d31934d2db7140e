"""The socket, and the end of a server in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import psf
from psf.errors import UserError
from tests.conftest import REPOSITORY
from tests.tools.serving.conftest import Running, image_file, running, wait_for

serving = pytest.importorskip("psf.tools.serving", reason="needs the packages of the extra serve")

SLOW = """
import os, sys, time
import psf
from psf.tools.serving import Limits, Service, bind, serve

class Slow(psf.Predictor):
    def __call__(self, *images, **settings):
        time.sleep(2 if images[0][:1] != b"x" else 1000)
        return super().__call__(*images, **settings)

service = Service(Slow(sys.argv[1], device="cpu"), "slow", Limits(shutdown_seconds=float(sys.argv[2])))
if not serve(service, bind("127.0.0.1", 0), say=lambda text: print(text, flush=True)):
    os._exit(3)
"""


@pytest.fixture
def slow(model_file: Path, request: pytest.FixtureRequest) -> Iterator[tuple[subprocess.Popen[str], Running]]:
    """A process whose images take 2 seconds, or for ever."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW, str(model_file), str(getattr(request, "param", 60))],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("slow at http://127.0.0.1:"), line
        yield process, Running(None, line.split()[2], [])  # type: ignore[arg-type]  # the service is elsewhere
    finally:
        process.kill()
        process.communicate()


def test_a_signal_lets_requests_finish(slow: tuple[subprocess.Popen[str], Running]) -> None:
    process, own = slow
    with ThreadPoolExecutor(2) as executor:
        futures = [executor.submit(own.segment, image_file()) for _ in range(2)]  # one runs, one waits
        wait_for(lambda: own.metric("psf_images_in_flight") == 2)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: own.ask("/healthz").status == 503)
        reply = own.segment(image_file())
        assert (reply.status, reply.reason) == (503, "the server is stopping")
        assert [one.result().status for one in futures] == [200, 200]
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0 and out == "stopped, after 2 images\n", (out, err)
    assert "Traceback" not in err


@pytest.mark.parametrize("slow", [1], indirect=True)
def test_the_wait_has_a_limit(slow: tuple[subprocess.Popen[str], Running]) -> None:
    process, own = slow
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(own.segment, b"xyz")  # it takes for ever
        wait_for(lambda: own.metric("psf_images_in_flight") == 1)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=30)
        assert future.exception() or future.result().status == 500
    assert process.returncode == 3 and out == "stopped, after 0 images\n", (out, err)
    assert "1 requests were not finished in time" in err


def test_addresses() -> None:
    first = serving.bind("localhost", 0)
    with first.socket:
        assert first.address.startswith(("http://127.0.0.1:", "http://[::1]:")) and first.is_loopback
        port = first.socket.getsockname()[1]
        first.socket.listen()
        host = first.socket.getsockname()[0]
        with pytest.raises(UserError, match=rf"cannot listen at .* port {port} \(Address already in use\): .*--port"):
            serving.bind(host, port)
    other = serving.bind("0.0.0.0", 0)
    with other.socket:
        assert not other.is_loopback
    for host, number, message in (
        ("no.such.host.invalid", 8000, "--host is 'no.such.host.invalid': expected an address or a name"),
        ("a" * 70 + ".b", 8000, "--host is "),
        ("203.0.113.7", 8000, "cannot listen at 203.0.113.7 port 8000"),
        ("127.0.0.1", 65536, "--port is 65536: expected a number from 0 to 65535"),
    ):
        with pytest.raises(UserError, match=message):
            serving.bind(host, number)


def test_other_machines_are_warned_of(predictor: psf.Predictor, caplog: pytest.LogCaptureFixture) -> None:
    service, said = serving.Service(predictor, "m", serving.Limits()), list[str]()
    loopback = serving.bind("127.0.0.1", 0)
    open_one = serving.Listener(
        loopback.socket, loopback.address, is_loopback=False
    )  # without opening a port of this machine
    thread = threading.Thread(target=serving.serve, args=(service, open_one), kwargs={"say": said.append}, daemon=True)
    with caplog.at_level(logging.WARNING):
        thread.start()
        wait_for(lambda: bool(said))
        own = Running(service, open_one.address, said)
        assert own.ask("/healthz", Host="any.name.example").status == 200
        service.is_closing = True
        thread.join(30)
    [record] = [one for one in caplog.records if "authentication" in one.message]
    assert record.message == f"other machines may use {open_one.address}: there is no authentication (docs/serving.md)"
    assert said == [f"m at {open_one.address} (Ctrl-C stops it)", "stopped, after 0 images"]


def test_loopback_needs_no_warning(predictor: psf.Predictor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), running(predictor) as own:
        own.segment(image_file())
    assert not caplog.records
    assert own.said[-1] == "stopped, after 1 image"
    with socket.socket() as probe:
        host, port = own.address.removeprefix("http://").split(":")
        assert probe.connect_ex((host, int(port)))
