"""How a model holds up under corrupted images (COCO-C; the paper's table 11)."""

from psf.robustness.corruptions import CORRUPTIONS, SEVERITIES, Corruption, corrupt
from psf.robustness.description import describe_measurement
from psf.robustness.evaluation import evaluate_corruption, evaluate_robustness
from psf.robustness.record import RobustnessRecord
from psf.robustness.report import draw_chart, robustness_table, write_report

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
