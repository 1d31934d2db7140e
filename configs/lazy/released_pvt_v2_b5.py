"""The released recipe with PVTv2-B5 (configs/coco/released/psf_PVTv2-B5_24ep.yaml)."""

from .backbones import use_timm
from .released import model

use_timm(model, "pvt_v2_b5", [128, 320, 512], drop_path=0.1)
model.post_processor.things.t_cnf = model.post_processor.stuff.t_cnf = 0.3
