from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from psf.data.panoptic_labels import read_panoptic_ids
from psf.errors import UserError
from psf.tools.dataset_conversion.annotations.coco import read_instances
from psf.tools.dataset_conversion.annotations.labelme import read_labelme
from psf.tools.dataset_conversion.conversion import Drawing, PanopticFiles, write_panoptic_set
from psf.tools.dataset_conversion.regions import OVERLAP_POLICIES, Region, compose, region_of_polygons
from psf.tools.dataset_conversion.sources import SemanticMasks, convert_source, join_categories, read_labels
from psf.tools.dataset_validation.validation import validate_panoptic


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def category_map(files: PanopticFiles, index: int) -> np.ndarray:
    """(H, W) category ids of an image of a written set; -1 is void, crowds are negative ids below."""
    annotation = json.loads(files.json_file.read_text())["annotations"][index]
    category_of = {0: -1}
    for segment in annotation["segments_info"]:
        category_of[segment["id"]] = segment["category_id"] * (-100 if segment["iscrowd"] else 1)
    ids = read_panoptic_ids(str(files.png_root / annotation["file_name"]), category_of)
    return np.vectorize(category_of.get)(ids)


# ------------------------------------------------------------------ who lies on top


def row(*spans: tuple[int, int, int], overlap: str, crowd: int = -1, stuff=(), background=None):
    """Regions (category, start, end) in an image of 1 x 10; the categories that are seen, and the notes."""
    regions = []
    for position, (category, start, end) in enumerate(spans):
        mask = np.zeros((1, 10), bool)
        mask[0, start:end] = True
        regions.append(Region(rle(mask), category, position == crowd))
    labels, segments, notes = compose((1, 10), regions, overlap=overlap, stuff_ids=stuff, background=background)
    table = np.array([0, *(segment["category_id"] for segment in segments)])
    return "".join(map(str, table[labels[0]])), notes


def test_the_smaller_or_the_later_keeps_the_pixels():
    spans = [(1, 2, 5), (2, 0, 8)]
    assert row(*spans, overlap="smaller-on-top")[0] == "2211122200"
    assert row(*spans, overlap="later-on-top")[0] == "2222222200"
    assert row(*reversed(spans), overlap="later-on-top")[0] == "2211122200"


def test_hidden_segments_and_overlaps_are_counted():
    _, notes = row((1, 2, 5), (2, 0, 8), (3, 8, 10), overlap="later-on-top")
    assert notes == {"overlapping regions": 1, "segments without a visible pixel, dropped": 1}


def test_overlap_may_be_an_error_but_touching_is_none():
    assert row((1, 0, 5), (2, 5, 10), overlap="error")[0] == "1111122222"
    with pytest.raises(ValueError, match=r"category 2 and one of category 1 overlap in 2 pixels.*--overlap"):
        row((1, 0, 5), (2, 3, 10), overlap="error")


@pytest.mark.parametrize("overlap", OVERLAP_POLICIES)
def test_crowds_and_background_lie_below(overlap):
    background = np.full((1, 10), 7)
    background[0, 9] = -1
    # The crowd is later and smaller than the thing, and loses all the same.
    drawn, _ = row((1, 0, 5), (1, 3, 7), overlap=overlap, crowd=1, stuff={7}, background=background)
    assert drawn == "1111111770"


def test_stuff_is_one_segment_with_its_background_and_is_no_crowd():
    background = np.zeros((1, 10), int)
    background[0, 5:] = -1
    labels, segments, _ = compose(
        (1, 10),
        [Region(rle(np.arange(10)[None] == 8), 0, True), Region(rle(np.arange(10)[None] >= 7), 0)],
        overlap="error",  # regions of one stuff class do not contradict each other
        stuff_ids={0},
        background=background,
    )
    assert segments == [{"id": 1, "category_id": 0, "iscrowd": False}]
    assert labels.tolist() == [[1] * 5 + [0] * 2 + [1] * 3]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_composing_agrees_with_painting_pixel_by_pixel(data):
    number = data.draw(st.integers(0, 5))
    masks = np.random.default_rng(data.draw(st.integers(0, 999))).random((number, 6, 7)) < 0.4
    crowds = data.draw(st.lists(st.booleans(), min_size=number, max_size=number))
    overlap = data.draw(st.sampled_from(OVERLAP_POLICIES[:2]))
    regions = [Region(rle(mask), 1, crowd) for mask, crowd in zip(masks, crowds)]
    labels, segments, _ = compose((6, 7), regions, overlap=overlap, stuff_ids=())

    def strength(position: int) -> tuple[bool, int, int]:
        size = -int(masks[position].sum()) if overlap == "smaller-on-top" else 0
        return not crowds[position], size, position

    for y, x in np.ndindex(6, 7):
        claims = [position for position in range(number) if masks[position, y, x]]
        if not claims:
            assert labels[y, x] == 0
            continue
        winner = max(claims, key=strength)
        assert segments[labels[y, x] - 1]["iscrowd"] == crowds[winner]
        # A segment's pixels are all of one region: the region's winning pixels, and no others.
        own = np.array([labels[masks[winner]] == labels[y, x]])
        assert own.sum() == (labels == labels[y, x]).sum()


