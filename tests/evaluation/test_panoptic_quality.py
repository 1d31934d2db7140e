"""PQ in memory: by hand, and to the last bit what panopticapi says."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from psf.evaluation import PanopticQuality, match_segments
from psf.evaluation.panoptic_evaluator import SEGMENT_SIZES
from tests.evaluation.label_maps import label_maps, segments_of

THING, STUFF = 1, 2
KINDS = {THING: True, STUFF: False}


def quality(
    gt: list[int], gt_categories: dict[int, int], pred: list[int], pred_categories: dict[int, int], **kwargs: Any
):
    """PQ of a single row of pixels."""
    result = PanopticQuality(KINDS)
    gt_labels, pred_labels = np.array([gt]), np.array([pred])
    gt_segments = segments_of(gt_labels, gt_categories, **kwargs)
    result.add(gt_labels, gt_segments, pred_labels, segments_of(pred_labels, pred_categories))
    return result


def counts(result: PanopticQuality, category: int) -> tuple[int, int, int, float]:
    one = result.per_class[category]
    return one.tp, one.fp, one.fn, one.iou_sum


class TestByHand:
    def test_match_needs_more_than_half(self):
        # intersection 2, union 2 + 4 - 2 = 4: IoU 0.5 is no match.
        result = quality([1, 1, 1, 1], {1: THING}, [7, 7, 8, 8], {7: THING, 8: STUFF})
        assert counts(result, THING) == (0, 1, 1, 0.0)
        assert counts(result, STUFF) == (0, 1, 0, 0.0)
        # intersection 3, union 4: IoU 0.75
        result = quality([1, 1, 1, 1], {1: THING}, [7, 7, 7, 0], {7: THING})
        assert counts(result, THING) == (1, 0, 0, 0.75)

    def test_other_category_does_not_match(self):
        result = quality([1, 1], {1: THING}, [1, 1], {1: STUFF})
        assert counts(result, THING) == (0, 0, 1, 0.0)
        assert counts(result, STUFF) == (0, 1, 0, 0.0)

    def test_void_is_left_out_of_the_union(self):
        # prediction 4 pixels, one of them in void: intersection 3, union 4 + 3 - 3 - 1 = 3
        assert counts(quality([1, 1, 1, 0], {1: THING}, [7, 7, 7, 7], {7: THING}), THING) == (1, 0, 0, 1.0)

    @pytest.mark.parametrize(
        ("in_void", "false_positives"), [(2, 1), (3, 0)]
    )  # of 4 pixels: half counts, more does not
    def test_prediction_mostly_in_void_is_ignored(self, in_void: int, false_positives: int):
        gt = [0] * in_void + [1] * (4 - in_void) + [1] * 10
        result = quality(gt, {1: STUFF}, [7] * 4 + [8] * 10, {7: THING, 8: STUFF})
        assert counts(result, THING) == (0, false_positives, 0, 0.0)

    def test_crowd_is_neither_missed_nor_matched_and_excuses_its_own_category_alone(self):
        result = quality([1, 1, 1, 1], {1: THING}, [7, 7, 7, 7], {7: THING}, crowds=(1,))
        assert counts(result, THING) == (0, 0, 0, 0.0)
        result = quality([1, 1, 1, 1], {1: THING}, [7, 7, 7, 7], {7: STUFF}, crowds=(1,))
        assert counts(result, STUFF) == (0, 1, 0, 0.0)

    def test_summary_is_the_mean_over_classes_that_occur(self):
        result = quality([1, 1, 1, 2], {1: THING, 2: STUFF}, [7, 7, 7, 7], {7: THING})
        # thing: IoU 3 / 4, PQ 0.75; stuff: one missed, PQ 0
        expected = {"PQ": 37.5, "SQ": 37.5, "RQ": 50.0, "PQ_th": 75.0, "SQ_th": 75.0, "RQ_th": 100.0}
        assert result.summarise() == expected | {"PQ_st": 0.0, "SQ_st": 0.0, "RQ_st": 0.0}

    def test_kind_that_never_occurs_has_no_keys(self):
        assert quality([1], {1: STUFF}, [7], {7: STUFF}).summarise().keys() == {
            "PQ",
            "SQ",
            "RQ",
            "PQ_st",
            "SQ_st",
            "RQ_st",
        }
        assert PanopticQuality(KINDS).summarise() == {}
        assert PanopticQuality({}).mean() is None

    def test_area_of_the_json_counts_as_in_panopticapi(self):
        labels = np.array([[1, 1, 0]])
        gt = [{"id": 1, "category_id": THING, "iscrowd": 0, "area": 3}]
        prediction = [{"id": 1, "category_id": THING}]
        assert match_segments(labels, gt, labels, prediction).true_positives == [(THING, 2 / 3, 3)]
        del gt[0]["area"]
        assert match_segments(labels, gt, labels, prediction).true_positives == [(THING, 1.0, 2)]

    def test_sizes_share_out_what_is_counted(self):
        # Things of 1023 and 1024 pixels and stuff of 9216. The second thing is found by half, which is no match: a miss
        # of its own size, and a false positive of 512 pixels, which is small.
        gt_labels = np.repeat([[1, 2, 3]], (1023, 1024, 9216), axis=1)
        pred_labels = np.repeat([[1, 2, 0, 3]], (1023, 512, 512, 9216), axis=1)
        gt_segments = segments_of(gt_labels, {1: THING, 2: THING, 3: STUFF})
        matches = match_segments(
            gt_labels, gt_segments, pred_labels, segments_of(pred_labels, {1: THING, 2: THING, 3: STUFF})
        )
        found = {}
        for name, span in SEGMENT_SIZES.items():
            result = PanopticQuality(KINDS)
            result.add_matches(matches.of_area(*span))
            found[name] = counts(result, THING), counts(result, STUFF)
        assert found == {
            "small": ((1, 1, 0, 1.0), (0, 0, 0, 0.0)),
            "medium": ((0, 0, 1, 0.0), (0, 0, 0, 0.0)),
            "large": ((0, 0, 0, 0.0), (1, 0, 0, 1.0)),
        }

    @pytest.mark.parametrize(
        ("area", "size"), [(1023, "small"), (1024, "medium"), (9215, "medium"), (9216, "large"), (20_000, "large")]
    )
    def test_limits_of_sizes(self, area: int, size: str):
        """32 x 32 = 1024 is the least medium area, 96 x 96 = 9216 the least large area."""
        nothing, one = np.zeros((1, area), int), np.ones((1, area), int)
        segment = [{"id": 1, "category_id": THING}]
        hit, missed = match_segments(one, segment, one, segment), match_segments(one, segment, nothing, [])
        # A prediction on void is excused, so there is stuff below this false positive.
        false = match_segments(one, [{"id": 1, "category_id": STUFF}], one, segment)
        for name, span in SEGMENT_SIZES.items():
            expected = int(name == size)
            assert len(hit.of_area(*span).true_positives) == expected
            assert len(false.of_area(*span).false_positives) == expected
            assert len(missed.of_area(*span).false_negatives) == expected


class TestMistakes:
    @pytest.mark.parametrize("segments", [[], [{"id": 1, "category_id": THING}, {"id": 2, "category_id": THING}]])
    def test_ids_and_segments_must_agree(self, segments: list[dict[str, int]]):
        labels = np.array([[1, 0]])
        with pytest.raises(ValueError, match=r"has ids \[1\]"):
            match_segments(labels, [], labels, segments)

    def test_sizes_must_agree(self):
        with pytest.raises(ValueError, match=r"\(2, 1\).*\(1, 2\)"):
            match_segments(np.zeros((1, 2), int), [], np.zeros((2, 1), int), [])

    def test_category_must_be_known(self):
        with pytest.raises(ValueError, match=r"\[99\]"):
            quality([0, 1], {1: 99}, [0, 0], {})


def by_panopticapi(
    folder: Path, images: list[tuple[np.ndarray, list[dict], np.ndarray, list[dict]]], categories: dict[int, dict]
) -> PQStat:
    annotations = []
    for number, (gt_labels, gt_segments, pred_labels, pred_segments) in enumerate(images):
        name = f"{number}.png"
        for kind, labels in (("gt", gt_labels), ("pred", pred_labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(id2rgb(labels)).save(folder / kind / name)
        gt = {"file_name": name, "image_id": number, "segments_info": gt_segments}
        annotations.append((gt, {"file_name": name, "segments_info": [dict(one) for one in pred_segments]}))
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, annotations, str(folder / "gt"), str(folder / "pred"), categories)


def assert_equal(ours: PanopticQuality, theirs: PQStat) -> None:
    for category in ours.categories:
        other = theirs[category]
        assert counts(ours, category) == (other.tp, other.fp, other.fn, other.iou)


@settings(max_examples=60, deadline=None)
@given(images=st.lists(label_maps(), min_size=1, max_size=3))
def test_random_maps_equal_panopticapi_to_the_last_bit(tmp_path_factory: pytest.TempPathFactory, images: list[Any]):
    categories = {one: {"id": one, "isthing": one % 2} for one in (3, 1, 2)}
    ours = PanopticQuality({one: bool(category["isthing"]) for one, category in categories.items()})
    for image in images:
        ours.add(*image)
    theirs = by_panopticapi(tmp_path_factory.mktemp("pq"), images, categories)
    assert_equal(ours, theirs)
    if ours.mean() is not None:
        mean, _ = theirs.pq_average(categories, isthing=None)
        assert ours.mean() == (mean["pq"], mean["sq"], mean["rq"], mean["n"])


FIXTURES = [
    # ground truth, its PNGs, predictions, expected.json and where in it
    ("coco25/coco/annotations/panoptic_val2017", "coco25/coco/panoptic_val2017", "coco25_perturbed", ()),
    ("pq_fixtures/mmdet_one_image/gt", None, "mmdet_one_image", ()),
    (
        "pq_fixtures/deeplab2_three_images/gt",
        None,
        "deeplab2_three_images",
        ("three_images_six_classes", "panopticapi"),
    ),
    (
        "pq_fixtures/deeplab2_three_images/gt_team_only",
        "pq_fixtures/deeplab2_three_images/gt",
        "deeplab2_three_images",
        ("team_only_two_classes", "panopticapi"),
    ),
]


@pytest.mark.parametrize(("gt", "pngs", "fixture", "path"), FIXTURES)
def test_fixture_has_its_stated_values(shared: Path, gt: str, pngs: str | None, fixture: str, path: tuple[str, ...]):
    data = shared / "data"
    folder = data / "pq_fixtures" / fixture
    content = json.loads((data / f"{gt}.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())
    for key in path:
        expected = expected[key]
    predictions = {one["image_id"]: one for one in json.loads((folder / "pred.json").read_text())["annotations"]}
    result = PanopticQuality({one["id"]: bool(one["isthing"]) for one in content["categories"]})
    for annotation in content["annotations"]:
        prediction = predictions[annotation["image_id"]]
        gt_labels = rgb2id(np.array(Image.open(data / (pngs or gt) / annotation["file_name"])))
        pred_labels = rgb2id(np.array(Image.open(folder / "pred" / prediction["file_name"])))
        result.add(gt_labels, annotation["segments_info"], pred_labels, prediction["segments_info"])
    for category in result.categories:
        stated = expected["per_class"].get(str(category), {"tp": 0, "fp": 0, "fn": 0, "iou_sum": 0.0})
        assert counts(result, category) == (stated["tp"], stated["fp"], stated["fn"], stated["iou_sum"])
    for kind, is_thing in (("All", None), ("Things", True), ("Stuff", False)):
        stated = expected[kind]
        assert result.mean(is_thing) == (stated and (stated["pq"], stated["sq"], stated["rq"], stated["n"]))


def test_torchmetrics_small_cases(shared: Path):
    cases = json.loads((shared / "data" / "pq_fixtures" / "torchmetrics_small_cases.json").read_text())
    assert cases
    for case in cases:
        result = PanopticQuality({one: one in case["things"] for one in case["things"] + case["stuffs"]})
        maps = []
        for pixels in (case["target"], case["pred"]):
            colors = np.array(pixels).reshape(-1, 2)
            colors[np.isin(colors[:, 0], case["stuffs"]), 1] = 0
            labels = (colors[:, 0] * 1000 + colors[:, 1] + 1)[None]  # 0 would be void
            categories = {one: (one - 1) // 1000 for one in np.unique(labels).tolist()}
            maps += [labels, segments_of(labels, categories)]
        result.add(*maps)
        if "expected_pq" in case:
            assert result.mean().pq == pytest.approx(case["expected_pq"], abs=5e-5)
        for category, expected in case.get("expected_per_class", {}).items():
            assert result.per_class[int(category)].pq == expected
