"""Merging thresholds (section 3.5) that are tuned at the end of a training, and used where its model is loaded.

POST_PROCESSOR.TUNE_IMAGES switches both on.
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
from psf.data import PanopticMapper, build_mapper, build_test_loader, load_dataset
from psf.engine.one_data_set import spread_evenly
from psf.evaluation import ImageTruth
from psf.evaluation.merging_cache import CachedImage
from psf.evaluation.tuning import COARSE_GRID, Tuning, cache_images, check_can_be_tuned, tune
from psf.inference import MergingThresholds
from psf.meta_arch import PanopticSegFormer
from psf.post_processing import MaskWiseMerging

__all__ = ["apply_merging", "find_merging", "why_not_tuned", "with_merging"]

logger = logging.getLogger(__name__)

KEY = "MODEL.PSF.POST_PROCESSOR"
# PQ in percent. Smaller gains on some dozen images that the model has trained on do not carry over to others.
LEAST_GAIN = 0.25


def apply_merging(model: nn.Module, merging: TunedMerging | None) -> None:
    """Give a model the thresholds that a checkpoint stores, and log which ones are in force.

    With TUNE_IMAGES 0 the config's stay. So does each number that the user has set, see `TunedMerging.in_force`.

    Args:
        model: any; only a `PanopticSegFormer` with `MaskWiseMerging` has thresholds of this kind.
        merging: of the checkpoint; None: it stores none.
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
        reason = "of the checkpoint, tuned on training images" + (", with those that the config sets itself" * own)
        hint = f"; {KEY}.TUNE_IMAGES 0 takes those of the config"
    logger.info("Merging thresholds %s: %s%s", reason, _text(processor.things, processor.stuff), hint)


def why_not_tuned(cfg: CfgNode, model: nn.Module) -> str | None:
    """Why TUNE_IMAGES means nothing for this model and its data; None if it can be tuned."""
    if not isinstance(model, PanopticSegFormer):
        return f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}"
    try:
        check_can_be_tuned(model)
    except ValueError as error:
        return str(error)
    if not isinstance(build_mapper(cfg, False), PanopticMapper):
        return (
            f"INPUT.DATASET_MAPPER_NAME is {cfg.INPUT.DATASET_MAPPER_NAME!r}: only psf's mappers read the ground truth"
        )
    return None


def find_merging(cfg: CfgNode, model: PanopticSegFormer) -> TunedMerging | None:
    """Search the thresholds on TUNE_IMAGES images of DATASETS.TRAIN, spread evenly, read as test images are.

    All processes call this together: each runs the model on its share, the main one searches. All get equal numbers.
    The search starts from the config's numbers, and keeps them unless others raise PQ by `LEAST_GAIN`. A number that
    differs from psf's default has been set, and stays as it is.

    An error in any process, such as a damaged file, is a warning in all of them: the trained model must not be lost.

    Args:
        cfg: of the training.
        model: trained, without DDP's shell; `why_not_tuned` gives None. Its thresholds stay as they are.

    Returns:
        The thresholds; None after an error.
    """
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
    """The result of `action`, or what went wrong as text."""
    try:
        return action()
    except Exception as error:  # whatever it is: after hours of training it must not cost the model
        logger.debug("tuning failed", exc_info=True)
        return f"{type(error).__name__}: {error}"


def _cache_share(cfg: CfgNode, model: PanopticSegFormer) -> list[CachedImage]:
    """This process's share of the images, cached."""
    dicts = [one for name in cfg.DATASETS.TRAIN for one in load_dataset(name)]
    dicts = spread_evenly(dicts, cfg.MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES)
    truth_mapper = PanopticMapper(cfg, True, augmentations=[])

    def read_truth(x: Mapping[str, Any]) -> ImageTruth:
        _, truth = truth_mapper.read({key: value for key, value in x.items() if key != "image"})
        assert truth is not None
        segments = [{**one, "category_id": _category(one["isthing"], one["category_id"])} for one in truth.segments]
        return ImageTruth(truth.labels, segments)

    return cache_images(model, build_test_loader(cfg, dicts), read_truth, _category, COARSE_GRID)


def _search(images: list[CachedImage], cfg: CfgNode, model: PanopticSegFormer) -> Tuning:
    things, stuff = model.post_processor.configured
    thing_ids, stuff_ids = model.classes
    categories = {_category(True, one): True for one in thing_ids}
    categories |= {_category(False, one): False for one in stuff_ids}
    fixed = {kind: _set_numbers(cfg, kind) for kind in ("things", "stuff")}
    found = tune(images, categories, things, stuff, COARSE_GRID, tolerance=LEAST_GAIN, fixed=fixed)
    is_better = found.pq >= found.pq_at_start + LEAST_GAIN
    logger.info(
        "Merging thresholds, tuned on %d training images (PQ on them flatters): PQ %.2f -> %.2f%s\n%s -> %s",
        *(len(images), found.pq_at_start, found.pq, "" if is_better else ", too small a gain: they stay"),
        *(_text(things, stuff), _text(found.things, found.stuff)),
    )
    kept = [f"{kind.upper()}.{name.upper()}" for kind, names in fixed.items() for name in sorted(names)]
    if kept:
        logger.info("Not tuned, as the config sets them: %s", ", ".join(kept))
    return found if is_better else found._replace(things=things, stuff=stuff)


def _set_numbers(cfg: CfgNode, kind: str) -> set[str]:
    """Names of the thresholds of a kind, "things" or "stuff", whose numbers are not psf's defaults."""
    defaults = get_cfg()
    add_psf_config(defaults)
    before, now = (one.MODEL.PSF.POST_PROCESSOR[kind.upper()] for one in (defaults, cfg))
    return {name for name in MergingThresholds._fields if now[name.upper()] != before[name.upper()]}


def with_merging(cfg: CfgNode, things: MergingThresholds, stuff: MergingThresholds) -> CfgNode:
    """A frozen copy of the config with these thresholds as plain keys."""
    cfg = cfg.clone()
    cfg.defrost()
    for kind, numbers in (("THINGS", things), ("STUFF", stuff)):
        for name, value in numbers._asdict().items():
            cfg.MODEL.PSF.POST_PROCESSOR[kind][name.upper()] = float(value)
    cfg.freeze()
    return cfg


def _category(is_thing: bool, contiguous_id: int) -> int:
    """One number for each class; an id may stand for a thing and a stuff class."""
    return 2 * contiguous_id + int(is_thing)


def _text(things: MergingThresholds, stuff: MergingThresholds) -> str:
    kinds = (("THINGS", things), ("STUFF", stuff))
    return ", ".join(
        f"{kind} " + " ".join(f"{name.upper()} {value:g}" for name, value in numbers._asdict().items())
        for kind, numbers in kinds
    )
