"""Pictures to judge a model by: input, truth and prediction side by side."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from psf.data import as_picture
from psf.evaluation.ground_truth import PanopticGroundTruth
from psf.output import drawable_metadata

__all__ = ["PanelEvaluator", "PanelRow", "PanopticMap", "draw_panel"]

# Pixels: an image is scaled to fit the cell; gaps and text are those of a picture of about this size.
CELL_WIDTH, CELL_HEIGHT = 480, 480
MIN_SIDE = 8  # of a drawn image, however long and thin; the Visualizer refuses masks two pixels wide
HEADER_HEIGHT, GAP = 32, 6
COLUMNS = ("input", "truth", "prediction")


class PanopticMap(NamedTuple):
    """ids: (H, W), 0 is void; segments: Detectron2's `segments_info` in contiguous ids, with `isthing`."""

    ids: np.ndarray | torch.Tensor
    segments: Sequence[dict[str, Any]]


class PanelRow(NamedTuple):
    """image: (H, W, 3) uint8 in RGB order; the two maps have its height and width."""

    image: np.ndarray
    truth: PanopticMap
    prediction: PanopticMap


def draw_panel(rows: Sequence[PanelRow], metadata: Metadata, path: str | Path | None = None) -> np.ndarray:
    """Draw rows of input | truth | prediction under a header line, with Detectron2's Visualizer.

    Void shows the image. The same rows give the same picture, and random numbers elsewhere are not disturbed.

    Args:
        rows: at least one; sizes may differ, each is scaled to fit a cell.
        metadata: of the data set; its classes and colours.
        path: a picture file to write; its folder is made.

    Returns:
        (height, width, 3) uint8 in RGB order.
    """
    state = np.random.get_state()
    np.random.seed(0)  # the Visualizer varies the colours of things by numpy's generator
    try:
        cells = [_draw_row(row, metadata) for row in rows]
    finally:
        np.random.set_state(state)
    column_width = max(row[0].width for row in cells) + GAP
    height = HEADER_HEIGHT + sum(row[0].height + GAP for row in cells)
    panel = np.full((height, column_width * len(COLUMNS) - GAP, 3), 255, dtype=np.uint8)
    for column, title in enumerate(COLUMNS):
        origin = (column * column_width + GAP, HEADER_HEIGHT * 2 // 3)
        cv2.putText(panel, title, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
    top = HEADER_HEIGHT
    for row in cells:
        for column, cell in enumerate(row):
            left = column * column_width
            panel[top : top + cell.height, left : left + cell.width] = np.asarray(cell)
        top += row[0].height + GAP
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(panel).save(path)
    return panel


def _draw_row(row: PanelRow, metadata: Metadata) -> list[Image.Image]:
    pixels, *maps = row
    height, width = pixels.shape[:2]
    scale = min(CELL_WIDTH / width, CELL_HEIGHT / height)
    size = (max(round(width * scale), MIN_SIDE), max(round(height * scale), MIN_SIDE))
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    cells = [image]
    for ids, segments in maps:
        resized = Image.fromarray(np.asarray(ids).astype(np.int32)).resize(size, Image.Resampling.NEAREST)
        copies = [dict(segment) for segment in segments]  # the Visualizer overwrites `area`
        drawn = Visualizer(np.asarray(image), drawable_metadata(metadata)).draw_panoptic_seg(
            torch.from_numpy(np.array(resized)), copies, 0
        )
        cells.append(Image.fromarray(drawn.get_image()))
    return cells


class PanelEvaluator(DatasetEvaluator):
    """Collects the first images of an evaluation, writes them as one panel and shows it in TensorBoard; no metrics.

    Args:
        dataset_name: a registered data set with panoptic ground truth.
        image_format: INPUT.FORMAT of the model's images.
        path: picture file to write.
        num_rows: images to show, the first that the main process sees.
    """

    def __init__(self, dataset_name: str, image_format: str, path: Path, num_rows: int = 4) -> None:
        self._dataset_name = dataset_name
        self._truth = PanopticGroundTruth(dataset_name)
        self._image_format = image_format
        self._path = path
        self._num_rows = num_rows if comm.is_main_process() else 0
        self.reset()

    def reset(self) -> None:
        self._rows: list[PanelRow] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what a panel shows: the model's own input image, the truth and "panoptic_seg"."""
        for image, output in zip(inputs, outputs):
            if len(self._rows) == self._num_rows:
                return
            ids, segments = output["panoptic_seg"]
            pixels = as_picture(image["image"].permute(1, 2, 0).cpu().numpy(), self._image_format)
            picture = Image.fromarray(pixels)
            picture = picture.resize(ids.shape[::-1], Image.Resampling.BILINEAR)
            truth = PanopticMap(*self._truth.read_contiguous(image["image_id"]))
            copies = [dict(segment) for segment in segments]
            self._rows.append(PanelRow(np.asarray(picture), truth, PanopticMap(ids.cpu(), copies)))

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the panel; an empty result, for Detectron2 merges those of all evaluators."""
        if self._rows:
            panel = draw_panel(self._rows, MetadataCatalog.get(self._dataset_name), self._path)
            if has_event_storage():
                get_event_storage().put_image(f"panel/{self._dataset_name}", panel.transpose(2, 0, 1))
        return OrderedDict()
