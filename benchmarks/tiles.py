#!/usr/bin/env python3
"""Effect of tiled inference on small things in large images: a shapes model on mosaics of scenes.

python benchmarks/tiles.py --weights output/quickstart/model_final.pth

A mosaic is SIDE x SIDE held-out scenes of 128 x 128 pixels. The model gets each mosaic shrunk to its training
size, whole at full resolution, and at full resolution in tiles of about one scene.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from panopticapi.utils import id2rgb
from PIL import Image
from report import HERE, report
from tabulate import tabulate

from psf.data import load_dataset, read_categories, read_image, read_panoptic_labels, register_panoptic
from psf.engine import Trainer, build_checkpointer, build_config
from psf.evaluation import PanopticQualityEvaluator

SOURCE, MOSAICS = "psf_shapes_val", "psf_mosaics"  # datasets
SCENE = 128  # pixels of a scene's sides
TRAINED_SIZE = 160  # size of a scene in the model's input, INPUT.MIN_SIZE_TEST of its config


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="checkpoint of configs/shapes/psf_tiny.yaml")
    parser.add_argument("--side", type=int, default=3, help="scenes along a side of a mosaic [%(default)s]")
    parser.add_argument("--num-images", type=int, default=12, help="mosaics [%(default)s]")
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        write_mosaics(Path(folder), args.side, args.num_images)
        rows = [measure(args.weights, size, tile) for size, tile in sizes(args.side)]
    table = tabulate(rows, ["model's input", "tiles", "PQ", "PQ_th", "PQ_st"], tablefmt="pipe", floatfmt=".2f")
    report("tiles", f"{args.num_images} mosaics of {args.side} x {args.side} scenes of {SOURCE}\n\n{table}")


def sizes(side: int) -> list[tuple[int, int]]:
    """Pairs: side of the model's input, and side of its tiles; 0: no tiles."""
    full = side * TRAINED_SIZE
    return [(TRAINED_SIZE, 0), (full, 0), (full, TRAINED_SIZE), (full, TRAINED_SIZE * 3 // 2)]


def write_mosaics(folder: Path, side: int, number: int) -> None:
    """Write and register the dataset MOSAICS; a stuff class is one segment of a mosaic."""
    scenes = [image for image in load_dataset(SOURCE) if (image["height"], image["width"]) == (SCENE, SCENE)]
    choose = random.Random(0)
    content: dict[str, Any] = {"images": [], "annotations": []}
    content["categories"] = read_categories(MetadataCatalog.get(SOURCE).panoptic_json)
    own_ids = [category["id"] for category in content["categories"]]  # by contiguous id
    for number_here in range(number):
        image = np.zeros((side * SCENE, side * SCENE, 3), np.uint8)
        labels = np.zeros(image.shape[:2], np.int32)
        segments: dict[tuple[int, int], int] = {}  # (class, scene or 0 for stuff) -> label
        for place in range(side * side):
            scene = choose.choice(scenes)
            rows, columns = (slice(SCENE * i, SCENE * (i + 1)) for i in divmod(place, side))
            image[rows, columns] = read_image(scene["file_name"], "RGB")
            gt = read_panoptic_labels(scene["pan_seg_file_name"], scene["segments_info"])
            for segment in gt.segments:
                key = (segment["category_id"], 1000 * place + segment["id"] if segment["isthing"] else 0)
                labels[rows, columns][gt.labels == segment["id"]] = segments.setdefault(key, len(segments) + 1)
        file = f"{number_here}.png"
        for kind, pixels in (("images", image), ("panoptic", id2rgb(labels))):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / file)
        height, width = labels.shape
        content["images"].append({"id": number_here, "file_name": file, "height": height, "width": width})
        infos = [_segment(labels == label, label, own_ids[category]) for (category, _), label in segments.items()]
        content["annotations"].append({"image_id": number_here, "file_name": file, "segments_info": infos})
    (folder / "panoptic.json").write_text(json.dumps(content))
    register_panoptic(MOSAICS, str(folder / "panoptic.json"), str(folder / "panoptic"), str(folder / "images"))


def _segment(mask: np.ndarray, label: int, category_id: int) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
    numbers = {"id": label, "category_id": category_id, "iscrowd": 0, "area": int(mask.sum())}
    return {**numbers, "bbox": [int(x) for x in box]}


def measure(weights: str, size: int, tile: int) -> list[Any]:
    """A row of the table."""
    cfg = build_config(str(HERE.parent / "configs" / "shapes" / "psf_tiny.yaml"))
    options = {"MODEL.DEVICE": "cpu", "DATASETS.TEST": (MOSAICS,), "DATALOADER.NUM_WORKERS": 0}
    options |= {"INPUT.MIN_SIZE_TEST": size, "INPUT.MAX_SIZE_TEST": size}
    options |= {f"MODEL.PSF.TEST.{key}": False for key in ("INSTANCE_ON", "SEMANTIC_ON")}
    options |= {"MODEL.PSF.TEST.TILES.SIZE": tile}
    cfg.merge_from_list([word for pair in options.items() for word in pair])
    model = Trainer.build_model(cfg)
    build_checkpointer(cfg, model).load(weights)
    loader, evaluator = Trainer.build_test_loader(cfg, MOSAICS), PanopticQualityEvaluator(MOSAICS)
    found = inference_on_dataset(model, loader, evaluator)["panoptic_seg"]
    return [size, tile or "none", found["PQ"], found["PQ_th"], found["PQ_st"]]


if __name__ == "__main__":
    main()
