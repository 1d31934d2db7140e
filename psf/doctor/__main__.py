"""`python -m psf.doctor`."""

import sys

from psf.doctor.report import main

if __name__ == "__main__":
    sys.exit(main())
