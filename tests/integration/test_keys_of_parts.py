"""What the keys under MODEL.PSF make of the parts."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg

from psf.config import add_psf_config
from psf.modeling import MaskDecoderDepth, build_location_decoder, build_mask_decoder, build_pixel_encoder
from psf.modeling.mask_decoder import revivable_relu


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.MODEL.PSF.HIDDEN_DIM, cfg.MODEL.PSF.NUM_HEADS, cfg.MODEL.PSF.NUM_FEATURE_LEVELS = 16, 4, 5
    return cfg


def test_pixel_encoder(cfg):
    node = cfg.MODEL.PSF.PIXEL_ENCODER
    node.NUM_LAYERS, node.FEEDFORWARD_DIM, node.NUM_POINTS, node.DROPOUT = 2, 24, 3, 0.25
    encoder = build_pixel_encoder(cfg)
    assert encoder.level_embed.shape == (5, 16) and len(encoder.layers) == 2
    layer = encoder.layers[0]
    assert layer.attention.sampling_offsets.out_features == 4 * 5 * 3 * 2
    assert layer.feed_forward.fc1.out_features == 24
    assert layer.dropout.p == layer.feed_forward.dropout.p == 0.25


def test_location_decoder(cfg):
    node = cfg.MODEL.PSF.LOCATION_DECODER
    node.NUM_LAYERS, node.FEEDFORWARD_DIM, node.NUM_POINTS, node.DROPOUT = 2, 24, 3, 0.25
    node.TARGET, node.BOX_REFINEMENT, cfg.MODEL.PSF.NUM_THING_QUERIES = "mass_center", True, 7
    decoder = build_location_decoder(cfg, num_classes=9)
    assert decoder.query_feat.weight.shape == (7, 16) and len(decoder.layers) == 2
    layer = decoder.layers[0]
    assert layer.self_attention.num_heads == 4 and layer.self_attention.dropout == layer.dropout.p == 0.25
    assert layer.cross_attention.sampling_offsets.out_features == 4 * 5 * 3 * 2
    assert layer.feed_forward.fc1.out_features == 24
    assert decoder.class_embed[0].out_features == 9 and decoder.bbox_embed[0][-1].out_features == 2
    assert decoder.box_refinement and not decoder.head_at_test and not decoder.encode_location


@pytest.mark.parametrize(
    "key, value",
    [
        ("THING_CLASSIFIER", "location_decoder"),
        ("TEST.INSTANCE.BOXES", "location_decoder"),
        ("MASK_DECODER.THING_POSITION", "located"),
        ("MASK_DECODER.BOX_PRIOR", True),
    ],
)
def test_what_asks_for_the_location_head_at_test(cfg, key, value):
    cfg.merge_from_list([f"MODEL.PSF.{key}", value])
    assert build_location_decoder(cfg, num_classes=2).head_at_test


def test_two_stage(cfg):
    cfg.merge_from_list(["MODEL.PSF.LOCATION_DECODER.TWO_STAGE", True, "MODEL.PSF.NUM_THING_QUERIES", 7])
    proposals = build_location_decoder(cfg, num_classes=9).proposals
    assert proposals.num_queries == 7 and proposals.class_head.out_features == 9


def test_mask_decoder_with_boxes(cfg):
    cfg.merge_from_list(["MODEL.PSF.MASK_DECODER.BOX_PRIOR", True, "MODEL.PSF.FINE_FEATURE", "res2"])
    for has_boxes in (True, False):
        decoder = build_mask_decoder(cfg, MaskDecoderDepth(2, self_attention=False, has_boxes=has_boxes))
        assert len(decoder.tail_head.level_mix) == 4  # res2 and IN_FEATURES
        assert len([name for name, _ in decoder.named_parameters() if "prior" in name]) == (5 if has_boxes else 0)


@pytest.mark.parametrize("stuff_query_pos, in_stream", [("query", False), ("stream", True)])
@pytest.mark.parametrize("ignore_padding, key_position", [(True, False), (False, True)])
def test_mask_decoder(cfg, stuff_query_pos, in_stream, ignore_padding, key_position):
    node, cfg.MODEL.PSF.IN_FEATURES = cfg.MODEL.PSF.MASK_DECODER, ["res4", "res5"]
    node.FEEDFORWARD_DIM, node.MASK_ACTIVATION, node.STUFF_POSITION = 20, "relu", stuff_query_pos
    node.IGNORE_PADDING, node.KEY_POSITION = ignore_padding, key_position
    decoder = build_mask_decoder(cfg, MaskDecoderDepth(num_layers=2, self_attention=False))
    assert len(decoder.layers) == 2 and all(block.self_attention is None for block in decoder.layers)
    assert len(decoder.tail_head.level_mix) == 2 and decoder.tail_head.activation is revivable_relu
    assert decoder.layers[0].feed_forward.fc1.out_features == 20
    assert decoder.position_in_stream is in_stream
    assert (decoder.ignore_padding, decoder.key_position) == (ignore_padding, key_position)
