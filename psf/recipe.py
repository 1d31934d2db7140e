"""What a config says of matching and losses, and which of its choices do not go together (the two recipes)."""

from __future__ import annotations

from detectron2.config import CfgNode

from psf.losses import HungarianMatcher, PanopticCriterion, PerLayerMatching, SharedMatching
from psf.registry import (
    LOCATION_DECODER_REGISTRY,
    MASK_DECODER_REGISTRY,
    PIXEL_ENCODER_REGISTRY,
    POST_PROCESSOR_REGISTRY,
)

__all__ = ["build_criterion", "build_matching", "check_recipe"]

CHOICES = {
    "QUERIES": ("decoupled", "joint"),
    "THING_CLASSIFIER": ("mask_decoder", "location_decoder"),
    "MATCHER.MODE": ("shared", "per_layer"),
    "TEST.CANDIDATES": ("best_class", "top_pairs"),
    "TEST.INSTANCE.BOXES": ("mask", "location_decoder"),
    "MASK_DECODER.STUFF_POSITION": ("query", "stream"),
    "MASK_DECODER.THING_POSITION": ("none", "located"),
}
# Of each INPUT.FORMAT; None: of any, as many as MODEL.PIXEL_MEAN has numbers.
NUM_CHANNELS = {"BGR": 3, "RGB": 3, "L": 1, "BANDS": None}
REGISTRIES = {
    "PIXEL_ENCODER": PIXEL_ENCODER_REGISTRY,
    "LOCATION_DECODER": LOCATION_DECODER_REGISTRY,
    "MASK_DECODER": MASK_DECODER_REGISTRY,
    "POST_PROCESSOR": POST_PROCESSOR_REGISTRY,
}


def check_recipe(cfg: CfgNode) -> None:
    """Refuse values and combinations under MODEL.PSF that mean nothing, and channels that disagree.

    Raises:
        ValueError: naming the keys.
    """
    _check_channels(cfg)
    psf = cfg.MODEL.PSF
    for key, allowed in CHOICES.items():
        value = psf
        for part in key.split("."):
            value = value[part]
        if value not in allowed:
            raise ValueError(f'MODEL.PSF.{key} is "{value}": expected one of {list(allowed)}')
    if psf.HIDDEN_DIM % psf.NUM_HEADS:
        raise ValueError(
            f"MODEL.PSF.HIDDEN_DIM {psf.HIDDEN_DIM} is not a multiple of MODEL.PSF.NUM_HEADS {psf.NUM_HEADS}"
        )
    for key, registry in REGISTRIES.items():
        if psf[key].NAME not in registry:
            known = sorted(name for name, _ in registry)
            raise ValueError(f'MODEL.PSF.{key}.NAME is "{psf[key].NAME}": registered are {known}')
    if psf.TEST_LAYER == 0 or psf.TEST_LAYER < -1:
        raise ValueError(f"MODEL.PSF.TEST_LAYER is {psf.TEST_LAYER}: expected a layer from 1, or -1 for the last")
    if psf.NUM_THING_QUERIES == -1:
        raise ValueError(
            "MODEL.PSF.NUM_THING_QUERIES is -1 (from the data), which psf's trainer, predictor and tools replace by a "
            "number: call psf.engine.resolve_num_queries(cfg) before you build a model, or set a number"
        )
    if psf.POST_PROCESSOR.TUNE_IMAGES < 0:
        raise ValueError(
            f"MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES is {psf.POST_PROCESSOR.TUNE_IMAGES}: expected a number of training "
            "images, or 0 to keep the thresholds of the config"
        )
    for key, number in (
        ("MATCHER.QUERIES_PER_THING", psf.MATCHER.QUERIES_PER_THING),
        ("NUM_THING_QUERIES", psf.NUM_THING_QUERIES),
        ("TEST.NUM_TOP_PAIRS", psf.TEST.NUM_TOP_PAIRS),
    ):
        if number < 1:
            raise ValueError(f"MODEL.PSF.{key} is {number}: expected 1 or more")
    if not (psf.TEST.PANOPTIC_ON or psf.TEST.INSTANCE_ON or psf.TEST.SEMANTIC_ON):
        raise ValueError(
            "MODEL.PSF.TEST.PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON are all False: the model would give nothing; set "
            "one of them to True"
        )
    named_by_location = psf.THING_CLASSIFIER == "location_decoder"
    if psf.MATCHER.MODE == "per_layer":
        if not named_by_location:
            raise ValueError(
                'MODEL.PSF.MATCHER.MODE "per_layer" gives the mask decoder matched queries alone, so it cannot learn '
                'which queries are no thing: set MODEL.PSF.THING_CLASSIFIER to "location_decoder", or MODE to "shared"'
            )
        if psf.MASK_DECODER.THING_SELF_ATTENTION:
            raise ValueError(
                'MODEL.PSF.MATCHER.MODE "per_layer" pads images with fewer matched queries, which must not be attended '
                "to: set MODEL.PSF.MASK_DECODER.THING_SELF_ATTENTION to False"
            )
    head_needed = (
        named_by_location
        or psf.TEST.INSTANCE.BOXES == "location_decoder"
        or psf.MASK_DECODER.THING_POSITION == "located"
    )
    if psf.LOCATION_DECODER.NUM_LAYERS == 0 and head_needed:
        raise ValueError(
            "MODEL.PSF.LOCATION_DECODER.NUM_LAYERS is 0: there is no head that gives classes or boxes; set "
            'THING_CLASSIFIER to "mask_decoder", TEST.INSTANCE.BOXES to "mask", MASK_DECODER.THING_POSITION to "none"'
        )
    _check_boxes_are_predicted(psf)
    if psf.TEST.INSTANCE.BOXES == "location_decoder" and psf.LOCATION_DECODER.TARGET != "box":
        raise ValueError(
            f'MODEL.PSF.TEST.INSTANCE.BOXES is "location_decoder", which predicts no boxes with '
            f'LOCATION_DECODER.TARGET "{psf.LOCATION_DECODER.TARGET}"'
        )
    decoder = psf.MASK_DECODER
    if decoder.SHARE_WEIGHTS and psf.QUERIES == "joint":
        raise ValueError(
            'MODEL.PSF.MASK_DECODER.SHARE_WEIGHTS is True with MODEL.PSF.QUERIES "joint", which has one mask decoder '
            'anyway: set SHARE_WEIGHTS to False, or QUERIES to "decoupled"'
        )
    same = (
        decoder.NUM_THING_LAYERS == decoder.NUM_STUFF_LAYERS
        and decoder.THING_SELF_ATTENTION == decoder.STUFF_SELF_ATTENTION
    )
    if decoder.SHARE_WEIGHTS and not same:
        raise ValueError(
            "MODEL.PSF.MASK_DECODER.SHARE_WEIGHTS needs NUM_THING_LAYERS = NUM_STUFF_LAYERS and THING_SELF_ATTENTION = "
            f"STUFF_SELF_ATTENTION; found {decoder.NUM_THING_LAYERS} and {decoder.NUM_STUFF_LAYERS}, "
            f"{decoder.THING_SELF_ATTENTION} and {decoder.STUFF_SELF_ATTENTION}"
        )


