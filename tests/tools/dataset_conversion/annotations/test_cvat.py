"""CVAT's XML: the example of its documentation, all kinds of shapes, and damaged or hostile files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from psf.errors import UserError
from psf.tools.dataset_conversion.annotations import cvat
from psf.tools.dataset_conversion.annotations.cvat import read_cvat
from psf.tools.dataset_conversion.regions import Region
from tests.tools.dataset_conversion.label_files import convert, read_set, save_image

LABELS = (
    "<meta><task><labels>"
    "<label><name>sky</name><attributes><attribute><name>no label</name></attribute></attributes></label>"
    "<label><name>car</name></label><label><name>1</name><parent>car</parent></label>"
    "</labels></task></meta>"
)
# The mask in CVAT's documentation: a disk of 13 x 15 pixels.
DOCUMENTED = "3, 5, 7, 7, 5, 9, 3, 11, 2, 11, 2, 12, 1, 12, 1, 26, 1, 12, 1, 12, 2, 11, 3, 9, 5, 7, 7, 5, 3"


def write(folder: Path, shapes: str, *, size: tuple[int, int] = (4, 6), head: str = "", name: str = "a.jpg") -> Path:
    path = folder / "annotations.xml"
    image = f'<image id="7" name="{name}" width="{size[1]}" height="{size[0]}">{shapes}</image>'
    path.write_text(f"<?xml version='1.0'?>{head}<annotations><version>1.1</version>{LABELS}{image}</annotations>")
    save_image(folder / "a.jpg", size)
    return path


def regions_of(path: Path) -> list[Region]:
    source = read_cvat(path)
    (item,) = source.images
    return source.regions(item)[0]


def area(region: Region) -> int:
    from pycocotools import mask as coco_masks

    return int(coco_masks.area(region.rle))


def test_documented_mask(tmp_path: Path) -> None:
    mask = (
        f'<mask label="car" source="manual" occluded="0" rle="{DOCUMENTED}" left="1" top="2" width="13" height="15"/>'
    )
    (region,) = regions_of(write(tmp_path, mask, size=(20, 20)))
    runs = [int(run) for run in DOCUMENTED.split(",")]
    assert sum(runs) == 13 * 15 and area(region) == sum(runs[1::2])


def test_shapes_and_their_order(tmp_path: Path) -> None:
    """A mask that is partly outside, a polygon in two parts of one group, a box, and shapes without an area."""
    path = write(
        tmp_path,
        '<mask label="sky" rle="0,4" left="-1" top="0" width="2" height="2" z_order="-1"/>'
        '<polygon label="car" points="2,0;4,0;4,2;2,2" group_id="3" z_order="1">'
        '<attribute name="x">y</attribute></polygon>'
        '<polygon label="car" points="5,0;6,0;6,4;5,4" group_id="3" z_order="1"/>'
        '<box label="car" xtl="0" ytl="1" xbr="3" ybr="3"/>'
        '<points label="car" points="1,1"/><tag label="x"/>'
        '<skeleton label="car"><points label="1" points="1,1"/></skeleton>',
    )
    output = tmp_path / "set"
    words = ("--cvat", path, "--image-root", tmp_path, "--things", "car", "--overlap", "later-on-top")
    assert convert(*words, "--output", output) == 0
    expected = """
        sky  .    car2 car2 .    car2
        car1 car1 car2 car2 .    car2
        car1 car1 car1 .    .    car2
        .    .    .    .    .    car2
    """
    found = read_set(output, tmp_path)["a.jpg"]
    # Numbers count from the first pixel on.
    swap = {"car1": "car2", "car2": "car1"}
    assert [[swap.get(word, word) for word in row] for row in found.tolist()] == [
        line.split() for line in expected.strip().split("\n")
    ]


def test_rotated_shapes(tmp_path: Path) -> None:
    box = '<box label="car" xtl="10" ytl="18" xbr="30" ybr="22" rotation="90"/>'
    ellipse = '<ellipse label="car" cx="20" cy="20" rx="10" ry="5" rotation="90"/>'
    upright, turned = regions_of(write(tmp_path, box + ellipse, size=(40, 40)))
    from pycocotools import mask as coco_masks

    assert coco_masks.toBbox(upright.rle).tolist() == [18, 10, 4, 20]
    assert np.abs(coco_masks.toBbox(turned.rle) - [15, 10, 10, 20]).max() <= 1
    assert area(turned) == pytest.approx(np.pi * 50, rel=0.05)


def test_classes_from_a_table(tmp_path: Path) -> None:
    path = write(tmp_path, '<box label="car" xtl="0" ytl="1" xbr="3" ybr="3"/>')
    (tmp_path / "classes.csv").write_text("name,value,isthing\ncar,26,1\nroad,7,0\n")
    words = ("--cvat", path, "--image-root", tmp_path, "--classes", tmp_path / "classes.csv", "--overlap", "error")
    assert convert(*words, "--output", tmp_path / "set") == 0
    (tmp_path / "classes.csv").write_text("name,value,isthing\nroad,7,0\n")
    assert convert(*words, "--output", tmp_path / "other") == 2


LARGEST = 10**15 - 1
WRAPPING = [str(LARGEST)] * (2**64 // LARGEST) + [str(2**64 % LARGEST + 3)]


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            '<mask label="car" rle="9" left="0" top="0" width="2" height="2"/>',
            "'rle' has 9 pixels, expected at most 2 x 2",
        ),
        # 18,447 runs with a sum of 2^64 + 3, which int64 counts as 3.
        (
            f'<mask label="car" rle="{",".join(WRAPPING)}" left="0" top="0" width="2" height="2"/>',
            f"'rle' has {2**64 + 3} pixels, expected at most 2 x 2",
        ),
        ('<mask label="car" rle="1,-1" left="0" top="0" width="2" height="2"/>', "'rle' is '1,-1', expected numbers"),
        ('<mask label="car" rle="" left="0" top="0" width="2" height="2"/>', "'rle' is '', expected numbers"),
        (
            '<mask label="car" rle="1" left="0" top="0" width="7" height="2"/>',
            "a mask of 7 x 2 pixels, expected at most",
        ),
        ('<mask label="car" rle="1" left="0" top="0" width="2"/>', "'height' is '', expected a whole number"),
        ('<mask rle="1" left="0" top="0" width="2" height="2"/>', "the label is '', expected a text"),
        ('<polygon label="car" points="1,2;3"/>', "'points' is '1,2;3', expected x,y;x,y"),
        ('<polygon label="car" points="1,nan;3,4;5,6"/>', "expected x,y;x,y"),
        ('<polygon label="car" points="1,1e300;3,4;5,6"/>', "expected x,y;x,y"),
        ('<box label="car" xtl="0" ytl="1" xbr="3"/>', "expected finite numbers for xtl, ytl, xbr, ybr"),
        ('<box label="car" xtl="0" ytl="1" xbr="3" rotation="30"/>', "expected finite numbers for xtl, ytl, xbr, ybr"),
        ('<ellipse label="car" cx="4" cy="5" rx="3" rotation="2"/>', "expected finite numbers for cx, cy, rx, ry"),
        (
            '<box label="car" xtl="0" ytl="1" xbr="3" ybr="2" rotation="x"/>',
            "expected finite numbers for xtl, ytl, xbr, ybr, rotation",
        ),
        ('<box label="car" z_order="x" xtl="0" ytl="1" xbr="3" ybr="2"/>', "'z_order' is 'x', expected a whole number"),
        ('<box label="car" xtl="0"', "not a valid XML file"),
    ],
)
def test_wrong_shapes(tmp_path: Path, shape: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        read_cvat(write(tmp_path, shape))
    assert message in str(error.value) and "annotations.xml" in str(error.value) and "\n" not in str(error.value)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
FILE = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize("head", [BOMB, FILE, "<!DOCTYPE annotations>", "<!DOCTYPE annotations SYSTEM 'x.dtd'>"])
def test_a_doctype_is_refused(tmp_path: Path, head: str) -> None:
    with pytest.raises(UserError, match="found a DOCTYPE"):
        read_cvat(write(tmp_path, "", head=head))
    path = tmp_path / "utf16.xml"
    path.write_bytes(f'<?xml version="1.0" encoding="utf-16"?>{head}<annotations/>'.encode("utf-16"))
    with pytest.raises(UserError, match="found a DOCTYPE"):
        read_cvat(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<svg/>", "found <svg>, expected <annotations>"),
        ("<annotations/>", "found no class"),
        (f"<annotations>{LABELS}</annotations>", "found no <image>"),
        (f"<annotations>{LABELS}<track id='0' label='car'/></annotations>", "found a <track> of a video"),
        ("{}", "not a valid XML file"),
        ("", "not a valid XML file"),
        ("<?xml version='1.0' encoding='no-such'?><annotations/>", "not a valid XML file"),
        ("<annotations><image name='../a' width='1' height='1'/></annotations>", "is not relative to the image folder"),
        ("<annotations><image name='a.jpg' width='0' height='1'/></annotations>", "found 0 x 1, expected a whole"),
        ("<annotations><image name='a.jpg' width='999999' height='999999'/></annotations>", "megapixels"),
        (
            "<annotations>" + 2 * "<image name='a.jpg' width='1' height='1'/>" + LABELS + "</annotations>",
            "'a.jpg' twice",
        ),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.xml").write_text(text)
    with pytest.raises(UserError) as error:
        read_cvat(tmp_path / "a.xml")
    assert message in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        read_cvat(tmp_path / "missing.xml")


def test_a_tag_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """expat reads it again with each chunk; a file of many small tags may be larger."""
    monkeypatch.setattr(cvat, "_CHUNK", 100)
    monkeypatch.setattr(cvat, "_MOST_TAG_BYTES", 1000)
    read_cvat(write(tmp_path, 100 * '<polygon label="car" points="0,0;4,0;4,4"/>'))
    with pytest.raises(UserError, match=r"line 1: found a tag of \d{4} bytes or more"):
        (tmp_path / "b.xml").write_text(f'<annotations><image name="{"x" * 2000}"/></annotations>')
        read_cvat(tmp_path / "b.xml")
