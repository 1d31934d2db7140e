"""Label images in each encoding, written by its own rules, and read back to exact maps."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from psf.tools.dataset_conversion.label_images import Segment, _split_things, draw_segments
from tests.tools.dataset_conversion.label_files import convert, expected, grid, read_set, save, save_image

CLASSES = "name,value,isthing\nroad,7,0\nsky,23,0\ncar,26,1\n"
SEMANTIC = """
23 23 23 23 23
26 26 23 26 26
26 26  7  7 26
 7  7 26  7  7
"""


def folder(tmp_path: Path, pixels: np.ndarray, mode: str = "L", classes: str = CLASSES) -> Path:
    """labels/a.png, photos/a.jpg and classes.csv."""
    save(tmp_path / "labels" / "a.png", pixels, mode)
    save_image(tmp_path / "photos" / "a.jpg", pixels.shape[:2])
    (tmp_path / "classes.csv").write_text(classes)
    return tmp_path


def run(root: Path, *words: object) -> list[list[str]]:
    """Convert the folder of `folder`; the map of a.jpg."""
    places = ("--labels", root / "labels", "--image-root", root / "photos", "--classes", root / "classes.csv")
    assert convert(*places, "--output", root / "out", *words) == 0
    return read_set(root / "out", root / "photos")["a.jpg"].tolist()


@pytest.mark.parametrize("kind", ["L", "P", "I;16", "rgb"])
def test_semantic_labels_with_components(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Things that touch, even at a corner, become one: the second car touches the third patch at a corner."""
    pixels = grid(SEMANTIC)
    root = folder(tmp_path, np.stack([pixels] * 3, -1) if kind == "rgb" else pixels, "L" if kind == "rgb" else kind)
    assert run(root) == expected("""
        sky  sky  sky  sky  sky
        car1 car1 sky  car2 car2
        car1 car1 road road car2
        road road car1 road road
    """)
    assert "touch become one" in capsys.readouterr().out


def test_things_of_the_argument_and_merged_rows(tmp_path: Path) -> None:
    """Two values of one name are one class; the id is the first value. A car beside a van is one component with it."""
    classes = "name,value\nroad,7\nroad,23\ncar,26\nvan,27\n"
    root = folder(tmp_path, grid("7 23 26\n26 27 27\n7 7 7"), classes=classes)
    assert run(root, "--things", "car,van") == expected("road road car1\ncar2 van1 van1\nroad road road")


