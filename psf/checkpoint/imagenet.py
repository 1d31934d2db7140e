"""ImageNet classifiers in the layouts of those who trained them -> the names of psf's backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from psf.checkpoint.backbone_names import PVT_V2, RESNET, SWIN, TIMM_PVT_V2, TIMM_SWIN
from psf.checkpoint.name_table import rename

__all__ = ["NOT_IN_IMAGENET", "Layout", "convert_imagenet", "find_layout"]


class Layout(NamedTuple):
    """How the entries of a classifier's checkpoint are called."""

    name: str
    marker: str  # an entry that shows the layout: no layout before it has one of this name
    table: Mapping[str, str]
    dropped: tuple[str, ...]  # patterns of entries that a backbone does not have: the classifier, mostly


LAYOUTS = (
    Layout("ResNet of torchvision or timm", "layer1.0.conv1.weight", RESNET, ("fc.*", "*.num_batches_tracked")),
    Layout("PVTv2 of its authors", "patch_embed1.proj.weight", PVT_V2, ("head.*",)),
    Layout("PVTv2 of timm", "stages.0.blocks.0.attn.kv.weight", TIMM_PVT_V2, ("head.*",)),
    Layout("Swin of its authors", "layers.0.downsample.reduction.weight", SWIN, ("norm.*", "head.*", "*.attn_mask")),
    Layout("Swin of timm", "layers.1.downsample.reduction.weight", TIMM_SWIN, ("norm.*", "head.*", "*.attn_mask")),
)

# What psf's backbones have and classifiers lack: counters of batch norms, the norms of Swin's maps, which start fresh,
# and a table of positions that is computed.
NOT_IN_IMAGENET = (
    "backbone.norm#.*",
    "*.relative_position_index",
    "*.num_batches_tracked",
)


def convert_imagenet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of an ImageNet classifier for the backbone of psf's model.

    ResNets become Detectron2's (torchvision's and timm's want RGB and the PIXEL_MEAN and PIXEL_STD of Base-PSF.yaml, as
    do the others), PVTv2 those of build_psf_timm_backbone, Swin those of build_psf_swin_backbone.

    Args:
        state_dict: entries of torchvision's or timm's ResNet, or of Swin or PVTv2 by their authors or timm.

    Returns:
        "backbone...." names, as MODEL.WEIGHTS needs them; each source entry is used once, or is one of the layout's
        `dropped`. What a backbone has besides is in `NOT_IN_IMAGENET` and keeps the values that it starts with.

    Raises:
        ValueError: if the layout is none of these, or naming the entries that its table does not know.
    """
    layout = find_layout(state_dict)
    table = {old: f"backbone.{new}" for old, new in layout.table.items()}
    return rename(state_dict, table, layout.dropped, source=f"the checkpoint ({layout.name})")


def find_layout(state_dict: Mapping[str, Tensor]) -> Layout:
    """The layout whose marker is among the entries; ValueError if there is none."""
    for layout in LAYOUTS:
        if layout.marker in state_dict:
            return layout
    raise ValueError(
        "the checkpoint is neither a released Panoptic SegFormer, which has entries bbox_head.*, nor an ImageNet "
        f"{', '.join(layout.name for layout in LAYOUTS)}, which have an entry "
        f"{' or '.join(layout.marker for layout in LAYOUTS)}; its first are {', '.join(list(state_dict)[:3])}"
    )
