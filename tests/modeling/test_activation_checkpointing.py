"""Activation checkpointing: the same numbers, and less kept for backward."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter

import pytest
import torch
from torch import nn

from psf.modeling.activation_checkpointing import checkpoint_activations
from psf.modeling.mask_decoder import MaskHead
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
        model = tiny_model({**RECIPES[recipe], **DROPOUT, "ACTIVATION_CHECKPOINTING": parts})
        torch.manual_seed(3)  # of dropout
        results.append(gradients(model, inputs))
    for plain, checkpointed in zip(*results, strict=True):
        assert plain.keys() == checkpointed.keys()
        for name, value in plain.items():
            torch.testing.assert_close(checkpointed[name], value, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_less_is_kept(part, inputs):
    plain, less = (kept_bytes(tiny_model({"ACTIVATION_CHECKPOINTING": parts}), inputs) for parts in ([], [part]))
    assert less < plain  # of this small model, the backbone keeps nearly all


def test_timm_backbone(inputs):
    keys = {"MODEL__BACKBONE__NAME": "build_psf_timm_backbone"}
    plain, less = (
        kept_bytes(tiny_model({"ACTIVATION_CHECKPOINTING": parts}, **keys), inputs) for parts in ([], ["backbone"])
    )
    assert less < 0.7 * plain


def test_names_copies_and_results_stay(inputs):
    model, plain = tiny_model({"ACTIVATION_CHECKPOINTING": PARTS}), tiny_model()
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
        model = tiny_model({"ACTIVATION_CHECKPOINTING": parts, "TIMM.FROZEN_NORM": False}, **keys)
        buffers = dict(model.backbone.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        losses = model.train()(inputs)
        total(losses).backward(retain_graph=True)
        total(losses).backward()
        assert all(buffer is buffers[name] for name, buffer in model.backbone.named_buffers())
        changed = [name for name, buffer in buffers.items() if not torch.equal(buffer, before[name])]
        results.append((changed, buffers, {name: p.grad for name, p in model.named_parameters()}))
    (changed, plain, gradient), (also_changed, checkpointed, same_gradient) = results
    assert changed == also_changed and any(name.endswith("num_batches_tracked") for name in changed)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    torch.testing.assert_close(same_gradient, gradient, rtol=0, atol=0)


def test_pickled_and_saved_whole(inputs):
    model = tiny_model({"ACTIVATION_CHECKPOINTING": PARTS})
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        kinds = [[type(module) for module in m.modules()] for m in (twin, model)]
        assert kinds[0] == kinds[1]
        torch.testing.assert_close(gradients(twin, inputs), gradients(model, inputs), rtol=0, atol=0)


def test_unknown_part():
    with pytest.raises(ValueError, match=r'MODEL.PSF.ACTIVATION_CHECKPOINTING contains "neck": expected some of'):
        tiny_model({"ACTIVATION_CHECKPOINTING": ["neck"]})


@pytest.mark.parametrize("parts", [[], ["mask_decoder"], PARTS])
def test_nothing_runs_more_than_twice(parts, inputs, monkeypatch):
    """The mask head checkpoints its own work where its block does not."""
    calls: Counter[nn.Module] = Counter()

    def counted(kind: type[nn.Module], method: str) -> None:
        original = getattr(kind, method)

        def wrapped(module, *args, **kwargs):
            calls[module] += 1
            return original(module, *args, **kwargs)

        monkeypatch.setattr(kind, method, wrapped)

    counted(MaskHead, "_fuse")
    model = tiny_model(
        {"NUM_THING_QUERIES": 20, "ACTIVATION_CHECKPOINTING": parts}
    )  # more queries than channels a head
    for kind in {type(layer) for decoder in (model.thing_decoder, model.stuff_decoder) for layer in decoder.layers}:
        counted(kind, "forward")
    calls.clear()
    gradients(model, inputs)
    heads = [module for module in model.thing_decoder.modules() if isinstance(module, MaskHead)]
    assert [calls[head] for head in heads] == [2] * len(heads)
    blocks = [layer for decoder in (model.thing_decoder, model.stuff_decoder) for layer in decoder.layers]
    assert [calls[block] for block in blocks] == [2 if parts else 1] * len(blocks)
    assert max(calls.values()) == 2


@pytest.mark.parametrize("layers", [None, 6, [1, 2]])
def test_part_without_layers(layers):
    model = tiny_model()
    del model.pixel_encoder.layers
    if layers is not None:
        model.pixel_encoder.layers = layers
    with pytest.raises(ValueError, match="DeformablePixelEncoder has no attribute `layers`, a list of blocks: remove"):
        checkpoint_activations(model, ["pixel_encoder"])


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which torch.compile looks at
@pytest.mark.parametrize("part", ["pixel_encoder", "mask_decoder"])
def test_compiled(part, inputs):
    """The graphs of the layers break at most; numbers stay."""
    model = tiny_model({"ACTIVATION_CHECKPOINTING": [part]})
    expected = total(model.train()(inputs))
    torch._dynamo.reset()
    layers = {"pixel_encoder": model.pixel_encoder, "mask_decoder": model.thing_decoder}[part].layers
    for layer in layers:
        layer.compile(backend="eager")
    losses = total(model(inputs))
    losses.backward()
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert all(p.grad is not None for p in layers.parameters())
