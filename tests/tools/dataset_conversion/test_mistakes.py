"""What is wrong in files that people bring: one sentence with file, entry, what is there and what should be."""

from __future__ import annotations

import base64
import copy
import io
import json
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from psf.errors import UserError
from psf.tools.dataset_conversion.annotations.coco import check_rle, read_instances
from psf.tools.dataset_conversion.annotations.labelme import read_labelme
from psf.tools.dataset_conversion.conversion import Drawing, PanopticFiles, png_name, write_panoptic_set
from psf.tools.dataset_conversion.regions import Region, compose
from psf.tools.dataset_conversion.sources import convert_source, read_labels

SQUARE = [2, 2, 8, 2, 8, 8, 2, 8]
POINTS = [[2, 2], [8, 2], [8, 8], [2, 8]]
INSTANCES: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": [SQUARE]}],
    "categories": [{"id": 1, "name": "cat"}],
}
LABELME: dict[str, Any] = {
    "shapes": [{"label": "cat", "points": POINTS, "shape_type": "polygon"}],
    "imagePath": "a.jpg",
    "imageHeight": 20,
    "imageWidth": 30,
}
REMOVED = object()


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def changed(content: dict[str, Any], *keys: Any, to: Any) -> dict[str, Any]:
    """A copy with the value at a path of keys replaced or removed."""
    content = copy.deepcopy(content)
    *way, last = keys
    place: Any = content
    for key in way:
        place = place[key]
    if to is REMOVED:
        del place[last]
    else:
        place[last] = to
    return content


def areas(files: PanopticFiles) -> list[int]:
    annotations = json.loads(files.json_file.read_text())["annotations"]
    return [segment["area"] for one in annotations for segment in one["segments_info"]]


@pytest.fixture
def files(tmp_path: Path) -> PanopticFiles:
    return PanopticFiles(tmp_path / "out" / "panoptic.json", tmp_path / "out" / "panoptic")


# ------------------------------------------------------------------ COCO's instances


FAR = [-1e6, -1e6, 1e6, 1e6] * 1000  # would take 320 GB to fill
POLYGONS = r"for a polygon; expected a list of polygons, each \[x, y"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["images"], [], r"`images` is empty"),
        (["images"], {"1": {}}, r"'images' is \{'1': .*expected a list"),
        (["images", 0], "a.jpg", r"image number 1: found 'a\.jpg', expected an object"),
        (["images", 0, "id"], REMOVED, r"image number 1: 'id' is missing"),
        (["images", 0, "height"], REMOVED, r"image 1: 'height' is missing, expected a whole number of pixels from 1"),
        (["images", 0, "height"], "40", r"image 1: 'height' is '40', expected a whole number"),
        (["images", 0, "width"], 0, r"image 1: 'width' is 0"),
        (["images", 0, "width"], math.nan, r"image 1: 'width' is nan"),
        (
            ["images", 0, "file_name"],
            "/data/b.png",
            r"image 1: the file name '/data/b\.png' is not relative to the image folder",
        ),
        (["images", 0, "file_name"], "x/../../b.png", r"image 1: the file name 'x/\.\./\.\./b\.png' is not relative"),
        (["annotations", 0, "image_id"], REMOVED, r"annotation 5: 'image_id' is missing"),
        (["annotations", 0, "category_id"], REMOVED, r"annotation 5: 'category_id' is missing"),
        (["annotations", 0, "category_id"], "cat", r"annotation 5: 'category_id' is 'cat'"),
        (["annotations", 0, "iscrowd"], "0", r"annotation 5: 'iscrowd' is '0', expected 0 or 1"),
        (["annotations", 0, "segments_info"], [], r"is a panoptic JSON already .*psf validate"),
        (["annotations", 0, "segmentation"], SQUARE, rf"annotation 5: 'segmentation' has 2 {POLYGONS}"),
        (["annotations", 0, "segmentation"], [POINTS], rf"annotation 5: .* has \[\[2, 2\].* {POLYGONS}"),
        (["annotations", 0, "segmentation"], POINTS, rf"annotation 5: .* has \[\[2, 2\].* {POLYGONS}"),
        (["annotations", 0, "segmentation"], [SQUARE[:-1]], rf"annotation 5: .* {POLYGONS}"),
        (["annotations", 0, "segmentation"], [[*SQUARE[:-1], math.nan]], rf"annotation 5: .*nan.* {POLYGONS}"),
        (["annotations", 0, "segmentation"], [[*SQUARE[:-1], 1e300]], rf"annotation 5: .*1e\+300.* {POLYGONS}"),
        (["annotations", 0, "segmentation"], [FAR], r"annotation 5: the outline has a length of 4000000000 pixels"),
        (["annotations", 0, "segmentation"], {"size": [20, 30], "counts": 9**6 * "o"}, "annotation 5: the mask is dam"),
        (
            ["annotations", 0, "segmentation"],
            {"size": [20, 30], "counts": "hb0o"},
            r"annotation 5: the mask is damaged",
        ),
        (["annotations", 0, "segmentation"], "2,2,8,2", r"annotation 5: 'segmentation' is '2,2,8,2', expected a list"),
        (["annotations", 0, "segmentation"], {"counts": "00"}, r"annotation 5 has a mask of None"),
        (["annotations", 0, "segmentation"], {"size": [20, 30], "counts": [25]}, r"annotation 5: the mask is damaged"),
        (["annotations", 0, "segmentation"], {"size": [20, 30], "counts": "00"}, r"'counts' are '00'; .* 600 pixels"),
        (["categories", 0, "name"], REMOVED, r"category 1: 'name' is missing, expected a text"),
        (["categories", 0, "id"], "1", r"category '1': 'id' is '1', expected a whole number"),
    ],
)
def test_mistakes_in_instances(tmp_path, keys, value, message):
    path = write(tmp_path / "mine.json", changed(INSTANCES, *keys, to=value))
    with pytest.raises(ValueError, match=message) as caught:
        read_instances(path, {})
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["image", "category"])
def test_ids_that_come_twice(tmp_path, kind):
    key, name = {"image": ("images", "file_name"), "category": ("categories", "name")}[kind]
    content = copy.deepcopy(INSTANCES)
    content[key].append({**content[key][0], name: "other"})
    earlier = content[key][0][name]
    with pytest.raises(ValueError, match=rf"mine\.json: {kind} 1.*: an earlier {kind}, '{earlier}', has the same id"):
        read_instances(write(tmp_path / "mine.json", content), {})


