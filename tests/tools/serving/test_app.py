"""The HTTP interface: results in each format, options, and refusals."""

from __future__ import annotations

import base64
import io
import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

import psf
from tests.tools.serving.conftest import Running, image_file, running

pytest.importorskip("psf.tools.serving", reason="needs the packages of the extra serve")

FIELD = b'--b\r\nContent-Disposition: form-data; name="%s"; filename="a.png"\r\n\r\n%s\r\n--b--\r\n'
FORM = {"Content_Type": "multipart/form-data; boundary=b"}


def ids_of(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(int) @ [1, 256, 65536]


def test_json(server: Running, predictor: psf.Predictor) -> None:
    reply = server.segment(image_file())
    expected = predictor(image_file())
    found = reply.json
    assert reply.status == 200 and reply.headers["Cache-Control"] == "no-store"
    assert reply.headers["X-PSF-Result"] == found["id"]
    assert (found["width"], found["height"]) == (96, 64)
    assert np.array_equal(ids_of(base64.b64decode(found["panoptic_png"])), expected.panoptic_map)
    assert len(expected.segments) > 1
    for one, segment in zip(found["segments"], expected.segments, strict=True):
        assert (one["id"], one["class_name"]) == (segment.id, segment.class_name)
        assert one["category_id"] == segment.category_id
        assert (one["is_thing"], one["area"], one["box"]) == (segment.is_thing, segment.area, list(segment.box))
        assert one["score"] == pytest.approx(segment.score)
    colors = {entry.name: list(entry.color or ()) for entry in predictor.classes}
    stuff = [one for one in found["segments"] if not one["is_thing"]]
    assert stuff and all(one["color"] == colors[one["class_name"]] for one in stuff)  # each is alone in its class


@pytest.mark.parametrize("query", ["?confidence=0.5", "?keep=0.9", "?confidence=0.55&keep=0.5"])
def test_other_thresholds_need_no_network(server: Running, predictor: psf.Predictor, query: str) -> None:
    first = server.segment(image_file()).json
    runs = server.metric("psf_network_seconds_count")
    found = server.ask(f"/v1/results/{first['id']}{query}").json
    chosen = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.]+)", query)}
    expected = predictor(image_file()).merge_again(**chosen)
    assert np.array_equal(ids_of(base64.b64decode(found["panoptic_png"])), expected.panoptic_map)
    assert [one["id"] for one in found["segments"]] == [one.id for one in expected.segments]
    assert found["segments"] != first["segments"]
    assert server.metric("psf_network_seconds_count") == runs
    assert server.segment(image_file(), query).json["segments"] == found["segments"]


def test_formats(server: Running, predictor: psf.Predictor) -> None:
    expected = predictor(image_file())
    png = server.segment(image_file(), "?format=png")
    assert png.headers["content-type"] == "image/png"
    assert np.array_equal(ids_of(png.content), expected.panoptic_map)
    path = f"/v1/results/{png.headers['X-PSF-Result']}?format="
    assert server.ask(f"{path}png").content == png.content
    coco = server.ask(f"{path}coco").json
    assert coco == json.loads(json.dumps(expected.to_coco(file_name="image.jpg")))
    for name, picture in (("picture", np.asarray(expected.draw())), ("photo", expected.picture)):
        reply = server.ask(f"{path}{name}")
        assert reply.headers["content-type"] == "image/jpeg"
        with Image.open(io.BytesIO(reply.content)) as image:
            assert np.abs(np.asarray(image).astype(int) - picture).mean() < 4  # of JPEG


def test_a_picture_that_is_too_large_for_a_jpeg(server: Running) -> None:
    first = server.segment(image_file(height=4, width=65_502))
    assert first.status == 200 and first.json["width"] == 65_502
    for name in ("picture", "photo"):
        reply = server.ask(f"/v1/results/{first.json['id']}?format={name}")
        assert reply.status == 422 and "has more than 65,500 pixels a side" in reply.reason


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "IMAGE/JPEG; x=1"])
def test_raw_body(server: Running, kind: str) -> None:
    assert server.segment(image_file(), Content_Type=kind).status == 200


