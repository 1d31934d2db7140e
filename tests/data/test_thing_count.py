"""Things counted in the dicts of a data set."""

from __future__ import annotations

from psf.data import count_segments, largest_count

THING, STUFF = {"category_id": 0, "isthing": True}, {"category_id": 5, "isthing": False}
CROWD = {**THING, "iscrowd": 1}


def test_counts():
    image = {"segments_info": [THING, THING, CROWD, STUFF, STUFF, {**STUFF, "category_id": 6}]}
    assert count_segments(image) == 2
    assert count_segments(image, stuff=True) == 4  # two classes of stuff, one of them in two segments
    assert count_segments({"annotations": [{"category_id": 1}, {"category_id": 1, "iscrowd": 1}]}) == 1
    assert count_segments({"segments_info": []}) == 0
    assert count_segments({"psf_scene": {}}) is None


def test_largest():
    dicts = [{"file_name": name, "segments_info": [THING] * n} for name, n in (("a", 1), ("b", 3), ("c", 3))]
    assert largest_count([{"image_id": 1}, *dicts]) == (3, "b")
    assert largest_count([{"image_id": 7, "annotations": []}]) == (0, "7")
    assert largest_count([{"image_id": 7}]) is None
