"""Boxes and centres of mass, by hand."""

from __future__ import annotations

import torch

from psf.losses.assignment import image_scale, target_locations
from tests.losses.scenes import gt


def test_boxes_are_shares_of_the_image_without_padding():
    target = gt([(0, (2, 1, 6, 9))], image_size=(10, 20), padded_size=(16, 32))
    assert image_scale(target).tolist() == [20, 10, 20, 10]
    # cx = (2 + 6) / 2 / 20, cy = (1 + 9) / 2 / 10, w = 4 / 20, h = 8 / 10
    torch.testing.assert_close(target_locations(target, 4), torch.tensor([[0.2, 0.5, 0.2, 0.8]]))


def test_mass_centre_is_the_mean_of_the_pixels_not_of_the_box():
    target = gt([(0, (0, 0, 2, 2))], image_size=(5, 4), padded_size=(8, 8))
    target.thing_masks[0, 0, 1] = False  # an L: (0.5, 0.5), (0.5, 1.5), (1.5, 1.5)
    # x = 2.5 / 3 / 4, y = 3.5 / 3 / 5; the box's centre is 0.25, 0.2
    torch.testing.assert_close(target_locations(target, 2), torch.tensor([[2.5 / 12, 3.5 / 15]]))


def test_one_pixel():
    target = gt([(0, (3, 1, 4, 2))], image_size=(2, 8))
    torch.testing.assert_close(target_locations(target, 2), torch.tensor([[3.5 / 8, 1.5 / 2]]))
    torch.testing.assert_close(target_locations(target, 4), torch.tensor([[3.5 / 8, 1.5 / 2, 1 / 8, 1 / 2]]))


def test_no_things():
    assert target_locations(gt(), 4).shape == (0, 4)
    assert target_locations(gt(), 2).shape == (0, 2)
