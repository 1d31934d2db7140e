"""Every key of psf under MODEL.PSF, with its default (the paper recipe), unit and the paper's symbol."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode as CN

from psf.errors import UserError

__all__ = ["SHARED_KEYS", "add_psf_config", "backbone_maps", "import_user_modules", "leaves"]


def add_psf_config(cfg: CN) -> None:
    """Add psf's keys to a Detectron2 config, in place.

    Can be called repeatedly, and before or after the same function of another project. Keys that other projects also
    define (INPUT.DATASET_MAPPER_NAME, SOLVER.BACKBONE_MULTIPLIER, ...) are set only if absent.

    Args:
        cfg: a config from `detectron2.config.get_cfg()`.
    """
    if "PSF" not in cfg.MODEL:
        cfg.MODEL.PSF = _model_defaults()
    for path, value in SHARED_KEYS.items():
        *parents, leaf = path.split(".")
        node = cfg
        for parent in parents:
            if parent not in node:
                node[parent] = CN()
            node = node[parent]
        if leaf not in node:
            node[leaf] = value


def leaves(node: CN, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of a config; `prefix`: of all keys, such as "MODEL."."""
    for name, value in node.items():
        if isinstance(value, CN):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def backbone_maps(cfg: CN) -> list[str]:
    """Names of the backbone maps that the model reads, finest first: MASK_FEATURE, FINE_FEATURE and IN_FEATURES."""
    node = cfg.MODEL.PSF
    return [*(name for name in (node.MASK_FEATURE, node.FINE_FEATURE) if name), *node.IN_FEATURES]


def import_user_modules(cfg: CN) -> None:
    """Import the modules of MODEL.PSF.IMPORTS, whose classes register themselves.

    Modules are found as in an `import` statement; the current folder is searched last. A name is a dotted module name,
    never a path. Checkpoints contain no module names.

    Raises:
        UserError: if a name is not a dotted module name, or the module does not exist. Errors inside the module are
            raised unchanged.
    """
    names = cfg.MODEL.PSF.IMPORTS
    for name in [names] if isinstance(names, str) else names:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise UserError(
                f"MODEL.PSF.IMPORTS or --import has {name!r}: expected the dotted name of a module, such as "
                "my_package.my_decoder"
            )
        if not {"", os.getcwd()} & set(sys.path):  # the command `psf` does not add it to sys.path
            sys.path.append(os.getcwd())
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # a module that the user's module imports
            raise UserError(
                f"MODEL.PSF.IMPORTS or --import has {name!r}: there is no module {error.name!r} in the current folder "
                "or among the installed packages; install it, change the folder or correct the name"
            ) from None


