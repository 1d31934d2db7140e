"""Check the values of a config before anything is built, and find keys of Detectron2 that have no effect."""

from __future__ import annotations

import logging
import math
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm

from psf.config import add_psf_config, leaves
from psf.data import DATASET_MAPPER_REGISTRY
from psf.data.loaders.sampling import SAMPLER_NAMES
from psf.engine.config.files import merge_config_file, value_of
from psf.errors import UserError
from psf.meta_arch.recipe import check_recipe
from psf.model_zoo import get_config_file

__all__ = ["check_config", "check_device", "check_solver", "keys_without_effect", "warn_of_keys_without_effect"]

logger = logging.getLogger(__name__)

# Keys of Detectron2 that PanopticSegFormer and psf's trainer do not read -> the only accepted value, and the reason.
REFUSED: dict[str, tuple[Any, str]] = {
    "MODEL.LOAD_PROPOSALS": (False, "the queries come from MODEL.PSF.LOCATION_DECODER, not from precomputed proposals"),
    "DATASETS.PROPOSAL_FILES_TRAIN": ((), "the queries come from MODEL.PSF.LOCATION_DECODER, not from files"),
    "DATASETS.PROPOSAL_FILES_TEST": ((), "the queries come from MODEL.PSF.LOCATION_DECODER, not from files"),
    "MODEL.KEYPOINT_ON": (False, "the model predicts no keypoints; MODEL.PSF.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON"),
    "TEST.KEYPOINT_OKS_SIGMAS": ([], "the model predicts no keypoints; MODEL.PSF.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON"),
    "INPUT.MASK_FORMAT": ("polygon", "psf's mappers read masks from the panoptic PNGs"),
    "VIS_PERIOD": (0, "pictures are drawn at each evaluation, OUTPUT_DIR/panel.png; set TEST.EVAL_PERIOD"),
}
# Patterns of other keys without effect, which configs of other models set -> the key that has the effect, or "". The
# first pattern that fits a key counts.
IGNORED = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "MODEL.PSF.TEST.INSTANCE.SCORE_THRESH",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "MODEL.PSF.TEST.INSTANCE.NMS_THRESH",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "MODEL.PSF.TEST.INSTANCE.SCORE_THRESH",
    "MODEL.RETINANET.NMS_THRESH_TEST": "MODEL.PSF.TEST.INSTANCE.NMS_THRESH",
    "MODEL.ROI_HEADS.NUM_CLASSES": "MODEL.PSF.NUM_THING_CLASSES",
    "MODEL.RETINANET.NUM_CLASSES": "MODEL.PSF.NUM_THING_CLASSES",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "MODEL.PSF.NUM_STUFF_CLASSES",
    "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT": "MODEL.PSF.LOSS.STUFF_WEIGHT",
    "MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT": "MODEL.PSF.LOSS.THINGS_WEIGHT",
    "MODEL.PANOPTIC_FPN.COMBINE.*": "MODEL.PSF.POST_PROCESSOR",
    **dict.fromkeys(
        (
            *(f"MODEL.{head}.*" for head in ("ROI_*", "RPN", "RETINANET", "SEM_SEG_HEAD", "PANOPTIC_FPN")),
            *("MODEL.ANCHOR_GENERATOR.*", "MODEL.PROPOSAL_GENERATOR.*"),
            *("DATASETS.PRECOMPUTED_PROPOSAL_TOPK_*", "GLOBAL.HACK"),
        ),
        "",
    ),
}
RESNETS = ("MODEL.RESNETS.*", "MODEL.BACKBONE.FREEZE_AT")
TIMM, SWIN, FPN = ("MODEL.PSF.TIMM.*",), ("MODEL.PSF.SWIN.*",), ("MODEL.FPN.*",)
# Backbone -> keys of other backbones, which have no effect. A backbone that is not listed may read any of them.
FOREIGN_KEYS = {
    "build_psf_timm_backbone": (*RESNETS, *SWIN, *FPN),
    "build_psf_swin_backbone": (*RESNETS, *TIMM, *FPN),
    "build_resnet_backbone": (*TIMM, *SWIN, *FPN),
}
FREEZE_KEYS = {"build_psf_timm_backbone": "MODEL.PSF.TIMM.FREEZE", "build_psf_swin_backbone": "MODEL.PSF.SWIN.FREEZE"}

