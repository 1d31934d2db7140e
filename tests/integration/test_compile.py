"""torch.compile makes one graph of all that comes before the results."""

from __future__ import annotations

import pytest
import torch

from tests.models import RECIPES, tiny_model

# Tracing takes seconds a layer: the quick test has one layer of each kind.
ONE_LAYER = {
    "PIXEL_ENCODER.NUM_LAYERS": 1,
    "LOCATION_DECODER.NUM_LAYERS": 1,
    "MASK_DECODER.NUM_THING_LAYERS": 1,
    "MASK_DECODER.NUM_STUFF_LAYERS": 1,
}


def check_one_graph(keys: dict, sizes: list[tuple[int, int]], *, dynamic: bool) -> None:
    torch._dynamo.reset()
    model = tiny_model(keys).eval()
    candidates = torch.compile(model.candidates, fullgraph=True, dynamic=dynamic, backend="eager")
    generator = torch.Generator().manual_seed(0)
    for height, width in sizes:
        images = torch.randn(2, 3, height, width, generator=generator)
        padding_mask = torch.zeros(2, height, width, dtype=torch.bool)
        padding_mask[1, :, width - 20 :] = True
        with torch.no_grad():
            found, expected = candidates(images, padding_mask), model.candidates(images, padding_mask)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours.class_scores, theirs.class_scores, rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(ours.mask_scores, theirs.mask_scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_network_at_test_is_one_graph(recipe: str) -> None:
    check_one_graph({**RECIPES[recipe], **ONE_LAYER}, [(64, 96)], dynamic=False)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_of_any_depth_and_size(recipe: str) -> None:
    check_one_graph(RECIPES[recipe], [(64, 96), (96, 64), (128, 160)], dynamic=True)
