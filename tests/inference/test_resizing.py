"""From the padded map to the pixels of the output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from psf.inference import Frame, resize_masks
from psf.inference import resizing as resizing_module
from psf.inference.resizing import resize_in_chunks
from tests.candidates import same_size
from tests.naive import naive_bilinear


def random_scores(count: int, height: int, width: int) -> torch.Tensor:
    return torch.rand(count, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_same_size_changes_nothing():
    scores = random_scores(3, 4, 5)
    assert torch.equal(resize_masks(scores, same_size(4, 5)), scores)


def test_every_pixel_by_the_formula():
    # A map of 3x4 for a padded image of 24x32, which is enlarged to 40x44; without aligned corners, the pixel centre
    # (i + 0.5) / 40 of the output is (i + 0.5) / 40 of the map; beyond the outer centres the outer values go on.
    scores = random_scores(1, 3, 4)
    resized = resize_masks(scores, Frame((24, 32), (24, 32), (40, 44)))[0]
    assert resized.shape == (40, 44)
    for row in range(40):
        for column in range(44):
            y = min(max((row + 0.5) * 3 / 40 - 0.5, 0), 2)
            x = min(max((column + 0.5) * 4 / 44 - 0.5, 0), 3)
            expected = naive_bilinear(scores[0, :, :, None], y, x)[0]
            torch.testing.assert_close(resized[row, column], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "frame, scaled",
    [
        (Frame((32, 48), (20, 48), (50, 120)), (80, 120)),  # 32 * 50 / 20, 48 * 120 / 48
        (Frame((10, 16), (7, 11), (5, 5)), (7, 7)),  # 50 / 7 = 7.14, 80 / 11 = 7.27
        (Frame((10, 16), (9, 9), (10, 13)), (11, 23)),  # 100 / 9 = 11.1, 208 / 9 = 23.1
        (Frame((10, 16), (7, 16), (6, 16)), (9, 16)),  # 60 / 7 = 8.57
        (Frame((64, 64), (1, 1), (1, 1)), (64, 64)),
        (Frame((800, 64), (17, 64), (17, 64)), (800, 64)),
    ],
)
def test_padding_is_cropped_away_after_resizing(frame, scaled):
    scores = random_scores(2, 4, 6)
    whole = F.interpolate(scores[None], size=scaled, mode="bilinear", align_corners=False)[0]
    height, width = frame.output_size
    torch.testing.assert_close(resize_masks(scores, frame), whole[:, :height, :width], rtol=0, atol=0)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("pixels", [1, 60, 10**6])
def test_chunks_together_are_the_whole(monkeypatch, count, pixels):
    monkeypatch.setattr(resizing_module, "CHUNK_PIXELS", {"cpu": pixels})
    scores, frame = random_scores(count, 3, 4), Frame((24, 32), (20, 32), (5, 6))
    chunks = list(resize_in_chunks(scores, frame))
    assert chunks and sum(len(x) for x in chunks) == count
    assert torch.equal(torch.cat(chunks), resize_masks(scores, frame))


def test_a_chunk_is_bounded_in_padding_too(monkeypatch):
    # A flat image beside a tall one in the batch: 4x40 pixels of output, 80x40 before cropping.
    made = []
    interpolate = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: made.append(interpolate(*a, **k)) or made[-1])
    monkeypatch.setattr(resizing_module, "CHUNK_PIXELS", {"cpu": 2 * 80 * 40})
    list(resize_in_chunks(random_scores(6, 10, 5), Frame((80, 40), (4, 40), (4, 40))))
    assert max(x.numel() for x in made) <= 2 * 80 * 40