# Keys outside MODEL.PSF: names that other Detectron2 projects use for the same purpose, and those with PSF_.
SHARED_KEYS = {
    "INPUT.DATASET_MAPPER_NAME": "psf_panoptic",  # name in psf.data.DATASET_MAPPER_REGISTRY
    # Add `instances` to the ground truth of psf's mappers, for other models: "things" (BitMasks, as Detectron2's models
    # take them) or "segments" (things and stuff as one bool tensor, as Mask2Former takes them); "none": do not.
    "INPUT.PSF_INSTANCES": "none",
    "INPUT.IMAGE_SIZE": 1024,  # psf_panoptic_lsj: side of the square that it crops or pads to, in pixels
    "INPUT.MIN_SCALE": 0.1,  # psf_panoptic_lsj: least scale before the crop; at 1 the image just fits
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.COLOR_AUG_SSD": False,  # psf_panoptic_lsj and psf_panoptic_cityscapes: colour augmentation
    # psf_panoptic_cityscapes: the largest share of a crop's labelled pixels that one class may have; 1.0: no limit
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    # Largest number of pixels of an image or a panoptic PNG; decoding takes up to about 15 bytes per pixel. The default
    # is Pillow's. Applies to the whole process.
    "INPUT.PSF_MAX_PIXELS": 89_478_485,
    # Panoptic sets to register, as "NAME=JSON,PNGS,IMAGES" (see --register). psf.engine.build_config makes the paths
    # absolute, so that config.yaml works from any folder.
    "DATASETS.PSF_REGISTER": [],
    # Pairs of a name in DATASETS.TRAIN and how often an epoch shows each of its images (1 for all others), such as
    # [("my_rare_set", 3.0)]; for DATALOADER.SAMPLER_TRAIN "WeightedTrainingSampler" and
    # "WeightedCategoryTrainingSampler", which Detectron2 has without this key.
    "DATASETS.TRAIN_REPEAT_FACTOR": [],
    # Largest share of the training images that may be unreadable: they are logged and skipped (one is always allowed
    # unless the share is 0). More of them end the training.
    "DATALOADER.MAX_UNREADABLE_SHARE": 0.01,
    "DATALOADER.TIMEOUT": 600,  # seconds to wait for a batch of the workers; 0: forever
    "SOLVER.OPTIMIZER": "ADAMW",  # "ADAMW" | "SGD", read by psf.engine.Trainer
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,  # learning rate of the backbone, as a factor of BASE_LR
    # Layer-wise decay: learning rate of a backbone block as a factor of the next block's, and of the stem as a factor
    # of the first block's. 1.0: off.
    "SOLVER.BACKBONE_LAYER_DECAY": 1.0,
    "SOLVER.SAMPLING_MULTIPLIER": 0.1,  # the same for sampling offsets and reference points
    "SOLVER.AMP.DTYPE": "float16",  # dtype of autocast if SOLVER.AMP.ENABLED: "float16" | "bfloat16"
    # Checkpoints (docs/training.md). Detectron2's default CHECKPOINT_PERIOD, 5000 iterations, is shortened to a tenth
    # of MAX_ITER and to this many minutes. Any other period is used as it is; 0: only the last checkpoint.
    "SOLVER.CHECKPOINT_MINUTES": 10.0,  # 0: no limit
    "SOLVER.CHECKPOINTS_TO_KEEP": 5,  # number of the newest checkpoints beside model_final.pth; 0: all
    "SOLVER.CHECKPOINT_KEEP_EVERY": 0,  # each k-th checkpoint of CHECKPOINT_PERIOD is never deleted; 0: off
    # Training ends if this many iterations in a row are skipped, because the loss or a gradient is not finite.
    "SOLVER.MAX_SKIPPED_STEPS": 10,
}


def _model_defaults() -> CN:
    node = CN()
    for add_defaults in (
        _add_backbone_defaults,
        _add_query_defaults,
        _add_network_defaults,
        _add_learning_defaults,
        _add_result_defaults,
    ):
        add_defaults(node)
    return node


def _add_backbone_defaults(node: CN) -> None:
    # Modules with your own classes, such as "my_package.my_decoder". They are imported before the model is built, so
    # that their classes are registered (docs/your-own-decoder.md). `--import` adds modules to this list.
    node.IMPORTS = []

    # ------------------------------------------------------------------ backbone (build_psf_timm_backbone only)
    node.TIMM = CN()
    node.TIMM.NAME = "tf_efficientnet_lite0"  # any timm model that returns features
    # True: timm's pretrained weights. When the model is built, timm downloads them if they are not in its cache; the
    # log contains their source. False: the weights come from MODEL.WEIGHTS.
    node.TIMM.PRETRAINED = False
    node.TIMM.FROZEN_NORM = True  # batch norms keep their statistics and affine parameters
    node.TIMM.DROP_PATH = 0.0  # stochastic depth rate of the last block, rising from 0 at the first
    node.TIMM.FREEZE = []  # names of parameters and modules that are not trained

    # ------------------------------------------------------------------ backbone (build_psf_swin_backbone only)
    # The default is Swin-T with its usual drop path rate for detection.
    node.SWIN = CN()
    node.SWIN.EMBED_DIM = 96  # channels of the first stage; each later stage has twice as many
    node.SWIN.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    node.SWIN.NUM_HEADS = [3, 6, 12, 24]
    node.SWIN.WINDOW_SIZE = 7
    node.SWIN.DROP_PATH = 0.2
    node.SWIN.FREEZE = []  # as TIMM.FREEZE; the first layers are "patch_embed" and "layers.0"


