"""Replace the backbone of a LazyConfig model with Swin or a timm model."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from psf.backbone import SwinBackbone, TimmBackbone


def use_swin(model, embed_dim, depths, num_heads, drop_path, freeze=()):
    """Use Swin with windows of 7 x 7 and `embed_dim` channels in the first stage, doubled in each further stage."""
    model.backbone = L(SwinBackbone)(
        embed_dim=embed_dim,
        depths=depths,
        num_heads=num_heads,
        window_size=7,
        drop_path=drop_path,
        out_features="${..neck.in_features}",
        in_channels=3,
        freeze=list(freeze),
    )
    _announce(model, [2 * embed_dim, 4 * embed_dim, 8 * embed_dim])


def use_timm(model, name, channels, drop_path=0.0, freeze=()):
    """Use the timm model of this name, whose maps at strides 8, 16 and 32 have these numbers of channels."""
    model.backbone = L(TimmBackbone)(
        name=name,
        out_features="${..neck.in_features}",
        in_channels=3,
        frozen_norm=True,
        drop_path=drop_path,
        freeze=list(freeze),
        pretrained=False,
    )
    _announce(model, channels)


def _announce(model, channels):
    shapes = zip(model.neck.in_features, channels, (8, 16, 32))
    model.neck.input_shape = {name: ShapeSpec(channels=c, stride=stride) for name, c, stride in shapes}
