"""Results in the forms in which the server sends them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from psf.output import check_jpeg_size
from psf.output.colors import class_color, segment_levels, with_level
from psf.prediction import PanopticResult, Predictor
from psf.tools.serving.limits import Limits

__all__ = [
    "FORMATS",
    "Answer",
    "Health",
    "ModelDescription",
    "Options",
    "Reason",
    "Segmentation",
    "describe_model",
    "encode",
]

Format = Literal["json", "png", "picture", "coco", "photo"]
FORMATS: dict[Format, str] = {
    "json": "application/json",
    "png": "image/png",
    "picture": "image/jpeg",
    "coco": "application/json",
    "photo": "image/jpeg",
}
Color = tuple[int, int, int]


class Options(BaseModel):
    """Query parameters of a result; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid")

    confidence: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False, description="least confidence of a segment (T_CNF); default: the model's"
    )
    keep: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="least share of its pixels that a segment keeps (T_KEEP); default: the model's",
    )
    format: Format = Field(
        "json",
        description="json: segments and panoptic PNG; png: the panoptic PNG alone, ids as R + 256 G + 65536 B; "
        "picture: the drawn picture (JPEG); coco: a COCO panoptic document; photo: the image itself, upright (JPEG)",
    )


class SegmentRecord(BaseModel):
    """One segment: a thing, or all pixels of a stuff class."""

    id: int = Field(description="its value in the panoptic PNG, R + 256 G + 65536 B")
    class_name: str
    category_id: int = Field(description="the dataset's own")
    is_thing: bool
    score: float
    area: int = Field(description="pixels")
    box: tuple[float, float, float, float] = Field(description="x0, y0, x1, y1 in pixels; x1 and y1 exclusive")
    color: Color = Field(description="RGB; neighbours of a class have different brightness")


class Segmentation(BaseModel):
    """What the model has found in one image."""

    id: str | None = Field(description="for /v1/results/{id}; null: the result is too large to be kept")
    width: int
    height: int
    segments: list[SegmentRecord]
    panoptic_png: str = Field(description="base64 of the PNG with the id of each pixel's segment, 0 for none")


class ClassDescription(BaseModel):
    """A class of the model."""

    name: str
    category_id: int = Field(description="the dataset's own")
    is_thing: bool
    color: Color = Field(description="RGB")


class ThresholdDescription(BaseModel):
    """The model's own thresholds of one kind of class."""

    confidence: float
    keep: float


class LimitDescription(BaseModel):
    """What the server accepts."""

    max_bytes: int
    max_pixels: int


class ModelDescription(BaseModel):
    """The model and the limits of the server."""

    name: str
    classes: list[ClassDescription]
    things: ThresholdDescription | None = Field(description="null: the model has no such thresholds")
    stuff: ThresholdDescription | None = Field(description="null: the model has no such thresholds")
    limits: LimitDescription


class Health(BaseModel):
    """The server is ready."""

    status: Literal["ok"]


class Reason(BaseModel):
    """Why a request was refused, in one line."""

    detail: str


class Answer(NamedTuple):
    """The body of an answer."""

    content: bytes
    media_type: str
    result_id: str | None


def encode(result: PanopticResult, format: Format, result_id: str | None, metadata: Any) -> Answer:
    """A result as the body of an answer; `metadata` is Detectron2's, with the colours.

    Raises:
        UserError: if the result is too large for the format.
    """
    if format == "json":
        content = _as_json(result, result_id, metadata)
    elif format == "png":
        content = _as_png(result)
    elif format == "picture":
        content = _as_jpeg(result.draw())
    elif format == "coco":
        content = json.dumps(result.to_coco(file_name="image.jpg")).encode()
    else:
        content = _as_jpeg(Image.fromarray(result.picture))
    return Answer(content, FORMATS[format], result_id)


def _as_json(result: PanopticResult, result_id: str | None, metadata: Any) -> bytes:
    height, width = result.size
    answer = Segmentation(
        id=result_id,
        width=width,
        height=height,
        segments=[
            SegmentRecord(
                id=one.id,
                class_name=one.class_name,
                category_id=one.category_id,
                is_thing=one.is_thing,
                score=one.score,
                area=one.area,
                box=one.box,
                color=color,
            )
            for one, color in zip(result.segments, _segment_colors(result, metadata), strict=True)
        ],
        panoptic_png=base64.b64encode(_as_png(result)).decode(),
    )
    return answer.model_dump_json().encode()


def _segment_colors(result: PanopticResult, metadata: Any) -> list[Color]:
    """The colours of the drawn picture."""
    segments = result.segments
    boxes = [tuple(int(value) for value in one.box) for one in segments]
    extents = [(slice(y0, y1), slice(x0, x1)) for x0, y0, x1, y1 in boxes]
    levels = segment_levels([(one.class_name, one.is_thing) for one in segments], extents, result.size)
    return [
        with_level(class_color(metadata, one.contiguous_id, one.is_thing), level)
        for one, level in zip(segments, levels, strict=True)
    ]


def _as_png(result: PanopticResult) -> bytes:
    file = io.BytesIO()
    # Level 1 takes a third of the time of the default, and flat regions are small at any level.
    Image.fromarray(np.ascontiguousarray(result.label_image())).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _as_jpeg(image: Image.Image) -> bytes:
    check_jpeg_size(image.height, image.width, "the picture", "use format=png or format=json")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)  # as `psf predict`: thin lines and letters stay sharp
    return file.getvalue()


def describe_model(predictor: Predictor, name: str, limits: Limits) -> ModelDescription:
    """The model for clients; `name` is no path."""
    processor: Any = getattr(predictor.model, "post_processor", None)  # other models of Detectron2 have none
    things, stuff = (
        ThresholdDescription(confidence=numbers.t_cnf, keep=numbers.t_keep) if numbers is not None else None
        for numbers in ((None, None) if processor is None else (processor.things, processor.stuff))
    )
    classes = [
        ClassDescription(
            name=one.name,
            category_id=one.category_id,
            is_thing=one.is_thing,
            color=class_color(predictor.metadata, one.contiguous_id, one.is_thing),
        )
        for one in predictor.classes
    ]
    return ModelDescription(
        name=name,
        classes=classes,
        things=things,
        stuff=stuff,
        limits=LimitDescription(max_bytes=limits.max_bytes, max_pixels=limits.max_pixels),
    )
