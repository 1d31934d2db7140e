"""Attention maps as masks, compared with the plain order of operations; activations by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.plain_mask_decoder import plain_attention, plain_logits, plain_mask
from psf.config import add_psf_config
from psf.modeling import MaskDecoderDepth, build_mask_decoder
from psf.modeling.mask_decoder import (
    BOX_PRIOR_FLOOR,
    AttentionMemory,
    MaskAttention,
    MaskHead,
    box_prior,
    mask_activation,
    revivable_relu,
)
from tests.features import random_features

LEVELS = {
    "three": [(4, 6), (2, 3), (1, 1)],
    "odd sizes": [(5, 7), (3, 4), (2, 2)],
    "one": [(3, 5)],
    "coarser is not smaller": [(1, 1), (1, 1), (1, 1)],
}


def randomise(*modules: nn.Module, std: float = 0.7) -> None:
    for module in modules:
        for parameter in module.double().parameters():
            nn.init.normal_(parameter, std=std)


def memory_of(shapes: list[tuple[int, int]], *, padded: bool) -> AttentionMemory:
    shares = [(1.0, 1.0), (0.6, 0.5)] if padded else None
    features = random_features(shapes, dim=16, own_shares=shares)
    return AttentionMemory(features.pos_embed, features.tokens, features.spatial_shapes, features.padding_mask)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("levels", LEVELS)
def test_masks_and_gradients_equal_the_plain_way(levels, activation, padded):
    torch.manual_seed(0)
    memory = memory_of(LEVELS[levels], padded=padded)
    attention = MaskAttention(dim=16, num_heads=8, mask_only=True)
    head = MaskHead(num_levels=len(memory.spatial_shapes), num_heads=8, activation=activation)
    randomise(attention, head)
    queries = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    keys = memory.keys.requires_grad_()

    ours = head(*attention.queries_and_keys(queries, memory), memory)
    logits = plain_logits(attention, queries, keys)
    plain = plain_mask(head, logits, memory.spatial_shapes, memory.padding_mask)
    assert ours.shape == (2, 5, *memory.spatial_shapes[0])
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)

    inputs = [queries, keys, *attention.parameters(), *head.parameters()]
    direction = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert ours.min() >= 0 and (activation == "relu" or ours.max() <= 1)


@pytest.mark.parametrize("padded", [False, True])
def test_refined_queries_equal_the_plain_way(padded):
    torch.manual_seed(0)
    memory = memory_of(LEVELS["three"], padded=padded)
    attention = MaskAttention(dim=16, num_heads=4)
    randomise(attention)
    queries = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    ours = attention(*attention.queries_and_keys(queries, memory), memory)
    logits = plain_logits(attention, queries, memory.keys)
    plain = plain_attention(attention, logits, memory.values, memory.padding_mask)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-12)
    inputs = [queries, *attention.parameters()]
    direction = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_fusing_by_hand():
    # One head, one query, levels of 1x2 and 1x1 pixels; every projection leaves things as they are.
    attention = MaskAttention(dim=1, num_heads=1, mask_only=True)
    head = MaskHead(num_levels=2, num_heads=1, activation="relu")
    with torch.no_grad():
        for linear in (attention.query_proj, attention.key_proj, *head.level_mix):
            linear.weight.fill_(1)
            linear.bias.zero_()
        head.fuse.weight.copy_(torch.tensor([[2.0, 10.0]]))
        head.fuse.bias.fill_(-1)
    keys = torch.tensor([3.0, -5.0, 0.25]).view(1, 3, 1)
    memory = AttentionMemory(keys, keys, [(1, 2), (1, 1)], None)
    scores = head(*attention.queries_and_keys(torch.full((1, 1, 1), 2.0), memory), memory)
    # Logits 6, -10 | 0.5, after the ReLU 6, 0 | 0.5. Left 2 * 6 + 10 * 0.5 - 1 = 16, right 0 + 5 - 1 = 4.
    assert scores.tolist() == [[[[16.0, 4.0]]]]


def test_padding_is_zero_in_the_map_and_out_of_the_softmax():
    torch.manual_seed(0)
    attention, head = MaskAttention(dim=16, num_heads=8), MaskHead(num_levels=3, num_heads=8, activation="sigmoid")
    randomise(attention, head)
    memory, queries = memory_of(LEVELS["three"], padded=True), torch.randn(2, 5, 16, dtype=torch.float64)
    assert memory.padding_mask is not None
    noise = 50 * torch.randn_like(memory.keys) * memory.padding_mask[..., None]
    changed = memory._replace(keys=memory.keys + noise, values=memory.values - noise)
    results = []
    for one in (memory, changed):
        q, keys = attention.queries_and_keys(queries, one)
        results.append((attention(q, keys, one), head(q, keys, one)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-12)
    padding = memory.padding_mask[:, None, :24].view(2, 1, 4, 6).expand(2, 5, 4, 6)
    scores = results[0][1]
    assert not scores[padding].any() and (scores[~padding] > 0).all()
    q, keys = attention.queries_and_keys(queries, memory)
    free = memory._replace(padding_mask=None)  # the released recipe: padding takes part
    assert not torch.allclose(attention(q, keys, free), results[0][0])
    assert (head(q, keys, free) > 0).all()


def test_the_head_has_241_numbers():
    head = MaskHead(num_levels=3, num_heads=8, activation="sigmoid")
    assert sum(p.numel() for p in head.parameters()) == 3 * (8 * 8 + 8) + 24 + 1 == 241


def test_no_queries_are_refined_to_none():
    attention, memory = MaskAttention(dim=16, num_heads=4).double(), memory_of(LEVELS["three"], padded=True)
    q, keys = attention.queries_and_keys(torch.zeros(2, 0, 16, dtype=torch.float64), memory)
    assert attention(q, keys, memory).shape == (2, 0, 16)


def test_a_tail_projects_queries_and_keys_alone():
    names = {name.split(".")[0] for name, _ in MaskAttention(dim=8, num_heads=2, mask_only=True).named_parameters()}
    assert names == {"query_proj", "key_proj"}


def test_activations():
    x = torch.tensor([-2.0, 0.0, 3.0])
    for name, expected in (("relu", F.relu(x)), ("sigmoid", 1 / (1 + torch.exp(-x)))):
        torch.testing.assert_close(MaskHead(num_levels=1, num_heads=1, activation=name).activation(x), expected)
    with pytest.raises(ValueError, match=r'MASK_ACTIVATION is "tanh": expected one of \[\'relu\', \'sigmoid\'\]'):
        MaskHead(num_levels=1, num_heads=1, activation="tanh")


@pytest.mark.parametrize(("num_queries", "again"), [(2, False), (3, True)])
def test_maps_of_many_queries_are_made_again(num_queries: int, again: bool, monkeypatch: pytest.MonkeyPatch):
    """Heads of two channels: three queries have more numbers per token than the keys."""
    torch.manual_seed(0)
    attention, head = MaskAttention(dim=16, num_heads=8), MaskHead(num_levels=3, num_heads=8, activation="relu")
    randomise(attention, head)
    calls, fuse = [], head._fuse
    monkeypatch.setattr(head, "_fuse", lambda *arguments: calls.append(1) or fuse(*arguments))
    memory = memory_of(LEVELS["three"], padded=False)
    queries = torch.randn(2, num_queries, 16, dtype=torch.float64)
    scores = head(*attention.queries_and_keys(queries, memory), memory)
    scores.sum().backward()
    assert len(calls) == 1 + again
    assert all(p.grad.isfinite().all() for p in head.parameters())


class TestBoxPrior:
    def test_by_hand(self):
        """A box of half sides 0.2 and 0.1: 1 in its centre, 0 at the middle of each side, 1 - 2 in its corner."""
        box = torch.tensor([[[0.5, 0.5, 0.4, 0.2]]])
        points = torch.tensor([[[0.5, 0.5], [0.7, 0.5], [0.5, 0.4], [0.7, 0.6], [0.6, 0.5], [0.0, 0.0]]])
        expected = torch.tensor([[[1.0, 0.0, 0.0, -1.0, 0.75, -BOX_PRIOR_FLOOR]]])
        torch.testing.assert_close(box_prior(points, box), expected, rtol=0, atol=1e-5)

    def test_a_box_of_no_size(self):
        prior = box_prior(torch.rand(1, 9, 2), torch.tensor([[[0.5, 0.5, 0.0, 0.0]]]))
        assert prior.isfinite().all() and prior.max() <= 1

    @pytest.mark.parametrize("padded", [False, True])
    def test_attention_and_mask_equal_the_plain_way(self, padded):
        torch.manual_seed(0)
        prior = torch.randn(2, 5, 31, dtype=torch.float64)
        memory = memory_of(LEVELS["three"], padded=padded)._replace(box_prior=prior)
        attention = MaskAttention(dim=16, num_heads=8, box_prior=True)
        head = MaskHead(num_levels=3, num_heads=8, activation="sigmoid", box_prior=True)
        randomise(attention, head)
        queries = torch.randn(2, 5, 16, dtype=torch.float64)

        q, keys = attention.queries_and_keys(queries, memory)
        logits = q @ keys.transpose(-1, -2) + attention.prior_weight * prior[:, None]
        if memory.padding_mask is not None:
            logits = logits.masked_fill(memory.padding_mask[:, None, None], -torch.inf)
        values = attention.value_proj(memory.values).unflatten(-1, (8, 2)).transpose(1, 2)
        gathered = attention.output_proj((logits.softmax(-1) @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(attention(q, keys, memory), gathered, rtol=0, atol=1e-12)

        without = torch.logit(head(q, keys, memory._replace(box_prior=None)))
        expected = torch.sigmoid(without + head.prior_weight * prior[..., :24].view(2, 5, 4, 6))
        if memory.padding_mask is not None:
            expected = expected.masked_fill(memory.padding_mask[:, None, :24].view(2, 1, 4, 6), 0.0)
        torch.testing.assert_close(head(q, keys, memory), expected, rtol=0, atol=1e-12)

    def test_masks_start_as_the_ellipse_in_the_box(self):
        """With attention maps of 0 and a bias of 0 the mask is above 0.5 just where the prior is above 0."""
        prior = torch.randn(2, 5, 31)
        memory = memory_of(LEVELS["three"], padded=False)._replace(box_prior=prior)
        head = MaskHead(num_levels=3, num_heads=8, activation="sigmoid", box_prior=True)
        for parameter in (head.fuse.weight, head.fuse.bias):
            nn.init.zeros_(parameter)
        q, keys = torch.zeros(2, 8, 5, 2), torch.zeros(2, 8, 31, 2)
        assert torch.equal(head(q, keys, memory) > 0.5, (prior[..., :24] > 0).view(2, 5, 4, 6))


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
