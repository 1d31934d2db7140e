#!/usr/bin/env python3
"""Time of post-processing against the plain loop of Algorithm 1, after a comparison of maps, ids and instances.

The plain loop works like the released code: it resizes every candidate to the image's size and scores it. Then it
synchronizes with the device twice per mask, for the mask's area and for its occupied pixels, each over the whole image.
The input has 100 things and 53 stuff classes, about a third of them confident (scenes.py), at 800 x 1216.

    python benchmarks/merging.py --device cpu --threads 2
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from report import add_device, against, argument_parser, report, time_in_turns
from scenes import blob_candidates
from tabulate import tabulate
from torch import Tensor

from psf.engine import build_config
from psf.inference import ImageGeometry, PostProcessor, build_post_processor, mask_wise_merging, per_candidate
from psf.structures import Candidates, PanopticClasses

CPU_TARGET, GPU_TARGET = 0.6, 0.3
CONFIG = "coco/released/psf_R50_24ep.yaml"
CLASSES = PanopticClasses(tuple(range(80)), tuple(range(80, 133)))
TOLERANCE = 1e-4  # of scores, which sum over up to a million pixels


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=9)
    add_device(parser)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    height, width = (96, 160) if options.quick else (800, 1216)
    geometry = ImageGeometry(*[(height, width)] * 3)
    candidates = blob_candidates((height // 8, width // 8), device=options.device)
    processor = build_post_processor(build_config(CONFIG))
    with torch.no_grad():
        kept = compare(candidates, processor, geometry)
        rows = measure(candidates, processor, geometry, options.rounds)
    headers = ["", "plain ms", "psf ms", "psf / plain", "target", "plain syncs", "psf syncs"]
    table = tabulate(rows, headers, tablefmt="pipe", floatfmt=("", ".2f", ".2f", ".3f"))
    where = torch.cuda.get_device_name() if options.device != "cpu" else f"CPU, {options.threads} threads"
    report(
        "merging",
        f"{where}; {len(candidates.class_scores)} candidates at {height} x {width}, {kept} segments: maps, ids, "
        f"instances identical; median of {options.rounds} rounds\n\n{table}",
        quick=options.quick,
    )


class Scored(NamedTuple):
    """All candidates at output size."""

    masks: Tensor  # (N, H, W) bool
    area: Tensor  # (N,)
    confidence: Tensor  # (N,)
    t_cnf: Tensor  # (N,)
    t_keep: Tensor  # (N,)


def plain_scored(candidates: Candidates, processor: PostProcessor, geometry: ImageGeometry) -> Scored:
    """s = p^alpha * (sum of m over m > 0.5 / (area + extra pixels))^beta for every candidate."""
    scores = F.interpolate(candidates.mask_scores[:, None], size=geometry.output_size, mode="bilinear")[:, 0]
    masks = scores > processor.mask_threshold
    area = masks.sum((1, 2))
    mean = (scores * masks).sum((1, 2)) / (area + processor.extra_pixels)
    numbers = per_candidate(candidates.is_thing, processor.things, processor.stuff)
    confidence = candidates.class_scores**numbers.alpha * mean**numbers.beta
    return Scored(masks, area, confidence.float(), numbers.t_cnf, numbers.t_keep)


def plain_merging(scored: Scored) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Algorithm 1 as a plain loop: the (H, W) map, and (id, candidate, pixels) of its segments."""
    panoptic_seg = torch.zeros(scored.masks.shape[1:], dtype=torch.int32, device=scored.masks.device)
    taken = torch.zeros_like(panoptic_seg, dtype=torch.bool)
    order = scored.confidence.argsort(descending=True, stable=True).tolist()
    confidence, t_cnf, t_keep = (x.tolist() for x in (scored.confidence, scored.t_cnf, scored.t_keep))
    segments: list[tuple[int, int, int]] = []
    for candidate in order:
        if confidence[candidate] < t_cnf[candidate]:
            continue
        mask = scored.masks[candidate]
        area = int(mask.sum())
        free = area - int((mask & taken).sum())
        if free == 0 or free / area < t_keep[candidate]:
            continue
        visible = mask & ~taken
        segments.append((len(segments) + 1, candidate, free))
        panoptic_seg[visible] = len(segments)
        taken |= visible
    return panoptic_seg, segments


