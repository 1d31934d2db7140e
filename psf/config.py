"""Every key of psf under MODEL.PSF, with its default (the paper recipe), unit and the paper's symbol."""

from __future__ import annotations

import importlib
import os
import sys

from detectron2.config import CfgNode as CN

from psf.errors import UserError

__all__ = ["SHARED_KEYS", "add_psf_config", "backbone_maps", "import_user_modules"]


def add_psf_config(cfg: CN) -> None:
    """Add psf's keys to a Detectron2 config, in place.

    May be called more than once, and before or after the same function of a sibling project: keys that siblings
    also define (INPUT.DATASET_MAPPER_NAME, SOLVER.BACKBONE_MULTIPLIER, ...) are set only where they are absent.

    Args:
        cfg: what `detectron2.config.get_cfg()` returns.
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


def backbone_maps(cfg: CN) -> list[str]:
    """Names of the backbone's maps that the model reads, finest first: MASK_FEATURE, FINE_FEATURE and IN_FEATURES."""
    node = cfg.MODEL.PSF
    return [*(name for name in (node.MASK_FEATURE, node.FINE_FEATURE) if name), *node.IN_FEATURES]


def import_user_modules(cfg: CN) -> None:
    """Import the modules of MODEL.PSF.IMPORTS, whose classes register themselves.

    They are found as in an `import` statement, in the current folder last. A name is a dotted name of a module, never a
    path; checkpoints name none.

    Raises:
        UserError: if a name is not the dotted name of a module, or there is no such module. Errors inside the module
            are raised as they are.
    """
    for name in cfg.MODEL.PSF.IMPORTS:
        if not all(part.isidentifier() for part in str(name).split(".")):
            raise UserError(
                f"MODEL.PSF.IMPORTS or --import has {name!r}: expected the dotted name of a module, such as "
                "my_package.my_decoder"
            )
        if not {"", os.getcwd()} & set(sys.path):  # the command `psf` starts with the folder of its script alone
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


# Keys outside MODEL.PSF: shared names that other Detectron2 projects use for the same thing, and one beside TRAIN and
# TEST.
SHARED_KEYS = {
    "INPUT.DATASET_MAPPER_NAME": "psf_panoptic",  # name in psf.data.DATASET_MAPPER_REGISTRY
    "INPUT.IMAGE_SIZE": 1024,  # psf_panoptic_lsj: side of the square that it crops or pads to, in pixels
    "INPUT.MIN_SCALE": 0.1,  # psf_panoptic_lsj: scales before that; at 1 the image just fits
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.COLOR_AUG_SSD": False,  # psf_panoptic_lsj and psf_panoptic_cityscapes: change colours
    # psf_panoptic_cityscapes: the largest share of the labelled pixels of a crop that a class may take; 1.0: no limit
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    # Panoptic sets to register, "NAME=JSON,PNGS,IMAGES", as --register does; psf.engine.build_config makes the paths
    # absolute, so that config.yaml serves anywhere.
    "DATASETS.PSF_REGISTER": [],
    "SOLVER.OPTIMIZER": "ADAMW",  # "ADAMW" | "SGD", read by psf.engine.Trainer
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,  # learning rate of the backbone, as a factor of BASE_LR
    # Learning rate of a backbone's block, as a factor of the next block's; the stem's, of the first's. 1.0: all equal.
    "SOLVER.BACKBONE_LAYER_DECAY": 1.0,
    "SOLVER.SAMPLING_MULTIPLIER": 0.1,  # the same of sampling offsets and reference points
    "SOLVER.AMP.DTYPE": "float16",  # type of autocast where SOLVER.AMP.ENABLED: "float16" | "bfloat16"
}


def _model_defaults() -> CN:
    node = CN()
    for add_defaults in (_add_input_defaults, _add_network_defaults, _add_learning_defaults, _add_result_defaults):
        add_defaults(node)
    return node


