"""A small model with random weights and made-up images with their ground truth: for tests that need no learning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from psf import PanopticSegFormer, add_psf_config, model_zoo
from psf.modeling.mask_decoder import MaskHead

NUM_THING_CLASSES, NUM_STUFF_CLASSES = 3, 4  # contiguous ids 0..2 and 3..6

PAPER: dict[str, Any] = {}  # the defaults
# Keys under MODEL.PSF, with the values of the released code.
RELEASED: dict[str, Any] = {
    "NUM_FEATURE_LEVELS": 4,
    "LOCATION_DECODER.BOX_REFINEMENT": True,
    "THING_CLASSIFIER": "location_decoder",
    "MATCHER.MODE": "per_layer",
    "TEST.CANDIDATES": "top_pairs",
    "MASK_DECODER.MASK_ACTIVATION": "relu",
    "MASK_DECODER.IGNORE_PADDING": False,
    "MASK_DECODER.STUFF_POSITION": "stream",
    "LOSS.BALANCE": "share",
    "LOSS.STUFF_CLS_WEIGHT": 4.0,
    "TEST.INSTANCE.BOXES": "location_decoder",
    "POST_PROCESSOR.EXTRA_PIXELS": 1.0,
}
# Those of configs/small, with what they add to either.
SMALL: dict[str, Any] = {
    "FINE_FEATURE": "res2",
    "LOCATION_DECODER.BOX_REFINEMENT": True,
    "LOCATION_DECODER.TWO_STAGE": True,
    "THING_CLASSIFIER": "location_decoder",
    "MATCHER.MODE": "per_layer",
    "MASK_DECODER.KEY_POSITION": True,
    "MASK_DECODER.THING_POSITION": "located",
    "MASK_DECODER.BOX_PRIOR": True,
    "LOSS.BALANCE": "share",
}
RECIPES = {"paper": PAPER, "released": RELEASED, "small": SMALL}

_TINY = {
    "NUM_THING_CLASSES": NUM_THING_CLASSES,
    "NUM_STUFF_CLASSES": NUM_STUFF_CLASSES,
    "NUM_THING_QUERIES": 6,
    "HIDDEN_DIM": 64,
    "PIXEL_ENCODER.NUM_LAYERS": 2,
    "LOCATION_DECODER.NUM_LAYERS": 2,
    "MASK_DECODER.NUM_THING_LAYERS": 2,
    "MASK_DECODER.NUM_STUFF_LAYERS": 3,
    "TEST.NUM_TOP_PAIRS": 10,
    **{f"{part}.FEEDFORWARD_DIM": 32 for part in ("PIXEL_ENCODER", "LOCATION_DECODER", "MASK_DECODER")},
    **{f"{part}.DROPOUT": 0.0 for part in ("PIXEL_ENCODER", "LOCATION_DECODER")},
}
_NARROW_RESNET = {
    "DEPTH": 50,
    "OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "STEM_OUT_CHANNELS": 8,
    "WIDTH_PER_GROUP": 8,
    "RES2_OUT_CHANNELS": 16,
}


def tiny_config(psf: Mapping[str, Any] = PAPER, **keys: Any) -> CfgNode:
    """Base-PSF.yaml on the CPU, with a narrow ResNet-50 and few, thin layers; no dataset, no dropout.

    Args:
        psf: keys under MODEL.PSF.
        keys: other ones, with "__" for the dot.
    """
    cfg = get_cfg()
    add_psf_config(cfg)
    cfg.merge_from_file(model_zoo.get_config_file("Base-PSF.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    options = {
        **{f"MODEL.RESNETS.{key}": value for key, value in _NARROW_RESNET.items()},
        **{f"MODEL.PSF.{key}": value for key, value in {**_TINY, **psf}.items()},
        **{key.replace("__", "."): value for key, value in keys.items()},
    }
    cfg.merge_from_list([x for pair in options.items() for x in pair])
    return cfg


def tiny_model(psf: Mapping[str, Any] = PAPER, *, seed: int = 0, **keys: Any) -> PanopticSegFormer:
    """The model of `tiny_config`; all parameters are shaken, so that none is 0 and classes and masks differ."""
    torch.manual_seed(seed)
    model = build_model(tiny_config(psf, **keys))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.1 * torch.randn_like(parameter)
            if name.endswith("bias") and ("class_embed" in name or "_classifier" in name):
                parameter += 4.0  # probabilities around a half
        _centre_masks(model)
    return model


def _centre_masks(model: PanopticSegFormer) -> None:
    """Masks become high in places and low in others: a ReLU could have made them 0 everywhere."""

    def centre(head: MaskHead, inputs: Any, fused: Tensor) -> None:
        head.fuse.bias -= fused.mean() - 0.5

    heads = [module for module in model.modules() if isinstance(module, MaskHead)]
    activations = [head.activation for head in heads]
    hooks = [head.register_forward_hook(centre) for head in heads]
    for head in heads:
        head.activation = lambda fused: fused
    nothing = {"panoptic_labels": torch.zeros(64, 96, dtype=torch.uint8), "segments_info": []}
    model.train()([{**make_input(64, 96, things=0, stuff=0), **nothing}])
    for head, activation, hook in zip(heads, activations, hooks, strict=True):
        head.activation = activation
        hook.remove()


def make_input(
    height: int, width: int, *, things: int, stuff: int, seed: int = 0, first_stuff_id: int = NUM_THING_CLASSES
) -> dict[str, Any]:
    """An image of noise with bands of stuff below rectangles of things, as psf's mapper gives it.

    The first columns stay void, where there is room. Thing classes repeat, stuff classes do not.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(height, width, dtype=torch.uint8)
    segments: list[dict[str, Any]] = []

    def add(rows: slice, columns: slice, category_id: int, isthing: bool) -> None:
        segments.append({"id": len(segments) + 1, "category_id": category_id, "isthing": isthing, "iscrowd": False})
        labels[rows, columns] = len(segments)

    void = width // 8
    for i in range(stuff):
        edges = [void + (width - void) * k // stuff for k in (i, i + 1)]
        add(slice(None), slice(*edges), first_stuff_id + i, False)
    for i in range(things):
        top, left = (height * i) // (things + 1), (width * i) // (things + 1)
        add(slice(top, top + height // 2 + 1), slice(left, left + width // 3 + 1), i % NUM_THING_CLASSES, True)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        "height": height,
        "width": width,
        "file_name": f"noise_{seed}.png",
        "image_id": seed,
        "panoptic_labels": labels,
        "segments_info": segments,
    }


def total(losses: Mapping[str, Tensor]) -> Tensor:
    """The training loss: the plain sum of its terms."""
    return torch.stack(list(losses.values())).sum()


def gradients(model: nn.Module, inputs: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """The loss terms of one training step, and the gradient of every parameter that requires one."""
    model.train()
    model.zero_grad(set_to_none=True)
    losses = model(inputs)
    total(losses).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def check_result(result: dict[str, Any], model: PanopticSegFormer, height: int, width: int) -> None:
    """Assert the contract of one image's results, of this size."""
    thing_ids, stuff_ids = model.classes
    panoptic_seg, segments = result["panoptic_seg"]
    assert panoptic_seg.shape == (height, width) and panoptic_seg.dtype == torch.int32
    for segment in segments:
        kinds = {key: type(value) for key, value in segment.items()}
        assert kinds == {"id": int, "category_id": int, "isthing": bool, "score": float, "area": int}
        assert segment["category_id"] in (thing_ids if segment["isthing"] else stuff_ids)
        assert int((panoptic_seg == segment["id"]).sum()) == segment["area"] > 0
    assert [segment["id"] for segment in segments] == list(range(1, len(segments) + 1))
    assert set(panoptic_seg.unique().tolist()) <= set(range(len(segments) + 1))
    stuff = [segment["category_id"] for segment in segments if not segment["isthing"]]
    assert len(stuff) == len(set(stuff))

    instances = result["instances"]
    assert isinstance(instances, Instances) and instances.image_size == (height, width)
    number = len(instances)
    assert instances.pred_masks.shape == (number, height, width) and instances.pred_masks.dtype == torch.bool
    assert isinstance(instances.pred_boxes, Boxes) and instances.pred_boxes.tensor.shape == (number, 4)
    x0, y0, x1, y1 = instances.pred_boxes.tensor.unbind(1)
    assert ((x0 >= 0) & (x0 <= x1) & (x1 <= width) & (y0 >= 0) & (y0 <= y1) & (y1 <= height)).all()
    assert torch.equal(instances.scores, instances.scores.sort(descending=True).values)
    assert instances.pred_classes.dtype == torch.int64 and set(instances.pred_classes.tolist()) <= set(thing_ids)
    assert result["sem_seg"].shape == (max(thing_ids + stuff_ids) + 1, height, width)
    assert result["sem_seg"].is_floating_point() and (result["sem_seg"] >= 0).all()