def _add_query_defaults(node: CN) -> None:
    # ------------------------------------------------------------------ tokens (section 3.2)
    # Backbone features C3, C4, C5, finest first. The mask decoder attends to these levels.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    # Number of levels in the pixel encoder and the location decoder: len(IN_FEATURES) as in the paper, or more. Each
    # extra level is a strided 3x3 convolution on the backbone's last map; the mask decoder ignores it (released: 4).
    node.NUM_FEATURE_LEVELS = 3
    # A finer map that only the mask decoders use, not the encoder, such as "res2": masks of small things at stride 4.
    # "": none, as in both recipes.
    node.FINE_FEATURE = ""
    # A map finer than all of these, such as "res1". Each mask is refined at the stride of this map by the product of
    # the query with its features; no query attends to them. This sharpens the boundaries of small things.
    # The dice loss is computed at this size. "": none, as in both recipes.
    node.MASK_FEATURE = ""
    node.HIDDEN_DIM = 256  # D, channels of tokens and queries
    node.NUM_HEADS = 8  # h, heads of every attention; the mask head fuses h maps per level
    # Channels-last memory format of images and backbone: makes most convolutional backbones faster, also on CPUs.
    node.CHANNELS_LAST = False
    # Activation checkpointing: the blocks of these parts store only their inputs and run again in backward, which saves
    # memory in training. Any of "backbone", "pixel_encoder", "location_decoder", "mask_decoder".
    node.ACTIVATION_CHECKPOINTING = []
    # Implementation of deformable attention: "auto", "reference" (grid_sample), "bag" (embedding_bag) or "triton" (GPUs
    # only). "auto" takes the fastest, which the first calls on a GPU measure after a check against the reference
    # (docs/usage.md). The environment variable PSF_MSDA goes before this key.
    node.MSDA = "auto"
    # Images are padded to a multiple of this many pixels; -1: the backbone's size_divisibility.
    node.SIZE_DIVISIBILITY = -1

    # ------------------------------------------------------------------ classes and queries (section 3.3.1)
    # -1: from the metadata of the dataset. Any other number must match the metadata, if there is any.
    node.NUM_THING_CLASSES = -1
    # N_stuff, also the number of stuff queries. 0: an instance segmentation model (table 4): stuff is void, whatever
    # the metadata contain.
    node.NUM_STUFF_CLASSES = -1
    # The classes of the datasets, as texts "KIND CONTIGUOUS_ID CATEGORY_ID RRGGBB NAME", such as "thing 0 1 dc143c
    # person". psf writes them into config.yaml and checkpoints, and reads them where no dataset of DATASETS is
    # registered.
    node.CLASSES = []
    # N_things; with QUERIES "joint", the number of all queries. -1: the trainer computes it from the training data, and
    # a trained model uses the number in its checkpoint (psf.engine.config.num_queries).
    node.NUM_THING_QUERIES = 300
    # "decoupled": thing queries are matched, and each stuff class has its own query. "joint": one set of matched
    # queries predicts things and stuff with the mask decoder of the thing queries (table 8); the keys of the
    # stuff queries, their mask decoder and their losses have no effect.
    node.QUERIES = "decoupled"


