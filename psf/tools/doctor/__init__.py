"""Check the environment: package versions, the hardware that psf can use, and the command that fixes each problem.

This package must work if torch or Detectron2 is missing or fails at import. It imports only the standard library, tries
to import everything else, and reports why an import fails.
"""

from psf.tools.doctor.examination import Finding, examine, main

__all__ = ["Finding", "examine", "main"]
