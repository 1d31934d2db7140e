#!/usr/bin/env python3
"""Segment images, a video or a camera stream: `psf predict` under Detectron2's usual name."""

import sys

from psf.commands.predicting.predict import main

if __name__ == "__main__":
    sys.exit(main())
