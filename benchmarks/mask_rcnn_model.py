"""Parts of Detectron2's Mask R-CNN baseline: FPN over psf's timm backbone, and a mapper from panoptic GT to instances.

Importing this registers MODEL.BACKBONE.NAME "build_benchmark_timm_fpn_backbone" and INPUT.DATASET_MAPPER_NAME
"benchmark_instances".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.file_io import PathManager
from panoptic_instances import panoptic_classes
from torch import nn

from psf.backbone import build_psf_timm_backbone
from psf.checkpoint import read_state_dict
from psf.data import DATASET_MAPPER_REGISTRY, PanopticMapper

__all__ = ["InstanceMapper", "benchmark_instances", "build_benchmark_timm_fpn_backbone", "load_backbone"]


def build_benchmark_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """MODEL.BACKBONE.NAME: Detectron2's FPN, as for its ResNets, over psf's timm backbone."""
    return FPN(
        build_psf_timm_backbone(cfg, input_shape),
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class InstanceMapper:
    """psf's training mapper, with Detectron2's `instances` instead of the panoptic map.

    Args:
        cfg: the config.
        thing_ids: contiguous ids of the thing classes; the k-th of them is the detector's class k.
    """

    def __init__(self, cfg: CfgNode, thing_ids: Sequence[int]) -> None:
        self._mapper = PanopticMapper(cfg, True)
        self._class_of = {thing: k for k, thing in enumerate(thing_ids)}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """image, height, width, file_name, image_id, and instances: the things after augmentation, without crowds."""
        mapped = self._mapper(dataset_dict)
        labels, segments, boxes = (
            mapped.pop(key) for key in ("panoptic_labels", "segments_info", "panoptic_boxes_xyxy_px")
        )
        kept = [i for i, segment in enumerate(segments) if segment["isthing"] and not segment["iscrowd"]]
        values = torch.tensor([segments[i]["id"] for i in kept], dtype=labels.dtype)
        instances = Instances((labels.shape[0], labels.shape[1]))
        instances.gt_masks = BitMasks(labels[None] == values[:, None, None])  # (N, H, W)
        instances.gt_boxes = Boxes(boxes[kept].float())
        classes = [self._class_of[segments[i]["category_id"]] for i in kept]
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        return {**mapped, "instances": instances}


def benchmark_instances(cfg: CfgNode, is_train: bool) -> Any:
    """INPUT.DATASET_MAPPER_NAME: `InstanceMapper` in training, psf's own mapper at test."""
    if not is_train:
        return PanopticMapper(cfg, False)
    return InstanceMapper(cfg, panoptic_classes(cfg.DATASETS.TRAIN[0]).thing_ids)


def load_backbone(model: nn.Module, path: str) -> None:
    """Load the backbone of a psf checkpoint into the backbone under the FPN.

    Raises:
        ValueError: if the checkpoint lacks entries of this backbone.
    """
    prefix = "backbone."
    weights = read_state_dict(PathManager.get_local_path(path))
    own = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    target = model.get_submodule("backbone.bottom_up")
    missing = sorted(target.state_dict().keys() - own.keys())
    if missing:
        raise ValueError(
            f"MODEL.WEIGHTS {path}: found no value of {len(missing)} entries of the backbone, such as {missing[0]}; "
            f"expected a checkpoint of psf with the model of MODEL.PSF.TIMM.NAME"
        )
    target.load_state_dict({name: own[name] for name in target.state_dict()})


for _registry, _builder in (
    (BACKBONE_REGISTRY, build_benchmark_timm_fpn_backbone),
    (DATASET_MAPPER_REGISTRY, benchmark_instances),
):
    if _builder.__name__ not in _registry:  # a process may import this file twice
        _registry.register(_builder)
