"""The sine encoding, number by number."""

from __future__ import annotations

import math

import torch

from psf.modeling.position_encoding import sine_point_encoding, sine_position_encoding


def expected_channel(count: int, total: int, index: int, per_axis: int) -> float:
    """Spec B1.4: (count - 0.5) / (total + 1e-6) * 2 pi, over 10000 ** (2 floor(i / 2) / features), sin then cos."""
    phase = (count - 0.5) / (total + 1e-6) * 2 * math.pi / 10000 ** (2 * (index // 2) / per_axis)
    return math.sin(phase) if index % 2 == 0 else math.cos(phase)


def test_every_number_by_the_formula():
    encoding = sine_position_encoding(torch.zeros(1, 3, 5, dtype=torch.bool), 12)
    assert encoding.shape == (1, 12, 3, 5) and encoding.dtype == torch.float32
    for y in range(3):
        for x in range(5):
            rows = [expected_channel(y + 1, 3, i, 6) for i in range(6)]  # y comes first
            columns = [expected_channel(x + 1, 5, i, 6) for i in range(6)]
            torch.testing.assert_close(encoding[0, :, y, x], torch.tensor(rows + columns), rtol=0, atol=2e-6)


def test_by_hand():
    # Two rows: angles pi/2 and 3 pi/2 (less a millionth of them), one column: angle pi.
    encoding = sine_position_encoding(torch.zeros(1, 2, 1, dtype=torch.bool), 4)[0, :, :, 0]
    expected = torch.tensor([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0], [-1.0, -1.0]])
    torch.testing.assert_close(encoding, expected, rtol=0, atol=1e-5)


def test_count_stands_still_in_padding():
    mask = torch.ones(1, 4, 6, dtype=torch.bool)
    mask[:, :3, :4] = False
    encoding = sine_position_encoding(mask, 8)[0]
    own = sine_position_encoding(torch.zeros(1, 3, 4, dtype=torch.bool), 8)[0]
    torch.testing.assert_close(encoding[:, :3, :4], own)  # scaled by the image's own size
    torch.testing.assert_close(encoding[4:, :3, 4:], own[4:, :, 3:].expand(-1, -1, 2))  # x to the right: as in column 3
    torch.testing.assert_close(encoding[:4, 3:, :4], own[:4, 2:])  # y below: as in row 2
    assert encoding.isfinite().all()


def test_rows_and_columns_of_padding_alone_to_the_last_bit():
    """There the phase is about -3e6, and float32 as well as the order of operations decide about the sine."""
    mask = torch.ones(1, 5, 7, dtype=torch.bool)
    mask[:, :3, :4] = False
    encoding = sine_position_encoding(mask, 24).permute(0, 2, 3, 1)
    for half, axis in ((encoding[..., :12], 1), (encoding[..., 12:], 2)):
        assert torch.equal(half, encoded_as_specified(mask, axis, 12, torch.float32))
        assert (half - encoded_as_specified(mask, axis, 12, torch.float64)).abs().max() > 1e-2


def encoded_as_specified(mask: torch.Tensor, axis: int, features: int, dtype: torch.dtype) -> torch.Tensor:
    """Spec B1.4, step by step, in the precision given."""
    count = (~mask).to(dtype).cumsum(axis)
    phase = (count - 0.5) / (count.max(axis, keepdim=True).values + 1e-6) * (2 * math.pi)
    phase = phase[..., None] / 10000 ** (2 * (torch.arange(features) // 2).to(dtype) / features)
    encoded = phase.cos()
    encoded[..., 0::2] = phase[..., 0::2].sin()
    return encoded


def test_images_of_a_batch_are_encoded_apart():
    mask = torch.zeros(2, 3, 3, dtype=torch.bool)
    mask[1, 2:] = True
    both = sine_position_encoding(mask, 8)
    torch.testing.assert_close(both[1:], sine_position_encoding(mask[1:], 8), rtol=0, atol=0)
    assert not torch.equal(both[0], both[1])


def test_points_are_encoded_as_the_pixels_that_they_hit():
    pixels = sine_position_encoding(torch.zeros(1, 3, 5, dtype=torch.bool), 12)[0]
    points = torch.tensor([[(x + 0.5) / 5, (y + 0.5) / 3] for y in range(3) for x in range(5)])
    torch.testing.assert_close(sine_point_encoding(points, 12), pixels.flatten(1).T, rtol=0, atol=2e-5)
