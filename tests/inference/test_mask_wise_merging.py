"""Algorithm 1 against loops over pixels, its properties, and its borders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from psf.inference import mask_wise_merging
from psf.inference.mask_wise_merging import MaskNumbers, _least_areas, merge_masks
from psf.structures import PanopticSegmentation
from tests.allocations import record_allocations


def naive_merging(confidence, masks, t_cnf, t_keep) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Algorithm 1, pixel by pixel: the map, and (candidate, area) of each segment in the order of painting."""
    _, height, width = masks.shape
    canvas, segments = np.zeros((height, width), int), []
    pixels = [(y, x) for y in range(height) for x in range(width)]
    for i in sorted(range(len(confidence)), key=lambda i: -confidence[i]):  # stable, as Python's sorting is
        whole = [p for p in pixels if masks[i][p]]
        free = [p for p in whole if canvas[p] == 0]
        if confidence[i] < t_cnf[i] or not free or len(free) / len(whole) < t_keep[i]:
            continue
        segments.append((i, len(free)))
        for p in free:
            canvas[p] = len(segments)
    return canvas, segments


def merge(confidence: Tensor, masks: Tensor, t_cnf: float = 0.25, t_keep: float = 0.6) -> PanopticSegmentation:
    count = len(confidence)
    cnf, keep = (torch.full((count,), t, dtype=torch.float64) for t in (t_cnf, t_keep))
    return mask_wise_merging(confidence, masks, masks.sum((1, 2)), cnf, keep)


def row(*masks: str) -> Tensor:
    """One row of pixels per mask: "##.." covers the first two of four."""
    return torch.tensor([[[pixel == "#" for pixel in mask]] for mask in masks])


