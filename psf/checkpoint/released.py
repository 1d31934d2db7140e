"""Convert released Panoptic SegFormer checkpoints to psf's names, by a literal table."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from psf.checkpoint.imagenet import PVT_V2, RESNET, SWIN
from psf.checkpoint.name_table import rename
from psf.errors import UserError

__all__ = ["DROPPED", "convert_released"]

# Backbone -> an entry that only checkpoints with this backbone have.
BACKBONES = {
    "backbone.layer1.0.conv1.weight": RESNET,
    "backbone.patch_embed1.proj.weight": PVT_V2,
    "backbone.patch_embed.proj.weight": SWIN,
}

NECK = {
    "neck.convs.#.conv.weight": "neck.input_proj.#.0.weight",
    "neck.convs.#.gn.*": "neck.input_proj.#.1.*",
    "neck.extra_convs.#.conv.weight": "neck.extra_input_proj.#.0.weight",
    "neck.extra_convs.#.gn.*": "neck.extra_input_proj.#.1.*",
}

PIXEL_ENCODER = {
    "transformer.level_embeds": "pixel_encoder.level_embed",
    "transformer.encoder.layers.#.attentions.0.*": "pixel_encoder.layers.#.attention.*",
    "transformer.encoder.layers.#.norms.0.*": "pixel_encoder.layers.#.attention_norm.*",
    "transformer.encoder.layers.#.ffns.0.layers.0.0.*": "pixel_encoder.layers.#.feed_forward.fc1.*",
    "transformer.encoder.layers.#.ffns.0.layers.1.*": "pixel_encoder.layers.#.feed_forward.fc2.*",
    "transformer.encoder.layers.#.norms.1.*": "pixel_encoder.layers.#.feed_forward_norm.*",
}

LOCATION_DECODER: dict[str, str | tuple[str, ...]] = {
    "query_embedding.weight": ("location_decoder.query_pos.weight", "location_decoder.query_feat.weight"),
    "transformer.reference_points.*": "location_decoder.reference_points.*",
    "transformer.decoder.layers.#.attentions.0.attn.*": "location_decoder.layers.#.self_attention.*",
    "transformer.decoder.layers.#.norms.0.*": "location_decoder.layers.#.self_attention_norm.*",
    "transformer.decoder.layers.#.attentions.1.*": "location_decoder.layers.#.cross_attention.*",
    "transformer.decoder.layers.#.norms.1.*": "location_decoder.layers.#.cross_attention_norm.*",
    "transformer.decoder.layers.#.ffns.0.layers.0.0.*": "location_decoder.layers.#.feed_forward.fc1.*",
    "transformer.decoder.layers.#.ffns.0.layers.1.*": "location_decoder.layers.#.feed_forward.fc2.*",
    "transformer.decoder.layers.#.norms.2.*": "location_decoder.layers.#.feed_forward_norm.*",
    "cls_branches.#.*": "location_decoder.class_embed.#.*",
    "reg_branches.#.*": "location_decoder.bbox_embed.#.*",
}

STUFF: dict[str, str | tuple[str, ...]] = {
    "stuff_query.weight": ("stuff_query_feat.weight", "stuff_query_pos.weight"),
    "cls_stuff_branches.#.*": "stuff_classifier.layers.#.*",
}

MASK_DECODER = {
    "blocks.#.self_attention.qkv.weight": "layers.#.self_attention.in_proj_weight",
    "blocks.#.self_attention.qkv.bias": "layers.#.self_attention.in_proj_bias",
    "blocks.#.self_attention.proj.*": "layers.#.self_attention.out_proj.*",
    "blocks.#.norm3.*": "layers.#.self_attention_norm.*",
    "blocks.#.attn.q.*": "layers.#.attention.query_proj.*",
    "blocks.#.attn.k.*": "layers.#.attention.key_proj.*",
    "blocks.#.attn.v.*": "layers.#.attention.value_proj.*",
    "blocks.#.attn.proj.*": "layers.#.attention.output_proj.*",
    "blocks.#.head_norm1.*": "layers.#.attention_norm.*",
    "blocks.#.mlp.*": "layers.#.feed_forward.*",
    "blocks.#.head_norm2.*": "layers.#.feed_forward_norm.*",
    "blocks.#.attn.linear_l1.0.*": "layers.#.mask_head.level_mix.0.*",
    "blocks.#.attn.linear_l2.0.*": "layers.#.mask_head.level_mix.1.*",
    "blocks.#.attn.linear_l3.0.*": "layers.#.mask_head.level_mix.2.*",
    "blocks.#.attn.linear.0.*": "layers.#.mask_head.fuse.*",
    "attnen.q.*": "tail.query_proj.*",
    "attnen.k.*": "tail.key_proj.*",
    "attnen.linear_l1.0.*": "tail_head.level_mix.0.*",
    "attnen.linear_l2.0.*": "tail_head.level_mix.1.*",
    "attnen.linear_l3.0.*": "tail_head.level_mix.2.*",
    "attnen.linear.0.*": "tail_head.fuse.*",
}

HEAD: dict[str, str | tuple[str, ...]] = {
    **PIXEL_ENCODER,
    **LOCATION_DECODER,
    **STUFF,
    **{f"things_mask_head.{old}": f"thing_decoder.{new}" for old, new in MASK_DECODER.items()},
    **{f"stuff_mask_head.{old}": f"stuff_decoder.{new}" for old, new in MASK_DECODER.items()},
}

DROPPED = (
    "*.num_batches_tracked",  # batch norms are frozen
    # The mask decoder's own boxes and thing classes, whose losses were multiplied by zero.
    "bbox_head.reg_branches2.*",
    "bbox_head.cls_thing_branches.*",
)


def convert_released(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the entries of a released checkpoint for the models of configs/coco/released.

    Args:
        state_dict: the checkpoint's "state_dict".

    Returns:
        Entries by psf's names; each source entry is used once or matches `DROPPED`.

    Raises:
        UserError: if the backbone is not a released one, or entries are not in the table; the message lists them.
    """
    backbone = next((table for marker, table in BACKBONES.items() if marker in state_dict), None)
    if backbone is None:
        raise UserError(
            f"the checkpoint is not a released Panoptic SegFormer: it has none of the entries {', '.join(BACKBONES)}"
        )
    table: dict[str, str | tuple[str, ...]] = {
        **{f"backbone.{old}": f"backbone.{new}" for old, new in backbone.items()},
        **NECK,
        **{f"bbox_head.{old}": new for old, new in HEAD.items()},
    }
    return rename(state_dict, table, DROPPED, source="the released checkpoint")
