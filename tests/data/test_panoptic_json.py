from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest

from psf.data import (
    image_key,
    load_panoptic_json,
    panoptic_json,
    panoptic_metadata,
    read_categories,
    read_panoptic_json,
)

CATEGORIES = [
    {"id": 90, "name": "sea", "isthing": 0, "color": [0, 0, 9]},
    {"id": 7, "name": "boat", "isthing": 1, "color": [9, 0, 0]},
    {"id": 11, "name": "sky", "isthing": 0, "color": [0, 9, 0]},
]


def write(folder: Path, **changes) -> str:
    content = {
        "categories": CATEGORIES,
        "images": [{"id": 4, "file_name": "sub/a.webp", "height": 3, "width": 5}],
        "annotations": [
            {
                "image_id": 4,
                "file_name": "a.png",
                "segments_info": [{"id": 1, "category_id": 11, "area": 9}, {"id": 2, "category_id": 7, "iscrowd": 1}],
            }
        ],
    } | changes
    path = folder / "panoptic.json"
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return str(path)


def test_contiguous_ids_are_positions_whatever_comes_first():
    metadata = panoptic_metadata(CATEGORIES)
    assert metadata["thing_dataset_id_to_contiguous_id"] == {7: 1}
    assert metadata["stuff_dataset_id_to_contiguous_id"] == {90: 0, 11: 2}
    assert metadata["thing_classes"] == metadata["stuff_classes"] == ["sea", "boat", "sky"]
    assert metadata["thing_colors"] == metadata["stuff_colors"] == [[0, 0, 9], [9, 0, 0], [0, 9, 0]]


@pytest.mark.parametrize("kind", [0, 1])
def test_one_kind_alone_is_fine(kind):
    metadata = panoptic_metadata([{**category, "isthing": kind} for category in CATEGORIES])
    full, empty = ("thing", "stuff") if kind else ("stuff", "thing")
    assert metadata[f"{full}_dataset_id_to_contiguous_id"] == {90: 0, 7: 1, 11: 2}
    assert metadata[f"{empty}_dataset_id_to_contiguous_id"] == {}


def test_dicts_are_detectron2s(tmp_path):
    (entry,) = load_panoptic_json(write(tmp_path), "/png", "/img")
    assert entry == {
        "file_name": "/img/sub/a.webp",
        "image_id": 4,
        "height": 3,
        "width": 5,
        "pan_seg_file_name": "/png/a.png",
        "segments_info": [
            {"id": 1, "category_id": 2, "isthing": False, "iscrowd": 0, "area": 9},
            {"id": 2, "category_id": 1, "isthing": True, "iscrowd": 1},
        ],
    }


def test_unknown_category_id_is_named(tmp_path):
    annotation = {"image_id": 4, "file_name": "a.png", "segments_info": [{"id": 1, "category_id": 8}]}
    path = write(tmp_path, annotations=[annotation])
    with pytest.raises(ValueError, match=r"panoptic\.json: unknown category id 8 in a\.png.*\[7, 11, 90\]"):
        load_panoptic_json(path, "", "")


def test_unknown_image_is_named(tmp_path):
    path = write(tmp_path, images=[])
    with pytest.raises(ValueError, match=r"panoptic\.json: annotation a\.png refers to the unknown image 4"):
        load_panoptic_json(path, "", "")


@pytest.mark.parametrize("key", ["categories", "images"])
def test_another_kind_of_json_is_refused(tmp_path, key):
    path = write(tmp_path, **{key: None})
    with pytest.raises(ValueError, match=rf"panoptic\.json: not a panoptic JSON, '{key}' is missing"):
        load_panoptic_json(path, "", "")


def test_damaged_and_missing_json_are_named(tmp_path):
    path = write(tmp_path)
    Path(path).write_text('{"images": [')
    with pytest.raises(ValueError, match=r"panoptic\.json: not a valid JSON file"):
        load_panoptic_json(path, "", "")
    Path(path).unlink()
    with pytest.raises(ValueError, match=r"panoptic\.json: .*missing.*--register NAME=JSON,PNGS,IMAGES"):
        load_panoptic_json(path, "", "")


def test_categories_without_color_get_one() -> None:
    categories = [{"id": i, "name": str(i), "isthing": i % 2} for i in range(200)]
    colors = panoptic_metadata(categories)["thing_colors"]
    assert len(colors) == 200
    assert all(
        len(color) == 3 and all(isinstance(value, int) and 0 <= value <= 255 for value in color) for color in colors
    )


