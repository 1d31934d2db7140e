"""The page in a headless Chromium, with a real server: drop, legend, hover, sliders, downloads, keyboard, phone.

Needs `pip install playwright` and a Chromium (`apt-get install chromium`).
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import psf
from tests.tools.serving.conftest import Running, image_file, running, wait_for

pytest.importorskip("psf.tools.serving", reason="needs the packages of the extra serve")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    yield from opened(browser, server)


def until(page: Any, condition: str) -> None:
    """Wait for a condition; Playwright's own way needs eval, which the page forbids."""
    wait_for(lambda: bool(page.evaluate(condition)))


def opened(browser: Any, server: Running) -> Iterator[Any]:
    """The page; what it logs, such as a violation of its Content-Security-Policy, fails the test."""
    page = browser.new_page(viewport={"width": 1100, "height": 750})
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.set_default_timeout(120_000)  # a busy machine
    page.goto(server.address)
    until(page, "document.getElementById('model').textContent !== ''")
    yield page
    page.close()
    harmless = re.compile("Failed to load resource.*(404|422)|willReadFrequently")  # refusals; `painted` reads back
    assert [text for text in problems if not harmless.search(text)] == []


def drop(page: Any, data: bytes, name: str = "scene.one.png", kind: str = "image/png") -> None:
    script = """([data, name, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0))], name, { type }));
        return transfer;
    }"""
    transfer = page.evaluate_handle(script, [base64.b64encode(data).decode(), name, kind])
    page.dispatch_event("#stage", "drop", {"dataTransfer": transfer})


def legend(page: Any) -> list[str]:
    return [text.split("\n")[0] for text in page.locator("#legend label").all_inner_texts()]


def painted(page: Any) -> int:
    """Number of pixels that have a colour."""
    script = "() => { const c = document.getElementById('masks');"
    script += " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
    script += " let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; }"
    number: int = page.evaluate(script)
    return number


def set_slider(page: Any, name: str, value: float) -> None:
    with page.expect_response(re.compile(r"/v1/(results|segment)")):
        page.locator(f"#{name}").fill(str(value))
    until(page, "document.getElementById('busy').hidden")
    page.wait_for_timeout(100)


def segmented(page: Any, data: bytes, **file: str) -> None:
    drop(page, data, **file)
    page.wait_for_selector("#legend label")


def test_a_dropped_photo(page: Any, server: Running, predictor: psf.Predictor) -> None:
    segmented(page, image_file())
    expected = predictor(image_file())
    by_area: dict[str, int] = {}
    for one in expected.segments:
        by_area[one.class_name] = by_area.get(one.class_name, 0) + one.area
    assert legend(page) == sorted(by_area, key=lambda name: -by_area[name])
    assert "traffic light # 2\n3 · " in page.locator("#legend").inner_text()
    assert page.inner_text("#status").startswith(f"{len(expected.segments)} segments")
    assert painted(page) == (expected.panoptic_map > 0).sum()
    colors = {entry.name: entry.color for entry in predictor.classes}
    for name, style in zip(legend(page), page.locator("#legend .swatch").all(), strict=True):
        assert style.evaluate("one => one.style.backgroundColor") == "rgb({}, {}, {})".format(*colors[name])


def test_classes_are_toggled(page: Any, predictor: psf.Predictor) -> None:
    segmented(page, image_file())
    expected = predictor(image_file())
    [largest, *_] = legend(page)
    everything = painted(page)
    page.locator("#legend input").first.focus()
    page.keyboard.press("Space")
    area = sum(one.area for one in expected.segments if one.class_name == largest)
    assert painted(page) == everything - area
    page.click("#none")
    assert painted(page) == 0
    page.click("#all")
    assert painted(page) == everything


def test_names_are_shown(page: Any, predictor: psf.Predictor) -> None:
    segmented(page, image_file())
    expected = predictor(image_file())
    box = page.locator("#masks").bounding_box()
    for x, y in ((10, 10), (48, 32), (90, 60)):
        page.mouse.move(box["x"] + box["width"] * (x + 0.5) / 96, box["y"] + box["height"] * (y + 0.5) / 64)
        found = [one for one in expected.segments if one.id == expected.panoptic_map[y, x]]
        assert page.locator("#tip").is_visible() == bool(found)
        if found:
            assert page.inner_text("#tip") == f"{found[0].class_name} {found[0].score:.2f}"
    page.mouse.move(1, 1)
    assert not page.locator("#tip").is_visible()
    page.locator("summary").focus()  # by the keyboard
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    largest = max(expected.segments, key=lambda one: one.area)
    assert page.inner_text("#tip") == f"{largest.class_name} {largest.score:.2f}"
    assert page.locator("#segments button").count() == len(expected.segments)


def test_sliders_do_not_run_the_network(page: Any, server: Running, predictor: psf.Predictor) -> None:
    segmented(page, image_file())
    runs = server.metric("psf_network_seconds_count")
    first = page.inner_text("#legend")
    assert page.locator("#reset").is_disabled() and page.inner_text("#confidence-value") == "0.01"
    set_slider(page, "keep", 0.9)
    expected = predictor(image_file()).merge_again(keep=0.9)
    assert painted(page) == (expected.panoptic_map > 0).sum() and set(legend(page)) == {
        one.class_name for one in expected.segments
    }
    set_slider(page, "confidence", 1)
    assert painted(page) == 0 and page.inner_text("#status").startswith("0 segments")
    assert "lower the confidence threshold" in page.inner_text("#status")
    with page.expect_response(re.compile("/v1/results")):
        page.click("#reset")
    page.wait_for_selector("#legend label")
    assert page.inner_text("#legend") == first
    assert server.metric("psf_network_seconds_count") == runs
    page.locator("#opacity").fill("30")
    assert page.locator("#masks").evaluate("one => one.style.opacity") == "0.3"


