"""One image's panoptic segmentation as files: the drawn picture, the panoptic PNG and the JSON of its segments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.visualizer import Visualizer
from panopticapi.utils import id2rgb
from PIL import Image
from scipy import ndimage

__all__ = ["OUTPUT_ENDINGS", "describe_segments", "draw_panoptic", "split_panoptic", "write_panoptic_output"]

OUTPUT_ENDINGS = (".jpg", "_panoptic.png", ".json")


def split_panoptic(prediction: dict[str, Any]) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """The (H, W) id map, on the CPU, and copies of the segments of a prediction's "panoptic_seg".

    Copies, because Detectron2's visualizers overwrite `area` in the dicts that they are given.
    """
    panoptic_ids, segments = prediction["panoptic_seg"]
    return panoptic_ids.cpu(), [dict(segment) for segment in segments]


def draw_panoptic(image_bgr: np.ndarray, prediction: dict[str, Any], metadata: Any) -> np.ndarray:
    """Draw segments, class names and the scores of things over an image.

    Args:
        image_bgr: (H, W, 3) uint8, what the predictor was given.
        prediction: the model's result for it, with "panoptic_seg" of the same height and width.
        metadata: Detectron2's, of the data set that the class ids belong to.

    Returns:
        (H, W, 3) uint8 in RGB order. Void pixels show the image.
    """
    panoptic_ids, segments = split_panoptic(prediction)
    image_rgb = image_bgr[:, :, ::-1]
    width = image_rgb.shape[1]
    if width == 2:  # Detectron2 takes a mask of width 2 for a list of points: draw on a third column, and cut it off
        image_rgb = np.pad(image_rgb, ((0, 0), (0, 1), (0, 0)))
        panoptic_ids = torch.nn.functional.pad(panoptic_ids, (0, 1))
    return Visualizer(image_rgb, metadata).draw_panoptic_seg(panoptic_ids, segments).get_image()[:, :width]


def describe_segments(prediction: dict[str, Any], metadata: Any) -> list[dict[str, Any]]:
    """What the JSON says of each segment; area and box are measured on the id map.

    Returns:
        One dict per segment: `id` (its value in the panoptic PNG), `class`, `category_id` (the data set's own, as in a
        COCO panoptic JSON), `contiguous_id` (the model's), `isthing`, `score`, `area` in pixels and
        `bbox` [x, y, width, height] in pixels.

    Raises:
        ValueError: if a segment has a class that the metadata do not know.
    """
    panoptic_ids, segments = split_panoptic(prediction)
    id_map = panoptic_ids.numpy()
    areas = np.bincount(id_map.ravel())
    extents = ndimage.find_objects(id_map)  # per id, from 1 on: (rows, columns) that enclose it
    dataset_ids = {
        is_thing: {new: old for old, new in getattr(metadata, key, {}).items()}
        for is_thing, key in (
            (True, "thing_dataset_id_to_contiguous_id"),
            (False, "stuff_dataset_id_to_contiguous_id"),
        )
    }
    records = []
    for segment in segments:
        rows, columns = extents[segment["id"] - 1]
        category, is_thing = segment["category_id"], segment["isthing"]
        if category not in dataset_ids[is_thing]:
            raise ValueError(
                f"a segment has class {category} as {'a thing' if is_thing else 'stuff'}, the data set's metadata know "
                f"{sorted(dataset_ids[is_thing])}; the first of DATASETS.TEST must have the model's classes"
            )
        names = metadata.thing_classes if is_thing else metadata.stuff_classes
        records.append(
            {
                "id": segment["id"],
                "class": names[category],
                "category_id": dataset_ids[is_thing][category],
                "contiguous_id": category,
                "isthing": is_thing,
                "score": segment["score"],
                "area": int(areas[segment["id"]]),
                "bbox": [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start],
            }
        )
    return records


def write_panoptic_output(
    image_bgr: np.ndarray, prediction: dict[str, Any], metadata: Any, *, source: Path, folder: Path, name: str
) -> None:
    """Write the three files of one image.

    `name`.jpg is the drawn picture, `name`_panoptic.png holds each pixel's segment id as R + 256 G + 256^2 B (COCO's
    encoding; 0 is void), and `name`.json names the image, its size, the PNG and the segments.

    Args:
        image_bgr, prediction, metadata: as for `draw_panoptic`.
        source: where the image came from.
        folder: an existing folder.
        name: of the output files, without the endings.
    """
    drawn_file, panoptic_file, segments_file = (folder / f"{name}{ending}" for ending in OUTPUT_ENDINGS)
    height, width = image_bgr.shape[:2]
    description = {
        "file_name": str(source),
        "height": height,
        "width": width,
        "panoptic_file_name": panoptic_file.name,
        "segments_info": describe_segments(prediction, metadata),
    }
    drawn = Image.fromarray(draw_panoptic(image_bgr, prediction, metadata))
    drawn.save(drawn_file, quality=95, subsampling=0)  # thin coloured lines and letters stay sharp
    Image.fromarray(id2rgb(split_panoptic(prediction)[0].numpy())).save(panoptic_file)
    segments_file.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
