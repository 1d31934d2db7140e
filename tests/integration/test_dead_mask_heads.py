"""Mask heads of ReLU masks die on small things, and the default gradient prevents it.

A real mask decoder learns with the real dice loss from made-up tokens. The location decoder has learned nothing: all
queries are much alike. Small discs, of less than one token each, cover about 15 % of the image; each token shows how
much of it they cover. A head is dead if none of its masks has a score above 0 in the last `WINDOW` iterations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psf.losses.criterion import dice_loss
from psf.modeling import MaskDecoder
from psf.structures import FeatureTokens

WINDOW = 10
SHAPES = [(8, 8), (4, 4), (2, 2)]
SIZE = 16  # sides of the ground truth, twice those of the finest level
NUM_THINGS = 24


class Setting(NamedTuple):
    """A mask decoder and how it is trained."""

    dim: int
    num_layers: int
    feedforward_dim: int
    learning_rate: float
    max_norm: float  # of all gradients together


TINY = Setting(96, 2, 256, learning_rate=0.002, max_norm=1.0)  # configs/shapes/psf_tiny.yaml
R50 = Setting(256, 4, 1024, learning_rate=0.00014, max_norm=0.1)  # configs/coco/released/psf_R50_24ep.yaml


class Kinds(NamedTuple):
    """What tokens and queries are made of, D numbers each."""

    background: Tensor
    thing: Tensor
    query: Tensor


def discs(generator: torch.Generator) -> Tensor:
    """(N, SIZE, SIZE) masks with soft borders, of radii from 0.2 to 0.5 tokens of the finest level."""
    height, width = SHAPES[0]
    centres = torch.rand(NUM_THINGS, 2, generator=generator) * torch.tensor([height, width])
    radii = 0.2 + 0.3 * torch.rand(NUM_THINGS, 1, 1, generator=generator)
    places = (torch.arange(SIZE) + 0.5) * height / SIZE
    rows, columns = places[:, None] - centres[:, 0, None, None], places - centres[:, 1, None, None]
    return (0.5 + 2 * (radii - torch.hypot(rows, columns))).clamp(0, 1)


def scene(kinds: Kinds, generator: torch.Generator) -> tuple[FeatureTokens, Tensor, Tensor]:
    """Tokens, queries (1, N, D) and masks (N, SIZE, SIZE) of one image."""
    masks = discs(generator)
    covered = masks.amax(0, keepdim=True)
    shares = torch.cat([F.adaptive_avg_pool2d(covered, shape).flatten() for shape in SHAPES])
    tokens = torch.lerp(kinds.background, kinds.thing, shares[:, None])[None]
    dim = tokens.shape[-1]
    tokens = F.layer_norm(tokens + 0.3 * torch.randn(tokens.shape, generator=generator), (dim,))
    queries = F.layer_norm(kinds.query + 0.3 * torch.randn(1, NUM_THINGS, dim, generator=generator), (dim,))
    return FeatureTokens(tokens, torch.zeros(1, 1, dim), SHAPES, None, torch.ones(1, 3, 2)), queries, masks


def decoder_of(setting: Setting, **choices: Any) -> MaskDecoder:
    return MaskDecoder(
        dim=setting.dim,
        num_heads=8,
        num_levels=len(SHAPES),
        num_layers=setting.num_layers,
        self_attention=False,
        feedforward_dim=setting.feedforward_dim,
        ignore_padding=True,
        position_in_stream=False,
        key_position=False,
        **choices,
    )


class Outcome(NamedTuple):
    """Of the last `WINDOW` iterations, per layer and the tail."""

    is_dead: list[bool]
    losses: list[float]  # dice, in [0, 1]; 1: empty masks


def train(setting: Setting, seed: int, num_iterations: int, **choices: Any) -> Outcome:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    decoder = decoder_of(setting, **choices)
    kinds = Kinds(*torch.randn(3, setting.dim, generator=generator))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=setting.learning_rate, weight_decay=1e-4)
    largest, losses = [], []
    for _ in range(num_iterations):
        features, queries, masks = scene(kinds, generator)
        layers = decoder(queries, features).mask_scores
        found = [F.interpolate(scores, (SIZE, SIZE), mode="bilinear", align_corners=False)[0] for scores in layers]
        terms = torch.stack([dice_loss(scores, masks).mean() for scores in found])
        optimizer.zero_grad()
        (2 * terms.sum()).backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), setting.max_norm)
        optimizer.step()
        largest.append([scores.max().item() for scores in layers])
        losses.append(terms.tolist())
    last = torch.tensor(largest[-WINDOW:])
    return Outcome((last <= 0).all(0).tolist(), torch.tensor(losses[-WINDOW:]).mean(0).tolist())


def num_dead_runs(setting: Setting, relu_gradient: str, *, seeds: int, num_iterations: int) -> int:
    choices = {"mask_activation": "relu", "relu_gradient": relu_gradient}
    return sum(any(train(setting, seed, num_iterations, **choices).is_dead) for seed in range(seeds))


def test_heads_of_the_tiny_model_die_with_the_plain_gradient_alone() -> None:
    assert num_dead_runs(TINY, "plain", seeds=4, num_iterations=30) >= 2
    assert num_dead_runs(TINY, "revive", seeds=4, num_iterations=30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("learning_rate", [R50.learning_rate, 0.001])
def test_heads_of_the_released_model_die_with_the_plain_gradient_alone(learning_rate: float) -> None:
    setting = R50._replace(learning_rate=learning_rate)
    assert num_dead_runs(setting, "plain", seeds=3, num_iterations=50) >= 1
    assert num_dead_runs(setting, "revive", seeds=3, num_iterations=50) == 0


def test_sigmoid_masks_do_not_depend_on_the_key() -> None:
    plain, revive = (
        train(TINY, 0, WINDOW, mask_activation="sigmoid", relu_gradient=gradient) for gradient in ("plain", "revive")
    )
    assert plain == revive


@pytest.mark.parametrize(
    "activation, relu_gradient, num_moved", [("relu", "plain", 0), ("relu", "revive", 3), ("sigmoid", "plain", 3)]
)
def test_a_dead_head_gets_a_gradient_from_the_default_and_from_sigmoid(
    activation: str, relu_gradient: str, num_moved: int
) -> None:
    """Every fused map is far below 0, as after the death on real images; the loss asks for higher scores."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    decoder = decoder_of(TINY, mask_activation=activation, relu_gradient=relu_gradient)
    heads = [*(block.mask_head for block in decoder.layers), decoder.tail_head]
    for head in heads:
        nn.init.constant_(head.fuse.bias, -20.0)
    features, queries, masks = scene(Kinds(*torch.randn(3, TINY.dim, generator=generator)), generator)
    layers = decoder(queries, features).mask_scores
    assert all(scores.max() < 0.01 for scores in layers)
    gt = F.adaptive_avg_pool2d(masks, SHAPES[0])
    torch.stack([dice_loss(scores[0], gt).mean() for scores in layers]).sum().backward()
    biases = [head.fuse.bias.grad.item() for head in heads]
    assert sum(bias < 0 for bias in biases) == num_moved and all(bias <= 0 for bias in biases)
