"""Merging and matching atoms is merging and matching pixels."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.evaluation import match_segments
from psf.evaluation.merging_search.cache import cache_image, match_cached
from psf.inference import MergingThresholds, mask_wise_merging, per_candidate

numbers = st.builds(
    MergingThresholds,
    alpha=st.sampled_from([0.5, 1.0, 2.0]),
    beta=st.sampled_from([0.5, 1.0, 3.0]),
    t_cnf=st.sampled_from([0.0, 0.1, 0.4]),
    t_keep=st.sampled_from([0.0, 0.5, 0.9]),
)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 9), things=numbers, stuff=numbers)
@settings(max_examples=80, deadline=None)
def test_as_pixels(seed: int, count: int, things: MergingThresholds, stuff: MergingThresholds):
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
    masks = torch.zeros(count, *size, dtype=torch.bool)
    gt = np.zeros(size, dtype=np.uint32)
    for number in range(count + 3):  # rectangles, so that some pairs match
        (y0, y1), (x0, x1) = (np.sort(rng.integers(0, n + 1, 2)) for n in size)
        if number < count:
            masks[number, y0:y1, x0:x1] = True
        if number < count + 3 and rng.random() < 0.6:
            gt[y0:y1, x0:x1] = 7 * number + 5
    is_thing = rng.random(count) < 0.5
    categories = [int(k) for k in rng.integers(1, 3, count)]
    present = sorted(set(gt.ravel().tolist()) - {0})
    segments = [{"id": i, "category_id": 1 + i % 2, "iscrowd": int(rng.random() < 0.2)} for i in present]
    scores, means = (torch.from_numpy(rng.random(count).astype(np.float32)) for _ in range(2))

    each = per_candidate(torch.from_numpy(is_thing), things, stuff)
    confidence = (scores**each.alpha * means**each.beta).float()
    merged = mask_wise_merging(confidence, masks, masks.sum((1, 2)), each.t_cnf, each.t_keep)
    painted = [{"id": s.id, "category_id": categories[s.candidate]} for s in merged.segments]
    expected = match_segments(gt, segments, merged.panoptic_seg.numpy(), painted)

    image = cache_image(scores, means, masks, torch.from_numpy(is_thing), categories, gt, segments)
    assert len(image.pixels) <= gt.size and image.pixels.sum() == gt.size and image.num_bytes > 0
    assert match_cached(image, things, stuff) == expected
