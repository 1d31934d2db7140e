"""Compare deformable attention and mask-wise merging separately, on stored problems."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode

from fidelity.stored import Comparison, StoredTensors, compare_arrays
from psf.inference import ImageGeometry, MaskWiseMerging, build_post_processor
from psf.ops import ms_deform_attn
from psf.structures import Candidates

__all__ = ["compare_deformable_attention", "compare_merging"]

TOLERANCE = 2e-4
FLOAT64_TOLERANCE = 1e-9


def compare_deformable_attention(stored: StoredTensors, dtype: torch.dtype) -> list[Comparison]:
    """Compare outputs and gradients of the problems p0, p1, ... in `dtype`."""
    tolerance = TOLERANCE if dtype == torch.float32 else FLOAT64_TOLERANCE
    comparisons = []
    for case in sorted(
        name.removesuffix("_value") for name in stored.names if name.endswith("_value") and "grad" not in name
    ):
        arguments = {
            name: torch.from_numpy(stored[f"{case}_{name}"]).to(dtype).requires_grad_()
            for name in ("value", "locations", "weights")
        }
        shapes = [(int(h), int(w)) for h, w in stored[f"{case}_shapes"]]
        output = ms_deform_attn(arguments["value"], shapes, arguments["locations"], arguments["weights"])
        output.backward(torch.from_numpy(stored[f"{case}_grad_output"]).to(dtype))
        found = {"output": output.detach(), **{f"grad_{name}": x.grad for name, x in arguments.items()}}
        for name, x in found.items():
            assert x is not None
            comparisons.append(stored.compare("deformable attention", f"{case}_{name}", x.numpy(), tolerance))
    return comparisons


def compare_merging(stored: StoredTensors, cfg: CfgNode, dataset_ids: list[int]) -> list[Comparison]:
    """Compare final scores, maps and instances of each problem, with equal scores in the given order.

    Args:
        stored: `PROBLEM_in_masks`, ... and the results.
        cfg: of the released recipe.
        dataset_ids: the dataset's category ids, things before stuff.
    """
    processor = build_post_processor(cfg)
    assert isinstance(processor, MaskWiseMerging)
    comparisons = []
    for problem in [name.removesuffix("_in_masks") for name in stored.names if name.endswith("_in_masks")]:
        found = _merge(problem, stored, processor, dataset_ids)
        # The released code uses torch's unstable sort; with ties, only the stable order can be compared.
        for name in ("category", "instance", "order"):
            stored[f"{problem}_{name}"]
        for name, x in found.items():
            comparisons.append(_compare(problem, name, x, stored))
    return comparisons


def _merge(
    problem: str, stored: StoredTensors, processor: MaskWiseMerging, dataset_ids: list[int]
) -> dict[str, np.ndarray]:
    masks, scores, labels = (torch.from_numpy(stored[f"{problem}_in_{x}"]) for x in ("masks", "scores", "labels"))
    num_things, num_stuff = len(labels), len(scores) - len(labels)
    is_thing = torch.arange(len(scores)) < num_things
    candidates = Candidates(scores, torch.cat((labels, torch.arange(num_stuff))), is_thing, masks, None)
    size = (masks.shape[1], masks.shape[2])
    height, width = stored[f"{problem}_out_size"].tolist()
    geometry = ImageGeometry(size, size, (height, width))
    scored = processor.score(candidates, torch.ones_like(is_thing), geometry)
    confidence = scored.masks.confidence
    first_stuff = len(dataset_ids) - num_stuff
    category, instance = torch.zeros(height, width, dtype=torch.int16), torch.zeros(height, width, dtype=torch.int16)
    merged = processor.panoptic(candidates, geometry, scored)
    for segment in merged.segments:
        own = merged.panoptic_seg == segment.id
        thing = segment.candidate < num_things
        index = int(labels[segment.candidate]) if thing else first_stuff + segment.candidate - num_things
        category[own] = dataset_ids[index]
        if thing:
            instance[own] = int(instance.max()) + 1
    best = confidence[:num_things].argsort(descending=True, stable=True)
    return {
        "final_scores": confidence.numpy(),
        "order_stable": confidence.argsort(descending=True, stable=True).to(torch.int16).numpy(),
        "category_stable": category.numpy(),
        "instance_stable": instance.numpy(),
        "inst_scores": confidence[best].numpy(),
        "inst_labels": labels[best].to(torch.int16).numpy(),
        "inst_masks": scored.masks.masks[best].numpy(),
    }


def _compare(problem: str, name: str, found: np.ndarray, stored: StoredTensors) -> Comparison:
    expected = stored[f"{problem}_{name}"]
    if name in ("inst_labels", "inst_masks"):
        # Rows with equal scores may be in any order.
        scores = stored[f"{problem}_inst_scores"]
        is_unique = np.array([(scores == score).sum() == 1 for score in scores])
        found, expected = found[is_unique], expected[is_unique]
    tolerance = TOLERANCE if expected.dtype.kind == "f" else 0.0
    return compare_arrays("merging", f"{problem}_{name}", found, expected, tolerance)
