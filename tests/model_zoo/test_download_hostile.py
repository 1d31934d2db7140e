"""Servers and caches that would hold, end or mislead a download: one line, and no file elsewhere is touched."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from psf.errors import UserError
from psf.model_zoo import download as module
from psf.model_zoo import resolve
from psf.model_zoo.download import download
from tests.model_zoo.site import serving


def one_line(url: str, part: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        download(url, part, "put the file at HERE")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("location", ["http://[bad/x", "http://" + "a" * 300 + ".com/", "http://..a/"])
def test_a_redirect_to_a_wrong_address(tmp_path: Path, location: str) -> None:
    with serving(b"") as site:
        site.statuses = [(302, {"Location": location})]
        one_line(f"{site.url}/m.pth", tmp_path / "part", r"cannot be downloaded \(.*: put the file at HERE")


@pytest.mark.parametrize("host", ["a" * 300 + ".com", "..a"])
def test_a_mirror_that_is_no_host(tmp_path: Path, host: str) -> None:
    one_line(f"http://{host}/m.pth", tmp_path / "part", r"a wrong address, .*: put the file at HERE")


def test_a_range_of_many_digits(tmp_path: Path) -> None:
    with serving(b"x" * 1000) as site:
        site.cuts, site.content_range = [100], "bytes 100-999/" + "9" * 5000
        download(f"{site.url}/m.pth", tmp_path / "part", "")  # begins again
        assert site.ranges[:2] == [None, "bytes=100-"]
    assert (tmp_path / "part").read_bytes() == b"x" * 1000


@pytest.fixture(params=["HTTP/1.1 200 OK\r\nX-A: ", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0"])
def slow_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server whose headers, or whose length of a chunk, never end: a byte every 50 ms."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    try:
                        connection.recv(4096)
                        connection.sendall(request.param.encode())
                        while True:
                            connection.sendall(b"0")
                            time.sleep(0.05)
                    except OSError:
                        pass

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def test_a_byte_now_and_then_is_no_answer(slow_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_ANSWER", 0.5)
    begin = time.monotonic()
    one_line(f"{slow_url}/m.pth", tmp_path / "part", r"its (headers|next piece) did not arrive in")
    assert time.monotonic() - begin < 20


def test_a_part_elsewhere_is_not_written(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with serving(b"x") as site:
        for name, message in {"link": "a link", "folder": "a folder", "pipe": "a pipe"}.items():
            one_line(f"{site.url}/m.pth", tmp_path / name, rf"{name}: {message}.*expected a regular file")
        assert not site.requests
    assert precious.read_text() == "precious"


def test_a_lock_that_is_a_pipe(cache: Path) -> None:
    (cache / "released").mkdir(parents=True)
    os.mkfifo(cache / "released" / ".panoptic_segformer_r50_2x.pth.lock")
    with pytest.raises(UserError, match=r"\.lock: a pipe.*expected a regular file"):
        resolve("R50")
