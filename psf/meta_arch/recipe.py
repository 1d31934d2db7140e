"""Check the values and combinations of the keys under MODEL.PSF by a table of rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode

from psf.errors import UserError
from psf.inference import POST_PROCESSOR_REGISTRY
from psf.modeling.activation_checkpointing import PARTS
from psf.modeling.interfaces import LOCATION_DECODER_REGISTRY, MASK_DECODER_REGISTRY, PIXEL_ENCODER_REGISTRY
from psf.ops import AUTO, IMPLEMENTATIONS, check_implementation

__all__ = ["check_recipe"]

CHOICES = {
    "QUERIES": ("decoupled", "joint"),
    "MSDA": (AUTO, *IMPLEMENTATIONS),
    "THING_CLASSIFIER": ("mask_decoder", "location_decoder"),
    "MATCHER.MODE": ("shared", "per_layer"),
    "TEST.CANDIDATES": ("best_class", "top_pairs"),
    "TEST.INSTANCE.BOXES": ("mask", "location_decoder"),
    "MASK_DECODER.STUFF_POSITION": ("query", "stream"),
    "MASK_DECODER.THING_POSITION": ("none", "located"),
}
MAX_QUERIES = 100_000  # attention needs the square of them
MAX_COUNT = 1_000_000  # layers, channels, images: more are a slip, and fail without a reason for want of memory
AT_LEAST_ONE = (
    "HIDDEN_DIM",
    "NUM_HEADS",
    "NUM_FEATURE_LEVELS",
    *(f"{part}.FEEDFORWARD_DIM" for part in ("PIXEL_ENCODER", "LOCATION_DECODER", "MASK_DECODER")),
    *(f"{part}.NUM_POINTS" for part in ("PIXEL_ENCODER", "LOCATION_DECODER")),
    "MATCHER.QUERIES_PER_THING",
    "TEST.BATCH_SIZE",
    "TEST.NUM_TOP_PAIRS",
)
AT_LEAST_ZERO = (
    *(f"{part}.NUM_LAYERS" for part in ("PIXEL_ENCODER", "LOCATION_DECODER")),
    *(f"MASK_DECODER.NUM_{kind}_LAYERS" for kind in ("THING", "STUFF")),
    *(f"MATCHER.{name}_WEIGHT" for name in ("CLASS", "L1", "GIOU", "DICE")),
    *(
        f"LOSS.{name}_WEIGHT"
        for name in ("THINGS", "STUFF", "CLS", "STUFF_CLS", "SEG", "DET_CLS", "DET_L1", "DET_GIOU")
    ),
    "LOSS.FOCAL_GAMMA",
)
# Probabilities of dropping something, below 1.
RATES = ("PIXEL_ENCODER.DROPOUT", "LOCATION_DECODER.DROPOUT", "SWIN.DROP_PATH", "TIMM.DROP_PATH")
REGISTRIES = {
    "PIXEL_ENCODER": PIXEL_ENCODER_REGISTRY,
    "LOCATION_DECODER": LOCATION_DECODER_REGISTRY,
    "MASK_DECODER": MASK_DECODER_REGISTRY,
    "POST_PROCESSOR": POST_PROCESSOR_REGISTRY,
}
# Channels of each INPUT.FORMAT; None: as many as MODEL.PIXEL_MEAN has numbers.
NUM_CHANNELS = {"BGR": 3, "RGB": 3, "L": 1, "BANDS": None}


class Rule(NamedTuple):
    """An invalid combination; both fields take the node MODEL.PSF."""

    is_broken: Callable[[CfgNode], bool]
    message: str  # without the leading "MODEL.PSF."; {node.KEY} stands for a value


def _predicts_boxes(node: CfgNode) -> bool:
    return bool(node.LOCATION_DECODER.NUM_LAYERS > 0 and node.LOCATION_DECODER.TARGET == "box")


def _needs_head(node: CfgNode) -> bool:
    """Whether a key needs a class or a location from the location decoder's head at test."""
    head_users = (node.THING_CLASSIFIER, node.TEST.INSTANCE.BOXES)
    return "location_decoder" in head_users or bool(node.MASK_DECODER.THING_POSITION == "located")


