#!/usr/bin/env python3
"""Train or evaluate a model: `psf train`, under the name that Detectron2 users know.

python train_net.py --config-file configs/shapes/psf_tiny.yaml --num-gpus 0 OUTPUT_DIR output/tiny
python train_net.py --config-file configs/shapes/psf_tiny.yaml --eval-only MODEL.WEIGHTS output/tiny/model_final.pth
"""

import sys

from psf.commands.training.train import main

if __name__ == "__main__":
    sys.exit(main())