@pytest.mark.parametrize(("written", "expected"), [("0004", 4), (4, 4), ("img_4", "img_4")])
def test_numbers_written_as_text_are_numbers(tmp_path, written, expected):
    """As in the evaluators, whose ground truth has the same ids."""
    annotation = {"image_id": written, "file_name": "a.png", "segments_info": []}
    image = {"id": written, "file_name": "a.jpg", "height": 3, "width": 5}
    (entry,) = load_panoptic_json(write(tmp_path, images=[image], annotations=[annotation]), "", "")
    assert entry["image_id"] == expected


def test_categories_alone_can_be_read(tmp_path):
    assert read_categories(write(tmp_path, images=None, annotations=None)) == CATEGORIES


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "`categories` is empty"),
        ([{"id": 1, "name": "person", "supercategory": "person"}], r"the category .*'person'.* 'isthing' is missing"),
        ([*CATEGORIES, CATEGORIES[1]], "two categories have the id 7: name 'boat'"),
    ],
)
def test_categories_that_cannot_be_used(tmp_path, categories, message):
    path = write(tmp_path, categories=categories)
    for read in (read_categories, lambda path: load_panoptic_json(path, "", "")):
        with pytest.raises(ValueError, match=rf"panoptic\.json: .*{message}"):
            read(path)


@pytest.mark.parametrize("annotations", [None, []])
def test_without_annotations_there_are_images_to_predict(tmp_path, annotations, caplog):
    path = write(tmp_path, annotations=annotations)
    expected = [{"file_name": "/img/sub/a.webp", "image_id": 4, "height": 3, "width": 5}]
    assert load_panoptic_json(path, "/png", "/img") == expected
    assert "panoptic.json has no annotations: it can only be used for predictions" in caplog.text
    with pytest.raises(ValueError, match="`images` and `annotations` are empty"):
        load_panoptic_json(write(tmp_path, annotations=annotations, images=[]), "/png", "/img")


def edited(folder: Path, edit: Any) -> str:
    """The JSON after edit(category, image, annotation, segment), each the first of its list."""
    path = Path(write(folder))
    content = json.loads(path.read_text())
    annotation = content["annotations"][0]
    edit(content["categories"][0], content["images"][0], annotation, annotation["segments_info"][0])
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c, i, a, s: c.update(isthing="0"), r"category id 90, .*'isthing' is '0', expected 0 or 1"),
        (lambda c, i, a, s: c.update(isthing=2), "'isthing' is 2, expected 0 or 1"),
        (lambda c, i, a, s: c.update(id="90"), "category id '90'.*: 'id' is '90', expected a whole number"),
        (lambda c, i, a, s: c.update(id=True), "'id' is True, expected a whole number"),
        (lambda c, i, a, s: c.update(color="red"), r"'color' is 'red', expected \[red, green, blue\]"),
        (lambda c, i, a, s: c.update(color=None), "'color' is None"),
        (lambda c, i, a, s: i.update(id=[4]), r"image id \[4\].*: 'id' is \[4\]"),
        (lambda c, i, a, s: i.update(file_name=None), "'file_name' is None, expected a text"),
        (lambda c, i, a, s: i.update(height=3.5), "'height' is 3.5, expected a whole number of pixels"),
        (lambda c, i, a, s: i.pop("width"), r"'width' is missing, expected .*; is this a panoptic JSON"),
        (
            lambda c, i, a, s: a.update(segments_info=None),
            "annotation image_id 4.*'segments_info' is None, expected a list",
        ),
        (
            lambda c, i, a, s: a.update(segments_info=["x"]),
            r"a\.png: the segment: found 'x', expected an object",
        ),
        (lambda c, i, a, s: s.update(iscrowd="0"), r"a\.png: the segment id 1, .*'iscrowd' is '0', expected 0 or 1"),
        (lambda c, i, a, s: s.update(area="9"), "'area' is '9', expected a number"),
        (lambda c, i, a, s: s.pop("category_id"), r"segment id 1: 'category_id' is missing"),
    ],
)
def test_entries_of_another_kind_are_named(tmp_path, edit, message):
    path = edited(tmp_path, edit)
    with pytest.raises(ValueError, match=rf"panoptic\.json: .*{message}"):
        load_panoptic_json(path, "", "")


def test_flags_may_be_true_and_false(tmp_path):
    path = edited(tmp_path, lambda c, i, a, s: (c.update(isthing=False), s.update(iscrowd=True)))
    (entry,) = load_panoptic_json(path, "", "")
    assert entry["segments_info"][0]["iscrowd"] and not entry["segments_info"][0]["isthing"]


def test_sides_may_be_written_as_40_0(tmp_path):
    (entry,) = load_panoptic_json(edited(tmp_path, lambda c, i, a, s: i.update(height=3.0)), "", "")
    assert entry["height"] == 3 and isinstance(entry["height"], int)


