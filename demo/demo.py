#!/usr/bin/env python3
"""Segment images, a video or a camera: `psf predict`, under the name that Detectron2 users know."""

import sys

from psf.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