def plain_results(candidates: Candidates, processor: PostProcessor, geometry: ImageGeometry) -> dict[str, Any]:
    """The panoptic map with its segments, and the instances: masks, scores, classes, boxes."""
    scored = plain_scored(candidates, processor, geometry)
    order = scored.confidence.argsort(descending=True, stable=True)
    order = order[(candidates.is_thing & (scored.area > 0))[order]][: processor.instance.max_per_image]
    assert candidates.boxes_cxcywh_norm is not None
    centre, size = candidates.boxes_cxcywh_norm[order].split(2, dim=1)
    unit = centre.new_tensor([geometry.output_size[1], geometry.output_size[0]] * 2)
    boxes = torch.cat((centre - size / 2, centre + size / 2), dim=1).clamp(0, 1) * unit
    instances = (scored.masks[order], scored.confidence[order], candidates.class_indices[order], boxes)
    return {"panoptic": plain_merging(scored), "instances": instances}


def psf_results(
    candidates: Candidates, processor: PostProcessor, geometry: ImageGeometry, *, instance: bool = True
) -> dict[str, Any]:
    return processor.results(candidates, CLASSES, geometry, panoptic=True, instance=instance)


def compare(candidates: Candidates, processor: PostProcessor, geometry: ImageGeometry) -> int:
    """End the script if any result differs; returns the number of segments."""
    plain, ours = plain_results(candidates, processor, geometry), psf_results(candidates, processor, geometry)
    (panoptic_seg, segments), (our_map, our_segments) = plain["panoptic"], ours["panoptic_seg"]
    classes = candidates.class_indices + (~candidates.is_thing) * len(CLASSES.thing_ids)
    expected = [(i, int(classes[candidate]), pixels) for i, candidate, pixels in segments]
    if [(s["id"], s["category_id"], s["area"]) for s in our_segments] != expected:
        sys.exit("the segments differ")
    if not torch.equal(our_map, panoptic_seg):
        sys.exit("the panoptic maps differ")
    masks, scores, indices, boxes = plain["instances"]
    found = ours["instances"]
    if not (torch.equal(found.pred_masks, masks) and torch.equal(found.pred_classes, indices)):
        sys.exit("the instances differ")
    for a, b in ((found.scores, scores), (found.pred_boxes.tensor, boxes)):
        if not torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE):
            sys.exit("the instances' scores or boxes differ")
    if len(segments) < 5:
        sys.exit(f"{len(segments)} segments: too few for a comparison")
    return len(segments)


def measure(candidates: Candidates, processor: PostProcessor, geometry: ImageGeometry, rounds: int) -> list[list[Any]]:
    scored = plain_scored(candidates, processor, geometry)

    def merge() -> Any:
        return mask_wise_merging(scored.confidence, scored.masks, scored.area, scored.t_cnf, scored.t_keep)

    def plain_panoptic() -> Any:
        return plain_merging(plain_scored(candidates, processor, geometry))

    cases: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "merging alone, masks at full size": (lambda: plain_merging(scored), merge),
        "1/8 maps to the panoptic map": (
            plain_panoptic,
            lambda: psf_results(candidates, processor, geometry, instance=False),
        ),
        "1/8 maps to map and instances": (
            lambda: plain_results(candidates, processor, geometry),
            lambda: psf_results(candidates, processor, geometry),
        ),
    }
    on_gpu = scored.masks.is_cuda
    rows: list[list[Any]] = []
    for name, (plain, ours) in cases.items():
        plain_ms, our_ms = time_in_turns([plain, ours], rounds)
        ratio = our_ms / plain_ms
        cell = against(GPU_TARGET if on_gpu else CPU_TARGET, ratio)
        syncs = [count_syncs(plain), count_syncs(ours)] if on_gpu else ["", ""]
        rows.append([name, plain_ms, our_ms, ratio, cell, *syncs])
    return rows


def count_syncs(run: Callable[[], Any]) -> int:
    """Number of times that the host waits for the GPU, as reported by torch; at least 1."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


if __name__ == "__main__":
    main()
