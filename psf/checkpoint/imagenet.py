"""Convert ImageNet classifiers of several projects to the names of psf's backbones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from psf.checkpoint.name_table import rename
from psf.errors import UserError

__all__ = [
    "NOT_IN_IMAGENET",
    "PVT_V2",
    "RESNET",
    "SWIN",
    "TIMM_PVT_V2",
    "TIMM_SWIN",
    "Layout",
    "convert_imagenet",
    "find_layout",
]

# torchvision's, timm's and mmdetection's ResNet -> Detectron2's
RESNET = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.*": "stem.conv1.norm.*",
    **{
        f"layer{stage}.{old}": f"res{stage + 1}.{new}"
        for stage in range(1, 5)
        for old, new in {
            "#.conv#.weight": "#.conv#.weight",
            "#.bn#.*": "#.conv#.norm.*",
            "#.downsample.0.weight": "#.shortcut.weight",
            "#.downsample.1.*": "#.shortcut.norm.*",
        }.items()
    },
}

# The authors' PVTv2 -> timm's features_only
PVT_V2 = {
    "patch_embed1.*": "model.patch_embed.*",
    **{f"patch_embed{stage + 1}.*": f"model.stages_{stage}.downsample.*" for stage in range(1, 4)},
    **{
        f"{old.format(stage + 1)}": f"model.stages_{stage}.{new}"
        for stage in range(4)
        for old, new in {
            "block{}.#.mlp.dwconv.dwconv.*": "blocks.#.mlp.dwconv.*",
            "block{}.*": "blocks.*",
            "norm{}.*": "norm.*",
        }.items()
    },
}

# timm's PVTv2 with its classifier -> timm's features_only
TIMM_PVT_V2 = {
    "patch_embed.*": "model.patch_embed.*",
    "stages.#.*": "model.stages_#.*",
}

# The authors' Swin (and that of the released checkpoints) -> psf's, which has the same names
SWIN = {
    "patch_embed.*": "patch_embed.*",
    "layers.#.*": "layers.#.*",
    "norm#.*": "norm#.*",
}

# timm's Swin -> psf's: the patch merging begins a stage in timm, and ends the previous stage in the authors' code
TIMM_SWIN = {
    "patch_embed.*": "patch_embed.*",
    **{f"layers.{stage}.downsample.*": f"layers.{stage - 1}.downsample.*" for stage in range(1, 4)},
    "layers.#.blocks.*": "layers.#.blocks.*",
}


class Layout(NamedTuple):
    """Names of the entries of a classifier's checkpoint."""

    name: str
    marker: str  # an entry that identifies the layout: no earlier layout has an entry with this name
    table: Mapping[str, str]
    dropped: tuple[str, ...]  # patterns of entries that a backbone does not need, such as the classifier


LAYOUTS = (
    Layout("ResNet of torchvision or timm", "layer1.0.conv1.weight", RESNET, ("fc.*", "*.num_batches_tracked")),
    Layout("PVTv2 of its authors", "patch_embed1.proj.weight", PVT_V2, ("head.*",)),
    Layout("PVTv2 of timm", "stages.0.blocks.0.attn.kv.weight", TIMM_PVT_V2, ("head.*",)),
    Layout("Swin of its authors", "layers.0.downsample.reduction.weight", SWIN, ("norm.*", "head.*", "*.attn_mask")),
    Layout("Swin of timm", "layers.1.downsample.reduction.weight", TIMM_SWIN, ("norm.*", "head.*", "*.attn_mask")),
)

# Entries of psf's backbones that classifiers do not have: counters of batch norms, the norms of Swin's maps (which keep
# their initial values), and a computed table of positions.
NOT_IN_IMAGENET = (
    "backbone.norm#.*",
    "*.relative_position_index",
    "*.num_batches_tracked",
)


def convert_imagenet(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of an ImageNet classifier for the backbone of psf's model.

    A ResNet gets the names of Detectron2's ResNet, PVTv2 those of build_psf_timm_backbone, Swin those of
    build_psf_swin_backbone. All of them expect RGB and the PIXEL_MEAN and PIXEL_STD of Base-PSF.yaml.

    Args:
        state_dict: entries of torchvision's or timm's ResNet, or of the authors' or timm's Swin or PVTv2.

    Returns:
        "backbone...." names, as MODEL.WEIGHTS needs them; each source entry is used once or matches the layout's
        `dropped`. Backbone entries in `NOT_IN_IMAGENET` keep their initial values.

    Raises:
        UserError: if the layout is unknown, or entries are not in its table; the message lists them.
    """
    layout = find_layout(state_dict)
    table = {old: f"backbone.{new}" for old, new in layout.table.items()}
    return rename(state_dict, table, layout.dropped, source=f"the checkpoint ({layout.name})")


def find_layout(state_dict: Mapping[str, Tensor]) -> Layout:
    """The layout whose marker is among the entries; raises a UserError if there is none."""
    for layout in LAYOUTS:
        if layout.marker in state_dict:
            return layout
    raise UserError(
        "the checkpoint is neither a released Panoptic SegFormer, which has entries bbox_head.*, nor an ImageNet "
        f"{', '.join(layout.name for layout in LAYOUTS)}, which have an entry "
        f"{' or '.join(layout.marker for layout in LAYOUTS)}; its first entries are {', '.join(list(state_dict)[:3])}"
    )