def _add_network_defaults(node: CN) -> None:
    # ------------------------------------------------------------------ pixel encoder (section 3.2)
    node.PIXEL_ENCODER = CN()
    node.PIXEL_ENCODER.NAME = "DeformablePixelEncoder"
    node.PIXEL_ENCODER.NUM_LAYERS = 6
    node.PIXEL_ENCODER.FEEDFORWARD_DIM = 1024
    node.PIXEL_ENCODER.NUM_POINTS = 4  # sampled points per head and level
    node.PIXEL_ENCODER.DROPOUT = 0.1

    # ------------------------------------------------------------------ location decoder (section 3.3.2)
    node.LOCATION_DECODER = CN()
    node.LOCATION_DECODER.NAME = "LocationDecoder"
    node.LOCATION_DECODER.NUM_LAYERS = 6  # 0: thing queries go directly to the mask decoder (table 6)
    node.LOCATION_DECODER.FEEDFORWARD_DIM = 1024
    node.LOCATION_DECODER.NUM_POINTS = 4
    node.LOCATION_DECODER.DROPOUT = 0.1
    # Target of the auxiliary head: "box", or "mass_center" of the mask (the box-free variant).
    node.LOCATION_DECODER.TARGET = "box"
    # True: each layer refines the boxes of the previous layer and attends around them, also at test (released recipe).
    node.LOCATION_DECODER.BOX_REFINEMENT = False

    # True: the queries are the encoder's best proposals instead of learned embeddings (two-stage Deformable DETR; in
    # neither recipe; for faster convergence). TARGET must be "box".
    node.LOCATION_DECODER.TWO_STAGE = False

    # ------------------------------------------------------------------ mask decoder (section 3.3.3)
    node.MASK_DECODER = CN()
    node.MASK_DECODER.NAME = "MaskDecoder"
    node.MASK_DECODER.NUM_THING_LAYERS = 4  # D_m of the thing queries
    node.MASK_DECODER.NUM_STUFF_LAYERS = 6  # D_m of the stuff queries
    node.MASK_DECODER.THING_SELF_ATTENTION = False
    node.MASK_DECODER.STUFF_SELF_ATTENTION = True
    node.MASK_DECODER.FEEDFORWARD_DIM = 1024
    # Mask scores from the fused attention maps: "sigmoid", in [0, 1], or "relu", unbounded (released recipe).
    node.MASK_DECODER.MASK_ACTIVATION = "sigmoid"
    # Gradient of "relu" in training; has no effect on outputs or on "sigmoid". "plain": the derivative, as in the
    # released code. "revive": scores of 0 also get 1 % of a gradient that would raise them, so that a mask head whose
    # masks are all empty recovers (docs/fidelity.md).
    node.MASK_DECODER.RELU_GRADIENT = "revive"
    # True: padded tokens are excluded from the softmax and are 0 in the maps. False: included (released recipe).
    node.MASK_DECODER.IGNORE_PADDING = True
    # Where query_pos of the stuff queries is added: to the "query" of each layer, or to the residual "stream", where it
    # accumulates (released recipe). query_pos of the thing queries, if any, is added in the same place.
    node.MASK_DECODER.STUFF_POSITION = "query"
    # Two keys for faster convergence, in neither recipe. KEY_POSITION: whether the tokens' position encoding is added
    # to the keys. THING_POSITION: query_pos of the thing queries, "none" or "located" (encoding of the predicted
    # location).
    node.MASK_DECODER.KEY_POSITION = False
    node.MASK_DECODER.THING_POSITION = "none"
    # True: the attention of a thing query starts from the box that the location decoder's last layer predicts, and its
    # mask starts from the ellipse in this box (in neither recipe; for faster convergence).
    node.MASK_DECODER.BOX_PRIOR = False

    # The FC layer that classifies things, in training and at test: that of the "mask_decoder" on the refined query
    # (section 3.3.3), or that of the last layer of the "location_decoder" (released recipe).
    node.THING_CLASSIFIER = "mask_decoder"


def _add_learning_defaults(node: CN) -> None:
    # ------------------------------------------------------------------ matching (section 3.4)
    node.MATCHER = CN()
    # "shared": one assignment for all layers, by the class + box + mask cost of the last layer. "per_layer": each layer
    # of the location decoder has its own assignment, by class + box cost; the mask decoder receives only the matched
    # queries, which are matched again with the mask cost and twice the class weight (released recipe).
    node.MATCHER.MODE = "shared"
    node.MATCHER.CLASS_WEIGHT = 2.0
    node.MATCHER.L1_WEIGHT = 5.0
    node.MATCHER.GIOU_WEIGHT = 2.0
    node.MATCHER.DICE_WEIGHT = 2.0
    # In mode "per_layer": queries per thing that the mask decoder receives.
    node.MATCHER.QUERIES_PER_THING = 1

    # ------------------------------------------------------------------ losses (section 3.4)
    node.LOSS = CN()
    # Weights of things and stuff: "fixed", lambda_things and lambda_stuff; or "share", these times the share of things
    # and of stuff among the segments of the batch (released recipe).
    node.LOSS.BALANCE = "fixed"
    node.LOSS.THINGS_WEIGHT = 1.0  # lambda_things
    node.LOSS.STUFF_WEIGHT = 1.0  # lambda_stuff
    node.LOSS.CLS_WEIGHT = 2.0  # lambda_cls, of the mask decoder's thing classes
    node.LOSS.STUFF_CLS_WEIGHT = 2.0  # lambda_cls, of the stuff classes (released: 4)
    node.LOSS.SEG_WEIGHT = 2.0  # lambda_seg
    node.LOSS.DET_CLS_WEIGHT = 2.0  # the terms of L_det, lambda_det included
    node.LOSS.DET_L1_WEIGHT = 5.0
    node.LOSS.DET_GIOU_WEIGHT = 2.0
    node.LOSS.FOCAL_ALPHA = 0.25
    node.LOSS.FOCAL_GAMMA = 2.0


