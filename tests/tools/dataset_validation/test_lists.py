"""Entries that are not what they have to be are named, whatever they are; the loader refuses the same ones."""

from __future__ import annotations

import json

import numpy as np
import pytest
from detectron2.utils.file_io import PathManager

from psf.data import load_panoptic_json
from psf.tools.dataset_validation import html as validation_html
from psf.tools.dataset_validation.validation import write_corrected
from tests.data.conftest import save_ids
from tests.data.damaged_set import change, places, segments, validate, write_damaged
from tests.mini_set import write_mini_set

WRONG = {
    "image id": (lambda x: x["images"][0].update(id=[1]), "images[0]: 'id' is [1], expected a whole number or a text"),
    "true as an id": (lambda x: x["images"][0].update(id=True), "images[0]: 'id' is True"),
    "no list": (lambda x: x["annotations"][0].update(segments_info=None), "annotations[0]: 'segments_info' is None"),
    "no name": (lambda x: x["images"][0].update(file_name=None), "images[0]: 'file_name' is None, expected a text"),
    "no entry": (
        lambda x: x["images"].append("0.png"),
        "images[5]: found '0.png', expected an object with id",
    ),
    "no color": (lambda x: x["categories"][0].update(color=None), "categories[0]: 'color' is None"),
    "color": (lambda x: x["categories"][0].update(color="red"), "categories[0]: 'color' is 'red'"),
    "half a color": (lambda x: x["categories"][0].update(color=[1, 2]), "categories[0]: 'color' is [1, 2]"),
    "category": (lambda x: x["categories"][0].update(id="7"), "categories[0]: 'id' is '7', expected a whole number"),
    "kind": (lambda x: x["categories"][0].update(isthing="0"), "categories[0]: 'isthing' is '0', expected 0 or 1"),
    "crowd": (
        lambda x: segments(x, 0)[0].update(iscrowd="0"),
        "0.png: segment 65537: 'iscrowd' is '0', expected 0 or 1",
    ),
    "segment": (lambda x: segments(x, 0).append("ball"), "0.png: a segment: found 'ball', expected an object with id"),
    "its id": (lambda x: segments(x, 0)[0].update(id=[3]), "0.png: segment [3]: 'id' is [3], expected a whole number"),
    "its category": (lambda x: segments(x, 0)[0].update(category_id=[3]), "0.png: segment 65537: 'category_id' is [3]"),
}


@pytest.mark.parametrize("edit", WRONG)
def test_what_the_loader_refuses_is_named_and_left(tmp_path, edit):
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, WRONG[edit][0])
    report = validate(root)
    found = [f"{fault.where}: {fault.detail}" for fault in report.faults if fault.kind == "wrong value"]
    assert len(found) == 1 and found[0].startswith(WRONG[edit][1])
    report.text()
    pages = dict(png_root=places(root)[1], image_root=places(root)[2])
    validation_html.write_html(report, tmp_path / "report.html", **pages)
    fixed = write_corrected(report, tmp_path / "fixed.json")
    written = json.loads((tmp_path / "fixed.json").read_text())
    assert not fixed and written == {"psf_corrected_from": "panoptic.json", **report.content}
    with pytest.raises(ValueError, match=r"panoptic\.json: "):
        load_panoptic_json(*places(root))


def test_one_wrong_class_is_one_fault(tmp_path):
    """Its segments are known all the same."""
    write_damaged(tmp_path / "set", "wrong value")
    report = validate(tmp_path / "set")
    assert len(report.faults) == 1 and report.histogram()[0][:4] == [7, "sky", "?", 3]


def test_ids_as_text_and_as_numbers_are_the_same_images(tmp_path):
    """As in training."""
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: [one.update(id=f"0{one['id']}") for one in x["images"]])
    assert validate(root).is_clean and len(load_panoptic_json(*places(root))) == 5
    change(root, lambda x: x["images"].append({**x["images"][0], "id": 1, "file_name": "1.jpg"}))
    [fault] = validate(root).faults
    assert fault[:3] == ("duplicate image id", "image 1", "an earlier entry has id '01'")


def test_one_png_of_two_annotations(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: x["annotations"][1].update(file_name="./0.png"))
    faults = [fault for fault in validate(root).faults if fault.kind == "file listed again"]
    assert [fault[1:3] for fault in faults] == [("0.png", "2 annotations have this file_name, expected one")]


def test_names_in_any_script(tmp_path, monkeypatch):
    """Whatever the encoding of the system is."""
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: x["categories"][0].update(name="道路"))
    text = json.dumps(json.loads((root / "panoptic.json").read_text()), ensure_ascii=False)
    (root / "panoptic.json").write_text(text, encoding="utf-8")
    seen = []
    plain_open = PathManager.open
    monkeypatch.setattr(PathManager, "open", lambda *a, **k: seen.append(k.get("encoding")) or plain_open(*a, **k))
    assert validate(root).classes[0].name == "道路" and seen[0] == "utf-8-sig"


def test_numbers_and_their_nouns(tmp_path):
    root = tmp_path / "set"
    write_damaged(root, "wrong area")
    save_ids(root / "panoptic" / "1.png", np.zeros((48, 32), int))
    change(root, lambda x: segments(x, 1).clear())
    text = validate(root).text()
    assert "1 image is entirely void" in text and text.endswith("\n1 fault")


def test_no_annotations_are_an_empty_list(tmp_path):
    root = tmp_path / "set"
    write_mini_set(root)
    change(root, lambda x: x.pop("annotations"))
    [fault] = validate(root).faults
    assert fault[:2] == ("empty list", "annotations")
