"""Panels of input, ground truth and prediction side by side."""

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
from PIL import Image

from psf.data import as_picture
from psf.data.own_files import free_name, own_path
from psf.evaluation.ground_truth import PanopticGroundTruth
from psf.evaluation.panoptic_evaluator import PanopticQualityEvaluator
from psf.output import draw_legend, draw_regions, draw_text, legend_entries, panoptic_regions

__all__ = ["PanelEvaluator", "PanelRow", "PanopticMap", "draw_panel"]

# In pixels. An image is scaled to fit the cell; gaps and text suit a picture of about this size.
CELL_WIDTH, CELL_HEIGHT = 480, 480
MIN_SIDE = 8  # least side of a drawn image
HEADER_HEIGHT, GAP, FONT_SIZE = 32, 6, 13
LEGEND_LINES = 4
COLUMNS = ("input", "ground truth", "prediction")
MAX_KEPT = 16  # rows that an evaluator keeps per dataset


class PanopticMap(NamedTuple):
    """ids: (H, W), 0 is void; segments: Detectron2's `segments_info` in contiguous ids, with `isthing`."""

    ids: np.ndarray | torch.Tensor
    segments: Sequence[dict[str, Any]]


class PanelRow(NamedTuple):
    """image: (H, W, 3) uint8 in RGB order; the two maps have its height and width."""

    image: np.ndarray
    gt: PanopticMap
    prediction: PanopticMap
    caption: str = ""  # written below the image

    def fitted(self) -> PanelRow:
        """The row at the size at which it is drawn."""
        height, width = self.image.shape[:2]
        scale = min(CELL_WIDTH / width, CELL_HEIGHT / height)
        size = (max(round(width * scale), MIN_SIDE), max(round(height * scale), MIN_SIDE))
        maps = [
            PanopticMap(cv2.resize(_as_int32(ids), size, interpolation=cv2.INTER_NEAREST_EXACT), segments)
            for ids, segments in (self.gt, self.prediction)
        ]
        image = Image.fromarray(self.image).resize(size, Image.Resampling.BILINEAR)
        return PanelRow(np.asarray(image), maps[0], maps[1], self.caption)


