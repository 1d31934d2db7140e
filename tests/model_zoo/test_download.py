"""Downloads that break, lie, wait, redirect and fail: continued where they can be, otherwise one line."""

from __future__ import annotations

import io
import re
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import OpenerDirector

import pytest

from psf.errors import UserError
from psf.model_zoo import download as module
from psf.model_zoo.download import download
from tests.model_zoo.site import Site, serving

CONTENT = bytes(range(251)) * 4000  # 1,004,000 bytes
WAY_OUT = "put the file at HERE"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(CONTENT) as one:
        yield one


@pytest.fixture
def part(tmp_path: Path) -> Path:
    return tmp_path / "model.pth.part"


def fetch(site: Site, part: Path) -> bytes:
    download(f"{site.url}/model.pth", part, WAY_OUT)
    return part.read_bytes()


def refused(site: Site, part: Path, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch(site, part)
    assert "\n" not in str(caught.value) and site.url in str(caught.value)


def test_a_file(site: Site, part: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fetch(site, part) == CONTENT
    assert site.ranges == [None] and site.requests[0][1]["Accept-Encoding"] == "identity"
    assert fetch(site, part) == CONTENT
    assert len(site.requests) == 1  # nothing was missing
    assert capfd.readouterr().err == ""  # no progress bar where nobody sees it


def test_progress_in_a_terminal(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    fetch(site, part)
    assert re.search(r"model\.pth: 100%.*1\.00M/1\.00M", capsys.readouterr().err)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_break_is_continued(site: Site, part: Path, is_reset: bool, chunked: bool) -> None:
    site.cuts, site.is_reset, site.chunked = [300_000, 200_000], is_reset, chunked
    assert fetch(site, part) == CONTENT
    if is_reset:  # discards what has not been read
        assert site.ranges[0] is None and all(site.ranges[1:]) and len(site.ranges) == 3
    else:
        assert site.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert site.requests[1][1]["If-Range"] == '"first"'


def test_a_later_call_continues(site: Site, part: Path) -> None:
    site.cuts = [100_000, 0, 0, 0]
    refused(
        site,
        part,
        r"the connection ended after 100,000 of 1,004,000 bytes; the next try continues after 100,000 b.*HERE",
    )
    assert len(site.requests) == 4  # and no more
    assert fetch(site, part) == CONTENT
    assert site.ranges[-1] == "bytes=100000-"


def test_a_reason_is_named_once(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks; after that, the network is gone."""
    site.cuts = [100_000]
    opener = module._opener

    def one_connection() -> OpenerDirector:
        if site.requests:
            raise URLError(OSError(101, "Network is unreachable"))
        return opener()

    monkeypatch.setattr(module, "_opener", one_connection)
    refused(site, part, "of 1,004,000 bytes, then Network is unreachable; the next try continues")


def test_the_date_is_a_validator_too(site: Site, part: Path) -> None:
    site.etag, site.modified, site.cuts = 'W/"weak"', "Tue, 15 Mar 2022 12:00:00 GMT", [100_000]
    assert fetch(site, part) == CONTENT
    assert site.ranges == [None, "bytes=100000-"]
    assert site.requests[1][1]["If-Range"] == site.modified


@pytest.mark.parametrize(
    "change", ["no ranges", "no validator", "changed", "shorter", "another range", "forged", "other"]
)
def test_what_cannot_be_continued_begins_again(site: Site, part: Path, change: str) -> None:
    site.cuts = [100_000, 0, 0, 0]
    if change == "no validator":
        site.etag = None
    refused(site, part, "the connection ended")
    if change == "no ranges":
        site.has_ranges = False
    elif change == "changed":
        site.content, site.etag = CONTENT[::-1], '"second"'
    elif change == "shorter":  # with the same validator
        site.content = CONTENT[:50_000]
    elif change == "another range":
        site.content_range = "bytes 99999-1003999/1004000"
    elif change == "forged":
        part.with_name(f"{part.name}.json").write_text('{"url": 3}')
    else:
        path = part.with_name(f"{part.name}.json")
        path.write_text(path.read_text().replace("/model.pth", "/other.pth"))
    assert fetch(site, part) == site.content
    assert site.ranges[-1] is None or change in ("no ranges", "changed")


def test_a_part_that_was_complete(site: Site, part: Path) -> None:
    """Killed between the last byte and the new name."""
    fetch(site, part)
    site.content = b""
    assert fetch(site, part) == CONTENT


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (2_000_000, "the connection ended after 1,004,000 of 2,000,000 bytes"),
        (9 * 2**30, "9,663,676,416 bytes or more, expected at most 8,589,934,592"),
    ],
)
def test_wrong_sizes(site: Site, part: Path, declared: int, message: str) -> None:
    site.declared, site.etag = declared, None
    refused(site, part, message)


def test_a_file_without_a_size_has_a_limit(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.declared = -1
    assert fetch(site, part) == CONTENT
    module.forget_part(part)
    monkeypatch.setattr(module, "MAX_BYTES", 100_000)
    refused(site, part, "expected at most 100,000: not a published checkpoint")


@pytest.mark.parametrize(
    ("code", "headers", "message"),
    [
        (404, {}, r"cannot be downloaded \(HTTP 404 Not Found\): put the file at HERE"),
        (403, {}, r"\(HTTP 403 Forbidden\)"),
        (403, {"Retry-After": "60"}, "HTTP 403 Forbidden; the server asks to wait, Retry-After: 60 seconds"),
        (429, {"Retry-After": "120"}, "HTTP 429 Too Many Requests; the server asks to wait, Retry-After: 120 seconds"),
        (
            503,
            {"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"},
            "HTTP 503 .*Retry-After: Fri, 31 Dec 2027 23:59:59 GMT",
        ),
        (500, {}, r"\(HTTP 500 Internal Server Error\)"),
        (204, {}, "answers with HTTP 204, expected the file"),
        (302, {"Location": "{url}/model.pth"}, r"\(HTTP 302, too many redirects\)"),
        (308, {"Location": "{url}/model.pth"}, "too many redirects"),
        (302, {"Location": "file:///etc/passwd"}, "redirect"),
        (302, {"Location": "ftp://127.0.0.1/x"}, "redirects to ftp://127.0.0.1, expected https://"),
        (302, {}, r"\(HTTP 302"),
    ],
)
def test_refusals(site: Site, part: Path, code: int, headers: dict[str, str], message: str) -> None:
    site.statuses = [(code, headers)]
    refused(site, part, message)
    assert not part.exists()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_keep_the_range(site: Site, part: Path, code: int) -> None:
    site.cuts = [100_000]
    site.statuses = [(code, {"Location": "{url}/elsewhere?signature=1"}), (200, {})] * 2
    assert fetch(site, part) == CONTENT
    assert [path for path, _ in site.requests] == ["/model.pth", "/elsewhere?signature=1"] * 2
    assert site.ranges == [None, None, "bytes=100000-", "bytes=100000-"]


def test_https_stays_https() -> None:
    request = module.Request("https://127.0.0.1/model.pth")
    for target in ("http://127.0.0.1/model.pth", "ftp://127.0.0.1/model.pth"):
        with pytest.raises(
            UserError, match=r"^https://127\.0\.0\.1/model\.pth: the server redirects to (http|ftp)://127"
        ):
            module._Redirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, target)


def test_encodings_are_refused(site: Site, part: Path) -> None:
    site.extra = {"Content-Encoding": "gzip"}
    refused(site, part, "with the encoding gzip, expected the file as it is")


def test_tls(site: Site, part: Path) -> None:
    """A server without TLS; so is a proxy that answers itself."""
    with pytest.raises(
        UserError, match=r"https://.*cannot be downloaded \(.*(SSL|TLS|WRONG_VERSION|record layer).*HERE"
    ) as caught:
        download(site.url.replace("http", "https") + "/model.pth", part, WAY_OUT)
    assert "\n" not in str(caught.value)


def test_a_proxy_that_refuses(site: Site, part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", site.url)
    site.statuses = [(407, {})]
    with pytest.raises(UserError, match=r"cannot be downloaded \(Tunnel connection failed: 407 .*HERE"):
        download("https://psf.invalid/model.pth", part, WAY_OUT)
    assert site.requests[0][0] == "psf.invalid:443"


@pytest.mark.parametrize("address", ["http://psf.invalid/model.pth", "http://127.0.0.1:9/model.pth"])
def test_without_a_network(part: Path, address: str) -> None:
    with pytest.raises(UserError, match=r"^http://\S+ cannot be downloaded \([^()]+\): put the file at HERE$"):
        download(address, part, WAY_OUT)
    assert not part.exists()


def test_a_server_that_says_nothing(part: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/model.pth"
        with pytest.raises(UserError, match=r"cannot be downloaded \((timed out|its headers did not arrive in 0 s)\)"):
            download(address, part, WAY_OUT)


@pytest.mark.parametrize(
    ("pause", "message"), [(0.1, r"only \d+ bytes in 0 s"), (1.0, "the connection broke, timed out")]
)
def test_a_server_that_drips(
    site: Site,
    part: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    pause: float,
    message: str,
) -> None:
    monkeypatch.setattr(module, "SECONDS_TO_ANSWER", 0.4)
    site.pause, site.piece = pause, 10
    refused(site, part, "cannot be downloaded")
    assert re.search(message, caplog.text)


def test_answers_that_are_not_http(part: Path) -> None:
    with serving(b"") as site:
        site.statuses = [(200, {})]
        site.extra = {"X": "\r\n\r\n" + "x" * 100}
        assert fetch(site, part) == b""
    with pytest.raises(UserError, match="cannot be downloaded"):
        download("http://127.0.0.1:1/\x7f", part, WAY_OUT)


def test_a_full_disk(site: Site, part: Path) -> None:
    """The limit on the size of a file fails as a full disk does: in the middle of a write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"model\.pth\.part cannot be written \(File too large\): .*PSF_CACHE"):
            fetch(site, part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert 0 < part.stat().st_size <= 200_000
    assert fetch(site, part) == CONTENT
    assert site.ranges[-1] == "bytes=200000-"


def test_a_folder_without_permission(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"part cannot be written \(Not a directory\): .*PSF_CACHE"):
        fetch(site, tmp_path / "file" / "model.pth.part")
