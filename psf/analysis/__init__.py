"""How large a model is and what one image costs: the paper's "params" and "FLOPs"."""

from psf.analysis.flops import FlopCount, count_flops, count_image_flops, flop_tables
from psf.analysis.parameters import PartSize, count_parameters, parameter_table

__all__ = [
    "FlopCount",
    "PartSize",
    "count_flops",
    "count_image_flops",
    "count_parameters",
    "flop_tables",
    "parameter_table",
]