def draw_panel(rows: Sequence[PanelRow], metadata: Metadata, path: str | Path | None = None) -> np.ndarray:
    """Draw rows of input | ground truth | prediction under a header line, with a legend below each map.

    Void shows the image. Equal rows give equal pictures.

    Args:
        rows: at least one; sizes may differ, each is scaled to fit a cell.
        metadata: classes and colors of the dataset.
        path: a picture file to write; its folder is created. `free_name` if psf has not written an existing one.

    Returns:
        (height, width, 3) uint8 in RGB order.
    """
    drawn = [_draw_row(row.fitted(), metadata) for row in rows]
    column_width = max(image.shape[1] for row in drawn for image in row) + GAP
    header = np.full((HEADER_HEIGHT, column_width * len(COLUMNS) - GAP, 3), 255, dtype=np.uint8)
    for column, title in enumerate(COLUMNS):
        draw_text(header, title, (HEADER_HEIGHT - FONT_SIZE) // 2 - 2, column * column_width + GAP, FONT_SIZE + 2)
    parts = [header]
    for row in drawn:
        part = np.full((max(len(image) for image in row) + GAP, header.shape[1], 3), 255, dtype=np.uint8)
        for column, image in enumerate(row):
            part[: len(image), column * column_width : column * column_width + image.shape[1]] = image
        parts.append(part)
    panel = np.concatenate(parts)
    if path is not None:
        with own_path(free_name(Path(path))) as draft:
            Image.fromarray(panel).save(draft)
    return panel


def _draw_row(row: PanelRow, metadata: Metadata) -> list[np.ndarray]:
    """The three columns, each an image with text below it on white; as wide as a cell, so that a legend fits."""
    height = row.image.shape[0]
    columns = []
    for segmentation in (None, row.gt, row.prediction):
        below = np.full((2 * FONT_SIZE, CELL_WIDTH, 3), 255, dtype=np.uint8)
        image = row.image
        if segmentation is None:
            draw_text(below, row.caption, FONT_SIZE // 2, GAP, FONT_SIZE)
        else:
            regions = panoptic_regions(np.asarray(segmentation.ids), segmentation.segments, metadata)
            image = draw_regions(image, regions)
            below = draw_legend(legend_entries(regions), CELL_WIDTH, FONT_SIZE, LEGEND_LINES)
        cell = np.full((height + len(below), CELL_WIDTH, 3), 255, dtype=np.uint8)
        cell[:height, : image.shape[1]] = image
        cell[height:] = below
        columns.append(cell)
    return columns


def _as_int32(ids: np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(ids).astype(np.int32)


class _Kept(NamedTuple):
    """An image that may be shown, from `PanelRow.fitted`."""

    quality: float
    row: PanelRow


class PanelEvaluator(DatasetEvaluator):
    """Draws the best, the median and the worst image of an evaluation, and some between them, by the PQ of each image.

    It writes the panel, shows it in TensorBoard and returns no metrics. A process keeps at most 16 rows, at the size at
    which they are drawn: the best, the worst, and others spread over the qualities between. Images without a segment in
    ground truth and prediction have no PQ and are not shown.

    Args:
        dataset_name: a registered dataset with panoptic ground truth.
        image_format: INPUT.FORMAT of the model's images.
        path: picture file to write.
        quality: measures the same images; it must process each batch first.
        num_rows: images to show, at least 1.
        distributed: choose among the images of all processes, else of this process.
    """

    def __init__(
        self,
        dataset_name: str,
        image_format: str,
        path: Path,
        quality: PanopticQualityEvaluator,
        *,
        num_rows: int = 5,
        distributed: bool = True,
    ) -> None:
        self._dataset_name, self._image_format, self._path = dataset_name, image_format, path
        self._gt = PanopticGroundTruth(dataset_name)
        self._quality, self._num_rows, self._distributed = quality, num_rows, distributed
        self.reset()

    def reset(self) -> None:
        self._kept: list[_Kept] = []
        self._qualities: list[float] = []  # of all images

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Keep what a panel may show: the model's own input image, the ground truth and "panoptic_seg"."""
        for image, output in zip(inputs, outputs):
            quality = self._quality.image_quality(image["image_id"])
            if quality is None:
                continue
            self._qualities.append(quality)
            others = [row.quality for row in self._kept]
            if len(others) < MAX_KEPT:
                self._kept.append(_Kept(quality, self._make_row(image, output)))
            elif (place := _most_crowded([*others, quality])) < MAX_KEPT:
                self._kept[place] = _Kept(quality, self._make_row(image, output))

    def _make_row(self, image: dict[str, Any], output: dict[str, Any]) -> PanelRow:
        ids, segments = output["panoptic_seg"]
        pixels = as_picture(image["image"].permute(1, 2, 0).cpu().numpy(), self._image_format)
        picture = Image.fromarray(pixels).resize(ids.shape[::-1], Image.Resampling.BILINEAR)
        gt = PanopticMap(*self._gt.contiguous(self._gt.of(image)))
        prediction = PanopticMap(ids.cpu(), [dict(segment) for segment in segments])
        return PanelRow(np.asarray(picture), gt, prediction, f"image id {image['image_id']}").fitted()

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Write the panel; returns an empty result, which Detectron2 merges with those of other evaluators."""
        gathered = comm.gather((self._kept, self._qualities)) if self._distributed else [(self._kept, self._qualities)]
        kept = [one for part, _ in gathered for one in part]
        qualities = [quality for _, part in gathered for quality in part]
        if kept:
            rows = choose_rows(kept, qualities, self._num_rows)
            panel = draw_panel(rows, MetadataCatalog.get(self._dataset_name), self._path)
            if has_event_storage():
                get_event_storage().put_image(f"panel/{self._dataset_name}", panel.transpose(2, 0, 1))
        return OrderedDict()


def choose_rows(kept: Sequence[_Kept], qualities: Sequence[float], num_rows: int) -> list[PanelRow]:
    """Rows from the best image to the worst, in steps of equal numbers of images, with their PQ in their captions.

    Args:
        kept: at least one; between the best and the worst, the images nearest in quality are chosen.
        qualities: PQ of all images, in [0, 1].
        num_rows: number of rows to choose.
    """
    ordered = sorted(kept, key=lambda image: -image.quality)
    wanted = np.quantile(qualities, np.linspace(1, 0, num_rows), method="nearest").tolist()
    chosen: list[int] = []
    for quality in wanted:
        free = [i for i in range(len(ordered)) if i not in chosen]
        if free:
            chosen.append(min(free, key=lambda i: abs(ordered[i].quality - quality)))
    rows = []
    for rank, i in enumerate(sorted(chosen)):
        names = {0: "best, ", len(chosen) - 1: "worst, "} if len(chosen) > 1 else {}
        if len(chosen) % 2 and len(chosen) > 1:
            names[len(chosen) // 2] = "median, "
        quality, row = ordered[i]
        caption = f"{names.get(rank, '')}PQ {100 * quality:.1f}, {row.caption}, of {len(qualities)} images"
        rows.append(row._replace(caption=caption))
    return rows


def _most_crowded(qualities: Sequence[float]) -> int:
    """The row to drop: neither the lowest nor the highest, but the row whose neighbors are closest to each other."""
    order = np.argsort(qualities, kind="stable")
    ordered = np.asarray(qualities)[order]
    return int(order[1 + int((ordered[2:] - ordered[:-2]).argmin())])
