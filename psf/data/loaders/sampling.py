"""How often a training shows each image: the samplers of DATALOADER.SAMPLER_TRAIN."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from detectron2.utils import comm

from psf.errors import UserError

__all__ = [
    "ANNOTATION_KEYS",
    "SAMPLER_NAMES",
    "SeededSampler",
    "check_sampler",
    "join_datasets",
    "repeat_factors",
    "seeded_sampler",
]

ANNOTATION_KEYS = ("annotations", "segments_info")  # of Detectron2's dicts
_DATASET = "dataset_name"  # in the dicts, for samplers that weigh datasets


class _Sampler(NamedTuple):
    """What the factor of an image depends on; the names are Detectron2's."""

    by_class: bool = False  # DATALOADER.REPEAT_THRESHOLD and the rarest class of the image
    by_dataset: bool = False  # DATASETS.TRAIN_REPEAT_FACTOR


_SAMPLERS = {
    "TrainingSampler": _Sampler(),
    "RepeatFactorTrainingSampler": _Sampler(by_class=True),
    "WeightedTrainingSampler": _Sampler(by_dataset=True),
    "WeightedCategoryTrainingSampler": _Sampler(by_class=True, by_dataset=True),
}
SAMPLER_NAMES = tuple(_SAMPLERS)


class SeededSampler(NamedTuple):
    """A sampler that can be made again, after a stop."""

    make: Callable[..., Iterable[int]]  # (seed=) -> positions in the dataset, without end, for this process
    seed: int  # the same in all processes
    name: str  # with a checksum of the factors


def seeded_sampler(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> SeededSampler:
    """The sampler of DATALOADER.SAMPLER_TRAIN, seeded as Detectron2 does."""
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name == "TrainingSampler":
        return SeededSampler(partial(TrainingSampler, len(dicts)), comm.shared_random_seed(), name)
    seed = cfg.SEED if name == "RepeatFactorTrainingSampler" else comm.shared_random_seed()
    factors = repeat_factors(cfg, dicts)
    checksum = zlib.crc32(factors.numpy().tobytes())
    return SeededSampler(partial(RepeatFactorTrainingSampler, factors), seed, f"{name} {checksum:08x}")


def join_datasets(cfg: CfgNode, datasets: Iterable[tuple[str, Sequence[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The dicts of all training datasets, given with their names; with the name in each, if the sampler needs it."""
    kind = _SAMPLERS.get(cfg.DATALOADER.SAMPLER_TRAIN)
    if kind is None or not kind.by_dataset:
        return [one for _, dicts in datasets for one in dicts]
    return [{**one, _DATASET: name} for name, dicts in datasets for one in dicts]


def check_sampler(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> None:
    """Check DATALOADER.SAMPLER_TRAIN, and that its factors can be computed from these dicts.

    Raises:
        UserError: if the sampler is not supported, or needs the classes of each image and a dict does not list them; or
            if DATASETS.TRAIN_REPEAT_FACTOR is not valid or has no effect.
    """
    name, weights = cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATASETS.TRAIN_REPEAT_FACTOR
    if name not in _SAMPLERS:
        raise UserError(f'DATALOADER.SAMPLER_TRAIN is "{name}": expected one of {list(_SAMPLERS)}')
    if _SAMPLERS[name].by_class and not all(map(_lists_classes, dicts)):
        raise UserError(
            f'DATALOADER.SAMPLER_TRAIN is "{name}", which needs the classes of each image; the dicts of DATASETS.TRAIN '
            'have neither segments_info nor annotations, or are generated: set it to "TrainingSampler"'
        )
    if weights and not _SAMPLERS[name].by_dataset:
        raise UserError(
            f'DATASETS.TRAIN_REPEAT_FACTOR has no effect on DATALOADER.SAMPLER_TRAIN "{name}": expected '
            '"WeightedTrainingSampler" or "WeightedCategoryTrainingSampler"'
        )
    _dataset_factors(cfg)


def _lists_classes(dataset_dict: dict[str, Any]) -> bool:
    """Whether the classes of an image are known. Generated scenes would be drawn, which takes minutes."""
    return "psf_scene" not in dataset_dict and not dataset_dict.keys().isdisjoint(ANNOTATION_KEYS)


def _dataset_factors(cfg: CfgNode) -> dict[str, float]:
    """DATASETS.TRAIN_REPEAT_FACTOR with 1 for all other datasets; a UserError names what is not valid in it."""
    factors = dict.fromkeys(cfg.DATASETS.TRAIN, 1.0)
    for entry in cfg.DATASETS.TRAIN_REPEAT_FACTOR:
        is_pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and entry[0] in factors
        if not is_pair or not isinstance(entry[1], (int, float)) or not 0 <= entry[1] < math.inf:
            raise UserError(
                f"DATASETS.TRAIN_REPEAT_FACTOR has {entry!r}: expected a pair of a name in DATASETS.TRAIN "
                f"({', '.join(factors)}) and a number of 0 or more"
            )
        factors[entry[0]] = float(entry[1])
    if factors and not any(factors.values()):
        raise UserError("DATASETS.TRAIN_REPEAT_FACTOR is 0 for all of DATASETS.TRAIN: expected one factor above 0")
    return factors


def repeat_factors(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> torch.Tensor:
    """(N,) factors for RepeatFactorTrainingSampler: how often an epoch shows each image.

    By class, a factor is that of the image's rarest class. Detectron2 reads the classes from `annotations`; here they
    come from `segments_info`, where a dict has it. By dataset, it is the one of DATASETS.TRAIN_REPEAT_FACTOR. By both,
    it is their product, with class frequencies of each dataset, and 1 is the smallest.

    Args:
        cfg: the config; `check_sampler` accepts it.
        dicts: N dicts, of `join_datasets`.
    """
    kind = _SAMPLERS[cfg.DATALOADER.SAMPLER_TRAIN]
    if not kind.by_dataset:
        return _class_factors(cfg, dicts)
    of_dataset, names = _dataset_factors(cfg), [one[_DATASET] for one in dicts]
    factors = torch.tensor([of_dataset[name] for name in names])
    if not kind.by_class:
        return factors
    for name in of_dataset:
        rows = [row for row, of_row in enumerate(names) if of_row == name]
        factors[rows] *= _class_factors(cfg, [dicts[row] for row in rows])
    return factors / factors[factors > 0].min()


def _class_factors(cfg: CfgNode, dicts: Sequence[dict[str, Any]]) -> torch.Tensor:
    segments = [{"annotations": one.get("segments_info", one.get("annotations"))} for one in dicts]
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        segments, cfg.DATALOADER.REPEAT_THRESHOLD, sqrt=cfg.DATALOADER.REPEAT_SQRT
    )
