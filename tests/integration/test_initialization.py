"""How the parts start: the facts of the released initialisation (spec B, "Initialisation")."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from torch import Tensor, nn

from psf.config import add_psf_config
from psf.modeling import (
    MaskDecoderDepth,
    QueryClassifier,
    build_location_decoder,
    build_mask_decoder,
    build_pixel_encoder,
)
from psf.modeling.deformable_attention import initial_class_bias


@pytest.fixture
def cfg() -> CfgNode:
    """Small, but wide enough that extremes of random numbers tell their bounds."""
    torch.manual_seed(0)
    cfg = get_cfg()
    add_psf_config(cfg)
    node = cfg.MODEL.PSF
    node.HIDDEN_DIM, node.NUM_THING_QUERIES = 64, 50
    node.PIXEL_ENCODER.NUM_LAYERS, node.LOCATION_DECODER.NUM_LAYERS = 2, 3
    node.PIXEL_ENCODER.FEEDFORWARD_DIM = node.LOCATION_DECODER.FEEDFORWARD_DIM = node.MASK_DECODER.FEEDFORWARD_DIM = 32
    return cfg


def assert_uniform(x: Tensor, bound: float) -> None:
    """Uniform between -bound and bound, as far as many numbers can tell."""
    assert 0.9 * bound < x.abs().max() <= bound + 1e-6
    if x.numel() > 1000:
        assert x.std().item() == pytest.approx(bound / 3**0.5, rel=0.06)


def assert_xavier(weight: Tensor) -> None:
    assert_uniform(weight, (6 / sum(weight.shape)) ** 0.5)


def assert_standard_normal(x: Tensor) -> None:
    assert x.std().item() == pytest.approx(1, abs=0.12) and abs(x.mean().item()) < 0.12


def test_encoder(cfg):
    encoder = build_pixel_encoder(cfg)
    assert_standard_normal(encoder.level_embed)
    for layer in encoder.layers:
        for linear in (layer.feed_forward.fc1, layer.feed_forward.fc2):
            assert_xavier(linear.weight)
            assert_uniform(linear.bias, linear.in_features**-0.5)


class TestLocationDecoder:
    @pytest.mark.parametrize("refinement, small", [(False, [0, 1, 2]), (True, [0])])
    def test_boxes_start_small(self, cfg, refinement, small):
        cfg.MODEL.PSF.LOCATION_DECODER.BOX_REFINEMENT = refinement
        for i, head in enumerate(build_location_decoder(cfg, 3).bbox_embed):
            assert not head[-1].weight.any()
            assert head[-1].bias.tolist() == ([0, 0, -2, -2] if i in small else [0, 0, 0, 0])
            for hidden in (head[0], head[2]):
                assert_uniform(hidden.weight, 64**-0.5)  # torch's default for nn.Linear

    def test_heads_start_as_copies(self, cfg):
        cfg.MODEL.PSF.LOCATION_DECODER.BOX_REFINEMENT = True
        decoder = build_location_decoder(cfg, 3)
        for head in decoder.class_embed[1:]:
            torch.testing.assert_close(head.state_dict(), decoder.class_embed[0].state_dict(), rtol=0, atol=0)
        for head in decoder.bbox_embed[1:]:
            assert torch.equal(head[0].weight, decoder.bbox_embed[0][0].weight)
        parameters = [*decoder.class_embed.parameters(), *decoder.bbox_embed.parameters()]
        assert len({id(p) for p in parameters}) == 3 * (2 + 6)  # but none is shared

    def test_matrices_and_biases(self, cfg):
        decoder = build_location_decoder(cfg, 3)
        assert_xavier(decoder.reference_points.weight)
        assert not decoder.reference_points.bias.any()
        for layer in decoder.layers:
            attention = layer.self_attention
            assert attention.in_proj_weight.shape == (192, 64)  # one matrix, so its bound is sqrt(6 / 256)
            for weight in (attention.in_proj_weight, attention.out_proj.weight, layer.feed_forward.fc1.weight):
                assert_xavier(weight)
            assert not attention.in_proj_bias.any() and not attention.out_proj.bias.any()
            assert_uniform(layer.feed_forward.fc2.bias, 32**-0.5)
        for embedding in (decoder.query_feat, decoder.query_pos):
            assert_standard_normal(embedding.weight)


def test_every_class_starts_at_one_in_a_hundred(cfg):
    assert initial_class_bias() == pytest.approx(-math.log(99), abs=1e-6)
    for heads in (build_location_decoder(cfg, 3).class_embed, QueryClassifier(64, 2, 3).layers):
        for head in heads:
            torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))
            assert_uniform(head.weight, 64**-0.5)


def test_mask_decoder(cfg):
    decoder = build_mask_decoder(cfg, MaskDecoderDepth(2, True))
    for module in decoder.modules():
        if isinstance(module, nn.Linear) and module.weight.numel() > 1000:
            assert_xavier(module.weight)
        elif isinstance(module, nn.Linear):  # the small ones of the mask heads: 8 x 8 and 1 x 24
            assert module.weight.abs().max() <= (6 / sum(module.weight.shape)) ** 0.5
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and not module.bias.any() and module.eps == 1e-6
    for layer in decoder.layers:
        assert_xavier(layer.self_attention.in_proj_weight)
        # Torch's default for nn.Linear, where nn.MultiheadAttention would start at 0.
        assert_uniform(layer.self_attention.in_proj_bias, 64**-0.5)
        assert_uniform(layer.self_attention.out_proj.bias, 64**-0.5)
        assert_uniform(layer.attention.query_proj.bias, 64**-0.5)
