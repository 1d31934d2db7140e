"""Replace MODEL.PSF.NUM_THING_QUERIES -1 by a number from the training data or from a trained model."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode
from detectron2.utils import comm

from psf.checkpoint import newest_sound_checkpoint, read_checkpoint, stored_query_count
from psf.data import largest_count, load_dataset
from psf.data.files import local_path
from psf.engine.checkpointer import file_of_weights
from psf.engine.config.files import stored_value
from psf.errors import UserError

__all__ = ["NumQueries", "queries_for", "resolve_num_queries", "warn_of_too_few_queries"]

logger = logging.getLogger(__name__)

KEY = "MODEL.PSF.NUM_THING_QUERIES"
FROM_DATA = -1
# Each thing is matched to its own query: spare queries give matching a choice, and other images may have more things.
SPARE = 1.5
MULTIPLE = 50  # a round number, which mostly stays the same when images are added
LEAST = 100  # DETR's number of queries; fewer save little time


class NumQueries(NamedTuple):
    """A number of thing queries, and where it comes from."""

    number: int
    source: str
    is_guess: bool = False  # a trained model may have had another number

    def log(self) -> None:
        """Log it in the main process: a warning if it is a guess."""
        if comm.is_main_process():
            level = logging.WARNING if self.is_guess else logging.INFO
            doubt = "; MODEL.WEIGHTS does not contain the number that it was trained with" if self.is_guess else ""
            logger.log(level, "%s -1: %d, %s%s", KEY, self.number, self.source, doubt)


def queries_for(num_things: int) -> int:
    """Number of queries for up to `num_things` things: 1.5 times as many, rounded up to fifties, at least 100."""
    return max(math.ceil(SPARE * num_things / MULTIPLE) * MULTIPLE, LEAST)


def resolve_num_queries(cfg: CfgNode, *, is_training: bool = False, resume: bool = False) -> NumQueries | None:
    """Replace NUM_THING_QUERIES -1 by a number, in place; do nothing if it is a number.

    Training counts the things of DATASETS.TRAIN (see `queries_for`). A trained model keeps its number: MODEL.WEIGHTS
    stores it, or has as many learned queries; otherwise it is in config.yaml next to MODEL.WEIGHTS.

    Args:
        cfg: may be frozen; stays so.
        is_training: the model will be trained, from MODEL.WEIGHTS or random weights.
        resume: use the weights in OUTPUT_DIR, if there are any.

    Returns:
        The number and its source, which the caller logs; None if nothing was replaced.

    Raises:
        UserError: if the number is needed and DATASETS.TRAIN is empty, cannot be read, or does not list its things; if
            `resume` finds no sound checkpoint among those in OUTPUT_DIR.
    """
    if cfg.MODEL.PSF.NUM_THING_QUERIES != FROM_DATA:
        return None
    last = newest_sound_checkpoint(Path(cfg.OUTPUT_DIR)) if resume else None
    weights = cfg.MODEL.WEIGHTS if last is None else str(last.path)
    found = None
    if weights and (last is not None or not is_training):
        found = _of_trained_model(weights)
    if found is None:
        found = _of_data(cfg)._replace(is_guess=bool(weights) and not is_training)
    was_frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.PSF.NUM_THING_QUERIES = found.number
    if was_frozen:
        cfg.freeze()
    return found


def warn_of_too_few_queries(cfg: CfgNode, dicts: Iterable[Mapping[str, Any]]) -> None:
    """Warn, in the main process, if a training image has more things than there are queries.

    Args:
        cfg: with a number of thing queries.
        dicts: of all training images.
    """
    if not comm.is_main_process():
        return
    is_joint = cfg.MODEL.PSF.QUERIES == "joint"
    largest, count = largest_count(dicts, stuff=is_joint), cfg.MODEL.PSF.NUM_THING_QUERIES
    if largest is not None and largest.num_segments > count:
        logger.warning(
            "%s has %d %s, but there are only %d queries: the model cannot find all of them. Set %s to -1 (from the "
            "data) or to %d",
            *(largest.image, largest.num_segments, "segments" if is_joint else "things", count, KEY),
            queries_for(largest.num_segments),
        )


def _of_trained_model(weights: str) -> NumQueries | None:
    """The number in a checkpoint or in config.yaml next to it; None if neither has it."""
    try:
        path = Path(local_path(file_of_weights(weights)))
        count = stored_query_count(read_checkpoint(path))
    except UserError:  # loading the weights raises the error
        return None
    if count is not None:
        return NumQueries(count, f"as {weights} was trained with")
    beside = path.with_name("config.yaml")
    if not beside.is_file():
        return None
    count = stored_value(str(beside), KEY)
    return None if not isinstance(count, int) or count == FROM_DATA else NumQueries(count, f"from {beside}")


def _of_data(cfg: CfgNode) -> NumQueries:
    is_joint = cfg.MODEL.PSF.QUERIES == "joint"
    names = cfg.DATASETS.TRAIN
    if not names:
        raise UserError(f"{KEY} is -1 (from the data), but DATASETS.TRAIN is empty: name a dataset, or set a number")
    largest = largest_count((one for name in names for one in load_dataset(name)), stuff=is_joint)
    if largest is None:
        raise UserError(
            f"{KEY} is -1 (from the data), but the dicts of DATASETS.TRAIN {list(names)} have neither segments_info "
            "nor annotations to count: set a number"
        )
    kind = "segments" if is_joint else "things"
    count = queries_for(largest.num_segments)
    return NumQueries(count, f"as images of DATASETS.TRAIN have up to {largest.num_segments} {kind} ({largest.image})")
