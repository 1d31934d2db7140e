#!/usr/bin/env python3
"""Convert ADE20K to the datasets psf_ade20k_panoptic_{train,val}; datasets/README.md shows the folders.

python datasets/prepare_ade20k_panoptic.py
"""

from __future__ import annotations

import sys

from prepare_scenes import main

from psf.tools.dataset_conversion.scenes import prepare_ade20k

if __name__ == "__main__":
    sys.exit(main(__doc__, "ADEChallengeData2016", prepare_ade20k))
