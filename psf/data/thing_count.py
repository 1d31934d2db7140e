"""How many things the images of a data set hold, from its dicts alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

__all__ = ["LargestCount", "count_segments", "largest_count"]


class LargestCount(NamedTuple):
    """The image with the most segments."""

    num_segments: int
    image: str  # its file name, or its id


def count_segments(dataset_dict: Mapping[str, Any], *, stuff: bool = False) -> int | None:
    """Number of things of an image, crowds excluded.

    Args:
        dataset_dict: Detectron2's, with `segments_info` or `annotations`.
        stuff: count the stuff classes of `segments_info`, too: joint queries (table 8) are matched to both.

    Returns:
        None if the dict has neither of the two keys, as those of the generated shapes.
    """
    if "segments_info" in dataset_dict:
        segments = [one for one in dataset_dict["segments_info"] if not one.get("iscrowd", 0)]
        things = sum(bool(one.get("isthing", True)) for one in segments)
        classes = {one["category_id"] for one in segments if not one.get("isthing", True)}
        return things + (len(classes) if stuff else 0)
    if "annotations" in dataset_dict:
        return sum(not one.get("iscrowd", 0) for one in dataset_dict["annotations"])
    return None


def largest_count(dicts: Iterable[Mapping[str, Any]], *, stuff: bool = False) -> LargestCount | None:
    """The first image with the most things; None if no dict lists its segments. `stuff` as for `count_segments`."""
    largest: LargestCount | None = None
    for one in dicts:
        count = count_segments(one, stuff=stuff)
        if count is not None and (largest is None or count > largest.num_segments):
            largest = LargestCount(count, str(one.get("file_name", one.get("image_id", "?"))))
    return largest