def test_form(server: Running) -> None:
    reply = server.ask("/v1/segment", FIELD % (b"image", image_file()), **FORM)
    assert reply.status == 200 and reply.json["segments"] == server.segment(image_file()).json["segments"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "reason"),
    [
        (b"a=1", {"Content_Type": "application/x-www-form-urlencoded"}, 415, "content type is .*www-form.*: expected"),
        (b"{}", {"Content_Type": "application/json"}, 415, "'image'"),
        (b"", {"Content_Type": "image/png"}, 422, "the upload is empty"),
        (b"abc", {"Content_Type": "image/png"}, 422, r"the image \(3 bytes\): empty, corrupt or not an image"),
        (b"%!PS-Adobe EPSF\n", {"Content_Type": "image/png"}, 422, "PostScript is a program"),
        (image_file()[:60], {"Content_Type": "image/png"}, 422, r"the image \(60 bytes\): empty, corrupt"),
        (FIELD % (b"photo", b"abc"), FORM, 422, "the form has 'photo': expected one file named 'image'"),
        (b"--b--\r\n", FORM, 422, "the form has nothing"),
        ((FIELD % (b"image", b"abc"))[:-9], FORM, 422, "the form has"),
        (b"abc", FORM, 422, "the form cannot be used"),
        (b"abc", {"Content_Type": "multipart/form-data"}, 422, "the form cannot be used .Missing boundary"),
        (
            b'--b\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc\r\n--b--\r\n',
            FORM,
            422,
            "Too many fields.*expected one file named 'image'",
        ),
        ((FIELD % (b"image", b"abc")).replace(b"--b--\r\n", b"") * 2 + b"--b--\r\n", FORM, 422, "Too many files"),
    ],
)
def test_no_image(server: Running, body: bytes, headers: dict[str, str], status: int, reason: str) -> None:
    reply = server.ask("/v1/segment", body, **headers)
    assert reply.status == status and re.search(reason, reply.reason), reply.content
    assert "X-PSF-Result" not in reply.headers


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("confidence=nan", "confidence: .*finite number, found 'nan'"),
        ("confidence=inf", "confidence: .*found 'inf'"),
        ("keep=-0.1", "keep: .*greater than or equal to 0, found '-0.1'"),
        ("keep=1.01", "keep: .*less than or equal to 1"),
        ("confidence=", "confidence: .*valid number"),
        ("confidence=a%0Ab", r"confidence: .*found 'a\\nb'"),
        ("format=tiff", "format: .*'json'.*found 'tiff'"),
        ("t_cnf=0.1", "unknown option 't_cnf': expected confidence, keep, format"),
    ],
)
def test_wrong_options(server: Running, query: str, reason: str) -> None:
    for reply in (server.segment(image_file(), f"?{query}"), server.ask(f"/v1/results/x?{query}")):
        assert reply.status == 422 and re.search(reason, reply.reason), reply.content


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/v1/results/unknown", "GET", 404),
        ("/nothing", "GET", 404),
        ("/docs", "GET", 404),  # it would load scripts from another server
        ("/page/../app.py", "GET", 404),
        ("/page/%2e%2e/app.py", "GET", 404),
        ("/v1/segment", "GET", 405),
        ("/v1/segment", "OPTIONS", 405),  # the question of a browser for another site
        ("/healthz", "POST", 405),
    ],
)
def test_no_such_thing(server: Running, path: str, method: str, status: int) -> None:
    reply = server.ask(path, b"" if method == "POST" else None, method)
    assert reply.status == status and reply.reason
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]


def test_host_names(predictor: psf.Predictor, server: Running) -> None:
    for name in ("localhost", "127.0.0.1:1234", "[::1]:80", "LOCALHOST"):
        assert server.ask("/healthz", Host=name).status == 200, name
    for name in (
        "evil.example",
        "127.0.0.1.evil.example",
        "",
        "localhost@evil.example",
        "[::1]evil",
        "localhost:evil",
        "127.0.0.1:1:2",
    ):
        reply = server.ask("/v1/segment", image_file(), Host=name)
        assert reply.status == 400 and "expected 127.0.0.1, [::1], localhost; --allowed-host" in reply.reason
    with running(predictor, hosts=("Segment.Example.org",)) as other:
        assert other.ask("/healthz", Host="segment.example.org").status == 200
        assert other.ask("/healthz", Host="other.example.org").status == 400


