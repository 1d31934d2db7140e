"""Tune the merging thresholds (section 3.5) at the end of training, and apply them when the model is loaded.

POST_PROCESSOR.TUNE_IMAGES enables both.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from torch import nn

from psf.checkpoint import TunedMerging
from psf.config import add_psf_config
from psf.data import PanopticMapper, build_mapper, build_test_loader, load_dataset, spread_evenly
from psf.errors import UserError
from psf.evaluation import ImageGroundTruth
from psf.evaluation.merging_search.cache import CachedImage
from psf.evaluation.merging_search.search import COARSE_GRID, Tuning, cache_images, check_can_be_tuned, tune
from psf.inference import MaskWiseMerging, MergingThresholds
from psf.meta_arch import PanopticSegFormer

__all__ = [
    "apply_merging",
    "find_merging",
    "why_not_tuned",
    "with_merging",
]

logger = logging.getLogger(__name__)

KEY = "MODEL.PSF.POST_PROCESSOR"
# PQ in percent. Smaller gains on a few dozen training images do not transfer to other images.
LEAST_GAIN = 0.25


def apply_merging(model: nn.Module, merging: TunedMerging | None, *, is_new: bool = False) -> None:
    """Set a model's thresholds to those in a checkpoint, and log which thresholds are in force.

    With TUNE_IMAGES 0, the config's thresholds stay. Values that the user has set stay, too, see
    `TunedMerging.in_force`.

    Args:
        model: any; only a `PanopticSegFormer` with `MaskWiseMerging` has thresholds of this kind.
        merging: of the checkpoint; None: it stores none.
        is_new: the search has just found and logged them.
    """
    processor = getattr(model, "post_processor", None)
    if not isinstance(processor, MaskWiseMerging) or not (processor.is_tuned or merging):
        return
    hint = ""
    if merging is None:
        reason = "of the config: the checkpoint stores none"
    elif not processor.is_tuned:
        reason = f"of the config: the checkpoint stores tuned ones, and {KEY}.TUNE_IMAGES is 0"
    else:
        processor.things, processor.stuff = chosen = merging.in_force(*processor.configured)
        own = chosen != (merging.things, merging.stuff)
        reason = "of the checkpoint, tuned on training images" + (", except settings of the config" * own)
        hint = f"; {KEY}.TUNE_IMAGES 0 uses those of the config"
    if not is_new:
        logger.info("Merging thresholds %s: %s%s", reason, _text(processor.things, processor.stuff), hint)


def why_not_tuned(cfg: CfgNode, model: nn.Module) -> str | None:
    """Why TUNE_IMAGES has no effect on this model and its data; None if the model can be tuned."""
    if not isinstance(model, PanopticSegFormer):
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}"
    try:
        check_can_be_tuned(model)
    except UserError as error:
        return str(error)
    if not isinstance(build_mapper(cfg, False), PanopticMapper):
        return (
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}: only psf's mappers read the ground truth"
        )
    return None


def find_merging(cfg: CfgNode, model: PanopticSegFormer) -> TunedMerging | None:
    """Search the thresholds on TUNE_IMAGES images of DATASETS.TRAIN, evenly spaced and read like test images.

    All processes call this together: each runs the model on its share of the images, and the main process searches. All
    return the same values. The search starts from the config's values, and keeps them unless others raise PQ by
    `LEAST_GAIN`. A value that differs from psf's default was set by the user and stays, unless an earlier search wrote
    it (TUNED).

    An error in any process, such as a damaged file, becomes a warning in all processes, so that the trained model is
    not lost.

    Args:
        cfg: of the training.
        model: trained, without the DDP wrapper; `why_not_tuned` returns None for it. Its thresholds are not changed.

    Returns:
        The thresholds; None after an error.
    """
    if comm.is_main_process():
        logger.info(
            "Tuning the merging thresholds on %d training images (TUNE_IMAGES)",
            cfg.MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES,
        )
    cached = _attempt(lambda: _cache_share(cfg, model))
    shares = comm.all_gather(cached if isinstance(cached, str) else None)
    error = next((one for one in shares if one is not None), None)
    found: Tuning | str | None = None
    if error is None:
        images = comm.gather(cached, dst=0)
        if comm.is_main_process():
            found = _attempt(lambda: _search([image for share in images for image in share], cfg, model))
        found = comm.all_gather(found)[0]
        error = found if isinstance(found, str) else None
    if error is not None or not isinstance(found, Tuning):
        logger.warning("Merging thresholds were not tuned, the config's stay: %s", error)
        return None
    return TunedMerging(found.things, found.stuff, *model.post_processor.configured)


def _attempt(action: Callable[[], Any]) -> Any:
    """The result of `action`, or its error as text."""
    try:
        return action()
    except Exception as error:  # any error: the trained model must not be lost
        logger.debug("tuning failed", exc_info=True)
        return f"{type(error).__name__}: {error}"


def _cache_share(cfg: CfgNode, model: PanopticSegFormer) -> list[CachedImage]:
    """This process's share of the images, cached."""
    dicts = [image for name in cfg.DATASETS.TRAIN for image in load_dataset(name)]
    dicts = spread_evenly(dicts, cfg.MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES)
    gt_mapper = PanopticMapper(cfg, True, augmentations=[])

    def read_gt(x: Mapping[str, Any]) -> ImageGroundTruth:
        _, gt = gt_mapper.read({key: value for key, value in x.items() if key != "image"})
        assert gt is not None
        segments = [{**one, "category_id": _category(one["category_id"], one["isthing"])} for one in gt.segments]
        return ImageGroundTruth(gt.labels, segments)

    return cache_images(model, build_test_loader(cfg, dicts), read_gt, _category, COARSE_GRID)


