"""The released recipe with Swin-L (configs/coco/released/psf_Swin-L_24ep.yaml)."""

from .backbones import use_swin
from .released import model

use_swin(model, 192, [2, 2, 18, 2], [6, 12, 24, 48], drop_path=0.3, freeze=["patch_embed"])
model.post_processor.things.t_cnf = model.post_processor.stuff.t_cnf = 0.3