def test_text_and_number_are_one_image_id(tmp_path):
    (entry,) = load_panoptic_json(edited(tmp_path, lambda c, i, a, s: i.update(id="4")), "", "")
    assert entry["image_id"] == 4
    images = [{"id": one, "file_name": f"{one}.jpg", "height": 3, "width": 5} for one in ("0012", "12")]
    path = write(tmp_path, images=images, annotations=[])
    with pytest.raises(ValueError, match=r"two images have the id '0012' and '12', which are the same: .*'0012\.jpg'"):
        load_panoptic_json(path, "", "")


def test_digits_of_other_kinds_are_text():
    assert image_key("²") == "²"


def test_names_in_any_script(tmp_path):
    path = write(tmp_path)
    text = json.dumps({"categories": [{**CATEGORIES[0], "name": "Straße 道路"}]}, ensure_ascii=False)
    Path(path).write_text(text, encoding="utf-8")
    assert read_categories(path)[0]["name"] == "Straße 道路"


IMAGES = [{"id": number, "file_name": f"{number}.jpg", "height": 3, "width": 5} for number in (1, 2)]
ANNOTATIONS = [{"image_id": number, "file_name": f"{number}.png", "segments_info": []} for number in (1, 2)]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("images", {"id": 1}, "two images have the id 1: file_name '1.jpg', .* and file_name '2.jpg'"),
        ("images", {"id": "01"}, "two images have the id 1 and '01', which are the same"),
        ("images", {"file_name": "./1.jpg"}, r"two images have the file_name '1\.jpg' and '\./1\.jpg'"),
        ("annotations", {"image_id": 1}, "two annotations have the image_id 1: file_name '1.png' and .* '2.png'"),
        ("annotations", {"file_name": "1.png"}, r"two annotations have the file_name '1\.png': image_id 1 and .* 2"),
    ],
)
def test_what_must_be_unique(tmp_path, name, change, message):
    """Otherwise an image is trained and evaluated with the ground truth of another."""
    lists = {"images": IMAGES, "annotations": ANNOTATIONS}
    path = write(tmp_path, **(lists | {name: [lists[name][0], {**lists[name][1], **change}]}))
    with pytest.raises(ValueError, match=rf"panoptic\.json: {message}"):
        load_panoptic_json(path, "", "")
    if name == "annotations":
        with pytest.raises(ValueError, match=message):
            read_panoptic_json(path, ("categories", "annotations"))  # as the evaluators


@pytest.mark.parametrize(
    ("segment_ids", "message"), [((1, 1), r"duplicate ids: \[1\]"), ((0, 1), "the id 0"), ((2**24,), "the id 16777216")]
)
def test_segment_ids_of_an_image(tmp_path, segment_ids, message):
    segments = [{"id": one, "category_id": 7} for one in segment_ids]
    path = write(tmp_path, images=IMAGES, annotations=[{**ANNOTATIONS[0], "segments_info": segments}])
    with pytest.raises(ValueError, match=rf"panoptic\.json: 1\.png: segments_info has {message}"):
        read_panoptic_json(path, ("categories", "annotations"))


@pytest.mark.parametrize("key", ["images", "annotations"])
@pytest.mark.parametrize(
    "name",
    ["/etc/a.png", "../a.png", "a/../../b.png", "..\\a.png", "C:\\a.png", "\\\\server\\a.png", "a\nb.png", 5000 * "a"],
)
def test_files_are_below_their_folder(tmp_path, key, name):
    lists = {"images": IMAGES[:1], "annotations": ANNOTATIONS[:1]}
    path = write(tmp_path, **(lists | {key: [{**lists[key][0], "file_name": name}]}))
    with pytest.raises(ValueError, match=r"'file_name' is '.*expected a text: a path below its folder") as caught:
        load_panoptic_json(path, "", "")
    assert len(str(caught.value)) < 600 and "\n" not in str(caught.value)


def test_backslashes_are_slashes(tmp_path):
    images = [{**IMAGES[0], "file_name": "city\\1.jpg"}]
    annotations = [{**ANNOTATIONS[0], "file_name": ".\\city\\1.png"}]
    [entry] = load_panoptic_json(write(tmp_path, images=images, annotations=annotations), "/png", "/img")
    assert (entry["file_name"], entry["pan_seg_file_name"]) == ("/img/city/1.jpg", "/png/./city/1.png")


def test_images_that_are_not_used_are_counted(tmp_path, caplog):
    load_panoptic_json(write(tmp_path, images=IMAGES, annotations=ANNOTATIONS[:1]), "", "")
    assert "panoptic.json: 1 of 2 images have no annotation and are not used" in caplog.text