def test_without_any_class(tmp_path):
    content = {**INSTANCES, "annotations": [], "categories": []}
    with pytest.raises(ValueError, match="`categories` is empty"):
        read_instances(write(tmp_path / "mine.json", content), {})
    assert read_instances(write(tmp_path / "mine.json", content), {3: "sky"})[1] == {3: 3}


def test_what_is_harmless_is_taken(tmp_path, files):
    """Sizes as 20.0, ids as text, annotations without a shape, polygons of one or two points."""
    content = changed(INSTANCES, "images", 0, "height", to=20.0)
    content = changed(content, "annotations", 0, "image_id", to="1")
    for number, shape in enumerate((None, [], {}, [[3, 3]], [[3, 3, 5, 5], SQUARE]), 6):
        content["annotations"].append({"id": number, "image_id": 1, "category_id": 1, "segmentation": shape})
    source, _ = read_instances(write(tmp_path / "mine.json", content), {})
    notes = convert_source(source, files, overlap="later-on-top")
    assert areas(files) == [36] and notes["annotations without an area (boxes, points, lines), dropped"] == 4
    assert json.loads(files.json_file.read_text())["images"][0]["height"] == 20


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 9),
    width=st.integers(1, 90),
    seed=st.integers(0, 999),
    share=st.sampled_from([0, 0.1, 0.5, 1]),
)
def test_good_masks_pass_whatever_their_runs(height, width, seed, share):
    mask = np.asfortranarray(np.random.default_rng(seed).random((height, width)) < share, dtype=np.uint8)
    counts = coco_mask.encode(mask)["counts"].decode()
    check_rle({"size": [height, width], "counts": counts}, (height, width), "here")
    for size in ((height, width + 1), (height + 1, width)):
        with pytest.raises(ValueError, match="here: the mask is damaged"):
            check_rle({"size": list(size), "counts": counts}, size, "here")


