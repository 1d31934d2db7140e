"""A run from its command line to its end: checks, processes, training or evaluation."""

from psf.engine.runs.check import check_run
from psf.engine.runs.launch import launch
from psf.engine.runs.run import main

__all__ = ["check_run", "launch", "main"]
