"""What psf writes: an image's results as pictures, PNGs, masks and JSON; and videos."""

from psf.output.annotations import ANNOTATION_KINDS, AnnotatedImage, AnnotationWriter, annotation_writer
from psf.output.drawing import Region, draw_regions, draw_text, font_size_of, text_size
from psf.output.files import FILE_KINDS, check_jpeg_size, check_output, write_output
from psf.output.instances import InstanceOutput
from psf.output.legend import draw_legend, legend_entries
from psf.output.panoptic import PanopticOutput, panoptic_regions
from psf.output.semantic import SemanticOutput
from psf.output.task_output import TaskOutput, drawable_metadata
from psf.output.video import Camera, TimedFrame, VideoFile, VideoWriter

__all__ = [
    "ANNOTATION_KINDS",
    "FILE_KINDS",
    "TASKS",
    "AnnotatedImage",
    "AnnotationWriter",
    "Camera",
    "InstanceOutput",
    "PanopticOutput",
    "Region",
    "SemanticOutput",
    "TaskOutput",
    "TimedFrame",
    "VideoFile",
    "VideoWriter",
    "annotation_writer",
    "check_jpeg_size",
    "check_output",
    "draw_legend",
    "draw_regions",
    "draw_text",
    "drawable_metadata",
    "font_size_of",
    "legend_entries",
    "panoptic_regions",
    "text_size",
    "write_output",
]

TASKS: dict[str, type[TaskOutput]] = {one.task: one for one in (PanopticOutput, InstanceOutput, SemanticOutput)}
