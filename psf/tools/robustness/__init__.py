"""Robustness to image corruptions (COCO-C; the paper's table 11)."""

from psf.tools.robustness.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from psf.tools.robustness.evaluation import evaluate_corruption, evaluate_robustness
from psf.tools.robustness.record import RobustnessRecord, describe_measurement
from psf.tools.robustness.report import draw_chart, robustness_table, write_report

__all__ = [
    "CORRUPTIONS",
    "SEVERITIES",
    "Corruption",
    "RobustnessRecord",
    "corrupt",
    "describe_measurement",
    "draw_chart",
    "evaluate_corruption",
    "evaluate_robustness",
    "robustness_table",
    "write_report",
]