@st.composite
def problems(draw: st.DrawFn, distinct: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rectangles and specks that overlap much; confidences on a coarse grid, so that equal ones occur."""
    count, height, width = draw(st.integers(0, 7)), draw(st.integers(1, 6)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    masks = torch.rand(count, height, width, generator=generator) < 0.1
    for mask in masks:
        top, left, bottom, right = (torch.rand(4, generator=generator) * 8).long().tolist()
        mask[top : top + bottom, left : left + right] = True
    steps = (
        torch.randperm(8, generator=generator)[:count]
        if distinct
        else torch.randint(0, 8, (count,), generator=generator)
    )
    thresholds = torch.randint(0, 11, (2, count), generator=generator).double() / 10
    return steps.float() / 8, masks, 0.5 * thresholds[0], thresholds[1]


@given(problem=problems(), on_device=st.booleans())
@settings(max_examples=200, deadline=None)
def test_equals_naive_loops(problem, on_device):
    confidence, masks, t_cnf, t_keep = problem
    area = masks.sum((1, 2))
    merged = mask_wise_merging(confidence, masks, area, t_cnf, t_keep, on_device=on_device)
    canvas, segments = naive_merging(confidence.tolist(), masks.numpy(), t_cnf.tolist(), t_keep.tolist())
    assert np.array_equal(merged.panoptic_seg.numpy(), canvas) and merged.panoptic_seg.dtype == torch.int32
    assert [(s.candidate, s.area) for s in merged.segments] == segments
    assert [s.id for s in merged.segments] == list(range(1, len(segments) + 1))
    assert [s.score for s in merged.segments] == [confidence[i].item() for i, _ in segments]


@given(problem=problems())
@settings(max_examples=100, deadline=None)
def test_partitions_the_image(problem):
    confidence, masks, t_cnf, t_keep = problem
    area = masks.sum((1, 2))
    merged = mask_wise_merging(confidence, masks, area, t_cnf, t_keep)
    assert set(merged.panoptic_seg.unique().tolist()) - {0} == {s.id for s in merged.segments}
    for segment in merged.segments:
        own = merged.panoptic_seg == segment.id
        assert int(own.sum()) == segment.area > 0
        assert not (own & ~masks[segment.candidate]).any()  # nothing outside its own mask
        assert segment.area / int(area[segment.candidate]) >= t_keep[segment.candidate]
        assert confidence[segment.candidate] >= t_cnf[segment.candidate]
    scores = [s.score for s in merged.segments]
    assert scores == sorted(scores, reverse=True)


@given(problem=problems(distinct=True), seed=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_input_order_does_not_matter(problem, seed):
    confidence, masks, t_cnf, t_keep = problem
    area = masks.sum((1, 2))
    order = torch.randperm(len(confidence), generator=torch.Generator().manual_seed(seed))
    one = mask_wise_merging(confidence, masks, area, t_cnf, t_keep)
    other = mask_wise_merging(*(x[order] for x in (confidence, masks, area, t_cnf, t_keep)))
    assert torch.equal(one.panoptic_seg, other.panoptic_seg)
    assert [s._replace(candidate=int(order[s.candidate])) for s in other.segments] == one.segments


class TestBorders:
    def test_exactly_t_keep_is_enough(self):
        # Six of ten pixels are still free, then five of ten.
        kept = merge(torch.tensor([0.9, 0.8]), row("####......", "##########"))
        assert [s.area for s in kept.segments] == [4, 6]
        dropped = merge(torch.tensor([0.9, 0.8]), row("#####.....", "##########"))
        assert [s.area for s in dropped.segments] == [5]

    @pytest.mark.parametrize("on_device", [True, False])
    def test_exactly_t_keep_is_enough_for_any_share(self, on_device):
        cnf = torch.zeros(2, dtype=torch.float64)
        masks = torch.ones(2, 10, 10, dtype=torch.bool)
        for percent in range(1, 100):
            masks[0].view(-1)[:percent] = False
            keep, area = torch.full((2,), percent / 100, dtype=torch.float64), masks.sum((1, 2))
            confidence = torch.tensor([0.9, 0.8])
            merged = mask_wise_merging(confidence, masks, area, cnf, keep, on_device=on_device)
            assert [s.area for s in merged.segments] == [100 - percent, percent]

    def test_exactly_t_cnf_is_enough(self):
        masks = row("##..", "..##")
        merged = merge(torch.tensor([0.25, 0.25 - 2**-26]), masks)
        assert [s.candidate for s in merged.segments] == [0]

    def test_a_dropped_mask_leaves_its_pixels_free(self):
        # The second keeps one of four pixels, so the third finds three of its four pixels free.
        merged = merge(torch.tensor([0.9, 0.8, 0.7]), row("###....", "####...", "...####"))
        assert merged.panoptic_seg.tolist() == [[1, 1, 1, 2, 2, 2, 2]]
        assert [s.candidate for s in merged.segments] == [0, 2]

    def test_equal_confidences_are_painted_in_the_order_given(self):
        merged = merge(torch.full((20,), 0.5), torch.ones(20, 2, 2, dtype=torch.bool))
        assert [s.candidate for s in merged.segments] == [0]

    def test_a_covered_mask_is_dropped_even_if_nothing_need_be_kept(self):
        merged = merge(torch.tensor([0.9, 0.8]), row("####", "##.."), t_keep=0.0)
        assert [s.candidate for s in merged.segments] == [0]

    def test_empty_masks_and_no_masks(self):
        for count in (0, 3):
            merged = merge(torch.ones(count), torch.zeros(count, 2, 3, dtype=torch.bool), t_cnf=0.0, t_keep=0.0)
            assert merged.segments == []
            assert torch.equal(merged.panoptic_seg, torch.zeros(2, 3, dtype=torch.int32))

    def test_plain_numbers(self):
        (segment,) = merge(torch.tensor([0.5]), row("#")).segments
        assert [type(x) for x in segment] == [int, int, float, int]

    def test_lengths_that_differ(self):
        with pytest.raises(ValueError, match=r"different lengths: \[2, 3\]"):
            mask_wise_merging(torch.ones(3), row("#", "."), torch.ones(3), torch.ones(3), torch.ones(3))


@given(
    areas=st.lists(st.integers(1, 2**30), min_size=1, max_size=20), share=st.floats(0, 1.2), percent=st.integers(0, 100)
)
@settings(max_examples=200, deadline=None)
def test_least_areas_decide_as_the_quotients(areas, share, percent):
    for t_keep in (share, percent / 100):
        least = _least_areas(np.array(areas), np.full(len(areas), t_keep)).astype(np.int64).tolist()
        of_tensors = _least_areas(torch.tensor(areas), torch.full((len(areas),), t_keep, dtype=torch.float64))
        assert of_tensors.long().tolist() == least
        for area, pixels in zip(areas, least, strict=True):
            assert pixels >= 1 and pixels / area >= t_keep
            assert pixels == 1 or (pixels - 1) / area < t_keep


@pytest.mark.parametrize("count", [10, 40])
def test_painting_on_the_device_allocates_two_maps_and_crops(count):
    """Two maps of 4 bytes per pixel, whatever the number of masks: the positions, and the ids."""
    masks = torch.zeros(count, 300, 400, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[5 * i : 5 * i + 30, 7 * i : 7 * i + 40] = True
    boxes = np.array([[7 * i, 5 * i, 7 * i + 40, 5 * i + 30] for i in range(count)])
    ones = np.ones(count)
    numbers = MaskNumbers(ones, np.full(count, 1200), 0 * ones, 0 * ones, boxes)
    with record_allocations() as sizes:
        merged = merge_masks(masks, numbers)
    assert len(merged.segments) == count
    large = [size for size in sizes.bytes if size > 1200 * 8]
    assert large == [300 * 400 * 4] * 2
    expected = merge_masks(masks, numbers._replace(boxes=None))
    assert merged.segments == expected.segments and torch.equal(merged.panoptic_seg, expected.panoptic_seg)
