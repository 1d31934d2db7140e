"""Comparison of psf with reference numbers of the released model."""

from fidelity.compare import check_folder
from fidelity.record import record_folder
from fidelity.stored import Comparison, Report

__all__ = ["Comparison", "Report", "check_folder", "record_folder"]
