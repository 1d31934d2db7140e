"""Suppression among masks: by hand, and against a loop over pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from psf.inference import mask_nms


def bars(*spans: tuple[int, int], width: int = 10) -> torch.Tensor:
    """Masks of one row, from one column to before another."""
    columns = torch.arange(width)
    return torch.stack([((columns >= low) & (columns < high))[None] for low, high in spans])


def naive(masks: torch.Tensor, classes: list[int], threshold: float) -> list[int]:
    kept: list[int] = []
    for one, mask in enumerate(masks):
        ious = [
            int((mask & masks[k]).sum()) / max(int((mask | masks[k]).sum()), 1)
            for k in kept
            if classes[k] == classes[one]
        ]
        if max(ious, default=0.0) <= threshold:
            kept.append(one)
    return kept


class TestByHand:
    # IoU of the first two: 6 / 10; of the second and the third: 6 / 10; of the first and the third: 4 / 12.
    masks = bars((0, 8), (2, 10), (4, 12), width=12)

    @pytest.mark.parametrize(
        ("threshold", "kept"),
        [(0.59, [0, 2]), (0.6, [0, 1, 2]), (0.3, [0]), (0.0, [0]), (1.0, [0, 1, 2])],
    )
    def test_one_that_is_left_out_leaves_out_none(self, threshold: float, kept: list[int]):
        assert mask_nms(self.masks, torch.zeros(3, dtype=torch.long), threshold).tolist() == kept

    def test_classes_do_not_meet(self):
        assert mask_nms(self.masks, torch.tensor([0, 1, 0]), 0.5).tolist() == [0, 1, 2]
        assert mask_nms(self.masks, torch.tensor([0, 1, 1]), 0.5).tolist() == [0, 1]

    def test_equal_masks(self):
        masks = bars((1, 4), (1, 4), (1, 4))
        assert mask_nms(masks, torch.zeros(3, dtype=torch.long), 0.99).tolist() == [0]
        assert mask_nms(masks, torch.zeros(3, dtype=torch.long), 1.0).tolist() == [0, 1, 2]

    def test_boxes_that_meet_where_masks_do_not(self):
        corner = torch.zeros(2, 4, 4, dtype=torch.bool)
        corner[0, 0, :], corner[0, :, 0] = True, True
        corner[1, 1:, 1:] = True
        assert mask_nms(corner, torch.zeros(2, dtype=torch.long), 0.0).tolist() == [0, 1]

    def test_nothing(self):
        assert mask_nms(torch.zeros(0, 3, 4, dtype=torch.bool), torch.zeros(0, dtype=torch.long), 0.5).tolist() == []
        empty = torch.zeros(3, 3, 4, dtype=torch.bool)
        assert mask_nms(empty, torch.zeros(3, dtype=torch.long), 0.5).tolist() == [0, 1, 2]


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 8), threshold=st.sampled_from([0.0, 0.2, 0.5, 0.8]))
@settings(max_examples=80, deadline=None)
def test_as_a_loop_over_pixels(seed: int, count: int, threshold: float):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(count, 6, 7, dtype=torch.bool)
    for mask in masks:
        (y0, y1), (x0, x1) = (torch.randint(0, n, (2,), generator=generator).sort().values for n in (7, 8))
        mask[y0:y1, x0:x1] = torch.rand(int(y1 - y0), int(x1 - x0), generator=generator) < 0.9
    classes = torch.randint(0, 2, (count,), generator=generator)
    assert mask_nms(masks, classes, threshold).tolist() == naive(masks, classes.tolist(), threshold)
