"""A training on generated scenes with Detectron2's tools/lazyconfig_train_net.py; a start for your own data.

    python -m tools.lazyconfig_train_net --config-file configs/lazy/train_shapes.py train.output_dir=output/lazy

`tools` is in the Detectron2 that `make setup` installs; with another one, run the script of its repository. It has
neither psf's exact resume nor its checks: `psf train` with a yaml config has both.
"""

import torch
from detectron2.config import LazyCall as L
from detectron2.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import CosineParamScheduler

from psf.data import PanopticMapper, load_dataset
from psf.evaluation import PanopticQualityEvaluator
from psf.structures import PanopticClasses

from .efficientnet_lite0 import model

TRAIN, TEST = "psf_shapes_train", "psf_shapes_val"

# The model of efficientnet_lite0.py, smaller, with the classes of the dataset.
classes = PanopticClasses.from_metadata(MetadataCatalog.get(TRAIN))
model.classes = L(PanopticClasses)(thing_ids=list(classes.thing_ids), stuff_ids=list(classes.stuff_ids))
model.location_decoder.update(num_classes=len(classes.thing_ids), num_queries=100, num_layers=1, feedforward_dim=256)
model.thing_classifier.num_outputs = len(classes.thing_ids)
model.pixel_encoder.update(num_layers=2, feedforward_dim=256)
model.thing_decoder.update(num_layers=2, feedforward_dim=256)
model.stuff_decoder.update(num_layers=2, feedforward_dim=256)
model.dim = 96
model.activation_checkpointing = []


def mapper(is_train, augmentations):
    return L(PanopticMapper)(is_train=is_train, augmentations=augmentations, image_format="RGB")


def resize(sides):
    return L(T.ResizeShortestEdge)(short_edge_length=sides, sample_style="choice", max_size=256)


dataloader = dict(
    train=L(build_detection_train_loader)(
        dataset=L(load_dataset)(name=TRAIN),
        mapper=mapper(True, [L(T.RandomFlip)(), resize([144, 160, 176])]),
        total_batch_size=4,
        num_workers=1,
    ),
    test=L(build_detection_test_loader)(
        dataset=L(load_dataset)(name=TEST), mapper=mapper(False, [resize([160])]), num_workers=1
    ),
    evaluator=L(PanopticQualityEvaluator)(dataset_name=TEST),
)
optimizer = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}"),  # the script adds the model
    lr=0.0005,
    weight_decay=0.0001,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.05,  # of max_iter
    warmup_factor=0.01,
)
train = dict(
    output_dir="output/lazy",
    init_checkpoint="",
    max_iter=1200,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False),
    checkpointer=dict(period=200, max_to_keep=5),
    eval_period=400,
    log_period=20,
    device="cuda" if torch.cuda.is_available() else "cpu",
    seed=1,
)
