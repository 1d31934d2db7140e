"""The parts of `psf.meta_arch.PanopticSegFormer` as a config describes them."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone
from torch import nn

from psf.classes import PanopticClasses, classes_from_config
from psf.joint_queries import all_as_things
from psf.modeling import (
    FineLevel,
    MaskDecoderDepth,
    Neck,
    QueryClassifier,
    build_location_decoder,
    build_mask_decoder,
    build_pixel_encoder,
)
from psf.post_processing import build_post_processor
from psf.recipe import build_criterion, build_matching, check_recipe
from psf.tiled_inference import TileSettings, tile_settings

__all__ = ["ResultSettings", "model_parts"]


class ResultSettings(NamedTuple):
    """What is computed at test (MODEL.PSF.TEST_LAYER and MODEL.PSF.TEST)."""

    layer: int  # of the mask decoder, from 1; -1: the last
    candidates: str  # "best_class" | "top_pairs"
    num_top_pairs: int
    panoptic: bool
    instance: bool
    semantic: bool
    tiles: TileSettings = TileSettings()


def model_parts(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of the model, by name.

    Raises:
        ValueError: if keys mean nothing, contradict each other or the data set's metadata.
    """
    psf = cfg.MODEL.PSF
    classes = classes_from_config(cfg)
    check_recipe(cfg)
    queried = all_as_things(classes) if psf.QUERIES == "joint" else classes
    backbone = build_backbone(cfg)
    num_things = len(queried.thing_ids)
    return {
        "backbone": backbone,
        **_mask_decoders(cfg, queried),
        "neck": Neck(
            input_shape=backbone.output_shape(),
            in_features=psf.IN_FEATURES,
            dim=psf.HIDDEN_DIM,
            num_levels=psf.NUM_FEATURE_LEVELS,
        ),
        "pixel_encoder": build_pixel_encoder(cfg),
        "fine_level": _fine_level(cfg, backbone),
        "location_decoder": build_location_decoder(cfg, num_things) if num_things else None,
        "matching": build_matching(cfg),
        "criterion": build_criterion(cfg),
        "post_processor": build_post_processor(cfg),
        "classes": classes,
        "dim": psf.HIDDEN_DIM,
        "fine_feature": psf.FINE_FEATURE,
        "num_mask_levels": len(psf.IN_FEATURES),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": psf.SIZE_DIVISIBILITY,
        "channels_last": psf.CHANNELS_LAST,
        "recompute": psf.RECOMPUTE,
        "settings": ResultSettings(
            layer=psf.TEST_LAYER,
            candidates=psf.TEST.CANDIDATES,
            num_top_pairs=psf.TEST.NUM_TOP_PAIRS,
            panoptic=psf.TEST.PANOPTIC_ON,
            instance=psf.TEST.INSTANCE_ON,
            semantic=psf.TEST.SEMANTIC_ON,
            tiles=tile_settings(cfg),
        ),
    }


def _fine_level(cfg: CfgNode, backbone: Backbone) -> FineLevel | None:
    name, shapes = cfg.MODEL.PSF.FINE_FEATURE, backbone.output_shape()
    if not name:
        return None
    coarser = shapes[cfg.MODEL.PSF.IN_FEATURES[0]].stride
    if name not in shapes or shapes[name].stride >= coarser:
        known = {key: shape.stride for key, shape in shapes.items()}
        raise ValueError(
            f'MODEL.PSF.FINE_FEATURE is "{name}": expected a map of the backbone that is finer than stride {coarser}, '
            f"the first of MODEL.PSF.IN_FEATURES; the backbone gives these strides: {known}; "
            "of a ResNet, MODEL.RESNETS.OUT_FEATURES names the maps"
        )
    return FineLevel(in_channels=shapes[name].channels, dim=cfg.MODEL.PSF.HIDDEN_DIM)


def _mask_decoders(cfg: CfgNode, classes: PanopticClasses) -> dict[str, nn.Module | None]:
    """Mask decoders and classifiers of the queries of these classes."""
    psf, node = cfg.MODEL.PSF, cfg.MODEL.PSF.MASK_DECODER
    num_things = len(classes.thing_ids)
    thing_depth = MaskDecoderDepth(node.NUM_THING_LAYERS, node.THING_SELF_ATTENTION, has_boxes=True)
    stuff_depth = MaskDecoderDepth(node.NUM_STUFF_LAYERS, node.STUFF_SELF_ATTENTION)
    thing_decoder = build_mask_decoder(cfg, thing_depth) if num_things else None
    if not classes.stuff_ids:
        stuff_decoder = None
    elif node.SHARE_WEIGHTS and thing_decoder is not None:
        stuff_decoder = thing_decoder
    else:
        stuff_decoder = build_mask_decoder(cfg, stuff_depth)
    thing_classifier = stuff_classifier = None
    if num_things and psf.THING_CLASSIFIER == "mask_decoder":
        thing_classifier = QueryClassifier(psf.HIDDEN_DIM, thing_depth.num_layers, num_outputs=num_things)
    if classes.stuff_ids:
        stuff_classifier = QueryClassifier(psf.HIDDEN_DIM, stuff_depth.num_layers, num_outputs=1)
    return {
        "thing_decoder": thing_decoder,
        "thing_classifier": thing_classifier,
        "stuff_decoder": stuff_decoder,
        "stuff_classifier": stuff_classifier,
    }
