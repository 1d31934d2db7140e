"""Projects in Supervisely's format, written by the rules of its documentation, and read back to exact maps."""

from __future__ import annotations

import base64
import copy
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from psf.errors import UserError
from psf.tools.dataset_conversion.annotations.supervisely import read_supervisely
from tests.tools.dataset_conversion.label_files import convert, expected, grid, read_set, save_image

META = {
    "classes": [
        {"title": "sky", "shape": "polygon", "color": "#F6FF00", "geometry_config": {}, "id": 650, "hotkey": ""},
        {"title": "car", "shape": "any", "color": "#BE55CE", "id": 651},
    ],
    "tags": [],
    "projectType": "images",
}
# The text of the 3 x 3 mask in Supervisely's documentation.
DOCUMENTED = (
    "eJzrDPBz5+WS4mJgYOD19HAJAtLMIMwIInOeqf8BUmwBPiGuQPr///9Lb86/C2QxlgT5BTM4PLuRBuTwebo4hlTMSa44cOHAB6DqY0yORgq8YkAZ"
    "Bk9XP5d1TglNANAFGzA="
)


def bitmap_text(mask: np.ndarray) -> str:
    """A mask as a palette PNG with a transparent index 0, in zlib, in base64."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    stream = io.BytesIO()
    image.save(stream, format="PNG", transparency=0, optimize=0)
    return base64.b64encode(zlib.compress(stream.getvalue())).decode()


def bitmap(title: str, data: str, origin: tuple[int, int]) -> dict[str, Any]:
    return {"classTitle": title, "geometryType": "bitmap", "bitmap": {"data": data, "origin": [*origin]}, "tags": []}


def polygon(title: str, exterior: Any, *holes: Any, kind: str = "polygon") -> dict[str, Any]:
    return {"classTitle": title, "geometryType": kind, "points": {"exterior": exterior, "interior": list(holes)}}


def write(root: Path, *objects: dict[str, Any], size: tuple[int, int] = (4, 6), name: str = "ds/img/a.jpg") -> Path:
    """A project with one image of (height, width); returns its annotation file."""
    (root / "meta.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "meta.json").write_text(json.dumps(META))
    image = save_image(root / name, size)
    path = image.parent.parent / "ann" / f"{image.name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"description": "", "tags": [], "size": {"height": size[0], "width": size[1]}, "objects": [*objects]}
    path.write_text(json.dumps(content))
    return path


def run(root: Path, *words: object) -> dict[str, list[list[str]]]:
    output = root.parent / "out"
    assert convert("--supervisely", root, "--overlap", "later-on-top", "--output", output, "--overwrite", *words) == 0
    return {name: one.tolist() for name, one in read_set(output, root).items()}


def test_bitmaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At an origin (x, y): the documented one, one without zlib, one in gray, one that is cut off by the image."""
    plain, gray = io.BytesIO(), io.BytesIO()
    Image.fromarray(grid("1 1").astype(bool)).save(plain, format="PNG")
    Image.fromarray(grid("0\n9").astype(np.uint8)).save(gray, format="PNG")
    root = tmp_path / "project"
    write(
        root,
        bitmap("sky", DOCUMENTED, (1, 0)),
        bitmap("car", base64.b64encode(plain.getvalue()).decode(), (2, 1)),
        bitmap("car", base64.b64encode(zlib.compress(gray.getvalue())).decode(), (0, 2)),
        bitmap("car", bitmap_text(np.ones((2, 2), bool)), (5, 3)),
        {"classTitle": "car", "geometryType": "point", "points": {"exterior": [[1, 1]], "interior": []}},
    )
    assert run(root, "--things", "car") == {
        "ds/img/a.jpg": expected("""
            .    sky sky  sky  . .
            .    sky car1 car1 . .
            .    sky sky  sky  . .
            car2 .   .    .    . car3
        """)
    }
    assert "1 objects without an area (point), dropped" in capsys.readouterr().out


def test_polygons_rectangles_and_holes(tmp_path: Path) -> None:
    """The points are pixels of the object, and those of a hole are not; a multipolygon is one object."""
    root = tmp_path / "project"
    parts = [
        {"exterior": [[0, 0], [1, 0], [1, 1], [0, 1]], "interior": []},
        {"exterior": [[4, 0], [5.2, 0], [5, 0.8], [4, 1]]},
    ]
    write(
        root,
        polygon("sky", [[0, 0], [5, 3]], kind="rectangle"),
        polygon("car", [[1, 1], [4, 1], [4, 3], [1, 3]], [[2, 2], [3, 2], [3, 2], [2, 2]]),
        {"classTitle": "car", "geometryType": "multipolygon", "parts": parts},
        polygon("car", [[0, 3], [1, 3]]),  # two points: no area
    )
    assert run(root, "--things", "car") == {
        "ds/img/a.jpg": expected("""
            car1 car1 sky  sky  car1 car1
            car1 car1 car2 car2 car1 car1
            sky  car2 sky  sky  car2 sky
            sky  car2 car2 car2 car2 sky
        """)
    }


