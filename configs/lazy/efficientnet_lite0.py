"""For one small GPU: configs/coco/psf_EfficientNet-Lite0_24ep.yaml."""

from .backbones import use_timm
from .panoptic_segformer import model

use_timm(model, "tf_efficientnet_lite0", [40, 112, 320], freeze=["conv_stem", "blocks.0"])
model.update(pixel_mean=[127.5] * 3, pixel_std=[127.5] * 3, channels_last=True)
model.activation_checkpointing = ["pixel_encoder"]