def test_polygons_of_one_region_are_united_and_slivers_left_out():
    region = region_of_polygons([rectangle(0, 0, 2, 2), rectangle(4, 0, 6, 2), [1, 1, 5, 5]], (4, 8), 3)
    assert region is not None and coco_mask.decode(region.rle).sum() == 8
    assert region_of_polygons([[0, 0, 3, 3]], (4, 8), 3) is None  # pycocotools would take four numbers for a box


# ------------------------------------------------------------------ categories


def test_categories_are_joined_by_name_and_collisions_get_new_ids():
    things = [{"id": 1, "name": "cat"}, {"id": 2, "name": "grass"}, {"id": 5, "name": "dog"}]
    categories, category_of = join_categories(things, {10: "sky", 11: "grass"})
    assert [(one["id"], one["name"], one["isthing"]) for one in categories] == [
        (1, "cat", 1), (5, "dog", 1), (2, "grass", 0), (10, "sky", 0),
    ]  # fmt: skip
    assert category_of == {10: 10, 11: 2}
    categories, category_of = join_categories(things, {1: "sky", 7: "sea"})
    assert category_of == {1: 8, 7: 9} and len({one["id"] for one in categories}) == 5
    assert join_categories([], {0: "sky"})[1] == {0: 0}


def test_label_files(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("# stuff\n\n0, sky\n12,road, route\n")
    assert read_labels(path) == {0: "sky", 12: "road, route"}
    path.write_text('21,"grass, dry"\n"22", "a ""b"""\n23,"Rex" the dog\n24,"x","y"\n')
    assert read_labels(path) == {21: "grass, dry", 22: 'a "b"', 23: '"Rex" the dog', 24: '"x","y"'}
    for text, message in (
        ("sky", "line 1: found 'sky'"),
        ("1,sky\n1,sea", "line 2"),
        ("1,a\n2,a", "line 2"),
        ("", "no line"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"labels\.txt.*{message}"):
            read_labels(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_labels(tmp_path / "none.txt")


# ------------------------------------------------------------------ COCO's instances, CVAT


@pytest.fixture
def files(tmp_path: Path) -> PanopticFiles:
    return PanopticFiles(tmp_path / "out" / "panoptic.json", tmp_path / "out" / "panoptic")


@pytest.fixture
def instances(tmp_path: Path) -> Callable[..., Path]:
    """Writes an instances JSON of two 20 x 30 images, as CVAT exports it, and the images."""

    def write(annotations: list[dict[str, Any]], **changes: Any) -> Path:
        names = ["day 1/a.jpg", "b.png"]
        for name in names:
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30, 20)).save(tmp_path / "images" / name)
        content = {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": {"contributor": "", "year": ""},
            "categories": [
                {"id": 1, "name": "cat", "supercategory": ""},
                {"id": 4, "name": "grass", "supercategory": ""},
            ],
            "images": [
                {"id": number, "file_name": name, "width": 30, "height": 20, "license": 0, "date_captured": 0}
                for number, name in enumerate(names, 1)
            ],
            "annotations": [
                {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "attributes": {"occluded": False}, **one}
                for number, one in enumerate(annotations, 1)
            ],
            **changes,
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(content))
        return path

    return write


def test_polygons_both_kinds_of_rle_and_semantic_masks(instances, files, tmp_path):
    crowd = np.zeros((20, 30), bool)
    crowd[15:, :10] = True
    whole = np.asfortranarray(~crowd).ravel(order="F")
    runs = np.diff(np.flatnonzero(np.concatenate([[True], whole[1:] != whole[:-1], [True]])))
    counts = [0, *runs.tolist()] if whole[0] else runs.tolist()
    compressed = rle(crowd)
    source_file = instances(
        [
            {"segmentation": [rectangle(2, 2, 12, 8)]},
            {"segmentation": {**compressed, "counts": compressed["counts"].decode()}, "iscrowd": 1},
            {"segmentation": {"size": [20, 30], "counts": counts}, "image_id": 2, "category_id": 4},
            {"segmentation": [], "bbox": [0, 0, 3, 3]},
        ]
    )
    semantic = np.full((20, 30), 9, np.uint8)
    semantic[:, 20:] = 3  # which no label has
    for name in ("day 1/a.png", "b.png"):
        (tmp_path / "semantic" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(semantic).save(tmp_path / "semantic" / name)
    source, category_of = read_instances(source_file, {9: "sky", 2: "grass"})
    notes = convert_source(
        source, files, overlap="error", semantic=SemanticMasks(tmp_path / "semantic", category_of), workers=2
    )

    expected = np.full((20, 30), 9)
    expected[:, 20:] = -1
    expected[crowd] = -100
    expected[2:8, 2:12] = 1
    assert (category_map(files, 0) == expected).all()
    expected = np.where(crowd, 9, 4)
    assert (category_map(files, 1) == expected).all()
    assert notes == {
        "images": 2,
        "segments": 5,
        "annotations without an area (boxes, points, lines), dropped": 1,
        "masks with the value 3, which has no semantic label and becomes void": 2,
    }
    content = json.loads(files.json_file.read_text())
    assert [one["file_name"] for one in content["annotations"]] == ["day 1/a.png", "b.png"]
    assert [(one["id"], one["isthing"]) for one in content["categories"]] == [(1, 1), (4, 0), (9, 0)]
    report = validate_panoptic(str(files.json_file), str(files.png_root), str(tmp_path / "images"))
    assert report.is_clean and report.num_crowds == 1


def test_crowds_may_be_things(instances, files):
    path = instances([{"segmentation": [rectangle(2, 2, 12, 8)], "iscrowd": 1}])
    source, _ = read_instances(path, {}, crowds_as_things=True)
    convert_source(source, files, overlap="error")
    assert category_map(files, 0).max() == 1


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"image_id": 7}, r"annotation 1 refers to the image 7"),
        ({"category_id": 9}, r"annotation 1 has the category 9, expected one of \[1, 4\]"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, r"instances\.json: annotation 1 has a mask of \[5, 5\]"),
    ],
)
def test_mistakes_in_instances_are_named(instances, files, annotation, message):
    with pytest.raises(ValueError, match=message):
        convert_source(read_instances(instances([annotation]), {})[0], files, overlap="error")


