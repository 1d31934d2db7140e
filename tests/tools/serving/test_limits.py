"""Bytes, pixels, time and places: what is too much is refused, and takes no memory and no time of the network."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import pytest

import psf
from psf.errors import UserError
from tests.tools.serving.conftest import Reply, Running, Waiting, image_file, running, wait_for
from tests.tools.serving.test_app import FIELD, FORM

serving = pytest.importorskip("psf.tools.serving", reason="needs the packages of the extra serve")
results = pytest.importorskip("psf.tools.serving.results", reason="needs the packages of the extra serve")


def test_numbers() -> None:
    for wrong in ({"max_bytes": 0}, {"queue_seconds": float("nan")}, {"max_kept_bytes": -1}, {"max_pixels": 10**20}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is .*: expected a number from"):
            serving.Limits(**wrong)


@pytest.fixture(scope="module")
def small(predictor: psf.Predictor) -> Iterator[Running]:
    """At most 10 kB, and a second for an upload."""
    with running(predictor, max_bytes=10_000, upload_seconds=1) as own:
        yield own


@pytest.mark.parametrize("number", [10_001, 3_000_000])
@pytest.mark.parametrize("is_form", [False, True])
def test_too_many_bytes(small: Running, number: int, is_form: bool) -> None:
    body = FIELD % (b"image", bytes(number)) if is_form else bytes(number)
    reply = small.ask("/v1/segment", body, **(FORM if is_form else {"Content_Type": "image/png"}))
    assert (reply.status, reply.reason) == (413, "the upload has more than 0.01 MB, the limit: send a smaller image")


def test_the_answer_arrives_before_the_connection_ends(small: Running) -> None:
    """uvicorn closes it with the answer; a body that nobody receives would then reset it, as proxies would see."""
    for _ in range(3):
        reply = small.segment(bytes(12_000_000), Connection="close")
        assert reply.status == 413 and reply.reason


def test_too_many_bytes_without_a_length(small: Running) -> None:
    """The size is checked while the body arrives: this one never ends."""
    sent = []

    def parts() -> Iterator[bytes]:
        while len(sent) < 2000:
            sent.append(1)
            yield bytes(10_000)

    reply = small.ask("/v1/segment", parts(), Content_Type="image/png")
    assert reply.status == 413
    assert small.segment(bytes(10_000)).status == 422  # exactly the limit: no image, but not too large


def bomb(side: int) -> bytes:
    """A PNG of a few kB with `side` x `side` black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side + 7) // 8 + 1) * side, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [100, 8000, 20000])  # above the limit, above Pillow's own warning and error
def test_too_many_pixels(predictor: psf.Predictor, side: int) -> None:
    data = bomb(side)
    assert len(data) < 60_000
    with running(predictor, max_pixels=9_999) as own:
        reply = own.segment(data)
        assert (reply.status, reply.reason) == (
            413,
            "the image has more than 0.009999 megapixels, the limit: send a smaller one",
        )
        assert own.segment(bomb(99)).status == 200


def talk(address: str, *parts: bytes) -> socket.socket:
    """A connection on which these bytes have been sent."""
    url = urlsplit(address)
    connection = socket.create_connection((url.hostname, url.port), timeout=30)
    for part in parts:
        connection.sendall(part)
    return connection


HEAD = b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 100\r\n"
HEAD += b"Connection: close\r\n\r\n"


def test_slow_upload(small: Running) -> None:
    with talk(small.address, HEAD, b"12345") as connection:
        text = b"".join(iter(lambda: connection.recv(4096), b"")).decode()  # the server closes it
    assert text.startswith("HTTP/1.1 408") and "the upload has taken more than 1 s, the limit" in text
    wait_for(lambda: small.metric("psf_images_in_flight") == 0)


def test_upload_that_ends_early(small: Running) -> None:
    name = 'psf_requests_total{method="POST",path="/v1/segment",status="499"}'
    before, runs = small.metric(name), small.metric("psf_network_seconds_count")
    talk(small.address, HEAD, b"12345").close()
    wait_for(lambda: small.metric(name) == before + 1)
    assert small.metric("psf_images_in_flight") == 0 and small.metric("psf_network_seconds_count") == runs


