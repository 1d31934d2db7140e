"""The result of one image, in typed form, as pictures and in the formats of other programs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_masks

from psf.errors import UserError
from psf.output import TASKS, InstanceOutput, PanopticOutput, SemanticOutput, TaskOutput
from psf.output.annotations import labelme_document, list_segments
from psf.prediction.explanation import Explanation, explain_candidates
from psf.prediction.outputs import ImageOutput, PanopticSegments, Thresholds
from psf.structures import CategoryIds, PanopticClasses, list_classes

__all__ = ["Instance", "PanopticResult", "PanopticSegment"]

Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class PanopticSegment:
    """One segment of a panoptic map: a thing, or all pixels of a stuff class."""

    id: int  # its value in the map, from 1
    class_name: str
    category_id: int  # the dataset's own
    contiguous_id: int  # the model's
    is_thing: bool
    score: float  # confidence; usually in [0, 1]
    area: int  # pixels
    box: Box  # x0, y0, x1, y1 in pixels, tight; x1 and y1 exclusive


@dataclasses.dataclass(frozen=True)
class Instance:
    """One thing with its whole mask; instances may overlap."""

    class_name: str
    category_id: int  # the dataset's own
    contiguous_id: int  # the model's
    score: float
    area: int  # pixels
    box: Box  # x0, y0, x1, y1 in pixels
    rle: dict[str, Any]  # the mask, in COCO's run-length encoding

    @property
    def mask(self) -> np.ndarray:
        """(H, W) bool."""
        mask: np.ndarray = coco_masks.decode(self.rle).astype(bool)
        return mask


class PanopticResult:
    """What a model has found in one image.

    Each part is computed at its first use, and kept.

    Args:
        metadata: Detectron2's, with class names, colours and ids.
        output: gives the output of the model.
        picture: gives the image, (H, W, 3) uint8 RGB.
        size: height and width of the image.
        source: path of the image; None: it was no file.
        thresholds: of this result; None: the model's own.

    Attributes:
        size: height and width.
        source: path of the image, or None.
    """

    def __init__(
        self,
        metadata: Any,
        *,
        output: Callable[[], ImageOutput],
        picture: Callable[[], np.ndarray],
        size: tuple[int, int],
        source: str | None = None,
        thresholds: Thresholds | None = None,
    ) -> None:
        self._metadata, self._output, self._picture = metadata, output, picture
        self.size, self.source = size, source
        self._thresholds = thresholds or Thresholds()

    def __repr__(self) -> str:
        height, width = self.size
        names = ", ".join(one.class_name for one in self.segments[:5]) + (", ..." if len(self.segments) > 5 else "")
        return f"PanopticResult({width} x {height} pixels, {len(self.segments)} segments: {names or 'none'})"

    @functools.cached_property
    def _panoptic(self) -> PanopticSegments:
        return self._output().panoptic(self._thresholds)

    @property
    def panoptic_map(self) -> np.ndarray:
        """(H, W) int32, the id of each pixel's segment; 0: none."""
        ids: np.ndarray = self._panoptic.panoptic_seg.numpy()
        return ids

    @functools.cached_property
    def segments(self) -> tuple[PanopticSegment, ...]:
        """The segments, in the order of their ids."""
        return tuple(_segment(record) for record in self.task_output("panoptic").records())

    @property
    def categories(self) -> list[dict[str, Any]]:
        """The model's classes as COCO's `categories`: id, name, isthing and color."""
        return [
            {"id": one.category_id, "name": one.name, "isthing": int(one.is_thing)}
            | ({} if one.color is None else {"color": list(one.color)})
            for one in list_classes(self._metadata)
        ]

    @property
    def num_bytes(self) -> int:
        """Memory that the result keeps: what the network has found, the image, and the panoptic map."""
        height, width = self.size
        return self._output().num_bytes + self.picture.nbytes + 4 * height * width

    def is_empty(self, task: str = "panoptic") -> bool:
        """Whether there are no segments, or no instances; a semantic map is never empty."""
        if task == "semantic":
            return False
        return not (self._panoptic.segments_info if task == "panoptic" else len(self._instances))

    def mask(self, segment: PanopticSegment) -> np.ndarray:
        """(H, W) bool, the pixels of a segment."""
        mask: np.ndarray = self.panoptic_map == segment.id
        return mask

    @functools.cached_property
    def instances(self) -> tuple[Instance, ...]:
        """Things with their whole masks, best first; masks may overlap."""
        records = self.task_output("instance").records()
        return tuple(
            Instance(
                class_name=one["class"],
                category_id=one["category_id"],
                contiguous_id=one["contiguous_id"],
                score=one["score"],
                area=one["area"],
                box=_corners(one["bbox"]),
                rle=one["segmentation"],
            )
            for one in records
        )

    @functools.cached_property
    def semantic(self) -> np.ndarray:
        """(H, W) int32, the dataset's category id of each pixel's most likely class; there is no void.

        Of a model with Detectron2's "separated" classes, 0 for all things.
        """
        classes, own = PanopticClasses.from_metadata(self._metadata), CategoryIds.from_metadata(self._metadata)
        if classes is None:
            raise UserError("the classes of this model have no names and ids")
        thing_channels, stuff_channels, number = classes.semantic_channels
        table = np.zeros(number, dtype=np.int32)
        if not classes.is_separated:
            table[list(thing_channels)] = [own.things[i] for i in classes.thing_ids]
        table[list(stuff_channels)] = [own.stuff[i] for i in classes.stuff_ids]
        ids: np.ndarray = table[self._semantic_channels.numpy()]
        return ids

    @functools.cached_property
    def _semantic_channels(self) -> Any:
        return self._output().semantic()

    @functools.cached_property
    def _instances(self) -> Any:
        return self._output().instances(self._thresholds)

    @property
    def query_embeddings(self) -> np.ndarray:
        """(S, D) float32, the refined query of each segment, in the order of `segments`; for tracking.

        Raises:
            UserError: if there are none: of views (TEST.AUG) and of models that are no PanopticSegFormer.
        """
        if self._panoptic.query_embeddings is None:
            raise UserError("this model gives no query embeddings: views (TEST.AUG) and other models have none")
        embeddings: np.ndarray = self._panoptic.query_embeddings.numpy()
        return embeddings

    def task_output(self, task: str = "panoptic") -> TaskOutput:
        """The result of a task for psf's own files: `psf.output.write_output` writes it.

        Args:
            task: "panoptic", "instance" or "semantic".
        """
        if task == "panoptic":
            prediction = (self._panoptic.panoptic_seg, self._panoptic.segments_info)
            return PanopticOutput({"panoptic_seg": prediction}, self._metadata)
        if task == "instance":
            return InstanceOutput({"instances": self._instances}, self._metadata)
        if task == "semantic":
            return SemanticOutput({"sem_seg": self._semantic_channels}, self._metadata)
        raise UserError(f"the task is {task!r}: expected one of {', '.join(TASKS)}")

    def _finish(
        self, tasks: Collection[str], output: Callable[[], ImageOutput], picture: Callable[[], np.ndarray]
    ) -> None:
        """Compute the results of these tasks now, and then take everything else from `output` and `picture`."""
        for task in tasks:
            self.task_output(task)
        self._output, self._picture = output, picture

    @property
    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, the image itself."""
        return self._picture()

    def draw(self, task: str = "panoptic", *, legend: bool = True) -> Image.Image:
        """Draw the segments over the image, with names and scores where they fit, and a legend below."""
        output = self.task_output(task)
        picture = self.picture
        return Image.fromarray(output.picture_with_legend(picture) if legend else output.picture(picture))

    def to_coco(
        self, task: str = "panoptic", *, image_id: int | str = 1, file_name: str | None = None
    ) -> dict[str, Any]:
        """A COCO document of this image, with `images`, `annotations` and `categories`, and the scores.

        Args:
            task: "panoptic": one annotation with `segments_info`; `label_image` has its pixels, to be saved as the PNG
                that `file_name` of the annotation names. "instance": an annotation with RLE for each instance.
            image_id: of the image.
            file_name: of the image; None: that of the source.
        """
        height, width = self.size
        name = file_name or (self.source or f"{image_id}.jpg")
        image = {"id": image_id, "file_name": name, "height": height, "width": width}
        if task == "panoptic":
            png = f"{PurePosixPath(name.replace(chr(92), '/')).stem}.png"  # in one folder
            infos = [
                {
                    "id": one.id,
                    "category_id": one.category_id,
                    "area": one.area,
                    "bbox": _size(one.box),
                    "iscrowd": 0,
                    "score": one.score,
                }
                for one in self.segments
            ]
            annotations: list[dict[str, Any]] = [{"image_id": image_id, "file_name": png, "segments_info": infos}]
        elif task == "instance":
            annotations = [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": one.category_id,
                    "segmentation": one.rle,
                    "area": one.area,
                    "bbox": _size(one.box),
                    "iscrowd": 0,
                    "score": one.score,
                }
                for number, one in enumerate(self.instances, 1)
            ]
        else:
            raise UserError(f'the task is {task!r}: expected "panoptic" or "instance"')
        return {"images": [image], "annotations": annotations, "categories": self.categories}

    def label_image(self) -> np.ndarray:
        """(H, W, 3) uint8, the segment ids in COCO's encoding, R + 256 G + 65536 B; 0: no segment."""
        image = self.task_output("panoptic").label_image()
        assert image is not None
        return image

    def to_labelme(self, *, image_path: str | None = None, exact: bool = False) -> dict[str, Any]:
        """A labelme document: each segment as polygons, joined by `group_id`, or with its exact mask.

        Args:
            image_path: of the image, relative to the JSON; None: that of the source.
            exact: True: labelme's shapes "mask", which keep holes and single pixels, and which need labelme 5.3.
        """
        segments = list_segments(self.task_output("panoptic"))
        return labelme_document(segments, self.size, image_path or self.source or "", exact=exact)

    def explain(self, task: str = "panoptic") -> Explanation:
        """Why the image has these segments: the best candidates, and what rejected the others; `str` of it is a text.

        Args:
            task: "panoptic", or "instance" for the instances.

        Raises:
            UserError: if the model is no PanopticSegFormer.
        """
        if task not in ("panoptic", "instance"):
            raise UserError(f'the task is {task!r}: expected "panoptic" or "instance"')
        return explain_candidates(self._output().explain(task, self._thresholds), self._metadata)

    def merge_again(self, *, confidence: float | None = None, keep: float | None = None) -> PanopticResult:
        """The result with other thresholds, without running the network if its output is still there.

        Args:
            confidence: least confidence of segments and instances (t_cnf); None: the model's own.
            keep: least share of its pixels that a segment keeps (t_keep); None: the model's own.
        """
        for name, value in (("confidence", confidence), ("keep", keep)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}: expected a number from 0 to 1")
        thresholds, output = Thresholds(confidence, keep), self._output()
        return PanopticResult(
            self._metadata,
            output=lambda: output,
            picture=self._picture,
            size=self.size,
            source=self.source,
            thresholds=thresholds,
        )


def _segment(record: dict[str, Any]) -> PanopticSegment:
    return PanopticSegment(
        id=record["id"],
        class_name=record["class"],
        category_id=record["category_id"],
        contiguous_id=record["contiguous_id"],
        is_thing=record["isthing"],
        score=record.get("score", 1.0),
        area=record["area"],
        box=_corners(record["bbox"]),
    )


def _corners(bbox: list[float]) -> Box:
    x, y, width, height = bbox
    return x, y, x + width, y + height


def _size(box: Box) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]