NEEDS_BOXES = (
    "{key} is True, which needs predicted boxes, but LOCATION_DECODER.NUM_LAYERS is "
    '{{node.LOCATION_DECODER.NUM_LAYERS}} and TARGET "{{node.LOCATION_DECODER.TARGET}}": '
    'set them to 1 or more and "box", or {key} to False'
)
RULES = (
    Rule(
        lambda node: node.HIDDEN_DIM % node.NUM_HEADS != 0,
        "HIDDEN_DIM {node.HIDDEN_DIM} is not a multiple of MODEL.PSF.NUM_HEADS {node.NUM_HEADS}",
    ),
    Rule(
        lambda node: node.TEST_LAYER == 0 or node.TEST_LAYER < -1,
        "TEST_LAYER is {node.TEST_LAYER}: expected a layer from 1, or -1 for the last",
    ),
    Rule(
        lambda node: not 1 <= node.NUM_THING_QUERIES <= MAX_QUERIES and node.NUM_THING_QUERIES != -1,
        f"NUM_THING_QUERIES is {{node.NUM_THING_QUERIES}}: expected 1 to {MAX_QUERIES} (300 in the paper), or -1 (from "
        "the data)",
    ),
    Rule(
        lambda node: not node.IN_FEATURES,
        "IN_FEATURES is empty: expected names of maps of the backbone, finest first",
    ),
    Rule(
        lambda node: node.POST_PROCESSOR.TUNE_IMAGES < 0,
        "POST_PROCESSOR.TUNE_IMAGES is {node.POST_PROCESSOR.TUNE_IMAGES}: expected a number of training images, or 0 "
        "to keep the thresholds of the config",
    ),
    Rule(
        lambda node: not (node.TEST.PANOPTIC_ON or node.TEST.INSTANCE_ON or node.TEST.SEMANTIC_ON),
        "TEST.PANOPTIC_ON, INSTANCE_ON and SEMANTIC_ON are all False, so there are no results; set one of them to True",
    ),
    Rule(
        lambda node: node.MATCHER.MODE == "per_layer" and node.THING_CLASSIFIER != "location_decoder",
        'MATCHER.MODE "per_layer" trains the mask decoder only on matched queries, so it cannot learn which queries '
        'are no thing: set MODEL.PSF.THING_CLASSIFIER to "location_decoder", or MODE to "shared"',
    ),
    Rule(
        lambda node: node.MATCHER.MODE == "per_layer" and node.MASK_DECODER.THING_SELF_ATTENTION,
        'MATCHER.MODE "per_layer" pads images with fewer matched queries, which must not be attended to: set '
        "MODEL.PSF.MASK_DECODER.THING_SELF_ATTENTION to False",
    ),
    Rule(
        lambda node: node.LOCATION_DECODER.NUM_LAYERS == 0 and _needs_head(node),
        "LOCATION_DECODER.NUM_LAYERS is 0: there is no head that predicts classes or boxes; set THING_CLASSIFIER to "
        '"mask_decoder", TEST.INSTANCE.BOXES to "mask", MASK_DECODER.THING_POSITION to "none"',
    ),
    Rule(
        lambda node: node.LOCATION_DECODER.TWO_STAGE and not _predicts_boxes(node),
        NEEDS_BOXES.format(key="LOCATION_DECODER.TWO_STAGE"),
    ),
    Rule(
        lambda node: node.MASK_DECODER.BOX_PRIOR and not _predicts_boxes(node),
        NEEDS_BOXES.format(key="MASK_DECODER.BOX_PRIOR"),
    ),
    Rule(
        lambda node: node.TEST.INSTANCE.BOXES == "location_decoder" and not _predicts_boxes(node),
        'TEST.INSTANCE.BOXES is "location_decoder", which predicts no boxes with LOCATION_DECODER.TARGET '
        '"{node.LOCATION_DECODER.TARGET}"',
    ),
)


