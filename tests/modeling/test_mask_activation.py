"""From fused maps to scores: values and gradients by hand, in the types and modes in which a decoder runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from psf.config import add_psf_config
from psf.modeling import MaskDecoderDepth, build_mask_decoder
from psf.modeling.mask_decoder import mask_activation, revivable_relu

X = [-2.0, -1.0, 0.0, 1.0, 3.0]
GRADIENT = [-5.0, 7.0, -4.0, -6.0, 8.0]
# Above 0 the gradient itself; else one hundredth of it where it is negative, which raises the score.
REVIVED = [-0.05, 0.0, -0.04, -6.0, 8.0]


def gradient_of(function, x: Tensor, gradient: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    function(x).backward(gradient)
    return x.grad


def test_gradients_by_hand() -> None:
    x, gradient = torch.tensor(X), torch.tensor(GRADIENT)
    plain = torch.tensor([0.0, 0.0, 0.0, -6.0, 8.0])
    torch.testing.assert_close(gradient_of(mask_activation("relu", "plain"), x, gradient), plain)
    torch.testing.assert_close(gradient_of(mask_activation("relu", "revive"), x, gradient), torch.tensor(REVIVED))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_has_the_scores_of_a_relu_and_gradients_of_its_own_type(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 5, generator=generator).to(dtype).requires_grad_()
    scores = revivable_relu(x)
    assert scores.dtype == dtype and torch.equal(scores, F.relu(x))
    scores.backward(-torch.ones_like(scores))
    assert x.grad.dtype == dtype
    assert torch.equal(x.grad == -1, x > 0) and (x.grad < 0).all()


def test_nan_and_infinite_maps_as_a_relu() -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0])
    assert torch.equal(revivable_relu(x.requires_grad_()).isnan(), F.relu(x).isnan())
    assert torch.equal(revivable_relu(x)[1:], F.relu(x)[1:])


def test_under_checkpointing_and_autocast() -> None:
    x, gradient = torch.tensor(X), torch.tensor(GRADIENT)

    def again(x: Tensor) -> Tensor:
        return checkpoint(revivable_relu, x, use_reentrant=False)

    torch.testing.assert_close(gradient_of(again, x, gradient), torch.tensor(REVIVED))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(gradient_of(again, x, gradient), torch.tensor(REVIVED))


def test_compiled_for_training() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(revivable_relu, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient_of(compiled, torch.tensor(X), torch.tensor(GRADIENT)), torch.tensor(REVIVED))


def test_exported_as_a_plain_relu() -> None:
    class Masks(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return revivable_relu(x)

    program = torch.export.export(Masks(), (torch.tensor(X),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.relu.default"]


def test_no_gradient_to_keep_at_test() -> None:
    with torch.no_grad():
        assert not revivable_relu(torch.tensor(X, requires_grad=True)).requires_grad


def test_sigmoid_ignores_the_gradient_of_relu() -> None:
    assert mask_activation("sigmoid", "plain") is mask_activation("sigmoid", "revive") is torch.sigmoid


@pytest.mark.parametrize("word, expected", [("plain", F.relu), ("revive", revivable_relu)])
def test_the_key(word: str, expected: object) -> None:
    cfg = get_cfg()
    add_psf_config(cfg)
    assert cfg.MODEL.PSF.MASK_DECODER.RELU_GRADIENT == "revive"
    cfg.MODEL.PSF.MASK_DECODER.MASK_ACTIVATION, cfg.MODEL.PSF.MASK_DECODER.RELU_GRADIENT = "relu", word
    decoder = build_mask_decoder(cfg, MaskDecoderDepth(num_layers=1, self_attention=False))
    assert decoder.layers[0].mask_head.activation is decoder.tail_head.activation is expected


def test_unknown_words() -> None:
    with pytest.raises(ValueError, match=r'MASK_ACTIVATION is "tanh": expected one of \[\'relu\', \'sigmoid\'\]'):
        mask_activation("tanh", "plain")
    with pytest.raises(ValueError, match=r'RELU_GRADIENT is "leaky": expected one of \[\'plain\', \'revive\'\]'):
        mask_activation("relu", "leaky")
