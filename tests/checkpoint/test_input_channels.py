"""A first convolution for three channels, adapted to other numbers of them."""

from __future__ import annotations

import pytest
import torch

from psf.checkpoint import adapt_input_channels, adapted_weight

STEM = "backbone.stem.conv1.weight"
# One output channel, a kernel of one pixel: weights 1, 2, 6 of red, green, blue.
WEIGHT = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [
        (1, [9.0]),  # 1 + 2 + 6
        (2, [1.5, 3.0]),  # 1 and 2, times 3 / 2
        (4, [0.75, 1.5, 4.5, 0.75]),  # 1, 2, 6, 1, times 3 / 4
        (5, [0.6, 1.2, 3.6, 0.6, 1.2]),  # times 3 / 5
        (6, [0.5, 1.0, 3.0, 0.5, 1.0, 3.0]),
    ],
)
def test_by_hand(channels: int, expected: list[float]):
    assert adapted_weight(WEIGHT, channels).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
def test_the_rule_is_timms(channels: int):
    timm = pytest.importorskip("timm")
    weight = torch.randn(8, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(adapted_weight(weight, channels), timm.models.adapt_input_conv(channels, weight))


def test_which_weight():
    """One under "backbone." of which the channels alone differ, and are three in the checkpoint."""
    model = {
        STEM: torch.zeros(1, 4, 1, 1),
        "backbone.wide.weight": torch.zeros(2, 4, 1, 1),  # another number of outputs
        "backbone.other.weight": torch.zeros(1, 4, 1, 1),  # 5 channels there
        "backbone.line.weight": torch.zeros(1, 4),
        "head.weight": torch.zeros(1, 4, 1, 1),
        "backbone.absent.weight": torch.zeros(1, 4, 1, 1),
    }
    found = {
        STEM: WEIGHT,
        "backbone.wide.weight": WEIGHT,
        "backbone.other.weight": torch.zeros(1, 5, 1, 1),
        "backbone.line.weight": torch.zeros(1, 3),
        "head.weight": WEIGHT,
        "absent.weight": WEIGHT,
    }
    before = dict(found)
    assert adapt_input_channels(found, model) == {STEM: (1, 3, 1, 1)}
    assert torch.equal(found.pop(STEM), adapted_weight(WEIGHT, 4))
    assert found == {name: value for name, value in before.items() if name != STEM}


def test_names_that_lack_their_beginning():
    model = {STEM: torch.zeros(1, 4, 1, 1), "backbone.res2.0.conv1.weight": torch.zeros(1, 8, 1, 1)}
    found = {"stem.conv1.weight": WEIGHT, "conv1.weight": torch.zeros(9, 3, 1, 1)}
    assert adapt_input_channels(found, model, is_suffix=True)
    assert found.keys() == {STEM, "conv1.weight"}
    assert not adapt_input_channels({"stem.conv1.weight": WEIGHT}, model)
