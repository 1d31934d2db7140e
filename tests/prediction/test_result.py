"""The parts of a result agree with each other, and its documents with the formats' own readers."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools.coco import COCO

import psf
from psf.data import read_panoptic_json
from psf.errors import UserError
from psf.prediction import PanopticResult
from tests.model_files import noise
from tests.tools.dataset_conversion.label_files import convert, read_set


@pytest.fixture(scope="module")
def result(predictor: psf.Predictor) -> PanopticResult:
    found = predictor(noise())
    assert len(found.segments) > 1 and {one.is_thing for one in found.segments} == {True, False}
    return found


def test_segments_and_map(result: PanopticResult) -> None:
    assert result.panoptic_map.dtype == np.int32 and result.panoptic_map.shape == result.size == (64, 96)
    assert [one.id for one in result.segments] == list(range(1, len(result.segments) + 1))
    for one in result.segments:
        rows, columns = np.nonzero(result.mask(one))
        assert one.area == len(rows)
        assert one.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_instances(result: PanopticResult) -> None:
    scores = [one.score for one in result.instances]
    assert scores and scores == sorted(scores, reverse=True)
    for one in result.instances:
        assert one.mask.dtype == bool and one.mask.sum() == one.area


def test_draw(result: PanopticResult) -> None:
    for task in ("panoptic", "instance", "semantic"):
        picture = result.draw(task, legend=False)
        assert picture.size == (96, 64) and (np.asarray(picture) != noise()).any()
    assert result.draw().size[1] > 64  # the legend is below
    with pytest.raises(UserError, match="the task is 'boxes'"):
        result.draw("boxes")


def test_coco_panoptic(result: PanopticResult, tmp_path: Path) -> None:
    document = result.to_coco(image_id=7, file_name="a.b.jpg")
    (tmp_path / "a.json").write_text(json.dumps(document))
    content = read_panoptic_json(str(tmp_path / "a.json"), ("categories", "images", "annotations"))
    assert [one["id"] for one in content["categories"]] == [3, 5, 30, 7, 12, 9, 40]
    (annotation,) = content["annotations"]
    assert annotation["file_name"] == "a.b.png" and annotation["image_id"] == 7
    assert (rgb2id(result.label_image()) == result.panoptic_map).all()
    infos = [(one["id"], one["category_id"], one["area"], one["score"]) for one in annotation["segments_info"]]
    assert infos == [(one.id, one.category_id, one.area, one.score) for one in result.segments]


@pytest.mark.parametrize("name", ["photo", "a/photo", "a.b/photo", "/a/photo.jpg", "C:\\a\\photo.jpg", "b/photo.png"])
def test_name_of_the_panoptic_png(result: PanopticResult, name: str) -> None:
    assert result.to_coco(file_name=name)["annotations"][0]["file_name"] == "photo.png"


def test_coco_instances(result: PanopticResult, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result.to_coco("instance")))
    coco = COCO(str(tmp_path / "a.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    for one, own in zip(annotations, result.instances, strict=True):
        assert (coco.annToMask(one).astype(bool) == own.mask).all()
        assert coco.loadCats(one["category_id"])[0]["name"] == own.class_name


@pytest.mark.parametrize("exact", [True, False])
def test_labelme_comes_back(result: PanopticResult, tmp_path: Path, exact: bool) -> None:
    """psf's own converter makes the panoptic map again: exactly of masks, nearly of polygons."""
    Image.fromarray(noise()).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps(result.to_labelme(image_path="a.png", exact=exact)))
    shapes = json.loads((tmp_path / "a.json").read_text())["shapes"]
    assert {(one["group_id"], one["label"]) for one in shapes} == {(one.id, one.class_name) for one in result.segments}
    assert convert("--labelme", tmp_path, "--overlap", "later-on-top", "--output", tmp_path / "set") == 0
    words = read_set(tmp_path / "set", tmp_path)["a.png"]
    found = set[str]()
    for one in result.segments:
        own = words[result.mask(one)]
        [(word, number)] = Counter(own.tolist()).most_common(1)
        assert re.fullmatch(rf"{re.escape(one.class_name)}\d+", word) and word not in found  # all labels are things
        found.add(word)
        assert number / (one.area + (words == word).sum() - number) > (0.999 if exact else 0.7)  # IoU
    assert (set(words.ravel().tolist()) - {"."} == found) and (
        (words == ".") == (result.panoptic_map == 0)
    ).mean() > 0.9


def test_merging_again(result: PanopticResult) -> None:
    best = max(one.score for one in result.segments)
    few = result.merge_again(confidence=best)
    assert [one.score for one in few.segments] == [best]
    assert all(one.score >= best for one in few.instances)
    assert not result.merge_again(confidence=1.0).segments
    assert len(result.merge_again(keep=1.0).segments) < len(result.segments)
    assert result.merge_again().segments == result.segments  # the model's own thresholds are unchanged
    with pytest.raises(UserError, match="confidence is 2: expected a number from 0 to 1"):
        result.merge_again(confidence=2)


def test_memory(predictor: psf.Predictor) -> None:
    """Of the masks on the device, the picture and the map."""
    one = predictor(noise())
    candidates = one._output()._candidates
    tensors = sum(x.numel() * x.element_size() for x in candidates if x is not None)
    assert candidates.mask_scores.numel() > 900 and one.num_bytes == tensors + 64 * 96 * (3 + 4)


def test_explanation_of_an_empty_result(result: PanopticResult) -> None:
    empty = result.merge_again(confidence=1.0)
    explanation = empty.explain()
    assert empty.is_empty() and not result.is_empty() and not empty.is_empty("semantic")
    assert explanation.num_segments == 0 and explanation.num_candidates == 10
    assert explanation.counts["T_CNF"] + explanation.counts.get("empty_mask", 0) == 10
    best = max(one.score for one in result.segments)
    assert explanation.best[0].confidence == pytest.approx(best) and explanation.best[0].reason == "T_CNF"
    assert f"confidence {best:.3g}, below T_CNF 1" in explanation.summary and explanation.summary.startswith(
        "no segments of 10"
    )
    assert str(explanation).splitlines()[0] == explanation.summary and "T_CNF: confidence below T_CNF" in str(
        explanation
    )
    assert "\n" not in explanation.summary


def test_explanation_of_others(result: PanopticResult) -> None:
    explanation = result.explain()
    assert explanation.counts["kept"] >= len(result.segments)
    assert result.explain("instance").num_segments == len(result.instances)
