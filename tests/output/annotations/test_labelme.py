"""Shapes of labelme: areas and holes of masks, by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_masks

from psf.output.annotations import labelme_shapes
from psf.tools.dataset_conversion.annotations.labelme import _region


def decoded(shape: dict, size: tuple[int, int]) -> np.ndarray:
    return coco_masks.decode(_region(shape, size, 1).rle).astype(bool)


def test_exact_masks_keep_holes_and_pixels() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:12, 5:25] = True
    mask[6:8, 10:15] = False
    mask[19, 29] = True
    (shape,) = labelme_shapes(mask, "a", 4, exact=True)
    assert shape["points"] == [[5, 3], [29, 19]] and shape["shape_type"] == "mask" and shape["group_id"] == 4
    assert (decoded(shape, mask.shape) == mask).all()


def test_a_polygon_for_each_part() -> None:
    mask = np.zeros((60, 60), bool)
    mask[5:25, 5:45] = mask[40:55, 30:50] = True
    shapes = labelme_shapes(mask, "a", 2, exact=False)
    assert len(shapes) == 2 and {one["group_id"] for one in shapes} == {2}
    assert all(len(one["points"]) == 4 for one in shapes)  # of rectangles
    found = sum(decoded(one, mask.shape) for one in shapes)
    assert found.sum() == pytest.approx(mask.sum(), rel=0.03) and found.max() == 1


def test_nothing_and_one_pixel() -> None:
    mask = np.zeros((5, 5), bool)
    assert labelme_shapes(mask, "a", 1, exact=False) == []
    mask[2, 3] = True
    (shape,) = labelme_shapes(mask, "a", 1, exact=False)
    assert len(shape["points"]) >= 3
    points = np.array(shape["points"])
    assert (points > [3, 2]).all() and (points < [4, 3]).all()
