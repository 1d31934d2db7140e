"""Compare the tensors of a test run with the reference, under its names and in its shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fidelity.ranking import name_instances_alike, put_instances_in_order, put_pairs_in_order
from fidelity.stored import Comparison, StoredTensors
from psf.inference import top_pairs
from psf.meta_arch import PanopticSegFormer
from psf.structures import DecodedMasks

__all__ = ["Tensors", "compare_evaluation", "evaluation_tensors"]

TOLERANCE = 2e-4  # of real tensors, of the largest value
PIXEL_TOLERANCE = 2e-4  # share of pixels of maps and masks
# Reasons for not comparing a tensor.
SQUEEZED = "the released code squeezes the results of padded images"
PAIR_TIE = "the last of the best pairs have nearly equal scores: either may be included"
INSTANCE_TIE = "scores near 0: any order, or missing"
Tensors = dict[str, Tensor]


@torch.no_grad()
def evaluation_tensors(model: PanopticSegFormer, inputs: list[dict[str, Any]], dataset_ids: dict[int, int]) -> Tensors:
    """Run the model on a batch; returns the tensors that the reference numbers contain.

    Args:
        model: of the released recipe, in eval mode.
        inputs: Detectron2's input dicts.
        dataset_ids: contiguous category id -> the dataset's id.
    """
    assert model.location_decoder is not None and model.thing_decoder is not None and model.stuff_decoder is not None
    kept: dict[str, Any] = {"queries": []}
    modules: dict[str, nn.Module] = {
        "backbone": model.backbone,
        "neck": model.neck,
        "pixel_encoder": model.get_submodule("pixel_encoder"),
        "location_decoder": (location_decoder := model.get_submodule("location_decoder")),
    }
    handles = [module.register_forward_hook(_keep_output(kept, name)) for name, module in modules.items()]
    handles += [
        layer.register_forward_hook(_append_output(kept["queries"]))
        for layer in location_decoder.get_submodule("layers").children()
    ]
    decoders = {"things": model.get_submodule("thing_decoder"), "stuff": model.get_submodule("stuff_decoder")}
    for name, decoder in decoders.items():
        handles.append(decoder.register_forward_pre_hook(_keep_arguments(kept, name), with_kwargs=True))
    location_decoder.training = True  # the module alone, not its submodules: its head then runs at every layer
    try:
        results = model(inputs)
    finally:
        location_decoder.training = False
        for handle in handles:
            handle.remove()
    tensors = _of_batch(kept)
    things, stuff = (decoder(*kept[name][0], **kept[name][1]) for name, decoder in decoders.items())
    classifier = model.stuff_classifier
    assert classifier is not None
    for b, (x, result) in enumerate(zip(inputs, results, strict=True)):
        tensors.update({f"img{b}_{name}": value for name, value in _top_pairs(model, kept, b, x).items()})
        for kind, decoded in (("things", things), ("stuff", stuff)):
            tensors.update({f"img{b}_{kind}_{name}": value for name, value in _decoded(decoded, b).items()})
        tensors[f"img{b}_stuff_scores"] = classifier(stuff)[-1][b, :, 0].sigmoid()
        tensors.update({f"img{b}_{name}": value for name, value in _results(result, model, dataset_ids).items()})
    return tensors


def _keep_output(kept: dict[str, Any], name: str) -> Callable[..., None]:
    return lambda module, arguments, output: kept.update({name: output})


def _append_output(kept: list[Tensor]) -> Callable[..., None]:
    return lambda module, arguments, output: kept.append(output)


def _keep_arguments(kept: dict[str, Any], name: str) -> Callable[..., None]:
    """Keep the arguments without `layer`, because all layers are decoded again."""
    return lambda module, arguments, named: kept.update(
        {name: (arguments, {key: value for key, value in named.items() if key != "layer"})}
    )


def _of_batch(kept: dict[str, Any]) -> Tensors:
    tokens, located = kept["pixel_encoder"], kept["location_decoder"]
    locations = torch.stack([layer.locations for layer in located.layers])
    before_last = locations[-2].clamp(0, 1)
    return {
        **{f"backbone_c{name.removeprefix('res')}": value for name, value in kept["backbone"].items()},
        **{f"neck_p{i}": value for i, value in enumerate(kept["neck"])},
        "encoder_memory": tokens.tokens,
        "decoder_hs": torch.stack(kept["queries"]),
        "decoder_refs": locations,  # with box refinement, the head's boxes are the next layer's reference points
        "all_cls_scores": torch.stack([layer.class_logits for layer in located.layers]),
        "all_bbox_preds": locations,
        "last_reference_unsigmoid": (before_last.clamp(min=1e-5) / (1 - before_last).clamp(min=1e-5)).log(),
        "mask_memory_hw": torch.tensor(tokens.spatial_shapes, dtype=torch.int32),
    }


def _top_pairs(model: PanopticSegFormer, kept: dict[str, Any], b: int, x: dict[str, Any]) -> Tensors:
    last = kept["location_decoder"].layers[-1]
    rows, classes, scores = top_pairs(last.class_logits[b], model.settings.num_top_pairs)
    cx, cy, w, h = last.locations[b, rows].unbind(-1)
    height, width = x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2])
    corners = torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1).clamp(0, 1)
    boxes = corners * corners.new_tensor([width, height, width, height])
    return {
        "topk_query": rows.int(),
        "topk_labels": classes.int(),
        "topk_boxes": torch.cat((boxes, scores[:, None]), dim=1),
    }


def _decoded(decoded: DecodedMasks, b: int) -> Tensors:
    masks = [scores[b].flatten(1) for scores in decoded.mask_scores]
    return {
        "tail_mask": masks[-1],
        "block_masks": torch.stack(masks[:-1]),
        "block_queries": torch.stack([queries[b] for queries in decoded.refined_queries]),
    }


def _results(result: dict[str, Any], model: PanopticSegFormer, dataset_ids: dict[int, int]) -> Tensors:
    panoptic_seg, segments = result["panoptic_seg"]
    category, instance = torch.zeros_like(panoptic_seg), torch.zeros_like(panoptic_seg)
    scores: list[float] = []
    for segment in segments:
        own = panoptic_seg == segment["id"]
        category[own] = dataset_ids[segment["category_id"]]
        if segment["isthing"]:
            scores.append(segment["score"])
            instance[own] = len(scores)
    instances = result["instances"]
    labels = [model.classes.thing_ids.index(i) for i in instances.pred_classes.tolist()]
    return {
        "panoptic_category": category,
        "panoptic_instance": instance,
        "panoptic_scores": torch.tensor(scores, dtype=torch.float64),  # of things, by their id
        "inst_boxes": torch.cat((instances.pred_boxes.tensor, instances.scores[:, None]), dim=1),
        "inst_labels": torch.tensor(labels, dtype=torch.int32),
        "inst_masks": instances.pred_masks,
    }


def compare_evaluation(
    case: str, found: Tensors, stored: StoredTensors, squeezed: list[int]
) -> tuple[list[Comparison], dict[str, str]]:
    """Compare a test run with the reference.

    Args:
        case: for the report.
        found: `evaluation_tensors` of the same images.
        stored: the reference; its tensors with unknown names stay in `left`.
        squeezed: positions of images whose results the released code squeezed because of padding.

    Returns:
        The comparisons, and the reason for each tensor that was not compared, by name.
    """
    ours = {name: x.double().numpy() if x.is_floating_point() else x.numpy() for name, x in found.items()}
    skipped: dict[str, str] = {}
    counts: dict[str, np.ndarray] = {}  # by name, the compared elements, if not all
    for b in range(sum(name.endswith("_panoptic_category") for name in ours)):
        image = f"img{b}_"
        if image + "topk_query" in stored:
            rows = put_pairs_in_order(ours, stored, image)
            if not rows.all():
                skipped[f"{image}topk_* and {image}things_*: rows {_listed(~rows)}"] = PAIR_TIE
                counts.update(_elements(rows, ours, (image + "topk_", image + "things_")))
        if b in squeezed:
            results = (image + "panoptic_", image + "inst_")
            skipped.update({name: SQUEEZED for name in stored.names if name.startswith(results)})
            continue
        if image + "inst_boxes" in stored:
            rows = put_instances_in_order(ours, stored, image)
            if not rows.all():
                skipped[f"{image}inst_*: rows {_listed(~rows)}"] = INSTANCE_TIE
                counts.update(_elements(rows, ours, (image + "inst_",)))
        if image + "panoptic_instance" in stored:
            name_instances_alike(ours, stored, image)
    comparisons = []
    for name in stored.names:
        if name in ours and name not in skipped:
            tolerance = TOLERANCE if ours[name].dtype.kind == "f" else 0.0
            if name.endswith(("panoptic_category", "panoptic_instance", "inst_masks")):
                tolerance = PIXEL_TOLERANCE
            comparisons.append(stored.compare(case, name, ours[name], tolerance, counts.get(name)))
    return comparisons, skipped


def _listed(rows: np.ndarray) -> str:
    return ", ".join(str(row) for row in np.flatnonzero(rows))


def _elements(rows: np.ndarray, ours: dict[str, np.ndarray], prefixes: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Expand (N,) bool rows to the shape of each tensor with these prefixes; `_block_` tensors have rows on axis 1."""
    elements = {name: np.zeros(x.shape, bool) for name, x in ours.items() if name.startswith(prefixes)}
    for name, x in elements.items():
        x.swapaxes(0, 1 if "_block_" in name else 0)[rows] = True
    return elements