# ------------------------------------------------------------------ labelme


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["shapes"], None, r"'shapes' is None, expected a list"),
        (["imagePath"], None, r"'imagePath' is None, expected a text"),
        (["imagePath"], ".", r"imagePath '\.': the file name '\.' is not relative to the image folder"),
        (["imageWidth"], 1e30, r"'imageWidth' is 1e\+30, expected a whole number of pixels from 1 to 1000000"),
        (["imageWidth"], 30.5, r"'imageWidth' is 30\.5, expected a whole number of pixels"),
        (["imageHeight"], "20", r"'imageHeight' is '20'"),
        (["shapes", 0], "cat", r"shape 1: found 'cat', expected an object"),
        (["shapes", 0, "label"], REMOVED, r"shape 1: 'label' is missing"),
        (["shapes", 0, "label"], None, r"shape 1: 'label' is None, expected a text"),
        (["shapes", 0, "points"], REMOVED, r"shape 1: 'points' is missing"),
        (["shapes", 0, "points"], SQUARE, r"shape 1 \('cat'\): 'points' is \[2, 2, .*expected \[\[x, y\]"),
        (["shapes", 0, "points"], [[1, 2, 3], [4, 5, 6]], r"shape 1 \('cat'\): 'points' is \[\[1, 2, 3\]"),
        (["shapes", 0, "points", 2, 1], math.nan, r"shape 1 \('cat'\): 'points' is .*nan.*finite"),
        (["shapes", 0, "points"], [*zip(FAR[::2], FAR[1::2])], r"shape 1 \('cat'\): the outline has a length of"),
        (["shapes", 0, "group_id"], [1], r"shape 1 \('cat'\): 'group_id' is \[1\]"),
        (["shapes", 0, "shape_type"], "circle", r"shape 1 \('cat'\): circle with 4 points, expected 2"),
    ],
)
def test_mistakes_in_labelme(tmp_path, keys, value, message):
    path = write(tmp_path / "in" / "a.json", changed(LABELME, *keys, to=value))
    with pytest.raises(ValueError, match=message) as caught:
        read_labelme(path.parent, {}, thing_names={})
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_folder_without_any_class(tmp_path):
    write(tmp_path / "in" / "a.json", {**LABELME, "shapes": []})
    with pytest.raises(ValueError, match="no file has a shape"):
        read_labelme(tmp_path / "in", {}, thing_names={})


def test_rectangles_that_are_turned_are_polygons(tmp_path, files):
    content = changed(LABELME, "shapes", 0, "shape_type", to="oriented_rectangle")
    content = changed(content, "imageHeight", to=20.0)
    write(tmp_path / "in" / "a.json", content)
    convert_source(read_labelme(tmp_path / "in", {}, thing_names={})[0], files, overlap="error")
    assert areas(files) == [36]


# ------------------------------------------------------------------ files that stay


@pytest.mark.parametrize("name", ["/a/b.png", "../b.png", "a/../../b.png", "a/../b.png", "", ".."])
def test_names_that_lead_out_of_a_folder(name):
    with pytest.raises(ValueError, match="is not relative to the image folder"):
        png_name(name, "here")
    assert png_name("./a//b.tar.jpg", "here") == "a/b.tar.png"


def draw(file_name: str) -> Drawing:
    image = {"id": 1, "file_name": file_name, "height": 4, "width": 6}
    return Drawing(image, np.zeros((4, 6), np.int32), [], Counter())


def test_no_image_is_overwritten(tmp_path, files):
    """Whatever its name says; but what an earlier run wrote there is replaced, be that whole or not."""
    image = tmp_path / "images" / "b.png"
    image.parent.mkdir()
    Image.new("RGB", (6, 4), (1, 2, 3)).save(image)
    before = image.read_bytes()
    for name in (str(image), "../../images/b.png"):
        with pytest.raises(ValueError, match="is not relative to the image folder"):
            write_panoptic_set([name], draw, [], files)
    beside = PanopticFiles(tmp_path / "panoptic.json", image.parent)
    for name in ("b.png", "b.jpg"):
        with pytest.raises(ValueError, match=r"b\.png exists and is not a panoptic PNG of psf"):
            write_panoptic_set([name], draw, [], beside)
    assert image.read_bytes() == before and not files.json_file.exists() and not beside.json_file.exists()

    write_panoptic_set(["b.jpg"], draw, [], files)
    files.json_file.unlink()
    write_panoptic_set(["b.jpg"], draw, [], files)
    (files.png_root / "b.png").write_text("notes of mine")
    with pytest.raises(ValueError, match="is not a panoptic PNG"):
        write_panoptic_set(["b.jpg"], draw, [], files)


