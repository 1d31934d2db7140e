"""Reference numbers of the released model, and how far psf is from them."""

from psf.golden.check import check_folder
from psf.golden.record import record_folder
from psf.golden.stored import Comparison, Report

__all__ = ["Comparison", "Report", "check_folder", "record_folder"]