def _search(images: list[CachedImage], cfg: CfgNode, model: PanopticSegFormer) -> Tuning:
    things, stuff = model.post_processor.configured
    thing_ids, stuff_ids = model.classes
    categories = {_category(one, True): True for one in thing_ids}
    categories |= {_category(one, False): False for one in stuff_ids}
    fixed = {kind: _set_numbers(cfg, kind) for kind in ("things", "stuff")}
    found = tune(images, categories, things, stuff, COARSE_GRID, tolerance=LEAST_GAIN, fixed=fixed)
    is_better = found.pq >= found.pq_at_start + LEAST_GAIN
    change = f"\n{_text(things, stuff)} -> {_text(found.things, found.stuff)}"
    logger.info(
        "Merging thresholds, tuned on %d training images (PQ on them is optimistic): PQ %.2f -> %.2f%s",
        *(len(images), found.pq_at_start, found.pq, change if is_better else ", too small a gain: kept unchanged"),
    )
    kept = [f"{kind.upper()}.{name.upper()}" for kind, names in fixed.items() for name in sorted(names)]
    if kept:
        logger.info("Not tuned, as the config sets them: %s", ", ".join(kept))
    return found if is_better else found._replace(things=things, stuff=stuff)


def _set_numbers(cfg: CfgNode, kind: str) -> set[str]:
    """Names of the thresholds of a kind, "things" or "stuff", that the user has set.

    Their values differ from psf's defaults and from the values that an earlier search has written.
    """
    defaults = get_cfg()
    add_psf_config(defaults)
    before, now = (one.MODEL.PSF.POST_PROCESSOR[kind.upper()] for one in (defaults, cfg))
    changed = {name for name in MergingThresholds._fields if now[name.upper()] != before[name.upper()]}
    tuned = cfg.MODEL.PSF.POST_PROCESSOR.TUNED
    return {name for name in changed if _tuned_entry(kind, name, now[name.upper()]) not in tuned}


def _tuned_entry(kind: str, name: str, value: float) -> str:
    """The entry of POST_PROCESSOR.TUNED for one number."""
    return f"{kind.upper()}.{name.upper()} {float(value)!r}"


def with_merging(cfg: CfgNode, things: MergingThresholds, stuff: MergingThresholds) -> CfgNode:
    """A frozen copy of the config with these thresholds as plain keys; TUNED lists the tuned values."""
    held = {kind: _set_numbers(cfg, kind) for kind in ("things", "stuff")}
    cfg = cfg.clone()
    cfg.defrost()
    tuned = []
    for kind, numbers in (("things", things), ("stuff", stuff)):
        for name, value in numbers._asdict().items():
            cfg.MODEL.PSF.POST_PROCESSOR[kind.upper()][name.upper()] = float(value)
            tuned += [] if name in held[kind] else [_tuned_entry(kind, name, value)]
    cfg.MODEL.PSF.POST_PROCESSOR.TUNED = tuned
    cfg.freeze()
    return cfg


def _category(contiguous_id: int, is_thing: bool) -> int:
    """One number for each class; an id may stand for a thing and a stuff class."""
    return 2 * contiguous_id + int(is_thing)


def _text(things: MergingThresholds, stuff: MergingThresholds) -> str:
    kinds = (("THINGS", things), ("STUFF", stuff))
    return ", ".join(
        f"{kind} " + " ".join(f"{name.upper()} {value:g}" for name, value in numbers._asdict().items())
        for kind, numbers in kinds
    )
