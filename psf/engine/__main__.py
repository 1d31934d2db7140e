"""`python -m psf.engine`: what train_net.py does, where there is no checkout."""

import sys

from psf.engine import run_command_line

if __name__ == "__main__":
    sys.exit(run_command_line())