OPTIMIZERS = ("ADAMW", "SGD")
CLIP_TYPES = ("value", "norm", "full_model")
CHOICES: dict[str, tuple[Any, ...]] = {
    "DATALOADER.SAMPLER_TRAIN": SAMPLER_NAMES,
    "INPUT.CROP.TYPE": ("relative", "relative_range", "absolute", "absolute_range"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "SOLVER.AMP.DTYPE": ("float16", "bfloat16"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
}
RESNET_CHOICES = {  # of build_resnet_backbone
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": ("", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", "FrozenBN", "GN", "LN"),
}
NOT_EMPTY = ("INPUT.MIN_SIZE_TRAIN", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "TEST.AUG.MIN_SIZES")
MAX_WHOLE = 2**31 - 1  # of any key, as PyTorch and NumPy count with 32 bits in places
MAX_SIDE = 100_000  # pixels; larger images would need terabytes
MAX_SEED = MAX_WHOLE  # NumPy takes seeds below 2**32, and each process adds its rank


class Range(NamedTuple):
    """Limits of a number; both are included unless `is_open`."""

    least: float
    most: float = math.inf
    hint: str = ""
    is_open: bool = False  # the least value itself is not allowed


RANGES = {
    "DATALOADER.MAX_UNREADABLE_SHARE": Range(0, 1),
    "DATALOADER.NUM_WORKERS": Range(0, 1000, hint="0 loads images in the training process"),
    "DATALOADER.REPEAT_THRESHOLD": Range(0),
    "DATALOADER.TIMEOUT": Range(0, hint="seconds; 0: forever"),
    "INPUT.CROP.SIZE": Range(0, is_open=True),
    "INPUT.MAX_SIZE_TEST": Range(1, MAX_SIDE, hint="pixels"),
    "INPUT.MAX_SIZE_TRAIN": Range(1, MAX_SIDE, hint="pixels"),
    "INPUT.MIN_SIZE_TEST": Range(0, MAX_SIDE, hint="pixels; 0: images keep their size"),
    "INPUT.MIN_SIZE_TRAIN": Range(1, MAX_SIDE, hint="pixels"),
    "INPUT.PSF_MAX_PIXELS": Range(1),
    "MODEL.PIXEL_STD": Range(0, is_open=True),
    "SEED": Range(-MAX_SEED, MAX_SEED, hint="negative: random"),
    "SOLVER.BACKBONE_MULTIPLIER": Range(0),
    "SOLVER.BASE_LR": Range(0),
    "SOLVER.BASE_LR_END": Range(0),
    "SOLVER.BIAS_LR_FACTOR": Range(0),
    "SOLVER.CHECKPOINTS_TO_KEEP": Range(0, hint="0: all"),
    "SOLVER.CHECKPOINT_KEEP_EVERY": Range(0, hint="0: none for good"),
    "SOLVER.CHECKPOINT_MINUTES": Range(0),
    "SOLVER.CHECKPOINT_PERIOD": Range(0, hint="0: only at the end"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": Range(0),
    "SOLVER.GAMMA": Range(0),
    "SOLVER.IMS_PER_BATCH": Range(1, 65536, hint="images of all processes together"),
    "SOLVER.MAX_ITER": Range(1),
    "SOLVER.MAX_SKIPPED_STEPS": Range(1),
    "SOLVER.MOMENTUM": Range(0, 1),
    "SOLVER.REFERENCE_WORLD_SIZE": Range(0),
    "SOLVER.SAMPLING_MULTIPLIER": Range(0),
    "SOLVER.STEPS": Range(0),
    "SOLVER.WARMUP_FACTOR": Range(0),
    "SOLVER.WARMUP_ITERS": Range(0),
    "SOLVER.WEIGHT_DECAY": Range(0),
    "SOLVER.WEIGHT_DECAY_NORM": Range(0),
    "TEST.AUG.MAX_SIZE": Range(1, MAX_SIDE, hint="pixels"),
    "TEST.AUG.MIN_SIZES": Range(1, MAX_SIDE, hint="pixels"),
    "TEST.DETECTIONS_PER_IMAGE": Range(-1, hint="-1: all, for models of Detectron2"),
    "TEST.EVAL_PERIOD": Range(0, hint="0: only at the end"),
    "TEST.PRECISE_BN.NUM_ITER": Range(1),
}
MAY_BE_INFINITE = ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE")


def check_config(cfg: CfgNode) -> None:
    """Check what can be checked before anything is built; for a PanopticSegFormer also MODEL.PSF.

    User modules (MODEL.PSF.IMPORTS) are imported before, as they register the names that a config may have.

    Raises:
        UserError: naming the key, if a value is not finite, out of range, or not the name of a registered class;
            or if a key of Detectron2 would have no effect, where other models may read it.
    """
    if cfg.VERSION != get_cfg().VERSION:
        raise UserError(f"VERSION is {cfg.VERSION}: expected {get_cfg().VERSION}, the version of Detectron2's configs")
    _check_numbers(cfg)
    _check_choices(cfg, CHOICES)
    _check_forms(cfg)
    check_solver(cfg)
    check_device(cfg.MODEL.DEVICE, "MODEL.DEVICE")
    _check_registered(cfg, "MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY)
    _check_registered(cfg, "INPUT.DATASET_MAPPER_NAME", DATASET_MAPPER_REGISTRY)
    if cfg.MODEL.META_ARCHITECTURE != "PanopticSegFormer":
        return
    _check_registered(cfg, "MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)
    for key, (accepted, reason) in REFUSED.items():
        if (value := value_of(cfg, key)) != accepted:
            raise UserError(f"{key} is {value!r}, which has no effect: {reason}; set it to {accepted!r}")
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        _check_choices(cfg, RESNET_CHOICES)
    check_recipe(cfg)


def check_solver(cfg: CfgNode) -> None:
    """Raise a UserError if SOLVER names an optimizer or a kind of clipping that does not exist."""
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    if solver.OPTIMIZER not in OPTIMIZERS:
        raise UserError(f'SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}, expected "ADAMW" or "SGD"')
    if clip.ENABLED and clip.CLIP_TYPE not in CLIP_TYPES:
        raise UserError(f'SOLVER.CLIP_GRADIENTS.CLIP_TYPE is "{clip.CLIP_TYPE}": expected one of {list(CLIP_TYPES)}')


def check_device(name: str, source: str, *, must_exist: bool = False) -> None:
    """Raise a UserError, naming `source`, if torch knows no such device; or, with `must_exist`, cannot use it here."""
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f'{source} is {name!r}: expected "cpu", "cuda", "cuda:1" or another device of torch') from error
    count = torch.cuda.device_count()
    if must_exist and device.type == "cuda" and (device.index or 0) >= count:
        raise UserError(f'{source} is {name!r}, but torch finds {count or "no"} CUDA GPU{"s" * (count > 1)}; use "cpu"')
    if must_exist and device.type != "cuda":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise UserError(f'{source} is {name!r}, but torch cannot use this device here; use "cpu"') from error


def keys_without_effect(cfg: CfgNode) -> dict[str, str]:
    """Keys that differ from their defaults but are not read by PanopticSegFormer -> the key that has the effect, or "".

    Empty for other models, which may read them.
    """
    if cfg.MODEL.META_ARCHITECTURE != "PanopticSegFormer":
        return {}
    defaults, base = get_cfg(), get_cfg()
    for one in (defaults, base):
        add_psf_config(one)
    merge_config_file(base, get_config_file("Base-PSF.yaml"))  # also the base of configs with another backbone
    backbone = cfg.MODEL.BACKBONE.NAME
    patterns = {**IGNORED, **dict.fromkeys(FOREIGN_KEYS.get(backbone, ()), "")}
    if backbone in FREEZE_KEYS:
        patterns["MODEL.BACKBONE.FREEZE_AT"] = FREEZE_KEYS[backbone]
    usual: dict[str, list[Any]] = {key: [_as_lists(value)] for key, value in leaves(defaults)}
    for key, value in leaves(base):
        usual[key].append(_as_lists(value))
    found = {}
    for key, value in leaves(cfg):
        pattern = next((one for one in patterns if fnmatchcase(key, one)), None)
        if pattern is not None and key in usual and _as_lists(value) not in usual[key]:
            found[key] = patterns[pattern]
    return found


def _as_lists(value: Any) -> Any:
    """Tuples as lists, as YAML gives nested ones back."""
    return [_as_lists(one) for one in value] if isinstance(value, (list, tuple)) else value


def warn_of_keys_without_effect(cfg: CfgNode) -> None:
    """Log one warning, in the main process, for all keys of `keys_without_effect`."""
    found = keys_without_effect(cfg)
    if found and comm.is_main_process():
        texts = [f"{key} (use {other})" if other else key for key, other in sorted(found.items())]
        logger.warning("These keys have no effect on PanopticSegFormer: %s", ", ".join(texts))


def _check_choices(cfg: CfgNode, choices: dict[str, tuple[Any, ...]]) -> None:
    for key, allowed in choices.items():
        if (value := value_of(cfg, key)) not in allowed:
            raise UserError(f"{key} is {value!r}: expected one of {list(allowed)}")


def _check_forms(cfg: CfgNode) -> None:
    """Check the values that are more than a number or a choice."""
    if not cfg.OUTPUT_DIR or "\0" in cfg.OUTPUT_DIR:
        raise UserError(f"OUTPUT_DIR is {cfg.OUTPUT_DIR!r}: expected the path of a folder")
    if len(cfg.INPUT.CROP.SIZE) != 2:
        raise UserError(f"INPUT.CROP.SIZE is {cfg.INPUT.CROP.SIZE}: expected two numbers, of height and width")
    if list(cfg.SOLVER.STEPS) != sorted(cfg.SOLVER.STEPS):
        raise UserError(f"SOLVER.STEPS is {cfg.SOLVER.STEPS}: expected iterations in increasing order")
    for entry in cfg.TEST.EXPECTED_RESULTS:
        kinds = [type(one) for one in entry] if isinstance(entry, (list, tuple)) else []
        if kinds[:2] != [str, str] or len(kinds) != 4 or not set(kinds[2:]) <= {int, float}:
            raise UserError(
                f"TEST.EXPECTED_RESULTS has {entry!r}: expected lists of task, metric, result and tolerance, such as "
                '["panoptic_seg", "PQ", 49.6, 0.2]'
            )


def _check_numbers(cfg: CfgNode) -> None:
    for key in NOT_EMPTY:
        if not len(value_of(cfg, key)):
            raise UserError(f"{key} is empty: expected numbers")
    for key, value in leaves(cfg):
        for number in value if isinstance(value, (list, tuple)) else [value]:
            is_finite = not isinstance(number, float) or math.isfinite(number)
            if not is_finite and (math.isnan(number) or key not in MAY_BE_INFINITE):
                raise UserError(f"{key} is {value}: expected finite numbers")
            limits = RANGES.get(key)
            if limits is not None and not _is_inside(number, limits):
                raise UserError(f"{key} is {value}: expected {_describe(limits)}")
            if type(number) is int and abs(number) > MAX_WHOLE:
                raise UserError(f"{key} is {value}: expected at most {MAX_WHOLE}")


def _is_inside(number: float, limits: Range) -> bool:
    return limits.least <= number <= limits.most and not (limits.is_open and number == limits.least)


def _describe(limits: Range) -> str:
    text = f"{limits.least} to {limits.most}"
    if limits.is_open:
        text = f"more than {limits.least}"
    elif limits.most == math.inf:
        text = f"{limits.least} or more"
    return f"{text} ({limits.hint})" if limits.hint else text


def _check_registered(cfg: CfgNode, key: str, registry: Any) -> None:
    name = value_of(cfg, key)
    if name not in registry:
        raise UserError(
            f'{key} is "{name}": registered are {sorted(one for one, _ in registry)}; --import MODULE or '
            "MODEL.PSF.IMPORTS imports the module that registers a class of your own"
        )
