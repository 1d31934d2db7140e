"""Count parameters and FLOPs as in the paper, and measure time and memory."""

from psf.tools.analysis.flops import (
    FlopCount,
    PartSize,
    count_flops,
    count_image_flops,
    count_parameters,
    flop_tables,
    parameter_table,
)
from psf.tools.analysis.stages import StageTimes, measure_stages, peak_memory, stage_table

__all__ = [
    "FlopCount",
    "PartSize",
    "StageTimes",
    "count_flops",
    "count_image_flops",
    "count_parameters",
    "flop_tables",
    "measure_stages",
    "parameter_table",
    "peak_memory",
    "stage_table",
]
