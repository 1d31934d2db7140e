"""Panoptic SegFormer as in the paper's text (configs/Base-PSF.yaml), with ResNet-50 and COCO's classes.

    from detectron2.config import LazyConfig, instantiate
    model = instantiate(LazyConfig.load("configs/lazy/panoptic_segformer.py").model)

Sizes that several parts share are set once and referenced elsewhere.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BasicStem, ResNet

from psf import PanopticSegFormer
from psf.inference import InstanceSettings, MaskWiseMerging, MergingThresholds
from psf.losses import HungarianMatcher, PanopticCriterion, SharedAssigner
from psf.meta_arch.build import ResultSettings
from psf.modeling import DeformablePixelEncoder, LocationDecoder, MaskDecoder, Neck, QueryClassifier
from psf.structures import PanopticClasses


def mask_decoder(num_layers, self_attention):
    return L(MaskDecoder)(
        dim="${..dim}",
        num_heads="${..pixel_encoder.num_heads}",
        num_levels="${..num_mask_levels}",
        num_layers=num_layers,
        self_attention=self_attention,
        feedforward_dim=1024,
        mask_activation="sigmoid",
        relu_gradient="revive",
        ignore_padding=True,
        position_in_stream=False,
        key_position=False,
    )


model = L(PanopticSegFormer)(
    dim=256,
    classes=L(PanopticClasses.from_counts)(num_things=80, num_stuff=53),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    size_divisibility=-1,
    channels_last=False,
    activation_checkpointing=[],
    # Section 3.2: projected backbone maps become tokens, which the pixel encoder refines.
    backbone=L(ResNet)(
        stem=L(BasicStem)(in_channels=3, out_channels=64, norm="FrozenBN"),
        stages=L(ResNet.make_default_stages)(depth=50, stride_in_1x1=False, norm="FrozenBN"),
        out_features="${..neck.in_features}",
        freeze_at=2,
    ),
    neck=L(Neck)(
        input_shape={f"res{i}": ShapeSpec(channels=2 ** (6 + i), stride=2**i) for i in (3, 4, 5)},
        in_features=["res3", "res4", "res5"],
        dim="${..dim}",
        num_levels=3,
    ),
    pixel_encoder=L(DeformablePixelEncoder)(
        dim="${..dim}",
        num_heads=8,
        num_feature_levels="${..neck.num_levels}",
        num_layers=6,
        feedforward_dim=1024,
        num_points=4,
        dropout=0.1,
    ),
    # Section 3.3.2: thing queries learn where they are.
    location_decoder=L(LocationDecoder)(
        dim="${..dim}",
        num_queries=300,
        num_classes="${..classes.num_things}",
        num_heads="${..pixel_encoder.num_heads}",
        num_feature_levels="${..neck.num_levels}",
        num_layers=6,
        feedforward_dim=1024,
        num_points=4,
        dropout=0.1,
        target="box",
        box_refinement=False,
        head_at_test=False,
        encode_location=False,
    ),
    # Section 3.3.3: thing and stuff queries become masks and classes.
    num_mask_levels=3,
    thing_decoder=mask_decoder(num_layers=4, self_attention=False),
    thing_classifier=L(QueryClassifier)(
        dim="${..dim}", num_layers="${..thing_decoder.num_layers}", num_outputs="${..classes.num_things}"
    ),
    stuff_decoder=mask_decoder(num_layers=6, self_attention=True),
    stuff_classifier=L(QueryClassifier)(dim="${..dim}", num_layers="${..stuff_decoder.num_layers}", num_outputs=1),
    # Section 3.4.
    matching=L(SharedAssigner)(
        matcher=L(HungarianMatcher)(
            class_weight=2.0,
            l1_weight=5.0,
            giou_weight=2.0,
            dice_weight=2.0,
            focal_alpha="${...criterion.focal_alpha}",
            focal_gamma="${...criterion.focal_gamma}",
        )
    ),
    criterion=L(PanopticCriterion)(
        things_weight=1.0,
        stuff_weight=1.0,
        balance="fixed",
        cls_weight=2.0,
        stuff_cls_weight=2.0,
        seg_weight=2.0,
        det_cls_weight=2.0,
        det_l1_weight=5.0,
        det_giou_weight=2.0,
        focal_alpha=0.25,
        focal_gamma=2.0,
    ),
    # Section 3.5, Algorithm 1.
    post_processor=L(MaskWiseMerging)(
        things=L(MergingThresholds)(alpha=1.0, beta=2.0, t_cnf=0.25, t_keep=0.6),
        stuff=L(MergingThresholds)(alpha=1.0, beta=2.0, t_cnf=0.25, t_keep=0.8),
        mask_threshold=0.5,
        extra_pixels=0.0,
        instance=L(InstanceSettings)(boxes="mask", score_thresh=0.0, max_per_image=100, nms_thresh=1.0),
    ),
    settings=L(ResultSettings)(
        layer=-1, candidates="best_class", num_top_pairs=100, panoptic=True, instance=True, semantic=True
    ),
)
