from __future__ import annotations

import logging
from collections import Counter

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from psf.data import compact, read_panoptic_ids, read_panoptic_labels
from psf.data.panoptic_labels import compact_with_boxes, measure_panoptic_png


def info(id: int, category: int = 0, *, isthing: bool = True, **rest) -> dict:
    return {"id": id, "category_id": category, "isthing": isthing, **rest}


def test_ids_of_24_bits_become_1_to_s_in_order(make_sample):
    high = 255 * 65536 + 17
    sample = make_sample([[0, 300, 300], [high, 0, 5]], [info(high, 4), info(5, 2, isthing=False), info(300, 9)])
    labels, segments = read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])
    assert labels.tolist() == [[0, 2, 2], [3, 0, 1]]
    assert labels.dtype == np.uint8
    assert segments == [
        {"id": 1, "category_id": 2, "isthing": False, "iscrowd": False},
        {"id": 2, "category_id": 9, "isthing": True, "iscrowd": False},
        {"id": 3, "category_id": 4, "isthing": True, "iscrowd": False},
    ]


def test_crowd_is_kept_and_flagged(make_sample):
    sample = make_sample([[8, 9]], [info(8, iscrowd=1), info(9, iscrowd=0)])
    _, segments = read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])
    assert [segment["iscrowd"] for segment in segments] == [True, False]


def test_void_alone_and_no_segments(make_sample):
    sample = make_sample(np.zeros((3, 4), int), [])
    labels, segments = read_panoptic_labels(sample["pan_seg_file_name"], [])
    assert labels.shape == (3, 4) and not labels.any() and segments == []


def test_more_than_255_segments_take_int16(make_sample):
    ids = np.arange(1, 301).reshape(15, 20) * 1000
    sample = make_sample(ids, [info(int(i)) for i in ids.ravel()])
    labels, segments = read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])
    assert labels.dtype == np.int16
    assert (labels == ids // 1000).all() and len(segments) == 300


def test_alpha_and_palette_pngs_are_read_by_their_colours(make_sample):
    sample = make_sample([[300, 5]], segments := [info(300), info(5)])
    path = sample["pan_seg_file_name"]
    with Image.open(path) as image:
        image.convert("RGBA").save(path)
    assert read_panoptic_labels(path, segments).labels.tolist() == [[2, 1]]
    with Image.open(path) as image:
        image.convert("RGB").quantize(4).save(path)
    assert read_panoptic_labels(path, segments).labels.tolist() == [[2, 1]]


def test_segment_without_pixels_is_dropped_with_a_warning(make_sample, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())  # forget earlier warnings
    sample = make_sample([[5, 5]], [info(5), info(77)])
    with caplog.at_level(logging.WARNING):
        _, segments = read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])
    assert [segment["id"] for segment in segments] == [1]
    assert "[77]" in caplog.text and sample["pan_seg_file_name"] in caplog.text


def test_evaluation_warns_of_segments_without_pixels(make_sample, caplog, monkeypatch):
    monkeypatch.setattr("detectron2.utils.logger._LOG_COUNTER", Counter())
    path = make_sample([[5, 5]], [])["pan_seg_file_name"]
    with caplog.at_level(logging.WARNING):
        assert read_panoptic_ids(path, [5]).tolist() == [[5, 5]] and not caplog.text
        read_panoptic_ids(path, iter([5, 77]))
    assert f"{path}: segments [77] of the JSON have no pixel in the PNG and count as missed" in caplog.text


def test_ids_that_the_json_does_not_know_are_named(make_sample):
    sample = make_sample([[5, 6, 99999]], [info(5)])
    with pytest.raises(ValueError, match=r"gt\.png.*does not list: \[6, 99999\]"):
        read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([5, 5], r"duplicate ids: \[5\]"),
        ([0, 5], "the id 0, expected 1 to 16777215"),
        ([-1, 5], "the id -1"),
        ([2**70, 5], f"the id {2**70}"),  # beyond NumPy's integers, too
    ],
)
def test_ids_twice_or_out_of_range_are_refused(make_sample, ids, message):
    sample = make_sample([[5, 5]], [info(id) for id in ids])
    with pytest.raises(ValueError, match=rf"gt\.png.*{message}"):
        read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])


def test_segment_without_a_needed_key_is_refused(make_sample):
    sample = make_sample([[5]], [{"id": 5, "category_id": 0}])
    with pytest.raises(ValueError, match=r"gt\.png.*without \{'isthing'\}"):
        read_panoptic_labels(sample["pan_seg_file_name"], sample["segments_info"])


def test_gray_png_is_refused(tmp_path):
    Image.fromarray(np.ones((2, 2), np.uint8)).save(tmp_path / "gray.png")
    with pytest.raises(ValueError, match=r"gray\.png: expected a panoptic PNG in RGB.*'L'"):
        read_panoptic_labels(str(tmp_path / "gray.png"), [info(1)])


def test_missing_png_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.png: no such image file"):
        read_panoptic_labels(str(tmp_path / "none.png"), [])


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.integers(0, 9)))
def test_compact_keeps_pixels_and_drops_what_vanished(labels):
    segments = [{"id": k, "category_id": k * 10} for k in range(1, 10)]
    result = compact(labels, segments)
    present = sorted(set(labels.ravel().tolist()) - {0})
    assert [segment["category_id"] for segment in result.segments] == [k * 10 for k in present]
    assert [segment["id"] for segment in result.segments] == list(range(1, len(present) + 1))
    category = np.array([0] + [segment["category_id"] for segment in result.segments])
    assert (category[result.labels] == labels.astype(int) * 10).all()


@given(hnp.arrays(np.int16, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.sampled_from([0, 1, 2, 300])))
def test_boxes_enclose_the_pixels(labels):
    segments = [{"id": k} for k in (300, 1, 2)]
    result, boxes = compact_with_boxes(labels, segments)
    assert boxes.shape == (len(result.segments), 4) and boxes.dtype == np.int32
    for segment, box in zip(result.segments, boxes.tolist(), strict=True):
        ys, xs = np.nonzero(result.labels == segment["id"])
        assert box == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize(("num_segments", "dtype"), [(255, np.uint8), (256, np.int16), (40_000, np.int32)])
def test_label_type_is_the_least_that_fits(num_segments, dtype):
    labels = np.arange(1, num_segments + 1).reshape(-1, 1 if num_segments % 2 else 2)
    result = compact(labels, [{"id": k} for k in range(1, num_segments + 1)])
    assert result.labels.dtype == dtype and (result.labels == labels).all()


def test_16_bits_per_channel_are_refused(make_sample):
    """Pillow keeps the upper 8 bits: every id below 256 would become void."""
    sample = make_sample([[5, 6]], [info(5), info(6)])
    pixels = cv2.imread(sample["pan_seg_file_name"], cv2.IMREAD_UNCHANGED)
    cv2.imwrite(sample["pan_seg_file_name"], pixels.astype(np.uint16))
    for read in (measure_panoptic_png, lambda path: read_panoptic_ids(path, [5, 6])):
        with pytest.raises(ValueError, match=r"gt\.png: expected a panoptic PNG of 8 bits per channel, found 16 bits"):
            read(sample["pan_seg_file_name"])
