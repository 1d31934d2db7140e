#!/usr/bin/env python3
"""ADE20K as it is downloaded -> the panoptic sets psf_ade20k_panoptic_{train,val}; datasets/README.md has the folders.

python datasets/prepare_ade20k_panoptic.py
"""

from __future__ import annotations

import sys

from prepare_scenes import main

from psf.tools.dataset_conversion.scenes import prepare_ade20k

if __name__ == "__main__":
    sys.exit(main(__doc__, "ADEChallengeData2016", prepare_ade20k))
