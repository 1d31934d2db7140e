"""RECOMPUTE: the same numbers, and less kept for backward."""

from __future__ import annotations

import copy

import pytest
import torch

from tests.models import RECIPES, gradients, make_input, tiny_model

PARTS = ["backbone", "pixel_encoder", "location_decoder", "mask_decoder"]
DROPOUT = {"PIXEL_ENCODER.DROPOUT": 0.2, "LOCATION_DECODER.DROPOUT": 0.2}


def kept_bytes(model, inputs) -> int:
    """Bytes that autograd keeps of one forward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    kept = [x.untyped_storage().data_ptr() for x in model.state_dict().values()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.train()(inputs)
    assert losses
    return sum(size for place, size in storages.items() if place not in kept)


@pytest.fixture
def inputs():
    return [make_input(64, 96, things=2, stuff=2), make_input(50, 70, things=1, stuff=1, seed=1)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_losses_and_gradients_are_the_same(recipe, inputs):
    results = []
    for parts in ([], PARTS):
        model = tiny_model({**RECIPES[recipe], **DROPOUT, "RECOMPUTE": parts})
        torch.manual_seed(3)  # of dropout
        results.append(gradients(model, inputs))
    for plain, recomputed in zip(*results, strict=True):
        assert plain.keys() == recomputed.keys()
        for name, value in plain.items():
            torch.testing.assert_close(recomputed[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_less_is_kept(part, inputs):
    plain, less = (kept_bytes(tiny_model({"RECOMPUTE": parts}), inputs) for parts in ([], [part]))
    assert less < plain  # of this small model, the backbone keeps nearly all


def test_timm_backbone(inputs):
    keys = {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone"}
    plain, less = (kept_bytes(tiny_model({"RECOMPUTE": parts}, **keys), inputs) for parts in ([], ["backbone"]))
    assert less < 0.7 * plain


def test_names_copies_and_results_stay(inputs):
    model, plain = tiny_model({"RECOMPUTE": PARTS}), tiny_model()
    assert model.state_dict().keys() == plain.state_dict().keys()
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()  # the twin has weights of its own
        [ours, theirs] = [m.eval()(inputs[:1])[0]["panoptic_seg"][0] for m in (twin, plain)]
    assert torch.equal(ours, theirs)


def test_unknown_part():
    with pytest.raises(ValueError, match=r'MODEL.PSF.RECOMPUTE holds "neck": expected some of'):
        tiny_model({"RECOMPUTE": ["neck"]})
