#!/usr/bin/env python3
"""Results under autocast in bfloat16, and on a GPU in float16, against float32: panoptic maps, and PQ.

Two models: one with weights and images made by formula (fidelity/, whose folders also have the merging thresholds), and
a trained one for shapes/psf_tiny.yaml, evaluated on its 100 scenes. Formula-made masks are ragged and unsure, so that
more of their pixels are close to the threshold than in trained ones. A pixel differs if it is not in corresponding
segments: segments of one class, paired so that most pixels agree.

    python benchmarks/half_precision.py --device cpu --weights output/quickstart/model_final.pth
    python benchmarks/half_precision.py --device cuda --golden FOLDER       with the manifest of another model
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import HERE, add_device, against, argument_parser, report
from scipy.optimize import linear_sum_assignment
from tabulate import tabulate
from torch import Tensor

from psf import PanopticSegFormer
from psf.engine import Trainer, build_checkpointer, build_config
from psf.evaluation import PanopticQualityEvaluator

sys.path.insert(1, str(HERE.parent))
from fidelity.folder import GoldenFolder
from fidelity.formula import formula_image

PIXELS_TARGET, PQ_TARGET = 0.5, 0.3  # percent of pixels; points
TRAINED, SCENES = "shapes/psf_tiny.yaml", "psf_shapes_val"
FORMULA, QUICKSTART = "formula-made", "trained"
PIXELS, PQ = "% of pixels that differ", "PQ that is lost or gained"

PanopticSeg = tuple[Tensor, list[dict[str, Any]]]  # (H, W) int32 on the CPU, segments_info


def main(words: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, rounds=1)
    add_device(parser)
    parser.add_argument("--weights", default="output/quickstart/model_final.pth", help=f"for {TRAINED} [%(default)s]")
    parser.add_argument("--golden", type=Path, default=HERE.parent / "tests" / "fidelity", help="folder [%(default)s]")
    options = parser.parse_args(words)
    device, quick = options.device, options.quick
    halves = (torch.bfloat16,) if device == "cpu" else (torch.bfloat16, torch.float16)
    rows = formula_rows(options.golden, device, halves, (64, 96) if quick else (512, 768), 1 if quick else 8)
    if Path(options.weights).is_file():
        rows += trained_rows(options.weights, device, halves, num_images=2 if quick else 100)
    else:
        print(f"no trained model: {options.weights} does not exist; psf quickstart makes it, --weights names another")
    table = tabulate(rows, ["model", "type", "metric", "value", "target"], tablefmt="pipe", floatfmt=".3f")
    where = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    report("half_precision", f"{where}; against float32\n\n{table}", quick=quick)


def formula_rows(
    folder: Path, device: str, halves: Sequence[torch.dtype], size: tuple[int, int], number: int
) -> list[list[Any]]:
    """Rows of the model and the thresholds of the folder's first evaluation case, on formula-made images."""
    golden = GoldenFolder(folder, torch.float32)
    case = next(iter(golden.cases["eval"].values()))
    model = golden.model(case["manifest"]).model.to(device)
    for kind in ("things", "stuff"):
        thresholds = getattr(model.post_processor, kind)
        setattr(model.post_processor, kind, thresholds._replace(t_cnf=case["t_cnf"][kind]))
    images = [torch.from_numpy(formula_image(*size, seed).transpose(2, 0, 1).copy()) for seed in range(number)]
    inputs = [[{"image": image}] for image in images]
    expected = panoptic_maps(model, inputs, torch.float32)
    if sum(len(segments) for _, segments in expected) < 4 * number:
        sys.exit("the formula-made model finds too few segments for a comparison")
    return [
        [FORMULA, name(half), PIXELS, percent, against(PIXELS_TARGET, percent)]
        for half in halves
        for percent in [percent_of_pixels(panoptic_maps(model, inputs, half), expected)]
    ]


def trained_rows(weights: str, device: str, halves: Sequence[torch.dtype], num_images: int) -> list[list[Any]]:
    options = ["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", "0", "MODEL.PSF.TEST.SEMANTIC_ON", "False"]
    cfg = build_config(TRAINED, options)
    model = Trainer.build_model(cfg).eval()
    build_checkpointer(cfg, model).load(weights)
    inputs = list(islice(Trainer.build_test_loader(cfg, SCENES), num_images))
    evaluator = PanopticQualityEvaluator(SCENES, distributed=False)

    def quality(maps: list[PanopticSeg]) -> float:
        evaluator.reset()
        for batch, panoptic_seg in zip(inputs, maps, strict=True):
            evaluator.process(batch, [{"panoptic_seg": panoptic_seg}])
        found = evaluator.evaluate()
        assert found is not None  # None only in other processes than the main one
        return found["panoptic_seg"]["PQ"]

    expected = panoptic_maps(model, inputs, torch.float32)
    rows: list[list[Any]] = []
    for half in halves:
        maps = panoptic_maps(model, inputs, half)
        percent, change = percent_of_pixels(maps, expected), abs(quality(maps) - quality(expected))
        rows.append([QUICKSTART, name(half), PIXELS, percent, against(PIXELS_TARGET, percent)])
        rows.append([QUICKSTART, name(half), PQ, change, against(PQ_TARGET, change)])
    print(f"PQ in float32: {quality(expected):.2f}")
    return rows


@torch.no_grad()
def panoptic_maps(
    model: PanopticSegFormer, inputs: list[list[dict[str, Any]]], dtype: torch.dtype
) -> list[PanopticSeg]:
    """Results of batches of one image, under autocast unless the type is float32."""
    half = dtype if dtype != torch.float32 else torch.bfloat16
    with torch.autocast(model.device.type, half, enabled=dtype != torch.float32):
        results = [model(batch)[0]["panoptic_seg"] for batch in inputs]
    return [(ids.cpu(), segments) for ids, segments in results]


def percent_of_pixels(found: list[PanopticSeg], expected: list[PanopticSeg]) -> float:
    """Percent of all pixels that are not in corresponding segments; void corresponds to void."""
    differing = sum(num_differing(x, y) for x, y in zip(found, expected, strict=True))
    return 100 * differing / sum(ids.numel() for ids, _ in expected)


def num_differing(found: PanopticSeg, expected: PanopticSeg) -> int:
    labels, classes = zip(*(by_position(*one) for one in (found, expected)), strict=True)
    overlaps = np.zeros([len(one) for one in classes], dtype=np.int64)
    np.add.at(overlaps, labels, 1)
    overlaps[classes[0][:, None] != classes[1]] = 0
    return int(labels[0].size - overlaps[linear_sum_assignment(overlaps, maximize=True)].sum())


def by_position(ids: Tensor, segments: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """The pixels' segments, counted from 1, 0 for void: (H * W,); and the segments' classes, -1 for void."""
    known = np.array([0, *(segment["id"] for segment in segments)])
    order = known.argsort()
    labels = order[np.searchsorted(known, ids.flatten().numpy(), sorter=order)]
    return labels, np.array([-1, *(segment["category_id"] for segment in segments)])


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
