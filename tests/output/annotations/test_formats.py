"""Encodings of masks and polygons: values by hand, and decoders written from the documentation."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_masks
from scipy import ndimage

from psf.errors import UserError
from psf.output.annotations import decode_brush, encode_brush, outlines
from psf.output.annotations.cvat import encode_runs
from psf.output.annotations.outlines import join_outlines, trace_outlines
from tests.output.annotations.naive import contains, decode_cvat, decode_rle_pack

MASKS = arrays.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def test_brush_by_hand() -> None:
    """One row of two pixels, the second inside: words 0 0 0 0 255 255 255 255."""
    header = f"{8:032b}" + f"{7:05b}" + f"{2:04b}{3:04b}{7:04b}{15:04b}"
    run = "1" + "00" + "011"  # repeated, size 3 bits, 4 words
    bits = header + run + "00000000" + run + "11111111"
    bits += "0" * (-len(bits) % 8)
    expected = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert encode_brush(np.array([[False, True]])) == expected
    assert decode_brush(expected, (1, 2)).tolist() == [[False, True]]


@given(MASKS)
@settings(max_examples=60, deadline=None)
def test_brush_against_the_documentation(mask: np.ndarray) -> None:
    data = encode_brush(mask)
    words = np.array(decode_rle_pack(data)).reshape(*mask.shape, 4)
    assert (words == 255 * mask[..., None]).all()
    assert (decode_brush(data, mask.shape) == mask).all()


def test_brush_of_a_large_mask_has_several_runs() -> None:
    mask = np.zeros((300, 300), bool)  # 360,000 words; a run has at most 65,536
    mask[100:, 7:] = True
    data = encode_brush(mask)
    assert (decode_brush(data, mask.shape) == mask).all()
    assert (np.array(decode_rle_pack(data)[3::4]).reshape(mask.shape) == 255 * mask).all()


def test_brush_with_single_words() -> None:
    """As Label Studio writes it: words one by one, and colors; only opaque pixels count."""
    words = [9, 8, 7, 255, 9, 8, 7, 0, 1, 2, 3, 4]  # three pixels
    bits = f"{12:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += "0" + "01" + f"{11:04b}" + "".join(f"{word:08b}" for word in words)
    bits += "0" * (-len(bits) % 8)
    data = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    assert decode_rle_pack(data) == words
    assert decode_brush(data, (1, 3)).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-3], "ends before the last pixel"),
        (lambda data: data[:4], "ends before the last pixel"),
        (lambda data: [], "ends before the last pixel"),
        (lambda data: [*data[:3], data[3] + 4, *data[4:]], "has 4004 values, expected 4000"),
        (lambda data: [*data[:4], 0, *data[5:]], "values of 1 bits, expected 8"),
        (lambda data: [256, *data], "numbers from 0 to 255"),
        (lambda data: [True, *data], "numbers from 0 to 255"),
        (lambda data: data * 9999, "at most"),
    ],
)
def test_damaged_brush(change, message: str) -> None:
    data = encode_brush(np.random.default_rng(0).random((25, 40)) > 0.5)
    with pytest.raises(UserError, match=message):
        decode_brush(change(data), (25, 40))


@pytest.mark.parametrize(
    ("rows", "runs"),
    [
        (["001", "110"], [2, 3, 1]),
        (["111"], [0, 3]),
        (["100", "001"], [0, 1, 4, 1]),
    ],
)
def test_runs_of_cvat_by_hand(rows: list[str], runs: list[int]) -> None:
    mask = np.array([[letter == "1" for letter in row] for row in rows])
    assert encode_runs(mask) == runs
    assert (decode_cvat(runs, 0, 0, mask.shape[1], mask.shape) == mask).all()


def test_polygons_are_near_and_have_holes() -> None:
    """Blobs that are 40 to 100 pixels wide."""
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((300, 400)), 12)
    mask = noise > np.quantile(noise, 0.6)
    mask[140:160, 190:215] = True
    mask[146:154, 195:205] = False
    parts = trace_outlines(mask)
    found = np.logical_xor.reduce([rasterized(part, mask.shape) for part in parts])
    assert (found & mask).sum() / (found | mask).sum() > 0.98
    assert not found[148:152, 197:203].any()


# Regions in holes of regions, pixels that touch at a corner, and lines of one pixel.
NESTED = np.pad(np.pad(np.ones((1, 1)), 1), 1, constant_values=1) > 0
CHAIN = np.eye(6, dtype=bool) | np.eye(6, dtype=bool)[::-1]


@given(MASKS)
@example(NESTED)
@example(CHAIN)
@settings(max_examples=150, deadline=None)
def test_outlines_without_simplification_are_exact(mask: np.ndarray) -> None:
    with mock.patch.object(outlines, "TOLERANCE", 0):
        parts = trace_outlines(mask)
    assert len(parts) == ndimage.label(mask, np.ones((3, 3)))[1]
    inside = [contains(part, mask.shape) for part in parts]
    assert (np.logical_xor.reduce([np.zeros_like(mask), *inside]) == mask).all()
    assert (contains(join_outlines(parts), mask.shape) == mask).all() if parts else not mask.any()


@given(MASKS, st.integers(1, 4))
@example(NESTED, 3)
@example(CHAIN, 3)
@settings(max_examples=150, deadline=None)
def test_outlines_differ_at_the_border_alone(mask: np.ndarray, factor: int) -> None:
    """Pixels whose neighbours are all of the same side are right."""
    large = np.kron(mask, np.ones((factor, factor))) > 0
    found = np.logical_xor.reduce(
        [np.zeros_like(large), *(contains(part, large.shape) for part in trace_outlines(large))]
    )
    neighbours = np.ones((3, 3))
    inner = ndimage.binary_erosion(large, neighbours) | ~ndimage.binary_dilation(large, neighbours)
    assert (found == large)[inner].all()


def rasterized(polygon: list[list[float]], size: tuple[int, int]) -> np.ndarray:
    return coco_masks.decode(coco_masks.frPyObjects([np.ravel(polygon).tolist()], *size))[..., 0].astype(bool)


def test_joined_outlines_have_the_area_of_their_parts() -> None:
    mask = np.zeros((60, 90), bool)
    mask[5:25, 5:45] = mask[40:55, 30:50] = mask[10:20, 60:85] = True
    mask[58, 88] = True
    parts = trace_outlines(mask)
    joined = join_outlines(parts)
    assert len(parts) == 4
    area = sum(rasterized(part, mask.shape).sum() for part in parts)
    found = rasterized(joined, mask.shape)
    assert found.sum() == area and (found & mask).sum() / (found | mask).sum() > 0.95
    assert join_outlines([]) == []
    assert join_outlines([[[0, 0], [4, 0], [4, 4]], [[9, 12], [9, 9], [12, 9]]]) == [
        *([0, 0], [4, 0], [4, 4]),
        *([9, 9], [12, 9], [9, 12], [9, 9]),  # from its nearest point, and back
        [4, 4],
    ]