@pytest.mark.parametrize("content", [INSTANCES, LABELME, {"annotations": [1]}, []])
def test_only_a_panoptic_json_is_overwritten(files, content):
    before = write(files.json_file, content).read_text()
    with pytest.raises(ValueError, match="--overwrite"):
        files.check_free(overwrite=False)
    with pytest.raises(ValueError, match=r"panoptic\.json exists and is not a panoptic JSON"):
        files.check_free(overwrite=True)
    assert files.json_file.read_text() == before
    write(files.json_file, {"annotations": []})
    files.check_free(overwrite=True)


def test_links_are_not_replaced(tmp_path, files):
    """Neither those to nothing, nor those to a file that could be replaced."""
    files.png_root.mkdir(parents=True)
    write(tmp_path / "b.json", {"annotations": []})
    for target in ("nowhere", "b.json"):
        files.json_file.symlink_to(tmp_path / target)
        for overwrite in (False, True):
            with pytest.raises(UserError, match=r"panoptic\.json is a link"):
                files.check_free(overwrite=overwrite)
        files.json_file.unlink()
        (files.png_root / "b.png").symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=r"b\.png exists and is not a panoptic PNG"):
            write_panoptic_set(["b.jpg"], draw, [], files)
        (files.png_root / "b.png").unlink()


def test_two_labelme_files_of_one_image(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.json", LABELME)
    with pytest.raises(UserError, match=r"in: lists the image 'a\.jpg' twice"):
        read_labelme(tmp_path / "in", {}, thing_names={})


def test_the_first_mistake_ends_the_conversion(files):
    """The images that wait for a thread are not drawn any more."""
    drawn = []

    def fail(file_name: str) -> Drawing:
        drawn.append(file_name)
        time.sleep(0.005)
        raise UserError(f"{file_name} is damaged")

    with pytest.raises(UserError, match=r"^0\.jpg is damaged"):
        write_panoptic_set([f"{number}.jpg" for number in range(400)], fail, [], files, workers=1)
    assert len(drawn) < 400 and not files.json_file.exists()


def convert_labelme(folder: Path, files: PanopticFiles, shapes: list[dict[str, Any]], **others: Any) -> Counter[str]:
    write(folder / "a.json", {**LABELME, "shapes": shapes, **others})
    source, _ = read_labelme(folder, {}, thing_names={})
    return convert_source(source, files, overlap="later-on-top")


@pytest.mark.parametrize("kind", ["rotation", "quadrilateral", "oriented_rectangle", "polygon", None])
def test_shapes_of_four_corners_are_regions(tmp_path, files, kind):
    convert_labelme(tmp_path / "in", files, [{"label": "cat", "points": POINTS, "shape_type": kind}])
    assert areas(files) == [36]


def test_unknown_shapes_are_refused_and_lines_counted(tmp_path, files):
    line = {"label": "cat", "points": POINTS[:2], "shape_type": "line"}
    notes = convert_labelme(tmp_path / "in", files, [LABELME["shapes"][0], line])
    assert notes["shapes without an area (line), dropped"] == 1
    with pytest.raises(UserError, match=r"a\.json: shape 1 .*'shape_type' is 'cuboid', expected one of polygon"):
        convert_labelme(tmp_path / "in", files, [{"label": "cat", "points": POINTS, "shape_type": "cuboid"}])


def test_notes_on_labels_and_images_of_labelme(tmp_path, files):
    shapes = [{"label": label, "points": POINTS} for label in ("cat", "cat ", "Cat")]
    notes = convert_labelme(tmp_path / "in", files, shapes, imageData="iVBORw0KGgo=")
    assert notes["categories differ only in spaces or case: 'Cat', 'cat', 'cat '"] == 3
    assert any("imageData" in note for note in notes)
    Image.new("RGB", (30, 20)).save(tmp_path / "in" / "a.jpg")
    assert not any("images that are" in note for note in convert_labelme(tmp_path / "in", files, shapes))


def picture(width: int, height: int) -> str:
    """A PNG as labelme stores it."""
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_images_that_are_only_in_labelme_files(tmp_path):
    folder, target = tmp_path / "in", tmp_path / "images"
    write(folder / "sub" / "a.json", {**LABELME, "imageData": picture(30, 20)})
    for _ in range(2):  # a second conversion replaces its own files
        source, _ = read_labelme(folder, {}, thing_names={}, extract_to=target)
    assert source.image_root == target and source.images[0].image["file_name"] == "sub/a.jpg"
    with Image.open(target / "sub" / "a.jpg") as image:
        assert image.size == (30, 20) and image.getpixel((0, 0)) == (255, 0, 0)
    (target / "sub" / "a.jpg").write_bytes(b"of the user")
    with pytest.raises(UserError, match=r"a\.jpg exists, and psf has not written it"):
        read_labelme(folder, {}, thing_names={}, extract_to=target)
    assert (target / "sub" / "a.jpg").read_bytes() == b"of the user"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("aGVsbG8=", r"a\.json: its imageData is damaged \(cannot identify image"),
        (7, "imageData is damaged"),
        (picture(20, 30), r"imageData has 20 x 30 pixels, but imageWidth x imageHeight is 30 x 20"),
    ],
)
def test_image_data_that_is_no_image(tmp_path, data, message):
    write(tmp_path / "in" / "a.json", {**LABELME, "imageData": data})
    with pytest.raises(UserError, match=message):
        read_labelme(tmp_path / "in", {}, thing_names={}, extract_to=tmp_path / "images")
    assert not (tmp_path / "images" / "a.jpg").exists()