def test_what_is_no_instances_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ValueError, match=r"x\.json: not an instances JSON.*annotations, categories, images"):
        read_instances(tmp_path / "x.json", {})
    with pytest.raises(ValueError, match="cannot be read"):
        read_instances(tmp_path / "none.json", {})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (None, "no such image file"),
        (np.zeros((20, 29), np.uint8), "29 x 20, its image 30 x 20"),
        (np.zeros((20, 30, 3), np.uint8), "mode 'RGB'"),
    ],
)
def test_unfit_semantic_masks_are_named(instances, files, tmp_path, mask, message):
    source, category_of = read_instances(instances([]), {9: "sky"})
    if mask is not None:
        (tmp_path / "day 1").mkdir()
        Image.fromarray(mask).save(tmp_path / "day 1" / "a.png")
    with pytest.raises(ValueError, match=rf"day 1/a\.jpg: .*a\.png.*{message}"):
        convert_source(source, files, overlap="error", semantic=SemanticMasks(tmp_path, category_of))
    assert not files.json_file.exists()


def test_images_of_one_name_get_pngs_of_their_own(instances, files):
    """As psf predict names its results: NAME, NAME_2; and a_2.jpg keeps its own name."""
    names = ["a.jpg", "a.png", "a_2.jpg", "b/a.jpg", "a.tif"]
    images = [{"id": number, "file_name": name, "height": 2, "width": 2} for number, name in enumerate(names, 1)]
    source, _ = read_instances(instances([], images=images), {})
    convert_source(source, files, overlap="error")
    found = [one["file_name"] for one in json.loads(files.json_file.read_text())["annotations"]]
    assert found == ["a.png", "a_3.png", "a_2.png", "b/a.png", "a_4.png"]
    assert all((files.png_root / name).is_file() for name in found)


def test_an_image_that_is_listed_twice_is_named(instances):
    images = [{"id": number, "file_name": "a.jpg", "height": 2, "width": 2} for number in (1, 2)]
    with pytest.raises(UserError, match=r"\.json: lists the image 'a\.jpg' twice"):
        read_instances(instances([], images=images), {})


