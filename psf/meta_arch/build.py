"""Build the parts of `psf.meta_arch.PanopticSegFormer` from a config."""

from __future__ import annotations

from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone

import psf.backbone  # noqa: F401  (registers the backbones)
from psf.config import import_user_modules
from psf.errors import UserError
from psf.inference import build_post_processor
from psf.inference.tiles import TileSettings
from psf.losses import Assigner, HungarianMatcher, PanopticCriterion, PerLayerAssigner, SharedAssigner
from psf.meta_arch.classes import classes_from_config, register_stored_classes
from psf.meta_arch.recipe import check_recipe
from psf.modeling import (
    FineLevel,
    MaskDecoderDepth,
    MaskDecoderProtocol,
    MaskFeatureMap,
    Neck,
    QueryClassifier,
    build_location_decoder,
    build_mask_decoder,
    build_pixel_encoder,
)
from psf.structures import PanopticClasses, all_as_things

__all__ = [
    "ResultSettings",
    "build_assigner",
    "build_criterion",
    "model_parts",
]

MIN_TILE_SIDE = 64  # in pixels; smaller tiles have too little context
SECOND_CLASS_FACTOR = 2.0  # the released code doubles the class weight in its second assignment


def build_assigner(cfg: CfgNode) -> Assigner:
    """The target assignment that MODEL.PSF.MATCHER.MODE names."""
    model, node = cfg.MODEL.PSF, cfg.MODEL.PSF.MATCHER
    weights = {
        "l1_weight": node.L1_WEIGHT,
        "giou_weight": node.GIOU_WEIGHT,
        "dice_weight": node.DICE_WEIGHT,
        "focal_alpha": model.LOSS.FOCAL_ALPHA,
        "focal_gamma": model.LOSS.FOCAL_GAMMA,
    }
    matcher = HungarianMatcher(class_weight=node.CLASS_WEIGHT, **weights)
    if node.MODE == "shared":
        return SharedAssigner(matcher)
    second = HungarianMatcher(class_weight=SECOND_CLASS_FACTOR * node.CLASS_WEIGHT, **weights)
    return PerLayerAssigner(matcher, second, node.QUERIES_PER_THING)


def build_criterion(cfg: CfgNode) -> PanopticCriterion:
    """The loss with the weights of MODEL.PSF.LOSS."""
    node = cfg.MODEL.PSF.LOSS
    return PanopticCriterion(
        cls_weight=node.CLS_WEIGHT,
        stuff_cls_weight=node.STUFF_CLS_WEIGHT,
        seg_weight=node.SEG_WEIGHT,
        det_cls_weight=node.DET_CLS_WEIGHT,
        det_l1_weight=node.DET_L1_WEIGHT,
        det_giou_weight=node.DET_GIOU_WEIGHT,
        things_weight=node.THINGS_WEIGHT,
        stuff_weight=node.STUFF_WEIGHT,
        balance=node.BALANCE,
        mask_upsampling=1 if cfg.MODEL.PSF.MASK_FEATURE else 2,  # refined masks are fine enough
        focal_alpha=node.FOCAL_ALPHA,
        focal_gamma=node.FOCAL_GAMMA,
    )


class ResultSettings(NamedTuple):
    """Settings of inference (MODEL.PSF.TEST_LAYER and MODEL.PSF.TEST)."""

    layer: int  # layer of the mask decoder, from 1; -1: the last
    candidates: str  # "best_class" | "top_pairs"
    num_top_pairs: int
    panoptic: bool
    instance: bool
    semantic: bool
    tiles: TileSettings = TileSettings()
    semantic_classes: bool = False  # `sem_seg` is the (H, W) map of the best classes in place of their scores


def model_parts(cfg: CfgNode) -> dict[str, Any]:
    """Arguments of the model, by name.

    Raises:
        UserError: if keys have invalid values, or contradict each other or the dataset's metadata.
    """
    node = cfg.MODEL.PSF
    import_user_modules(cfg)
    check_recipe(cfg)
    if node.NUM_THING_QUERIES == -1:
        raise UserError(
            "MODEL.PSF.NUM_THING_QUERIES is -1 (from the data); psf's trainer, predictor and tools replace it by a "
            "number: call psf.engine.resolve_num_queries(cfg) before you build a model, or set a number"
        )
    register_stored_classes(cfg)
    classes = classes_from_config(cfg)
    queried = all_as_things(classes) if node.QUERIES == "joint" else classes
    backbone = build_backbone(cfg)
    num_things = len(queried.thing_ids)
    return {
        "backbone": backbone,
        **_mask_decoders(cfg, queried),
        "neck": Neck(
            input_shape=backbone.output_shape(),
            in_features=node.IN_FEATURES,
            dim=node.HIDDEN_DIM,
            num_levels=node.NUM_FEATURE_LEVELS,
        ),
        "pixel_encoder": build_pixel_encoder(cfg),
        "fine_level": _fine_level(cfg, backbone),
        "mask_feature_map": _mask_feature_map(cfg, backbone),
        "mask_feature": node.MASK_FEATURE,
        "location_decoder": build_location_decoder(cfg, num_things) if num_things else None,
        "matching": build_assigner(cfg),
        "criterion": build_criterion(cfg),
        "post_processor": build_post_processor(cfg),
        "classes": classes,
        "dim": node.HIDDEN_DIM,
        "fine_feature": node.FINE_FEATURE,
        "num_mask_levels": len(node.IN_FEATURES),
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "size_divisibility": node.SIZE_DIVISIBILITY,
        "channels_last": node.CHANNELS_LAST,
        "activation_checkpointing": node.ACTIVATION_CHECKPOINTING,
        "settings": ResultSettings(
            layer=node.TEST_LAYER,
            candidates=node.TEST.CANDIDATES,
            num_top_pairs=node.TEST.NUM_TOP_PAIRS,
            panoptic=node.TEST.PANOPTIC_ON,
            instance=node.TEST.INSTANCE_ON,
            semantic=node.TEST.SEMANTIC_ON,
            tiles=_tile_settings(cfg),
        ),
    }


