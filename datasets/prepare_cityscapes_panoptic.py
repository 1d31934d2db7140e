#!/usr/bin/env python3
"""Convert Cityscapes to the datasets psf_cityscapes_panoptic_{train,val}; datasets/README.md shows the folders.

python datasets/prepare_cityscapes_panoptic.py
"""

from __future__ import annotations

import sys

from prepare_scenes import main

from psf.tools.dataset_conversion.scenes import prepare_cityscapes

if __name__ == "__main__":
    sys.exit(main(__doc__, "cityscapes", prepare_cityscapes))