def test_files_and_image_data_are_not_mixed(tmp_path):
    """File names are relative to one folder."""
    write(tmp_path / "in" / "a.json", {**LABELME, "imageData": picture(30, 20)})
    write(tmp_path / "in" / "b.json", {**LABELME, "imagePath": "b.jpg"})
    Image.new("RGB", (30, 20)).save(tmp_path / "in" / "b.jpg")
    source, _ = read_labelme(tmp_path / "in", {}, thing_names={}, extract_to=tmp_path / "images")
    assert source.image_root is None and not (tmp_path / "images").exists()
    assert any("imageData" in note for note in source.notes)


def test_hidden_files_beside_labelme_files(tmp_path, files):
    (tmp_path / "in" / ".ipynb_checkpoints").mkdir(parents=True)
    (tmp_path / "in" / "._a.json").write_bytes(b"\0\5\x16\7Mac OS X")
    write(tmp_path / "in" / ".ipynb_checkpoints" / "a.json", LABELME)
    assert convert_labelme(tmp_path / "in", files, LABELME["shapes"])["images"] == 1


def test_instances_from_windows(tmp_path, files):
    path = write(tmp_path / "a.json", changed(INSTANCES, "images", 0, "file_name", to="city\\a.jpg"))
    convert_source(read_instances(path, {})[0], files, overlap="later-on-top")
    assert (files.png_root / "city" / "a.png").is_file()
    assert json.loads(files.json_file.read_text())["images"][0]["file_name"] == "city/a.jpg"
    for name in ("..\\a.jpg", "C:\\a.jpg"):
        write(path, changed(INSTANCES, "images", 0, "file_name", to=name))
        with pytest.raises(UserError, match=r"image 1: the file name .* is not relative to the image folder"):
            read_instances(path, {})


def test_two_annotations_of_one_id(tmp_path):
    annotations = [INSTANCES["annotations"][0], {**INSTANCES["annotations"][0], "id": "5"}]
    path = write(tmp_path / "a.json", changed(INSTANCES, "annotations", to=annotations))
    with pytest.raises(UserError, match=r"annotation '5': an earlier annotation has the same id"):
        read_instances(path, {})


def test_sizes_that_take_too_much_memory(tmp_path):
    """A canvas of the listed size is drawn, whatever the file is."""
    image = {**INSTANCES["images"][0], "height": 10**6, "width": 10**6}
    path = write(tmp_path / "a.json", changed(INSTANCES, "images", to=[image]))
    with pytest.raises(UserError, match=r"image 1: 1000000 x 1000000 pixels, .*the limit is"):
        read_instances(path, {})


def test_label_files_with_a_byte_order_mark(tmp_path):
    (tmp_path / "stuff.txt").write_text("1,grass\n", encoding="utf-8-sig")
    assert read_labels(tmp_path / "stuff.txt") == {1: "grass"}
    for line in (f"{2**63},grass", 5000 * "9" + ",grass", "1,gr\x1bass"):
        (tmp_path / "stuff.txt").write_text(line)
        with pytest.raises(UserError, match=r"stuff\.txt, line 1: found .*, expected id,name"):
            read_labels(tmp_path / "stuff.txt")


def test_a_mask_that_pycocotools_refuses_is_one_line():
    damaged = Region({"size": [2, 3], "counts": "9"}, category_id=4)
    with pytest.raises(UserError, match="the mask of a region of category 4 is damaged"):
        compose((2, 3), [damaged], overlap="later-on-top", stuff_ids=[])
