#!/usr/bin/env python3
"""Train or evaluate a model.

python train_net.py --config-file configs/shapes/psf_tiny.yaml --num-gpus 0 OUTPUT_DIR output/tiny
python train_net.py --config-file configs/shapes/psf_tiny.yaml --eval-only MODEL.WEIGHTS output/tiny/model_final.pth
"""

from psf.engine import argument_parser, launch, main

if __name__ == "__main__":
    launch(main, argument_parser().parse_args())