def _tile_settings(cfg: CfgNode) -> TileSettings:
    """MODEL.PSF.TEST.TILES.

    Raises:
        UserError: if SIZE is neither 0 nor at least 64, or OVERLAP is not between 0 and 1.
    """
    node = cfg.MODEL.PSF.TEST.TILES
    if node.SIZE != 0 and node.SIZE < MIN_TILE_SIDE:
        raise UserError(
            f"MODEL.PSF.TEST.TILES.SIZE is {node.SIZE}: expected {MIN_TILE_SIDE} pixels or more, or 0 for no tiles"
        )
    if not 0 < node.OVERLAP < 1:
        raise UserError(
            f"MODEL.PSF.TEST.TILES.OVERLAP is {node.OVERLAP}: expected a share between 0 and 1; segments "
            "can be joined across tiles only where the tiles overlap"
        )
    return TileSettings(node.SIZE, node.OVERLAP)


def _fine_level(cfg: CfgNode, backbone: Backbone) -> FineLevel | None:
    node = cfg.MODEL.PSF
    if not node.FINE_FEATURE:
        return None
    in_channels = _channels_of_finer_map(cfg, backbone, "FINE_FEATURE", "IN_FEATURES", node.IN_FEATURES[0])
    return FineLevel(in_channels=in_channels, dim=node.HIDDEN_DIM)


def _mask_feature_map(cfg: CfgNode, backbone: Backbone) -> MaskFeatureMap | None:
    node = cfg.MODEL.PSF
    if not node.MASK_FEATURE:
        return None
    finest = ("FINE_FEATURE", node.FINE_FEATURE) if node.FINE_FEATURE else ("IN_FEATURES", node.IN_FEATURES[0])
    in_channels = _channels_of_finer_map(cfg, backbone, "MASK_FEATURE", *finest)
    return MaskFeatureMap(in_channels=in_channels, dim=node.HIDDEN_DIM)


def _channels_of_finer_map(cfg: CfgNode, backbone: Backbone, key: str, other_key: str, other: str) -> int:
    """Channels of the backbone map named by `key`, which must be finer than the map `other`, named by `other_key`."""
    name, shapes = cfg.MODEL.PSF[key], backbone.output_shape()
    coarser = shapes[other].stride
    if name not in shapes or shapes[name].stride >= coarser:
        strides = {map_name: shape.stride for map_name, shape in shapes.items()}
        raise UserError(
            f'MODEL.PSF.{key} is "{name}": expected a map of the backbone finer than stride {coarser}, "{other}" '
            f"of MODEL.PSF.{other_key}; the backbone has these strides: {strides}; for a ResNet, "
            "MODEL.RESNETS.OUT_FEATURES names the maps"
        )
    channels: int = shapes[name].channels
    return channels


def _mask_decoders(cfg: CfgNode, classes: PanopticClasses) -> dict[str, MaskDecoderProtocol | QueryClassifier | None]:
    """Mask decoders and classifiers for the queries of these classes."""
    model, node = cfg.MODEL.PSF, cfg.MODEL.PSF.MASK_DECODER
    num_things = len(classes.thing_ids)
    thing_depth = MaskDecoderDepth(node.NUM_THING_LAYERS, node.THING_SELF_ATTENTION, has_boxes=True)
    stuff_depth = MaskDecoderDepth(node.NUM_STUFF_LAYERS, node.STUFF_SELF_ATTENTION)
    thing_decoder = build_mask_decoder(cfg, thing_depth) if num_things else None
    stuff_decoder = build_mask_decoder(cfg, stuff_depth) if classes.stuff_ids else None
    thing_classifier = stuff_classifier = None
    if num_things and model.THING_CLASSIFIER == "mask_decoder":
        thing_classifier = QueryClassifier(model.HIDDEN_DIM, thing_depth.num_layers, num_outputs=num_things)
    if classes.stuff_ids:
        stuff_classifier = QueryClassifier(model.HIDDEN_DIM, stuff_depth.num_layers, num_outputs=1)
    return {
        "thing_decoder": thing_decoder,
        "thing_classifier": thing_classifier,
        "stuff_decoder": stuff_decoder,
        "stuff_classifier": stuff_classifier,
    }
