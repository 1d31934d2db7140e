"""Check the environment: versions of the packages that matter, what runs on this machine, and the fix of each problem.

It has to work where torch or Detectron2 are missing or fail at import. So this package imports the standard library
alone, tries everything else, and reports why an import fails.
"""

from psf.tools.doctor.examination import Finding, examine, main

__all__ = ["Finding", "examine", "main"]