def _add_result_defaults(node: CN) -> None:
    # ------------------------------------------------------------------ merging (section 3.5)
    # NAME is "MaskWiseMerging" (Algorithm 1), "PixelArgmax" or "ClassTimesMask".
    node.POST_PROCESSOR = CN()
    node.POST_PROCESSOR.NAME = "MaskWiseMerging"
    node.POST_PROCESSOR.MASK_THRESHOLD = 0.5  # a pixel belongs to a mask if its score is higher
    # Number added to the pixel count in the mean mask score: 0, the plain mean, or 1 (released recipe).
    node.POST_PROCESSOR.EXTRA_PIXELS = 0.0
    # Number of training images on which the trainer tunes ALPHA, BETA, T_CNF and T_KEEP after the last iteration. The
    # checkpoint stores the tuned values. A model that loads it uses them, except where the config sets other values.
    # 0: off, the config's values are used.
    node.POST_PROCESSOR.TUNE_IMAGES = 0
    # Values that tuning wrote into config.yaml, such as "THINGS.T_CNF 0.05": another training with that file tunes them
    # again. Tuning keeps all other values that differ from the defaults below.
    node.POST_PROCESSOR.TUNED = []
    for kind, t_keep in (("THINGS", 0.6), ("STUFF", 0.8)):
        thresholds = node.POST_PROCESSOR[kind] = CN()
        thresholds.ALPHA = 1.0  # exponent of the class probability in the confidence
        thresholds.BETA = 2.0  # exponent of the mean mask score in the confidence
        thresholds.T_CNF = 0.25  # masks with a lower confidence are discarded
        thresholds.T_KEEP = t_keep  # masks that keep a smaller share of their pixels are discarded

    # ------------------------------------------------------------------ test
    # Mask decoder layer whose masks and classes are used, counted from 1; -1: the last (table 10).
    node.TEST_LAYER = -1
    node.TEST = CN()
    # Images per forward pass in evaluation. All images of a batch have one size; rare sizes give smaller batches.
    node.TEST.BATCH_SIZE = 1
    # Tiled inference, for many small things in large images: images that are larger than SIZE pixels after the resize
    # to INPUT.MIN_SIZE_TEST are split into overlapping square tiles, and the segments of the tiles are joined. 0: off.
    node.TEST.TILES = CN()
    node.TEST.TILES.SIZE = 0
    node.TEST.TILES.OVERLAP = 0.25  # minimum overlap of neighbouring tiles, as a share of a tile's side
    # Thing candidates: each query with its "best_class", or the "top_pairs" of query and class (released recipe).
    node.TEST.CANDIDATES = "best_class"
    node.TEST.NUM_TOP_PAIRS = 100
    node.TEST.PANOPTIC_ON = True
    node.TEST.INSTANCE_ON = True
    node.TEST.SEMANTIC_ON = True
    # Metrics in addition to PQ: Boundary PQ (table 7), which takes half as long again, and PQ by segment size (small,
    # medium, large).
    node.TEST.BOUNDARY_PQ = True
    node.TEST.PQ_BY_SIZE = False
    # Write panoptic predictions in COCO's format to OUTPUT_DIR/inference/<dataset>, also without ground truth.
    node.TEST.WRITE_PANOPTIC = False
    node.TEST.INSTANCE = CN()
    # Boxes of `instances`: around the "mask", or the "location_decoder"'s (released recipe).
    node.TEST.INSTANCE.BOXES = "mask"
    node.TEST.INSTANCE.SCORE_THRESH = 0.0  # instances with a lower confidence are dropped
    # Mask NMS: when two instances of a class overlap by more than this IoU, the less confident is dropped; 1.0: off.
    node.TEST.INSTANCE.NMS_THRESH = 1.0
