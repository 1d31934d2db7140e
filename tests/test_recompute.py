"""RECOMPUTE: the same numbers, and less kept for backward."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch

from tests.models import RECIPES, gradients, make_input, tiny_model, total

PARTS = ["backbone", "pixel_encoder", "location_decoder", "mask_decoder"]
DROPOUT = {"PIXEL_ENCODER.DROPOUT": 0.2, "LOCATION_DECODER.DROPOUT": 0.2}


def kept_bytes(model, inputs) -> int:
    """Bytes that autograd keeps of one forward pass, each storage once."""
    storages: dict[int, torch.UntypedStorage] = {}  # held, so that none takes the place of another

    def pack(x: torch.Tensor) -> torch.Tensor:
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    kept = [x.untyped_storage().data_ptr() for x in model.state_dict().values()]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        losses = model.train()(inputs)
    assert losses
    return sum(storage.nbytes() for place, storage in storages.items() if place not in kept)


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


@pytest.mark.parametrize("backbone", ["build_resnet_backbone", "build_psf_timm_backbone"])
def test_running_statistics_count_a_step_once(backbone, inputs):
    """Also where backward runs twice; and they are the model's own afterwards."""
    results = []
    for parts in ([], ["backbone"]):
        keys = {"MODEL__BACKBONE__NAME": backbone, "MODEL__RESNETS__NORM": "BN", "MODEL__BACKBONE__FREEZE_AT": 0}
        model = tiny_model({"RECOMPUTE": parts, "TIMM.FROZEN_NORM": False}, **keys)
        buffers = dict(model.backbone.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        losses = model.train()(inputs)
        total(losses).backward(retain_graph=True)
        total(losses).backward()
        assert all(buffer is buffers[name] for name, buffer in model.backbone.named_buffers())
        changed = [name for name, buffer in buffers.items() if not torch.equal(buffer, before[name])]
        results.append((changed, buffers, {name: p.grad for name, p in model.named_parameters()}))
    (changed, plain, gradient), (also_changed, recomputed, same_gradient) = results
    assert changed == also_changed and any(name.endswith("num_batches_tracked") for name in changed)
    torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)
    torch.testing.assert_close(same_gradient, gradient, rtol=0, atol=0)


def test_pickled_and_saved_whole(inputs):
    model = tiny_model({"RECOMPUTE": PARTS})
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        kinds = [[type(module) for module in m.modules()] for m in (twin, model)]
        assert kinds[0] == kinds[1]
        torch.testing.assert_close(gradients(twin, inputs), gradients(model, inputs), rtol=0, atol=0)


def test_unknown_part():
    with pytest.raises(ValueError, match=r'MODEL.PSF.RECOMPUTE holds "neck": expected some of'):
        tiny_model({"RECOMPUTE": ["neck"]})
