"""The released R50 model for benchmarks: random weights that act like trained ones, and a baseline of plain parts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.modeling import build_model
from peers import Attend, other_implementations
from plain_mask_decoder import PlainMaskDecoder
from torch import Tensor, nn

from psf import PanopticSegFormer
from psf.engine import build_config
from psf.modeling import deformable_attention
from psf.structures import Candidates

__all__ = [
    "CONFIG",
    "given_candidates",
    "make_plausible",
    "plain_baselines",
    "plain_parts",
    "released_model",
]

CONFIG = "coco/released/psf_R50_24ep.yaml"
HIGH = 1e3  # far above all mask scores


def released_model(device: str, *options: str) -> PanopticSegFormer:
    """The model with random weights, without semantic results as in the released code. `options`: KEY, VALUE, ..."""
    torch.manual_seed(0)
    cfg = build_config(CONFIG, ["MODEL.PSF.TEST.SEMANTIC_ON", "False", "MODEL.DEVICE", device, *options])
    return build_model(cfg)


@torch.no_grad()
def make_plausible(model: PanopticSegFormer, inputs: list[dict[str, Any]], *, confident: int = 40) -> None:
    """Change weights so that no work is skipped: with random weights, all masks are empty and no class is confident.

    The last fusing layer of each mask decoder is scaled and shifted until a fifth of its mask scores is above 0.5. The
    class layers are scaled and shifted until `confident` of the thing candidates and a quarter of the stuff classes
    have a probability of more than a half.

    Args:
        model: in eval mode.
        inputs: of one image.
        confident: number of confident pairs of query and class.
    """

    def outputs(module: nn.Module) -> Any:
        found: list[Any] = []
        handle = module.register_forward_hook(lambda _, __, output: found.append(output))
        model(inputs)
        handle.remove()
        return found[-1]

    for decoder in (model.thing_decoder, model.stuff_decoder):
        fuse = decoder.tail_head.fuse
        fuse.bias += HIGH  # all inputs of the ReLU are positive
        scores = outputs(decoder).mask_scores[-1] - HIGH
        fuse.bias -= HIGH
        _rescale(fuse, scores, share=0.2, threshold=0.5, deviation=0.4)
    logits = outputs(model.location_decoder).layers[-1].class_logits
    _rescale(model.location_decoder.class_embed[-1], logits, share=confident / logits.numel(), threshold=0.0)
    stuff = model.stuff_classifier.layers[-1]
    _rescale(stuff, outputs(stuff), share=0.25, threshold=0.0)


def _rescale(linear: nn.Linear, outputs: Tensor, *, share: float, threshold: float, deviation: float = 1.0) -> None:
    """Rescale a linear layer so that its outputs have this deviation, and this share of them exceeds the threshold."""
    ordered = outputs.double().flatten().sort(descending=True).values
    scale = deviation / ordered.std()
    shift = threshold - scale * ordered[int(share * len(ordered))]
    linear.weight.mul_(scale)
    linear.bias.mul_(scale)
    linear.bias.add_(shift)


@contextmanager
def given_candidates(model: PanopticSegFormer, scene: Candidates) -> Iterator[list[Candidates]]:
    """Context in which post-processing gets `scene` instead of the model's own candidates, which are yielded.

    With random weights the masks of all things are alike, and merging would keep only one segment of them.
    """
    own: list[Candidates] = []
    results = model.post_processor.results

    def results_of_scene(candidates: Candidates, *args: Any, **kwargs: Any) -> dict[str, Any]:
        own[:] = [candidates]
        typed = scene._replace(mask_scores=scene.mask_scores.to(candidates.mask_scores.dtype))
        return results(typed, *args, **kwargs)

    model.post_processor.results = results_of_scene
    try:
        yield own
    finally:
        model.post_processor.results = results


@contextmanager
def plain_parts(model: PanopticSegFormer, attend: Attend | None = None) -> Iterator[None]:
    """Context in which the model has plain mask decoders, and samples with grid_sample or `attend`; same weights."""
    decoders = {name: getattr(model, name) for name in ("thing_decoder", "stuff_decoder")}
    module: Any = deformable_attention  # its function is replaced
    ours, variable = module.ms_deform_attn, os.environ.get("PSF_MSDA")
    try:
        for name, decoder in decoders.items():
            setattr(model, name, PlainMaskDecoder(decoder))
        if attend is not None:
            module.ms_deform_attn = lambda *inputs, configured: attend(*inputs)
        os.environ["PSF_MSDA"] = "reference"
        yield
    finally:
        for name, decoder in decoders.items():
            setattr(model, name, decoder)
        module.ms_deform_attn = ours
        del os.environ["PSF_MSDA"]
        if variable is not None:
            os.environ["PSF_MSDA"] = variable


def plain_baselines(device: str) -> dict[str, Attend | None]:
    """Arguments `attend` of `plain_parts`, by name of the baseline; the official kernels only on a GPU."""
    baselines: dict[str, Attend | None] = {"grid_sample and plain decoder": None}
    official = other_implementations(device).get("torch-ms-deform-attn")
    if device != "cpu" and official is not None:
        baselines["official op and plain decoder"] = official
    elif device != "cpu":
        print("torch-ms-deform-attn is not installed: no rows with the official op")
    return baselines
