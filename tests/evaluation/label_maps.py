"""Small ground truths and predictions for the tests of panoptic quality."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st


def segments_of(labels: np.ndarray, categories: dict[int, int], crowds: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    return [
        {"id": one, "category_id": category, "iscrowd": int(one in crowds), "area": int((labels == one).sum())}
        for one, category in categories.items()
    ]


@st.composite
def label_maps(draw: st.DrawFn) -> tuple[np.ndarray, list[dict], np.ndarray, list[dict]]:
    """A ground truth of blocks, and a prediction that repeats some of them, shifts, and adds its own."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    num_ids = draw(st.integers(1, 5))
    ids = np.concatenate(([0], rng.choice(2**24 - 1, num_ids, replace=False) + 1)).astype(np.int64)
    blocks = rng.integers(0, num_ids + 1, (4, 4))
    gt = blocks[np.arange(height)[:, None] * 4 // height, np.arange(width) * 4 // width]
    predicted = np.where(rng.random((height, width)) < draw(st.floats(0, 0.6)), rng.integers(0, 7, (height, width)), gt)
    gt_labels = ids[gt]
    categories = {one: int(rng.integers(1, 4)) for one in ids[1:].tolist()}
    crowds = tuple(one for one in categories if rng.random() < 0.2)
    own = {one: categories.get(ids[one] if one <= num_ids else 0, 3) for one in np.unique(predicted).tolist() if one}
    flipped = {one: int(rng.integers(1, 4)) if rng.random() < 0.2 else category for one, category in own.items()}
    return gt_labels, segments_of(gt_labels, categories, crowds), predicted, segments_of(predicted, flipped)
