"""One image's results as files: pictures, label PNGs, binary masks, and a JSON that says what is in them."""

from psf.output.files import FILE_KINDS, write_output
from psf.output.instances import InstanceOutput
from psf.output.panoptic import PanopticOutput
from psf.output.semantic import SemanticOutput
from psf.output.task_output import TaskOutput, drawable_metadata

__all__ = [
    "FILE_KINDS",
    "TASKS",
    "InstanceOutput",
    "PanopticOutput",
    "SemanticOutput",
    "TaskOutput",
    "drawable_metadata",
    "write_output",
]

TASKS: dict[str, type[TaskOutput]] = {one.task: one for one in (PanopticOutput, InstanceOutput, SemanticOutput)}