def _add_input_defaults(node: CN) -> None:
    # Modules with classes of your own, such as "my_package.my_decoder". They are imported before the model is built, so
    # that their classes are registered (docs/your-own-decoder.md). `--import` of the command line adds to them.
    node.IMPORTS = []

    # ------------------------------------------------------------------ backbone (build_psf_timm_backbone alone)
    node.TIMM = CN()
    node.TIMM.NAME = "tf_efficientnet_lite0"  # any timm model that gives features
    # True: timm's weights, which timm fetches from the network, each time the model is built and they are not in its
    # cache; the log says what and where from. False: those of MODEL.WEIGHTS.
    node.TIMM.PRETRAINED = False
    node.TIMM.FROZEN_NORM = True  # batch norms keep their statistics and affine parameters
    node.TIMM.DROP_PATH = 0.0  # rate at the last block, from 0 at the first
    node.TIMM.FREEZE = []  # names of parameters and modules that are not trained

    # ------------------------------------------------------------------ backbone (build_psf_swin_backbone alone)
    # Swin-T by default, with its usual drop path in detection.
    node.SWIN = CN()
    node.SWIN.EMBED_DIM = 96  # channels of the first stage; each further one has twice as many
    node.SWIN.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    node.SWIN.NUM_HEADS = [3, 6, 12, 24]
    node.SWIN.WINDOW_SIZE = 7
    node.SWIN.DROP_PATH = 0.2
    node.SWIN.FREEZE = []  # as TIMM.FREEZE; "patch_embed" and "layers.0" are where the network begins

    # ------------------------------------------------------------------ tokens (section 3.2)
    # Backbone features C3, C4, C5, finest first. The mask decoder attends to these levels.
    node.IN_FEATURES = ["res3", "res4", "res5"]
    # Levels that encoder and location decoder see: len(IN_FEATURES) as in the paper, or more; each one beyond is a
    # strided 3x3 convolution on the backbone's last map, which the mask decoder does not see (released: 4).
    node.NUM_FEATURE_LEVELS = 3
    # A finer map than these for the mask decoders alone, which the encoder does not see, such as "res2": masks of small
    # things at stride 4. "": none, as in both recipes.
    node.FINE_FEATURE = ""
    # A map finer than all of these, such as "res1": each mask is refined at its stride by the product of the query with
    # features of this map, which no query attends to. Boundaries of small things get sharper, and the dice loss is
    # computed at this size. "": none, as in both recipes.
    node.MASK_FEATURE = ""
    node.HIDDEN_DIM = 256  # D, channels of tokens and queries
    node.NUM_HEADS = 8  # h, heads of every attention; the mask head fuses h maps per level
    # Memory format of images and backbone: channels last makes most convolutional backbones faster, also on CPUs.
    node.CHANNELS_LAST = False
    # Activation checkpointing: parts whose blocks store their inputs alone and run again in backward, for less memory
    # in training; some of "backbone", "pixel_encoder", "location_decoder", "mask_decoder".
    node.ACTIVATION_CHECKPOINTING = []
    # Images are padded to a multiple of this many pixels; -1: what the backbone asks for.
    node.SIZE_DIVISIBILITY = -1

    # ------------------------------------------------------------------ classes and queries (section 3.3.1)
    # -1: counted in the metadata of the dataset. A number must agree with the metadata, where there is any.
    node.NUM_THING_CLASSES = -1
    # = N_stuff, the number of stuff queries. 0: none, whatever the metadata say, and stuff is void: an instance
    # segmentation model (table 4).
    node.NUM_STUFF_CLASSES = -1
    # N_things; with QUERIES "joint", all queries. -1: from the data, when psf's trainer starts; a trained model keeps
    # the number that its checkpoint stores (psf.engine.num_queries).
    node.NUM_THING_QUERIES = 300
    # "decoupled": thing queries are matched, and each stuff class has a query of its own. "joint": one set of queries,
    # all of them matched, serves things and stuff through the thing queries' mask decoder (table 8); the keys of the
    # stuff queries, their mask decoder and their losses mean nothing then.
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
    node.LOCATION_DECODER.NUM_LAYERS = 6  # 0: thing queries go straight to the mask decoder (table 6)
    node.LOCATION_DECODER.FEEDFORWARD_DIM = 1024
    node.LOCATION_DECODER.NUM_POINTS = 4
    node.LOCATION_DECODER.DROPOUT = 0.1
    # What the auxiliary head learns to locate: "box", or "mass_center" of the mask (the box-free variant).
    node.LOCATION_DECODER.TARGET = "box"
    # True: each layer refines the boxes of the one before and attends around them, also at test (released recipe).
    node.LOCATION_DECODER.BOX_REFINEMENT = False

    # True: the queries are the encoder's best proposals, not learned ones (two-stage Deformable DETR; in neither
    # recipe, for quick learning). TARGET must be "box".
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
    # Gradient of "relu" in training; outputs do not depend on it, and "sigmoid" ignores it. "plain": the derivative,
    # as the released code has it. "revive": scores of 0 also get 1 % of a gradient that would raise them, so that a
    # mask head whose masks are all empty recovers (docs/fidelity.md).
    node.MASK_DECODER.RELU_GRADIENT = "revive"
    # True: padded tokens are left out of the softmax and are 0 in the maps. False: they take part (released recipe).
    node.MASK_DECODER.IGNORE_PADDING = True
    # Where the stuff queries' position goes: into the "query" of each layer, or into the residual "stream", where it
    # accumulates (released recipe). The position of thing queries, where they have one, is added in the same place.
    node.MASK_DECODER.STUFF_POSITION = "query"
    # Two keys in neither recipe, for quick learning: the position encoding of the tokens is added to the keys; and
    # the thing queries' position is "none", or "located": the encoding of the location decoder's predicted location.
    node.MASK_DECODER.KEY_POSITION = False
    node.MASK_DECODER.THING_POSITION = "none"
    # True: a thing query attends first to the box that the location decoder's last layer predicts, and its mask starts
    # as the ellipse in it (in neither recipe, for quick learning).
    node.MASK_DECODER.BOX_PRIOR = False

    # Which FC layer names the class of a thing, in training and at test: that of the "mask_decoder" on the refined
    # query (section 3.3.3), or that of the "location_decoder"'s last layer (released recipe).
    node.THING_CLASSIFIER = "mask_decoder"


