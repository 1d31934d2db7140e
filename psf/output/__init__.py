"""What psf writes: an image's results as pictures, PNGs, masks and JSON; and videos."""

from psf.output.drawing import Region, draw_regions, draw_text, font_size_of, text_size
from psf.output.files import FILE_KINDS, check_output, write_output
from psf.output.instances import InstanceOutput
from psf.output.labelme import labelme_shapes
from psf.output.legend import draw_legend, legend_entries
from psf.output.panoptic import PanopticOutput, panoptic_regions
from psf.output.semantic import SemanticOutput
from psf.output.task_output import TaskOutput, drawable_metadata
from psf.output.video import Camera, TimedFrame, VideoFile, VideoWriter

__all__ = [
    "FILE_KINDS",
    "TASKS",
    "Camera",
    "InstanceOutput",
    "PanopticOutput",
    "Region",
    "SemanticOutput",
    "TaskOutput",
    "TimedFrame",
    "VideoFile",
    "VideoWriter",
    "check_output",
    "draw_legend",
    "draw_regions",
    "draw_text",
    "drawable_metadata",
    "font_size_of",
    "labelme_shapes",
    "legend_entries",
    "panoptic_regions",
    "text_size",
    "write_output",
]

TASKS: dict[str, type[TaskOutput]] = {one.task: one for one in (PanopticOutput, InstanceOutput, SemanticOutput)}