def test_two_classes_of_one_name_keep_both_results(tmp_path, caplog):
    categories = [*CATEGORIES, {"id": 12, "name": "sea", "isthing": 1}, {"id": 13, "name": "Sea ", "isthing": 1}]
    names = panoptic_metadata(categories)["thing_classes"]
    assert names == ["sea (id 90)", "boat", "sky", "sea (id 12)", "Sea "]
    load_panoptic_json(write(tmp_path, categories=categories), "", "")
    assert "2 categories are called 'sea'" in caplog.text
    assert "2 categories differ only in spaces or case: 'Sea ', 'sea'" in caplog.text


@pytest.mark.parametrize("name", ["", "a\tb", "a\x1b[31m", "\ud800", 300 * "a"])
def test_names_that_cannot_be_shown(tmp_path, name):
    with pytest.raises(ValueError, match=r"'name' is '.*expected a text of 1 to 255 characters, without control"):
        read_categories(write(tmp_path, categories=[{**CATEGORIES[0], "name": name}]))


@pytest.mark.parametrize("value", [2**63, -(2**64), 10**400])
def test_numbers_beyond_63_bits_are_no_ids(tmp_path, value):
    with pytest.raises(ValueError, match=r"panoptic\.json: .*expected a whole number of at most 63 bits") as caught:
        read_categories(write(tmp_path, categories=[{**CATEGORIES[0], "id": value}]))
    assert len(str(caught.value)) < 600


class TestFilesAreParsedOnce:
    @pytest.fixture(autouse=True)
    def parsed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Names of the files that are parsed. Files just written are kept, too."""
        names: list[str] = []
        read = panoptic_json.read_json

        def counting(path: str) -> Any:
            names.append(Path(path).name)
            return read(path)

        monkeypatch.setattr(panoptic_json, "read_json", counting)
        monkeypatch.setattr(panoptic_json, "SETTLED_SECONDS", 0.0)
        return names

    def test_by_all_who_read_them(self, tmp_path: Path, parsed: list[str]):
        path = write(tmp_path)
        assert read_categories(path) == CATEGORIES
        first = load_panoptic_json(path, "/png", "/img")
        assert load_panoptic_json(path, "/png", "/img") == first
        assert len(read_panoptic_json(path, ("categories", "annotations"))["annotations"]) == 1
        assert parsed == ["panoptic.json"]

    def test_lists_that_nobody_has_asked_for_are_checked_later(self, tmp_path: Path, parsed: list[str]):
        path = write(tmp_path, annotations=[{"image_id": 4}])
        assert read_categories(path) == CATEGORIES
        for _ in range(2):
            with pytest.raises(ValueError, match="'file_name' is missing"):
                load_panoptic_json(path, "", "")
        assert parsed == ["panoptic.json"]

    @pytest.mark.parametrize("is_replaced", [False, True])
    def test_until_they_change(self, tmp_path: Path, parsed: list[str], is_replaced: bool):
        """Also if the size and the time of modification stay."""
        path = write(tmp_path)
        read_categories(path)
        before = os.stat(path)
        other = [{**CATEGORIES[0], "name": "tea"}, *CATEGORIES[1:]]
        if is_replaced:
            (tmp_path / "new").mkdir()
            os.replace(write(tmp_path / "new", categories=other), path)
        else:
            write(tmp_path, categories=other)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert os.stat(path).st_size == before.st_size
        assert read_categories(path)[0]["name"] == "tea"
        assert len(parsed) == 2

    def test_when_they_may_still_change(self, tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch):
        """Within the resolution of a file system's times, two versions look the same."""
        monkeypatch.setattr(panoptic_json, "SETTLED_SECONDS", 3600.0)
        path = write(tmp_path)
        read_categories(path)
        read_categories(path)
        assert len(parsed) == 2

    @pytest.mark.parametrize(("limit", "again"), [(10_000, 0), (1000, 1), (10, 3)])
    def test_in_bounded_memory(
        self, tmp_path: Path, parsed: list[str], monkeypatch: pytest.MonkeyPatch, limit: int, again: int
    ):
        """Each of three files has 400 to 500 bytes: all, two or none fit; but one in use is never parsed again."""
        monkeypatch.setattr(panoptic_json, "MAX_KEPT_BYTES", limit)
        paths = []
        for name in "abc":
            (tmp_path / name).mkdir()
            paths.append(write(tmp_path / name))
        assert all(400 < os.path.getsize(path) < 500 for path in paths)
        used = [read_panoptic_json(path) for path in paths]
        assert [read_panoptic_json(path) for path in reversed(paths)] == used and len(parsed) == 3
        del used
        gc.collect()
        for path in reversed(paths):  # the newest first
            read_categories(path)
        assert len(parsed) == 3 + again
