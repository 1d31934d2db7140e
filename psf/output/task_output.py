"""Base class of the results of the three tasks, for drawing and writing."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
from detectron2.data import Metadata
from detectron2.utils.video_visualizer import VideoVisualizer

from psf.output.drawing import Region, draw_regions, font_size_of
from psf.output.legend import add_legend

__all__ = ["TaskOutput", "drawable_metadata", "literal"]


def literal(text: str) -> str:
    """Escape a text for matplotlib, which reads text between two `$` as a formula."""
    return text.replace("$", r"\$")


def drawable_metadata(metadata: Any) -> Metadata:
    """Metadata with `literal` class names, for Detectron2's visualizers."""
    own = vars(metadata)
    kinds = [key for key in ("thing_classes", "stuff_classes") if key in own]
    return Metadata(**own | {key: [literal(name) for name in own[key]] for key in kinds})


class TaskOutput(abc.ABC):
    """One image's result of one task.

    Args:
        prediction: of the model, in the size of the image, with the `result` of the task.
        metadata: Detectron2's, of the dataset that the class ids belong to.
    """

    task: ClassVar[str]  # "panoptic" | "instance" | "semantic"
    result: ClassVar[str]  # its key in a prediction
    records_key: ClassVar[str]  # key of the records in the JSON

    def __init__(self, prediction: dict[str, Any], metadata: Any) -> None:
        self.metadata = metadata

    @property
    @abc.abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @abc.abstractmethod
    def records(self) -> list[dict[str, Any]]:
        """The records of the JSON: a dict with `id`, `class`, `category_id`, `area` and more for each segment."""

    @abc.abstractmethod
    def label_image(self) -> np.ndarray | None:
        """The content of the label PNG; None: there is no such PNG, because masks may overlap."""

    @abc.abstractmethod
    def mask(self, record: dict[str, Any]) -> np.ndarray:
        """(H, W) bool, the pixels of a record."""

    @abc.abstractmethod
    def regions(self) -> list[Region]:
        """The regions to draw, in the order of the records."""

    @abc.abstractmethod
    def draw_frame(self, visualizer: VideoVisualizer, image_rgb: np.ndarray) -> np.ndarray:
        """Draw it on a video frame, with the colours of the earlier frames."""

    @abc.abstractmethod
    def padded(self, columns: int) -> TaskOutput:
        """The same result with empty columns at the right side."""

    def picture(self, image_rgb: np.ndarray) -> np.ndarray:
        """Draw masks over an image, with class names, and scores of things, if they fit; see `draw_regions`.

        Args:
            image_rgb: (H, W, 3) uint8, the image of the prediction.

        Returns:
            (H, W, 3) uint8.
        """
        return draw_regions(image_rgb, self.regions())

    def picture_with_legend(self, image_rgb: np.ndarray) -> np.ndarray:
        """The picture, and below it the colour, name and number of segments of each class; see `add_legend`."""
        regions = self.regions()
        return add_legend(draw_regions(image_rgb, regions), regions, font_size_of(self.size))

    def frame(self, visualizer: VideoVisualizer, image_rgb: np.ndarray) -> np.ndarray:
        """As `picture`, for a video frame; `visualizer` is made with `drawable_metadata`, one per video."""
        if image_rgb.shape[1] == 2:  # Detectron2 takes a mask of width 2 for a list of points
            return self.padded(1).frame(visualizer, np.pad(image_rgb, ((0, 0), (0, 1), (0, 0))))[:, :2]
        return self.draw_frame(visualizer, image_rgb)