LONG_NAMES = ["x" * 252 + ".jpg", "x" * 252 + ".c", "ß" * 126 + ".jpg", "d" * 256 + "/a.jpg", "d/" * 1100 + "a.jpg"]


@pytest.mark.parametrize("name", LONG_NAMES)
def test_long_names_are_refused_in_a_short_line(instances, name):
    images = [{"id": 7, "file_name": name, "height": 2, "width": 2}]
    with pytest.raises(UserError, match=r"image 7: the file name .* characters, expected at most 255 bytes") as caught:
        read_instances(instances([], images=images), {})
    assert len(str(caught.value)) < 600


def test_an_image_of_another_size_is_named(instances, files, tmp_path):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    images = [{"id": 1, "file_name": "a.png", "height": 2, "width": 2}]
    source, _ = read_instances(instances([], images=images), {})
    with pytest.raises(UserError, match=r"a\.png has 3 x 2 pixels, its annotations are of 2 x 2: restore"):
        convert_source(source._replace(image_root=tmp_path), files, overlap="error")


def test_real_coco_comes_back_from_instances_and_masks(shared, files, tmp_path):
    """The ground truth taken apart into things and a semantic mask, and put together again."""
    root = shared / "data" / "coco25" / "coco"
    original = json.loads((root / "annotations" / "panoptic_val2017.json").read_text())
    names = {one["id"]: one["name"] for one in original["categories"] if not one["isthing"]}
    (tmp_path / "semantic").mkdir()
    for annotation in original["annotations"]:
        category_of = {0: 0} | {one["id"]: one["category_id"] for one in annotation["segments_info"]}
        ids = read_panoptic_ids(str(root / "panoptic_val2017" / annotation["file_name"]), category_of)
        present, inverse = np.unique(ids, return_inverse=True)
        values = np.array([category_of[one] for one in present.tolist()], np.uint8)[inverse].reshape(ids.shape)
        Image.fromarray(values).save(tmp_path / "semantic" / annotation["file_name"])
    source, category_of = read_instances(root / "annotations" / "instances_val2017_from_panoptic.json", names)
    convert_source(source, files, overlap="error", semantic=SemanticMasks(tmp_path / "semantic", category_of))

    def measures(annotations: list[dict[str, Any]]) -> list[Any]:
        return sorted(
            (one["image_id"], segment["category_id"], segment["iscrowd"], segment["area"], segment["bbox"])
            for one in annotations
            for segment in one["segments_info"]
        )

    assert measures(json.loads(files.json_file.read_text())["annotations"]) == measures(original["annotations"])


# ------------------------------------------------------------------ labelme


def write_labelme(path: Path, shapes: list[dict[str, Any]], **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": [{"group_id": None, "flags": {}, "shape_type": "polygon", **one} for one in shapes],
        "imagePath": f"{path.stem}.jpg",
        "imageData": "aGVsbG8=",
        "imageHeight": 20,
        "imageWidth": 30,
        **changes,
    }
    path.write_text(json.dumps(content))
    Image.new("RGB", (30, 20)).save(path.with_suffix(".jpg"))