def test_colors_of_a_table(tmp_path: Path) -> None:
    colors = np.array([[(128, 64, 128), (0, 0, 142)], [(0, 0, 142), (255, 255, 255)]], np.uint8)
    classes = "name;r;g;b;isthing;ignore\nroad;128;64;128;0;\ncar;0;0;142;1;\nborder;255;255;255;;1\n"
    root = folder(tmp_path, colors, classes=classes)
    assert run(root) == expected("road car1\ncar1 .")
    # The same colors by a palette, with transparency.
    image = Image.fromarray(colors).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    image.info["transparency"] = bytes((255, 0, 7, 255))
    image.save(root / "labels" / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(root, "--overwrite") == expected("road car1\ncar1 .")


def test_a_table_with_values_and_colors_reads_either(tmp_path: Path) -> None:
    classes = "name,value,color,isthing\nroad,1,#804080,0\ncar,2,#00008e,1\n"
    root = folder(tmp_path, grid("1 2 2"), "P", classes)
    assert run(root) == expected("road car1 car1")
    save(root / "labels" / "a.png", [[(128, 64, 128), (0, 0, 142), (0, 0, 142)]])
    assert run(root, "--overwrite") == expected("road car1 car1")


def test_instance_ids_of_cityscapes(tmp_path: Path) -> None:
    """class * 1000 + number from 0; the class alone is stuff, or a group of things. Two parts of one number are one."""
    root = folder(tmp_path, grid("7 26000 26001 26000\n26 26001 23 3\n"), "I;16", CLASSES + "void,3,0\n")
    labels = ("--encoding", "cityscapes", "--ignore", "3")
    (root / "classes.csv").write_text(CLASSES)
    assert run(root, *labels) == expected("road car1 car2 car1\ncar* car2 sky .")


@pytest.mark.parametrize(("encoding", "factor"), [("kitti360", 1000), ("kitti", 256)])
def test_instance_ids_of_kitti(tmp_path: Path, encoding: str, factor: int) -> None:
    """Numbers count from 1, also for stuff; 0 is none."""
    pixels = grid("26 26 26 7 7") * factor + grid("1 2 0 0 1")
    root = folder(tmp_path, pixels, "I;16")
    assert run(root, "--encoding", encoding) == expected("car1 car2 car* road road")


def test_mapillary_vistas(tmp_path: Path) -> None:
    """instances/ has label * 256 + number from 0; config.json has the labels; one is not evaluated."""
    root = folder(tmp_path, grid("1 1 0 0 2") * 256 + grid("0 1 0 0 0"), "I;16")
    (root / "config.json").write_text(
        '{"version": "v1.2", "labels": [{"name": "a--road", "readable": "Road", "instances": false, "evaluate": true,'
        '"color": [1, 2, 3]}, {"name": "b--car", "readable": "Car", "instances": true, "evaluate": true},'
        '{"name": "void--x", "readable": "Unlabeled", "instances": false, "evaluate": false}]}'
    )
    words = ("--labels", root / "labels", "--image-root", root / "photos", "--classes", root / "config.json")
    assert convert(*words, "--encoding", "mapillary", "--output", root / "out") == 0
    assert read_set(root / "out", root / "photos")["a.jpg"].tolist() == expected("Car1 Car2 Road Road .")


def test_ade20k(tmp_path: Path) -> None:
    """*_seg.png beside the image: red // 10 * 256 + green is the class, blue tells instances apart."""
    classes = grid("401 401 401 976 976")
    pixels = np.stack([classes // 256 * 10, classes % 256, grid("5 9 0 0 44")], -1)
    save(tmp_path / "ADE_1_seg.png", pixels)
    save_image(tmp_path / "ADE_1.jpg", (1, 5))
    (tmp_path / "classes.csv").write_text("name,value,isthing\ncar,401,1\nfloor,976,0\n")
    words = ("--labels", tmp_path, "--classes", tmp_path / "classes.csv", "--encoding", "ade20k")
    assert convert(*words, "--output", tmp_path / "out") == 0
    assert read_set(tmp_path / "out", tmp_path)["ADE_1.jpg"].tolist() == expected("car1 car2 car* floor floor")


@pytest.mark.parametrize("background", [0, None])
def test_numbers_of_one_class(tmp_path: Path, background: int | None) -> None:
    """An instance image of one class, as 16-bit PNG and as an array; 0 is background, or void."""
    classes = "name,value,isthing\ncell,,1\nbackground,0,0\n" if background == 0 else "name,isthing\ncell,1\n"
    root = folder(tmp_path, grid("0 300 300\n5 0 300"), "I;16", classes)
    words = ("--encoding", "number", *(() if background == 0 else ("--ignore", "0")))
    text = "background cell1 cell1\ncell2 background cell1"
    assert run(root, *words) == expected(text.replace("background", "background" if background == 0 else "."))
    np.save(root / "labels" / "a.npy", grid("0 300 300\n5 0 300").astype(np.int64))
    (root / "labels" / "a.png").unlink()
    assert run(root, *words, "--overwrite") == expected(
        text.replace("background", "background" if background == 0 else ".")
    )


@pytest.mark.parametrize("kind", ["P", "rgb"])
def test_pascal_voc(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """SegmentationClass and SegmentationObject, by index or (as CVAT writes them) by color; 255 is the border."""
    pixels, objects = grid("15 15 15 0 255 9"), grid("1 1 2 0 255 3")
    voc = tmp_path / "VOC2012"
    for name in ("one", "two"):
        save_image(voc / "JPEGImages" / f"{name}.jpg", (1, 6))
    if kind == "P":
        save(voc / "SegmentationClass" / "one.png", pixels, "P")
        save(voc / "SegmentationObject" / "one.png", objects, "P")
        (tmp_path / "voc.csv").write_text("name,value,isthing\nbackground,0,0\nperson,15,1\nchair,9,1\n")
        ignore = "255"
    else:
        palette = {15: (192, 128, 128), 9: (192, 0, 0), 0: (0, 0, 0), 255: (224, 224, 192), 1: (128, 0, 0)}
        palette |= {2: (0, 128, 0), 3: (128, 128, 0)}
        for part, values in (("SegmentationClass", pixels), ("SegmentationObject", objects)):
            save(voc / part / "one.png", [[palette[value] for value in row] for row in values.tolist()])
        (tmp_path / "voc.csv").write_text(
            "name,r,g,b,isthing\nbackground,0,0,0,0\nperson,192,128,128,1\nchair,192,0,0,1\n"
        )
        ignore = "#e0e0c0"
    (tmp_path / "val.txt").write_text("one\n")
    words = [
        "--labels", voc / "SegmentationClass", "--instance-ids", voc / "SegmentationObject", "--classes",
        tmp_path / "voc.csv", "--image-root", voc / "JPEGImages", "--ignore", ignore, "--output", tmp_path / "out",
    ]  # fmt: skip
    assert convert(*words) == 2
    assert "1 of 2 images without a label (two.jpg)" in capsys.readouterr().err
    assert convert(*words, "--skip-unlabeled") == 0
    assert "1 images without a label were skipped" in capsys.readouterr().out
    wanted = expected("person1 person1 person2 background . chair1")
    assert read_set(tmp_path / "out", voc / "JPEGImages")["one.jpg"].tolist() == wanted
    assert convert(*words, "--names", tmp_path / "val.txt", "--overwrite") == 0
    assert read_set(tmp_path / "out", voc / "JPEGImages")["one.jpg"].tolist() == wanted


def test_instance_ids_with_semantic_labels(tmp_path: Path) -> None:
    """A number may occur in two classes; a thing without a number is a crowd; numbers of stuff do not count."""
    root = folder(tmp_path, grid("26 26 27 26 7 7"), classes=CLASSES + "van,27,1\n")
    save(root / "ids" / "a_instanceIds.png", grid("1 1000 1 0 1 2"), "I;16")
    assert run(root, "--instance-ids", root / "ids") == expected("car1 car2 van1 car* road road")


def test_small_things_become_void_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path, grid("26 26 7 26 7"))
    assert run(root) == expected("car1 car1 road car2 road")
    assert run(root, "--min-area", 2, "--overwrite") == expected("car1 car1 road . road")
    assert "1 things with fewer than 2 pixels, which became void" in capsys.readouterr().out


def test_an_image_that_exif_turns(tmp_path: Path) -> None:
    """The label has the size of the image as it is seen, and as psf reads it."""
    root = folder(tmp_path, grid("7 7 26\n7 7 26"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (2, 3)).save(root / "photos" / "a.jpg", exif=exif)
    assert run(root) == expected("road road car1\nroad road car1")


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("pixels", "mode", "words", "message"),
    [
        ("7 99 99", "L", (), "a.png: found the value 99 (2 pixels), expected values of"),
        ("7 8 9", "L", ("--ignore", "8"), "the value 9 (1 pixels)"),
        ("7 8 9", "L", ("--ignore", "8,x"), "--ignore: found 'x'"),
        ("7000 65001 65002", "I;16", ("--encoding", "kitti360"), "the value 65 (2 pixels)"),
        ("7 7 7", "L", ("--encoding", "ade20k"), "found one number per pixel, expected colors"),
        ("7 7 7", "L", ("--things", "bus"), "--things: 'bus'"),
        ("7 7 7", "L", ("--things", '"car'), "expected a list such as car,person"),
        ("7 7 7", "L", ("--encoding", "number", "--things", ""), "found 0 thing classes"),
    ],
)
def test_values_that_are_not_in_the_table(
    tmp_path: Path, pixels: str, mode: str, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path, grid(pixels), mode)
    places = ("--labels", root / "labels", "--image-root", root / "photos", "--classes", root / "classes.csv")
    assert convert(*places, "--output", root / "out", *words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (root / "out" / "panoptic.json").exists()


def test_unknown_values_may_be_void(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path, grid("7 99 26 98"))
    assert run(root, "--unknown", "void") == expected("road . car1 .")
    assert "1 label images with the unknown value 98, value 99, which became void" in capsys.readouterr().out


def test_files_that_are_no_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path, grid("7 7 26"))
    label = root / "labels" / "a.png"
    words = ["--labels", root / "labels", "--image-root", root / "photos", "--classes", root / "classes.csv"]
    words += ["--output", root / "out"]

    def error() -> str:
        assert convert(*words) == 2
        return capsys.readouterr().err.splitlines()[-1]

    save(label, grid("7 7"))
    assert "a.png is 2 x 1, its image 3 x 1 pixels" in error()
    save(label, [[(7, 7, 8)] * 3])
    assert "found colors, expected one number per pixel" in error()
    label.write_bytes(b"not an image")
    assert "a.png: empty, corrupt or not an image" in error()
    Image.fromarray(grid("7 7 26").astype(np.float32)).save(root / "labels" / "a.tif")
    label.unlink()
    assert "expected integers" in error()
    (root / "labels" / "a.tif").unlink()
    Image.new("L", (3, 1)).save(root / "labels" / "a.jpg")
    assert "a JPEG, whose compression changes labels" in error()
    (root / "labels" / "a.jpg").unlink()
    np.save(root / "labels" / "a.npy", grid("7 7 26") * 2**40)
    assert "expected at most 2147483647" in error()
    np.save(root / "labels" / "a.npy", grid("7 7 26") * 0.5)
    assert "expected (H, W) integers" in error()
    (root / "classes.csv").write_text("name,isthing\nroad,0\n")
    assert "'road' has no value, expected a column value" in error()


def test_a_large_label_image_is_not_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # the command sets it
    root = folder(tmp_path, grid("7 7 26"))
    save(root / "labels" / "a.png", np.zeros((300, 300)))
    words = ["--labels", root / "labels", "--image-root", root / "photos", "--classes", root / "classes.csv"]
    assert convert(*words, "--output", root / "out", "--max-pixels", 1000) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "a.png: " in error and "0.1 megapixels, the limit is 0.0" in error


def test_noise_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a million single pixels would be half a million entries of the JSON."""
    pixels = np.zeros((1000, 1000), int)
    pixels[::2, ::2] = 1
    root = folder(tmp_path, pixels, classes="name,value,isthing\nroad,0,0\ncar,1,1\n")
    words = ["--labels", root / "labels", "--image-root", root / "photos", "--classes", root / "classes.csv"]
    assert convert(*words, "--output", root / "out") == 2
    assert "found 250001 segments, expected at most 100000" in capsys.readouterr().err


# ------------------------------------------------------------------ against naive code


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_components_agree_with_scipy(data: st.DataObject) -> None:
    """Any map of two thing classes and one of stuff, where connected pixels include diagonal ones."""
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    values = np.random.default_rng(data.draw(st.integers(0, 9999))).integers(0, 4, (height, width))
    labels, segments = draw_segments(values, lambda key: Segment(key) if key else None, "here")
    assert np.array_equal(labels > 0, values > 0)
    labels, segments = _split_things(labels, segments, {1, 2})
    assert len({one["id"] for one in segments}) == len(segments)
    category_of = {0: 0, **{one["id"]: one["category_id"] for one in segments}}
    assert np.array_equal(np.vectorize(category_of.get)(labels), values)
    for category_id in (1, 2):
        components, number = ndimage.label(values == category_id, np.ones((3, 3)))
        own = [one["id"] for one in segments if one["category_id"] == category_id]
        assert len(own) == number
        for component in range(1, number + 1):
            (label,) = np.unique(labels[components == component])
            assert label in own
