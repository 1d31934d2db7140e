"""Names of backbone weights in the layouts of those who trained them, and in psf's models."""

from __future__ import annotations

__all__ = ["PVT_V2", "RESNET", "SWIN", "TIMM_PVT_V2", "TIMM_SWIN"]

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

# PVTv2 of its authors -> timm's features_only
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

# PVTv2 of timm with its classifier -> timm's features_only
TIMM_PVT_V2 = {
    "patch_embed.*": "model.patch_embed.*",
    "stages.#.*": "model.stages_#.*",
}

# Swin of its authors (and of the released checkpoints) -> psf's, which has the same names
SWIN = {
    "patch_embed.*": "patch_embed.*",
    "layers.#.*": "layers.#.*",
    "norm#.*": "norm#.*",
}

# Swin of timm -> psf's: there a stage begins with the patch merging with which its authors end the one before
TIMM_SWIN = {
    "patch_embed.*": "patch_embed.*",
    **{f"layers.{stage}.downsample.*": f"layers.{stage - 1}.downsample.*" for stage in range(1, 4)},
    "layers.#.blocks.*": "layers.#.blocks.*",
}