def corners(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return np.reshape(rectangle(left, top, right, bottom), (-1, 2)).tolist()


def test_labelme_shapes_of_every_kind(tmp_path, files):
    buffer = io.BytesIO()
    Image.fromarray(np.array([[0, 255, 255], [255, 0, 255]], np.uint8)).convert("1").save(buffer, format="PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    folder = tmp_path / "labelme"
    write_labelme(
        folder / "sub" / "a.json",
        [
            {"label": "grass", "points": corners(0, 10, 30, 20)},
            {"label": "cat", "points": [[1, 1], [9, 6]], "shape_type": "rectangle"},
            {"label": "cat", "points": corners(12, 1, 14, 3), "group_id": 4},
            {"label": "cat", "points": corners(16, 1, 18, 3), "group_id": 4},
            {"label": "dog", "points": [[24, 5], [24, 8]], "shape_type": "circle"},
            {"label": "dog", "points": [[26, 17], [28, 18]], "shape_type": "mask", "mask": mask},
            {"label": "dog", "points": [[0, 0], [5, 5]], "shape_type": "line"},
        ],
    )  # fmt: skip
    write_labelme(folder / "b.json", [])
    (folder / "other.json").write_text("[]")
    source, _ = read_labelme(folder, {7: "grass"}, thing_names={})
    notes = convert_source(source, files, overlap="later-on-top")
    lines = "shapes without an area (line), dropped"
    assert notes == {"images": 2, "segments": 5, "overlapping regions": 1, lines: 1}
    assert [(one["id"], one["name"], one["isthing"]) for one in source.categories] == [
        (1, "cat", 1), (2, "dog", 1), (7, "grass", 0),
    ]  # fmt: skip
    assert [item.image["file_name"] for item in source.images] == ["b.jpg", "sub/a.jpg"]
    drawn = category_map(files, 1)
    assert (drawn[1:6, 1:9] == 1).all() and (drawn[1:3, 12:14] == 1).all() and (drawn[1:3, 16:18] == 1).all()
    assert drawn[17:19, 26:29].tolist() == [[7, 2, 2], [2, 7, 2]]  # the mask's zeros show what lies below
    circle = (drawn == 2)[:10]
    assert circle[5, 24] and abs(circle.sum() - np.pi * 3**2) < 6
    assert (category_map(files, 0) == -1).all()
    report = validate_panoptic(str(files.json_file), str(files.png_root), str(folder))
    assert report.is_clean and report.num_segments == 5


def test_labelme_masks_may_reach_over_the_edge(tmp_path, files):
    buffer = io.BytesIO()
    Image.new("L", (10, 10), 255).save(buffer, format="PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    shape = {"label": "cat", "shape_type": "mask", "mask": mask}
    write_labelme(
        tmp_path / "a.json", [{**shape, "points": [[25, 15], [34, 24]]}, {**shape, "points": [[-6, -7], [3, 2]]}]
    )
    convert_source(read_labelme(tmp_path, {}, thing_names={})[0], files, overlap="error")
    drawn = category_map(files, 0) == 1
    assert drawn[15:, 25:].all() and drawn[:3, :4].all() and drawn.sum() == 5 * 5 + 3 * 4


def test_thing_labels_fix_the_ids(tmp_path):
    write_labelme(tmp_path / "a.json", [{"label": "dog", "points": corners(0, 0, 5, 5)}])
    source, _ = read_labelme(tmp_path, {}, thing_names={3: "cat", 8: "dog"})
    assert [one["id"] for one in source.categories] == [3, 8]
    with pytest.raises(ValueError, match=r"labels .dog. are neither"):
        read_labelme(tmp_path, {}, thing_names={3: "cat"})


def test_mistakes_in_labelme_are_named(tmp_path, files):
    with pytest.raises(ValueError, match="found no labelme JSON"):
        read_labelme(tmp_path, {}, thing_names={})
    write_labelme(tmp_path / "in" / "a.json", [], imagePath="..\\elsewhere\\a.jpg")
    with pytest.raises(ValueError, match=r"is not below .*--image-root"):
        read_labelme(tmp_path / "in", {7: "grass"}, thing_names={})
    source, _ = read_labelme(tmp_path / "in", {7: "grass"}, thing_names={}, image_root=tmp_path)
    assert source.images[0].image["file_name"] == "elsewhere/a.jpg"
    write_labelme(tmp_path / "in" / "a.json", [], imageHeight=None)
    with pytest.raises(ValueError, match="imageHeight missing"):
        read_labelme(tmp_path / "in", {7: "grass"}, thing_names={})
    write_labelme(
        tmp_path / "in" / "a.json", [{"label": "x", "points": [[0, 0], [1, 1]], "shape_type": "mask", "mask": "?"}]
    )
    with pytest.raises(ValueError, match=r"a\.jpg: a mask labelled 'x' is damaged"):
        convert_source(read_labelme(tmp_path / "in", {7: "grass"}, thing_names={})[0], files, overlap="error")


def test_a_png_is_there_whole_or_not_at_all(files, monkeypatch):
    """While it is written its name is free, and nothing else is left in the folder."""
    seen: list[list[str]] = []
    plain = Image.Image.save

    def save(self: Image.Image, path: Path, **options: Any) -> None:
        plain(self, path, **options)
        seen.append(sorted(file.name for file in files.png_root.iterdir()))

    monkeypatch.setattr(Image.Image, "save", save)
    drawing = Drawing(
        {"id": 1, "file_name": "a.jpg", "height": 2, "width": 2}, np.zeros((2, 2), np.uint8), [], Counter()
    )
    write_panoptic_set([drawing], lambda one: one, [], files)
    [[temporary]] = seen
    assert temporary != "a.png"
    assert [file.name for file in files.png_root.iterdir()] == ["a.png"]
