"""Which instances are reported, as the config says."""

from __future__ import annotations

import math
from typing import NamedTuple

from detectron2.config import CfgNode

__all__ = ["InstanceSettings", "instance_settings"]


class InstanceSettings(NamedTuple):
    """Which instances are reported (MODEL.PSF.TEST.INSTANCE)."""

    boxes: str  # "mask": tight around it; "location_decoder": as predicted
    score_thresh: float  # least confidence
    max_per_image: int
    nms_thresh: float  # mask IoU above which the lesser of two instances of a class is left out; 1: none


def instance_settings(cfg: CfgNode) -> InstanceSettings:
    """The config's.

    Raises:
        ValueError: naming the key whose value no instance could have.
    """
    node, activation = cfg.MODEL.PSF.TEST.INSTANCE, cfg.MODEL.PSF.MASK_DECODER.MASK_ACTIVATION
    highest = math.inf if activation == "relu" else 1.0  # of the confidence
    if not 0 <= node.SCORE_THRESH <= highest:
        expected = "0 or more" if activation == "relu" else "a confidence from 0 to 1"
        raise ValueError(
            f"MODEL.PSF.TEST.INSTANCE.SCORE_THRESH is {node.SCORE_THRESH}: expected {expected}, as "
            f'MASK_DECODER.MASK_ACTIVATION is "{activation}"'
        )
    if node.MAX_PER_IMAGE < 1:
        raise ValueError(f"MODEL.PSF.TEST.INSTANCE.MAX_PER_IMAGE is {node.MAX_PER_IMAGE}: expected 1 or more")
    if not 0 <= node.NMS_THRESH <= 1:
        raise ValueError(
            f"MODEL.PSF.TEST.INSTANCE.NMS_THRESH is {node.NMS_THRESH}: expected an IoU from 0 to 1; 1 keeps all"
        )
    return InstanceSettings(node.BOXES, node.SCORE_THRESH, node.MAX_PER_IMAGE, node.NMS_THRESH)