def _check_boxes_are_predicted(psf: CfgNode) -> None:
    """What needs the location decoder's boxes has them."""
    node = psf.LOCATION_DECODER
    if node.NUM_LAYERS > 0 and node.TARGET == "box":
        return
    asked = {"LOCATION_DECODER.TWO_STAGE": node.TWO_STAGE, "MASK_DECODER.BOX_PRIOR": psf.MASK_DECODER.BOX_PRIOR}
    for key in (key for key, value in asked.items() if value):
        raise ValueError(
            f"MODEL.PSF.{key} is True, which needs predicted boxes; LOCATION_DECODER.NUM_LAYERS is {node.NUM_LAYERS} "
            f'and TARGET "{node.TARGET}": set them to 1 or more and "box", or {key} to False'
        )


def _check_channels(cfg: CfgNode) -> None:
    """INPUT.FORMAT is known, and it, MODEL.PIXEL_MEAN and PIXEL_STD mean one number of channels."""
    image_format, num_means, num_stds = cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN), len(cfg.MODEL.PIXEL_STD)
    if image_format not in NUM_CHANNELS:
        raise ValueError(f'INPUT.FORMAT is "{image_format}": expected one of {list(NUM_CHANNELS)}')
    wanted = NUM_CHANNELS[image_format] or max(num_means, 1)
    if not wanted == num_means == num_stds:
        raise ValueError(
            f"numbers of channels disagree: MODEL.PIXEL_MEAN has {num_means} numbers, MODEL.PIXEL_STD {num_stds}, and "
            f'INPUT.FORMAT "{image_format}" means {NUM_CHANNELS[image_format] or "as many as PIXEL_MEAN has"}; with '
            '"BANDS", files may have any number of them'
        )


def build_matching(cfg: CfgNode) -> SharedMatching | PerLayerMatching:
    """The way of matching that MODEL.PSF.MATCHER.MODE names."""
    psf, node = cfg.MODEL.PSF, cfg.MODEL.PSF.MATCHER
    weights = {
        "l1_weight": node.L1_WEIGHT,
        "giou_weight": node.GIOU_WEIGHT,
        "dice_weight": node.DICE_WEIGHT,
        "focal_alpha": psf.LOSS.FOCAL_ALPHA,
        "focal_gamma": psf.LOSS.FOCAL_GAMMA,
    }
    matcher = HungarianMatcher(class_weight=node.CLASS_WEIGHT, **weights)
    if node.MODE == "shared":
        return SharedMatching(matcher)
    second = HungarianMatcher(class_weight=node.SECOND_CLASS_WEIGHT, **weights)
    return PerLayerMatching(matcher, second, node.QUERIES_PER_THING)


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
        focal_alpha=node.FOCAL_ALPHA,
        focal_gamma=node.FOCAL_GAMMA,
    )