@pytest.mark.parametrize("factor", [0, 1.5])
def test_results_that_are_not_kept(browser: Any, predictor: psf.Predictor, factor: float) -> None:
    """The page sends the image again."""
    with running(predictor, max_kept_bytes=int(factor * predictor(image_file()).num_bytes)) as own:
        for page in opened(browser, own):
            segmented(page, image_file())
            own.segment(image_file(seed=1))
            set_slider(page, "confidence", 0.55)
            until(page, "document.querySelectorAll('#legend label').length === 2")
            expected = predictor(image_file()).merge_again(confidence=0.55)
            assert painted(page) == (expected.panoptic_map > 0).sum()
            assert own.metric("psf_network_seconds_count") == 3


def test_downloads(page: Any, predictor: psf.Predictor, tmp_path: Path) -> None:
    segmented(page, image_file())
    expected = predictor(image_file())
    files = {}
    for button in ("picture", "png", "json"):
        with page.expect_download() as download:
            page.click(f"#save-{button}")
        name = download.value.suggested_filename
        download.value.save_as(tmp_path / name)
        files[name] = (tmp_path / name).read_bytes()
    assert list(files) == ["scene.one_segments.jpg", "scene.one_panoptic.png", "scene.one.json"]
    assert files["scene.one_segments.jpg"].startswith(b"\xff\xd8\xff")
    assert files["scene.one_panoptic.png"].startswith(b"\x89PNG")
    content = json.loads(files["scene.one.json"])
    assert content["panoptic_file_name"] == "scene.one_panoptic.png" and "panoptic_png" not in content
    assert [one["id"] for one in content["segments"]] == [one.id for one in expected.segments]


def test_an_image_that_the_browser_cannot_show(page: Any) -> None:
    segmented(page, image_file(kind="TIFF"), name="a.tif", kind="image/tiff")
    script = "() => document.getElementById('photo').getContext('2d').getImageData(0, 0, 96, 64)"
    assert page.evaluate(f"{script}.data.some((value, i) => i % 4 < 3 && value > 100)")


def test_a_photo_that_nothing_can_show(page: Any, predictor: psf.Predictor) -> None:
    """The segments are shown alone, in their own size."""
    page.evaluate("""() => {
        const read = window.createImageBitmap;
        window.createImageBitmap = (blob, options) => (options ? read(blob, options) : Promise.reject(new Error()));
    }""")
    segmented(page, image_file())
    assert page.locator("#view").is_visible()
    assert painted(page) == (predictor(image_file()).panoptic_map > 0).sum()


def test_another_photo_is_opened_meanwhile(page: Any, predictor: psf.Predictor) -> None:
    """The first photo's segments, which are decoded last, are dropped."""
    page.evaluate("""() => {
        const read = window.createImageBitmap;
        window.held = [];
        window.createImageBitmap = (blob, options) =>
            options ? new Promise((go) => window.held.push(() => go(read(blob, options)))) : read(blob);
    }""")
    drop(page, image_file())
    until(page, "held.length === 1")
    drop(page, image_file(seed=1, height=32, width=48))
    until(page, "held.length === 2")
    page.evaluate("held[1]()")
    page.wait_for_selector("#legend label")
    shown = page.inner_text("#legend")
    page.evaluate("held[0]()")
    page.wait_for_timeout(200)
    expected = predictor(image_file(seed=1, height=32, width=48))
    assert page.inner_text("#legend") == shown
    page.click("#all")
    assert painted(page) == (expected.panoptic_map > 0).sum()


def test_a_slider_before_another_photo(page: Any) -> None:
    """What it would ask for is not asked of the next photo."""
    segmented(page, image_file())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.method))
    page.evaluate("""() => {
        document.getElementById("confidence").dispatchEvent(new Event("input"));
        const transfer = new DataTransfer();
        transfer.items.add(new File(["no image"], "a.png", { type: "image/png" }));
        const drop = new DragEvent("drop", { bubbles: true, dataTransfer: transfer });
        document.getElementById("stage").dispatchEvent(drop);
    }""")
    page.wait_for_timeout(500)
    assert asked == ["POST"]


def test_errors_are_shown(page: Any, browser: Any, predictor: psf.Predictor) -> None:
    segmented(page, image_file())
    drop(page, b"abc", "a.txt", "text/plain")
    until(page, "document.getElementById('error').textContent !== ''")
    assert page.inner_text("#error").startswith("the image (3 bytes): empty, corrupt or not an image")
    segmented(page, image_file())
    assert page.inner_text("#error") == ""
    with running(predictor, max_bytes=1000) as own:
        for other in opened(browser, own):
            drop(other, image_file(kind="BMP"))
            until(other, "document.getElementById('error').textContent !== ''")
            assert other.inner_text("#error") == "This file has 0.0 MB, the limit is 0.001 MB."


def test_names_are_no_html(browser: Any, predictor: psf.Predictor) -> None:
    with running(predictor, name="<img src=x onerror=alert(1)>") as own:
        for page in opened(browser, own):
            assert page.inner_text("#model") == "<img src=x onerror=alert(1)>, 7 classes"


def test_phone(page: Any) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    segmented(page, image_file())
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    boxes = [page.locator(name).bounding_box() for name in ("#view", "#status", "#opacity", "#legend", "#save-json")]
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in boxes)
    assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)


def test_keyboard_reaches_everything(page: Any) -> None:
    segmented(page, image_file())
    page.evaluate("document.body.focus()")
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    names = {"file", "opacity", "confidence", "keep", "all", "none", "SUMMARY", "save-picture", "save-png", "save-json"}
    assert names <= set(reached)
