"""`python -m psf.doctor`: the versions of all that matters, what will run on this machine, and how to mend the rest.

It has to work where torch or Detectron2 are missing, or fail at import: so this room imports the standard library
alone, tries everything else, and reports the reason of each failure.
"""

from psf.doctor.examination import Finding, examine
from psf.doctor.report import main

__all__ = ["Finding", "examine", "main"]
