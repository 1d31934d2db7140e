"""What stays exact in mixed precision."""

from __future__ import annotations

import torch

from psf.ops.precision import shared_pixels


def test_shared_pixels_are_counted_exactly() -> None:
    """Under autocast, bfloat16 would round 1001 to 1000."""
    masks = torch.ones(1, 1001)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (masks @ masks.T).item() != 1001
        assert shared_pixels(masks, masks).item() == 1001