def test_pages_of_other_sites(server: Running) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert server.segment(image_file(), Sec_Fetch_Site=site).status == status
    assert server.ask("/", Sec_Fetch_Site="cross-site").status == 200  # a link


def test_errors_of_psf(predictor: psf.Predictor, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            return getattr(predictor, name)

        def __call__(self, data: bytes, **settings: object) -> None:
            raise {b"memory": MemoryError("x"), b"bug": KeyError("/secret/path")}[data]

    with running(Broken()) as own, caplog.at_level(logging.ERROR):
        reply = own.segment(b"bug")
        assert (reply.status, reply.reason) == (500, "an error of the server; its log has the details")
        assert "/secret/path" in caplog.text
        reply = own.segment(b"memory")
        assert (reply.status, reply.reason) == (503, "not enough memory for this image: send a smaller one")
        assert own.metric("psf_images_in_flight") == 0


def test_model(server: Running, predictor: psf.Predictor) -> None:
    found = server.ask("/v1/model").json
    assert found["name"] == "tiny.pth" and len(found["classes"]) == len(predictor.classes) == 7
    assert {"name": "ball", "category_id": 3, "is_thing": True, "color": [250, 0, 0]} in found["classes"]
    assert found["things"] == {"confidence": 0.01, "keep": 0.0}
    assert found["limits"] == {"max_bytes": 20_000_000, "max_pixels": 50_000_000}


def test_openapi(server: Running) -> None:
    document = server.ask("/openapi.json").json
    assert sorted(document["paths"]) == ["/healthz", "/metrics", "/v1/model", "/v1/results/{result_id}", "/v1/segment"]
    post = document["paths"]["/v1/segment"]["post"]
    assert {one["name"] for one in post["parameters"]} == {"confidence", "keep", "format"}
    assert sorted(post["requestBody"]["content"]) == ["application/octet-stream", "image/*", "multipart/form-data"]
    assert {"200", "408", "413", "415", "422", "429", "503"} <= set(post["responses"])
    for status, one in post["responses"].items():
        name = one["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        assert name == ("Segmentation" if status == "200" else "Reason")


def test_page_and_its_files(server: Running) -> None:
    page = server.ask("/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    files = re.findall(r'(?:href|src)="(page/[^"]+)"', page.content.decode())
    script = server.ask("/page/page.js").content.decode()
    modules = [f"page/{name}" for name in re.findall(r'from "./([\w.]+)"', script)]
    assert len(files) == 2 and len(modules) == 2
    for name in (*files, *modules):
        reply = server.ask(f"/{name}")
        assert reply.status == 200 and b"http" not in reply.content, name  # nothing from other servers
        assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_metrics(predictor: psf.Predictor) -> None:
    with running(predictor) as own:
        own.segment(image_file())
        own.segment(b"abc")
        own.ask("/anything/a")
        own.ask("/anything/b")
        assert own.metric('psf_requests_total{method="POST",path="/v1/segment",status="200"}') == 1
        assert own.metric('psf_requests_total{method="POST",path="/v1/segment",status="422"}') == 1
        assert own.metric('psf_requests_total{method="GET",path="other",status="404"}') == 2
        assert own.metric('psf_request_seconds_count{path="/v1/segment"}') == 2
        assert own.metric("psf_network_seconds_count") == 2 and own.metric("psf_merging_seconds_count") == 1
        assert own.metric("psf_images_in_flight") == 0 == own.metric('psf_queue_length{thread="network"}')
        assert own.metric("psf_kept_results") == 1 and own.metric("psf_kept_bytes") > 64 * 96 * 7
        assert own.ask("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")
        assert own.ask("/healthz").json == {"status": "ok"}