def test_no_file_is_written(predictor: psf.Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/does/not/exist")
    data = image_file(kind="BMP", height=800, width=1200)
    assert len(data) > 2 * 1024 * 1024  # Starlette writes such files to disk
    with running(predictor) as own:
        assert own.ask("/v1/segment", FIELD % (b"image", data), **FORM).status == 200
        assert own.segment(data).status == 200


def start(executor: ThreadPoolExecutor, own: Running, number: int) -> list:
    """Requests that wait, one after the other."""
    futures = []
    for _ in range(number):
        before = own.service._num_images
        futures.append(executor.submit(own.segment, image_file()))
        wait_for(lambda before=before: own.service._num_images == before + 1)
    return futures


def test_full_queue(waiting: Waiting) -> None:
    with running(waiting, max_queue=2) as own, ThreadPoolExecutor(8) as executor:
        futures = start(executor, own, 3)
        wait_for(lambda: own.metric('psf_queue_length{thread="network"}') == 2)
        assert own.metric("psf_images_in_flight") == 3
        reply: Reply = own.segment(bytes(3_000_000))  # also answered while the client still sends
        assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
        assert reply.reason == "2 images wait already, the limit: try again later"
        assert own.ask("/healthz").status == 200  # the event loop is free
        waiting.go.set()
        assert [one.result().status for one in futures] == [200] * 3
        assert own.segment(image_file()).status == 200


def test_kept_results_do_not_wait_for_the_network(waiting: Waiting) -> None:
    with running(waiting) as own, ThreadPoolExecutor(8) as executor:
        waiting.go.set()
        first = own.segment(image_file()).json
        waiting.go.clear()
        [future] = start(executor, own, 1)
        assert own.ask(f"/v1/results/{first['id']}?confidence=0.2").status == 200
        assert not future.done()
        waiting.go.set()


def test_long_wait(waiting: Waiting) -> None:
    with running(waiting, queue_seconds=1) as own, ThreadPoolExecutor(8) as executor:
        futures = start(executor, own, 2)
        begin = time.monotonic()
        reply = futures[1].result()
        assert time.monotonic() - begin < 10
        assert (reply.status, reply.headers["Retry-After"]) == (503, "5")
        assert reply.reason == "the image has waited for 1 s, the limit: try again later"
        waiting.go.set()
        assert futures[0].result().status == 200  # an image that has begun has all the time
        assert waiting.num_begun == 1


def test_a_client_that_leaves_takes_no_time(waiting: Waiting) -> None:
    data = image_file()
    head = HEAD.replace(b"100", str(len(data)).encode())
    with running(waiting) as own, ThreadPoolExecutor(8) as executor:
        [first] = start(executor, own, 1)
        with talk(own.address, head, data):
            wait_for(lambda: own.metric('psf_queue_length{thread="network"}') == 1)
        wait_for(lambda: own.metric('psf_queue_length{thread="network"}') == 0)
        waiting.go.set()
        assert first.result().status == 200 and waiting.num_begun == 1


def test_too_many_connections(predictor: psf.Predictor) -> None:
    with running(predictor, max_connections=2) as own:
        with talk(own.address), talk(own.address):
            wait_for(lambda: own.ask("/healthz").status == 503)
        wait_for(lambda: own.ask("/healthz").status == 200)


class Sized:
    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes


def test_kept_results() -> None:
    kept = results.KeptResults(100)
    first, second = Sized(40), Sized(50)
    keys = [kept.add(first), kept.add(second)]
    assert kept.get(keys[0]) is first  # now the newest
    third = kept.add(Sized(50))
    assert kept.get(keys[0]) is first and kept.get(keys[1]) is None and kept.get(third) is not None
    assert (len(kept), kept.num_bytes) == (2, 90)
    assert kept.add(Sized(101)) is None and len(kept) == 2
    assert kept.add(Sized(100)) is not None and (len(kept), kept.num_bytes) == (1, 100)
    assert len({kept.add(Sized(1)) for _ in range(50)}) == 50


def test_kept_results_of_many_threads() -> None:
    kept = results.KeptResults(1000)

    def work() -> None:
        for _ in range(300):
            kept.get(kept.add(Sized(70)) or "")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert (len(kept), kept.num_bytes) == (14, 980)


def test_memory_limit_of_results(predictor: psf.Predictor) -> None:
    size = predictor(image_file()).num_bytes
    with running(predictor, max_kept_bytes=int(size * 1.5)) as own:
        first, second = own.segment(image_file(0)).json["id"], own.segment(image_file(1)).json["id"]
        reply = own.ask(f"/v1/results/{first}")
        assert (reply.status, reply.reason) == (404, "no result has this id (any more): send the image again")
        assert own.ask(f"/v1/results/{second}").status == 200
        assert own.metric("psf_kept_bytes") == size
    with running(predictor, max_kept_bytes=0) as own:
        reply = own.segment(image_file())
        assert reply.json["id"] is None and reply.json["segments"] and "X-PSF-Result" not in reply.headers