def check_recipe(cfg: CfgNode) -> None:
    """Check for unknown values, the combinations of `RULES`, unequal numbers of channels, and PSF_MSDA.

    Raises:
        UserError: if a check fails; the message names the keys.
    """
    _check_lists_of_names(cfg)
    _check_channels(cfg)
    node = cfg.MODEL.PSF
    if unknown := [name for name in node.ACTIVATION_CHECKPOINTING if name not in PARTS]:
        raise UserError(f'MODEL.PSF.ACTIVATION_CHECKPOINTING contains "{unknown[0]}": expected some of {list(PARTS)}')
    for key, choices in CHOICES.items():
        if (value := _value(node, key)) not in choices:
            raise UserError(f'MODEL.PSF.{key} is "{value}": expected one of {list(choices)}')
    check_implementation(torch.device(cfg.MODEL.DEVICE).type, node.MSDA)
    for key, registry in REGISTRIES.items():
        if node[key].NAME not in registry:
            names = sorted(name for name, _ in registry)
            raise UserError(
                f'MODEL.PSF.{key}.NAME is "{node[key].NAME}": registered are {names}; --import MODULE or '
                "MODEL.PSF.IMPORTS imports the module that registers a class of your own"
            )
    for least, keys in ((1, AT_LEAST_ONE), (0, AT_LEAST_ZERO)):
        for key in keys:
            if (value := _value(node, key)) < least:
                raise UserError(f"MODEL.PSF.{key} is {value}: expected {least} or more")
            if isinstance(value, int) and value > MAX_COUNT:
                raise UserError(f"MODEL.PSF.{key} is {value}: expected at most {MAX_COUNT}")
    for key in RATES:
        if not 0 <= (value := _value(node, key)) < 1:
            raise UserError(f"MODEL.PSF.{key} is {value}: expected a probability of 0 or more, below 1")
    for rule in RULES:
        if rule.is_broken(node):
            raise UserError("MODEL.PSF." + rule.message.format(node=node))


def _value(node: CfgNode, key: str) -> Any:
    for part in key.split("."):
        node = node[part]
    return node


def _check_lists_of_names(cfg: CfgNode) -> None:
    """A config that is made in Python may have a text in place of a list, often for want of a comma."""
    for key in ("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.PSF.ACTIVATION_CHECKPOINTING", "MODEL.PSF.IN_FEATURES"):
        names = _value(cfg, key)
        if isinstance(names, str):
            raise UserError(f"{key} is the text {names!r}: expected a tuple, with a comma: ({names!r},)")
        if not all(isinstance(name, str) for name in names):
            raise UserError(f"{key} is {names!r}: expected names")


def _check_channels(cfg: CfgNode) -> None:
    """Check INPUT.FORMAT, and that MODEL.PIXEL_MEAN and PIXEL_STD have its number of channels."""
    image_format, num_means, num_stds = cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN), len(cfg.MODEL.PIXEL_STD)
    if image_format not in NUM_CHANNELS:
        raise UserError(f'INPUT.FORMAT is "{image_format}": expected one of {list(NUM_CHANNELS)}')
    num_channels = NUM_CHANNELS[image_format] or max(num_means, 1)
    if not num_channels == num_means == num_stds:
        raise UserError(
            f"numbers of channels disagree: MODEL.PIXEL_MEAN has {num_means} numbers, MODEL.PIXEL_STD {num_stds}, and "
            f'INPUT.FORMAT "{image_format}" means {NUM_CHANNELS[image_format] or "as many as PIXEL_MEAN has"}; with '
            '"BANDS", files may have any number of them'
        )
