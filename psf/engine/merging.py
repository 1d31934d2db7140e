"""Merging thresholds (section 3.5) that are tuned at the end of a training, and used where its model is loaded.

POST_PROCESSOR.TUNE_IMAGES switches both on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from psf.checkpoint import TunedMerging
from psf.data import PanopticMapper, build_mapper, build_test_loader, load_dataset
from psf.engine.one_data_set import spread_evenly
from psf.evaluation import ImageTruth
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
    if merging is None:
        reason = "of the config: the checkpoint stores none"
    elif not processor.is_tuned:
        reason = f"of the config: the checkpoint stores tuned ones, and {KEY}.TUNE_IMAGES is 0"
    else:
        processor.things, processor.stuff = chosen = merging.in_force(*processor.configured)
        own = chosen != (merging.things, merging.stuff)
        reason = "of the checkpoint, tuned on training images" + (", with those that the config sets itself" * own)
    logger.info("Merging thresholds %s: %s", reason, _text(processor.things, processor.stuff))


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


def find_merging(cfg: CfgNode, model: PanopticSegFormer) -> TunedMerging:
    """Search the thresholds on TUNE_IMAGES images of DATASETS.TRAIN, spread evenly, read as test images are.

    All processes call this together: each runs the model on its share, the main one searches. All get equal numbers.
    The search starts from the config's numbers, and keeps them unless others raise PQ by `LEAST_GAIN`.

    Args:
        cfg: of the training.
        model: trained, without DDP's shell; `why_not_tuned` says None. Its thresholds stay as they are.
    """
    things, stuff = model.post_processor.configured
    dicts = [one for name in cfg.DATASETS.TRAIN for one in load_dataset(name)]
    dicts = spread_evenly(dicts, cfg.MODEL.PSF.POST_PROCESSOR.TUNE_IMAGES)
    truth_mapper = PanopticMapper(cfg, True, augmentations=[])

    def read_truth(x: Mapping[str, Any]) -> ImageTruth:
        _, truth = truth_mapper.read({key: value for key, value in x.items() if key != "image"})
        assert truth is not None
        segments = [{**one, "category_id": _category(one["isthing"], one["category_id"])} for one in truth.segments]
        return ImageTruth(truth.labels, segments)

    loader = build_test_loader(cfg, dicts)
    shares = comm.gather(cache_images(model, loader, read_truth, _category, COARSE_GRID), dst=0)
    found: Tuning | None = None
    if comm.is_main_process():
        cached = [image for share in shares for image in share]
        thing_ids, stuff_ids = model.classes
        categories = {_category(True, one): True for one in thing_ids} | {
            _category(False, one): False for one in stuff_ids
        }
        found = tune(cached, categories, things, stuff, COARSE_GRID, tolerance=LEAST_GAIN)
        is_better = found.pq >= found.pq_at_start + LEAST_GAIN
        logger.info(
            "Merging thresholds, tuned on %d training images (PQ on them flatters): PQ %.2f -> %.2f%s\n%s -> %s",
            *(len(cached), found.pq_at_start, found.pq, "" if is_better else ", too small a gain: they stay"),
            *(_text(things, stuff), _text(found.things, found.stuff)),
        )
        if not is_better:
            found = found._replace(things=things, stuff=stuff)
    found = comm.all_gather(found)[0]
    return TunedMerging(found.things, found.stuff, things, stuff)


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
