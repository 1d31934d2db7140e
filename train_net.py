#!/usr/bin/env python3
"""Train or evaluate a model.

python train_net.py --config-file configs/shapes/psf_tiny.yaml --num-gpus 0 OUTPUT_DIR output/tiny
python train_net.py --config-file configs/shapes/psf_tiny.yaml --eval-only MODEL.WEIGHTS output/tiny/model_final.pth
"""

import sys

from psf.engine import run_command_line

if __name__ == "__main__":
    sys.exit(run_command_line())