def _add_learning_defaults(node: CN) -> None:
    # ------------------------------------------------------------------ matching (section 3.4)
    node.MATCHER = CN()
    # "shared": one assignment, on the last layer's class + box + mask cost, serves all layers. "per_layer": each
    # location layer has its own on class + box cost, and the mask decoder receives the matched queries alone, which are
    # matched again with the mask cost and twice the class weight (released recipe).
    node.MATCHER.MODE = "shared"
    node.MATCHER.CLASS_WEIGHT = 2.0
    node.MATCHER.L1_WEIGHT = 5.0
    node.MATCHER.GIOU_WEIGHT = 2.0
    node.MATCHER.DICE_WEIGHT = 2.0
    # In mode "per_layer": queries per thing that the mask decoder receives.
    node.MATCHER.QUERIES_PER_THING = 1

    # ------------------------------------------------------------------ losses (section 3.4)
    node.LOSS = CN()
    # Weights of things and stuff: "fixed" to lambda_things and lambda_stuff, or these times each kind's "share" of the
    # segments in the batch (released recipe).
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
    # In MODEL.PSF.POST_PROCESSOR: "MaskWiseMerging" (Algorithm 1), "PixelArgmax" or "ClassTimesMask".
    node.POST_PROCESSOR = CN()
    node.POST_PROCESSOR.NAME = "MaskWiseMerging"
    node.POST_PROCESSOR.MASK_THRESHOLD = 0.5  # a pixel belongs to a mask where its score is above
    # Pixels added to the count in the mean mask score: 0, the mean, or 1 (released recipe).
    node.POST_PROCESSOR.EXTRA_PIXELS = 0.0
    # Training images on which psf's trainer searches the numbers below, after the last iteration. The checkpoint stores
    # them and they are used wherever it is loaded, unless a config has others; 0: off, the numbers below are used.
    node.POST_PROCESSOR.TUNE_IMAGES = 0
    # Numbers below that the search wrote into config.yaml, such as "THINGS.T_CNF 0.05": another training with that file
    # searches them again. The search does not touch other numbers that differ from these defaults.
    node.POST_PROCESSOR.TUNED = []
    for kind, t_keep in (("THINGS", 0.6), ("STUFF", 0.8)):
        thresholds = node.POST_PROCESSOR[kind] = CN()
        thresholds.ALPHA = 1.0  # exponent of the class probability in the confidence
        thresholds.BETA = 2.0  # exponent of the mean mask score in the confidence
        thresholds.T_CNF = 0.25  # a mask of less confidence is discarded
        thresholds.T_KEEP = t_keep  # a mask that keeps a smaller share of its pixels is discarded

    # ------------------------------------------------------------------ test
    # Mask decoder layer whose masks and classes are used, counted from 1; -1: the last (table 10).
    node.TEST_LAYER = -1
    node.TEST = CN()
    # Images per forward pass in evaluation, all of one size; a size with few images gives smaller batches.
    node.TEST.BATCH_SIZE = 1
    # Images larger than this many pixels, as the model gets them (INPUT.MIN_SIZE_TEST), are run in overlapping square
    # tiles, and the tiles' segments joined; 0: none is. For many small things in large images.
    node.TEST.TILES = CN()
    node.TEST.TILES.SIZE = 0
    node.TEST.TILES.OVERLAP = 0.25  # least share of a tile's side that neighbours have in common
    # Thing candidates: each query with its "best_class", or the "top_pairs" of query and class (released recipe).
    node.TEST.CANDIDATES = "best_class"
    node.TEST.NUM_TOP_PAIRS = 100
    node.TEST.PANOPTIC_ON = True
    node.TEST.INSTANCE_ON = True
    node.TEST.SEMANTIC_ON = True
    # Beside PQ: Boundary PQ (table 7), which takes half as long again; and PQ of small, medium and large segments.
    node.TEST.BOUNDARY_PQ = True
    node.TEST.PQ_BY_SIZE = False
    # Write panoptic predictions in COCO's format to OUTPUT_DIR/inference/<dataset>, also where there is no ground
    # truth.
    node.TEST.WRITE_PANOPTIC = False
    node.TEST.INSTANCE = CN()
    # Boxes of `instances`: around the "mask", or the "location_decoder"'s (released recipe).
    node.TEST.INSTANCE.BOXES = "mask"
    node.TEST.INSTANCE.SCORE_THRESH = 0.0  # an instance of less confidence is left out
    # Of two instances of a class whose masks have an IoU above this, the less confident is left out; 1.0: none is.
    node.TEST.INSTANCE.NMS_THRESH = 1.0
