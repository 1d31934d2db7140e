"""The model of a folder of reference numbers, with weights made by formula."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from torch import nn
from torchvision.ops import StochasticDepth

from fidelity.formula import formula_weights
from psf.checkpoint import convert_released
from psf.data.files import read_json
from psf.engine import build_config
from psf.errors import UserError
from psf.meta_arch import PanopticSegFormer

__all__ = ["config_for", "filled_model", "given_images", "read_manifest", "released_names", "without_dropout"]

Shapes = dict[str, tuple[int, ...]]

# A parameter of the deepest block identifies a released model.
CONFIGS = {
    "backbone.layer3.22.conv1.weight": "coco/released/psf_R101_24ep.yaml",
    "backbone.layer3.5.conv1.weight": "coco/released/psf_R50_24ep.yaml",
    "backbone.block3.39.attn.q.weight": "coco/released/psf_PVTv2-B5_24ep.yaml",
    "backbone.layers.2.blocks.17.attn.qkv.weight": "coco/released/psf_Swin-L_24ep.yaml",
}


def read_manifest(file: Path) -> Shapes:
    """Read the shapes of the weights, by released name.

    Raises:
        UserError: if the file is missing or has another format.
    """
    content = read_json(file)
    try:
        return {name: tuple(shape) for name, shape in content.items()}
    except (AttributeError, TypeError) as error:
        raise UserError(f"{file}: expected a JSON file of shapes by name: {error}") from error


def config_for(names: Iterable[str], config_file: str | None) -> CfgNode:
    """The config of `config_file`, or of the released model with these parameter names; on the CPU.

    Raises:
        UserError: if no released model has these names.
    """
    if config_file is None:
        known = set(names)
        config_file = next((config for marker, config in CONFIGS.items() if marker in known), None)
        if config_file is None:
            raise UserError(f"no model of {list(CONFIGS.values())} has these parameters: set `config` in cases.json")
    cfg = build_config(config_file)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.PSF.TEST.SEMANTIC_ON = False  # no reference numbers
    cfg.MODEL.PSF.MASK_DECODER.RELU_GRADIENT = "plain"  # as the reference computed its gradients
    return cfg


def filled_model(cfg: CfgNode, shapes: Shapes, dtype: torch.dtype) -> PanopticSegFormer:
    """The model of the config with the weights that the formula gives for the released names; in eval mode.

    Raises:
        UserError: naming the parameters, if names or shapes do not fit the model exactly.
    """
    model = build_model(cfg)
    weights = convert_released({name: torch.from_numpy(x) for name, x in formula_weights(shapes).items()})
    own = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    wrong = sorted({name for name, x in weights.items() if own.get(name) != tuple(x.shape)} | (own.keys() - weights))
    if wrong:
        raise UserError(f"{len(wrong)} parameters of model and manifest differ: {', '.join(wrong[:10])}")
    model.load_state_dict(weights)
    return model.to(dtype).eval()


def released_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Released name -> psf's names of its parts; empty if the parameter is dropped on purpose."""
    numbered = {name: i for i, name in enumerate(names)}
    # The value of each entry is its index, which identifies it under its new names.
    converted = convert_released({name: torch.full((1, 2), float(i)) for name, i in numbered.items()})
    parts: dict[str, list[str]] = {name: [] for name in numbered}
    old_names = list(numbered)
    for new, value in converted.items():
        parts[old_names[int(value[0, 0])]].append(new)
    return parts


@contextmanager
def given_images(
    model: PanopticSegFormer, images: Sequence[np.ndarray], padded_size: Sequence[int]
) -> Iterator[list[dict[str, Any]]]:
    """Input dicts of uint8 RGB images. The model gets them normalized in float64 and padded to the given size.

    The reference numbers start from the normalized and padded tensor.
    """
    # Undo the rounding of the config's decimals to float32.
    mean, std = (x.double().numpy().round(3) for x in (model.pixel_mean, model.pixel_std))
    batch = torch.zeros(len(images), 3, *padded_size, dtype=model.pixel_mean.dtype)
    for slot, image in zip(batch, images, strict=True):
        normalized = ((image.transpose(2, 0, 1) - mean) / std).astype(np.float32)
        slot[:, : image.shape[0], : image.shape[1]] = torch.from_numpy(normalized)
    sizes = [(image.shape[0], image.shape[1]) for image in images]
    inputs = [{"image": torch.from_numpy(image.transpose(2, 0, 1).copy())} for image in images]
    with patch.object(model, "preprocess", return_value=ImageList(batch, sizes)):
        yield inputs


def without_dropout(model: nn.Module) -> nn.Module:
    """Put the model in training mode, and set every dropout and drop path to probability 0."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, StochasticDepth)):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif hasattr(module, "drop_prob"):  # timm's DropPath
            module.drop_prob = 0.0  # type: ignore[assignment]
    return model.train()