def test_a_dataset_of_a_project_and_the_background(tmp_path: Path) -> None:
    root = tmp_path / "project"
    write(root, polygon("car", [[0, 0], [0, 0]], kind="rectangle"), size=(1, 2), name="train/img/a.png")
    write(root, polygon("car", [[1, 0], [1, 0]], kind="rectangle"), size=(1, 2), name="val/img/b.png")
    assert list(run(root, "--background", "rest")) == ["train/img/a.png", "val/img/b.png"]
    assert run(root / "val", "--background", "rest") == {"img/b.png": expected("rest car1")}
    categories = json.loads((root / "out" / "panoptic.json").read_text())["categories"]
    assert [(one["id"], one["name"], one["isthing"]) for one in categories] == [
        (1, "sky", 1),
        (2, "car", 1),
        (3, "rest", 0),
    ]


def changed(*keys: Any, to: Any) -> dict[str, Any]:
    """An object with another value at a path of keys."""
    one = copy.deepcopy(bitmap("car", DOCUMENTED, (0, 0)))
    *way, last = keys
    place: Any = one
    for key in way:
        place = place[key]
    place[last] = to
    return one


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (changed("classTitle", to="bus"), r"object 1 \('bus'\): meta.json has no such class, expected one of sky, car"),
        (changed("geometryType", to="blob"), "'geometryType' is 'blob', expected one of bitmap, polygon"),
        (changed("bitmap", to=[]), "'bitmap' is \\[\\], expected an object"),
        (changed("bitmap", "origin", to=[0]), "'origin' is \\[0\\], expected \\[x, y\\] in whole pixels"),
        (changed("bitmap", "origin", to=[0.5, 0]), "'origin' is \\[0.5, 0\\]"),
        (changed("bitmap", "data", to=7), "'data' is 7, expected a text"),
        (polygon("car", [[0, 0], [1, "x"], [1, 1]]), "found the points .*'x'"),
        (polygon("car", [[0, 0], [1, 0], [1e9, 1]]), "found the points"),
        (polygon("car", [[0, 0], [1, 0], [1, 1]], 7), "found the points 7"),
        (polygon("car", [[0, 0]], kind="rectangle"), "a rectangle with 1 points, expected 2"),
        ({"classTitle": "car", "geometryType": "multipolygon"}, "'parts' is missing"),
        ({"classTitle": "car", "geometryType": "multipolygon", "parts": [3]}, "found 3, expected an object"),
    ],
)
def test_mistakes_in_an_object(tmp_path: Path, one: dict[str, Any], message: str) -> None:
    path = write(tmp_path, one)
    with pytest.raises(UserError, match=message) as caught:
        read_supervisely(tmp_path)
    assert str(caught.value).startswith(f"{path}: object 1")


def png_of(height: int, width: int) -> bytes:
    stream = io.BytesIO()
    Image.new("1", (width, height), 1).save(stream, format="PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no PNG", "is damaged .*expected a PNG"),
        (bytes(3_000_000), "has more than 65656 bytes"),  # in 3 kB
        (png_of(800, 800), "is 800 x 800, its image 6 x 4 pixels"),
        (png_of(3, 3)[:-40], "is damaged"),
    ],
    ids=["text", "bomb", "large", "cut"],
)
def test_damaged_and_hostile_bitmaps(
    tmp_path: Path, data: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "project"
    write(root, bitmap("car", base64.b64encode(zlib.compress(data)).decode(), (0, 0)))
    with pytest.raises(UserError, match=message):
        source = read_supervisely(root)
        source.regions(source.images[0])
    assert convert("--supervisely", root, "--overlap", "error", "--output", tmp_path / "out") == 2
    assert "error: ds/img/a.jpg: a bitmap of 'car'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "panoptic.json").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("not base64!", "is damaged"),
        (base64.b64encode(b"no zlib").decode(), "is damaged .*expected base64 of a PNG in zlib"),
        (DOCUMENTED[:60], "its data is cut off"),
    ],
)
def test_texts_that_are_no_bitmaps(tmp_path: Path, data: str, message: str) -> None:
    write(tmp_path, bitmap("car", data, (0, 0)))
    source = read_supervisely(tmp_path)
    with pytest.raises(UserError, match=message):
        source.regions(source.images[0])


def test_mistakes_in_a_project(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no meta\.json in it or beside it"):
        read_supervisely(tmp_path / "none")
    path = write(tmp_path)
    with pytest.raises(UserError, match=r"--things: 'bus': .*meta\.json has no such class"):
        read_supervisely(tmp_path, things=["bus"])
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "size": {"height": 4}}))
    with pytest.raises(UserError, match=r"a\.jpg\.json: size: 'width' is missing"):
        read_supervisely(tmp_path)
    path.write_text(json.dumps({**content, "size": {"height": 100_000, "width": 100_000}}))
    with pytest.raises(UserError, match="megapixels, the limit is"):
        read_supervisely(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"found no file DATASET/ann/IMAGE\.json"):
        read_supervisely(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"classes": [{"title": "a"}, {"title": "a"}]}))
    with pytest.raises(UserError, match="class 2: an earlier class is called 'a'"):
        read_supervisely(tmp_path)


def test_missing_images_are_noted(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "ds" / "img" / "a.jpg").unlink()
    (note,) = read_supervisely(tmp_path).notes
    assert note.startswith("images that are missing: save them below")
