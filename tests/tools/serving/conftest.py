"""A real server in a thread of the test, with a tiny model, and a client for it."""

from __future__ import annotations

import http.client
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from PIL import Image

import psf
from tests.model_files import noise, write_model_file


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_file(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def predictor(model_file: Path) -> psf.Predictor:
    return psf.Predictor(model_file, device="cpu")


@pytest.fixture(autouse=True)
def _limit_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server sets it for its process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def image_file(seed: int = 0, kind: str = "PNG", **size: int) -> bytes:
    """A picture with segments, as a file."""
    file = io.BytesIO()
    Image.fromarray(noise(seed=seed, **size)).save(file, kind)
    return file.getvalue()


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def reason(self) -> str:
        """The line of a refusal."""
        assert self.headers["content-type"] == "application/json" and list(self.json) == ["detail"]
        line: str = self.json["detail"]
        assert line and "\n" not in line and "Traceback" not in line
        assert "/" not in re.sub("(multipart|application|image)/", "", line)  # no path of the server
        return line


class Running(NamedTuple):
    """A server that runs."""

    service: Any
    address: str
    said: list[str]

    def ask(self, path: str, body: Any = None, method: str | None = None, **headers: str) -> Reply:
        """Send a request; underscores in names of headers become hyphens."""
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=120)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method or ("GET" if body is None else "POST"), path, body, named)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()

    def segment(self, data: bytes, query: str = "", **headers: str) -> Reply:
        return self.ask(f"/v1/segment{query}", data, **{"Content_Type": "image/png", **headers})

    def metric(self, name: str) -> float:
        """A line of /metrics."""
        lines = self.ask("/metrics").content.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} ")), 0.0)


@contextmanager
def running(predictor: Any, *, hosts: tuple[str, ...] = (), name: str = "tiny.pth", **limits: Any) -> Iterator[Running]:
    """Serve a predictor until the end of the block."""
    from psf.tools.serving import Limits, Service, bind, serve  # test modules skip where the extra serve is missing

    service = Service(predictor, name, Limits(**limits))
    listener, said = bind("127.0.0.1", 0), list[str]()
    thread = threading.Thread(
        target=serve, args=(service, listener), kwargs={"allowed_hosts": hosts, "say": said.append}, daemon=True
    )
    thread.start()
    wait_for(lambda: bool(said))
    try:
        yield Running(service, listener.address, said)
    finally:
        service.is_closing = True
        thread.join(30)
        assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def server(predictor: psf.Predictor) -> Iterator[Running]:
    limit = Image.MAX_IMAGE_PIXELS
    with running(predictor) as own:
        yield own
    Image.MAX_IMAGE_PIXELS = limit


class Waiting:
    """A predictor whose images wait until `go`."""

    def __init__(self, predictor: psf.Predictor) -> None:
        self._predictor, self.go, self.num_begun = predictor, threading.Event(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def __call__(self, *images: Any, **settings: Any) -> Any:
        self.num_begun += 1
        assert self.go.wait(60)
        return self._predictor(*images, **settings)


@pytest.fixture
def waiting(predictor: psf.Predictor) -> Iterator[Waiting]:
    own = Waiting(predictor)
    yield own
    own.go.set()
