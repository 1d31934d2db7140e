"""Search the thresholds and exponents of mask-wise merging (section 3.5) for the best panoptic quality."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from detectron2.evaluation.evaluator import inference_context
from tabulate import tabulate
from torch import Tensor

from psf.errors import UserError
from psf.evaluation.ground_truth import ImageGroundTruth, PanopticGroundTruth
from psf.evaluation.merging_search.cache import CachedImage, cache_image, match_cached
from psf.evaluation.panoptic_quality import PanopticQuality
from psf.inference import ImageGeometry, MaskWiseMerging, MergingThresholds, per_candidate, score_masks
from psf.meta_arch import PanopticSegFormer, padded_pixels
from psf.structures import Candidates, CategoryIds

__all__ = [
    "COARSE_GRID",
    "DEFAULT_GRID",
    "Grid",
    "Surface",
    "Tuning",
    "cache_dataset",
    "cache_images",
    "check_can_be_tuned",
    "key_value_words",
    "surface_table",
    "tune",
]

logger = logging.getLogger(__name__)


class Grid(NamedTuple):
    """The values to try; the start values are added."""

    alpha: tuple[float, ...]
    beta: tuple[float, ...]
    t_cnf: tuple[float, ...]
    t_keep: tuple[float, ...]


DEFAULT_GRID = Grid(
    alpha=(0.5, 1.0, 1.5, 2.0),
    beta=(0.5, 1.0, 2.0, 3.0),
    t_cnf=(0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4),
    t_keep=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
)
# For a few dozen images: on so few images, a finer search overfits.
COARSE_GRID = Grid(
    alpha=(0.5, 1.0, 2.0),
    beta=(0.5, 1.0, 2.0),
    t_cnf=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
    t_keep=(0.4, 0.6, 0.8),
)
# Numbers of one kind that are searched together. Confidence, which t_cnf bounds, depends on alpha and beta.
PAIRS = (("t_cnf", "t_keep"), ("beta", "t_cnf"), ("alpha", "beta"))
MAX_ROUNDS = 4


class Surface(NamedTuple):
    """PQ, in percent, over two numbers of a kind; all others have their chosen values."""

    kind: str  # "things" or "stuff"
    names: tuple[str, str]  # of the numbers, rows first
    rows: tuple[float, ...]
    columns: tuple[float, ...]
    pq: list[list[float]]


class Tuning(NamedTuple):
    """Result of a search; PQ in percent."""

    things: MergingThresholds
    stuff: MergingThresholds
    pq: float
    pq_at_start: float
    is_settled: bool  # the last round found nothing better; False: the search reached `MAX_ROUNDS`
    surfaces: list[Surface]


def check_can_be_tuned(model: PanopticSegFormer) -> None:
    """Raise a UserError that names the key if the model has no such numbers or its images cannot be cached."""
    if not isinstance(model.post_processor, MaskWiseMerging):
        raise UserError(
            f"MODEL.PSF.POST_PROCESSOR.NAME is {type(model.post_processor).__name__!r}: only MaskWiseMerging has these "
            "numbers"
        )
    if model.has_joint_queries:
        raise UserError(
            'MODEL.PSF.QUERIES is "joint": its segments of one stuff class are joined after merging, which the cached '
            'images do not contain; only "decoupled" queries can be tuned'
        )
    if model.has_tiles:
        raise UserError("MODEL.PSF.TEST.TILES.SIZE is not 0: tuning uses whole images; set it to 0")


def cache_dataset(
    model: PanopticSegFormer,
    batches: Iterable[list[dict[str, Any]]],
    dataset_name: str,
    grid: Grid = DEFAULT_GRID,
    max_bytes: int = 2**32,
) -> list[CachedImage]:
    """Run the model once over a dataset, and cache each image in compact form.

    Args:
        model: its post-processor has the mask threshold.
        batches: inputs of the model, with "image_id", "height" and "width".
        dataset_name: dataset with the ground truth.
        grid: candidates that cannot reach its least T_CNF are dropped.
        max_bytes: limit of the cache; an image needs some kilobytes.

    Raises:
        UserError: as `check_can_be_tuned`, or if the cache exceeds `max_bytes`.
    """
    gt = PanopticGroundTruth(dataset_name)
    category_ids = CategoryIds.from_metadata(gt.metadata)
    return cache_images(model, batches, lambda x: gt.read(x["image_id"]), category_ids.category_id, grid, max_bytes)


@torch.no_grad()
def cache_images(
    model: PanopticSegFormer,
    batches: Iterable[list[dict[str, Any]]],
    read_gt: Callable[[Mapping[str, Any]], ImageGroundTruth],
    category_of: Callable[[int, bool], int],
    grid: Grid = DEFAULT_GRID,
    max_bytes: int = 2**32,
) -> list[CachedImage]:
    """As `cache_dataset`, with ground truth from any source.

    Args:
        model, batches, grid, max_bytes: as in `cache_dataset`.
        read_gt: input dict of an image -> its ground truth, (height, width) of the dict.
        category_of: (contiguous id of a class, whether it is a thing) -> category id in the ground truth.
    """
    check_can_be_tuned(model)
    processor = model.post_processor
    grid = _with(grid, processor.things, processor.stuff)
    cached: list[CachedImage] = []
    num_bytes = 0
    with inference_context(model):
        for batch in batches:
            images = model.preprocess(batch)
            padded = (images.tensor.shape[-2], images.tensor.shape[-1])
            found = model.candidates(images.tensor, padded_pixels(images))
            for x, size, candidates in zip(batch, images.image_sizes, found, strict=True):
                geometry = ImageGeometry(padded, tuple(size), (x["height"], x["width"]))
                cached.append(_cache_one(model, candidates, geometry, grid, category_of, *read_gt(x)))
                num_bytes += cached[-1].num_bytes
                if num_bytes > max_bytes:
                    raise UserError(f"{len(cached)} images take more than {max_bytes} bytes: cache fewer images")
            if len(cached) % 100 < len(batch):
                logger.info("%d images, %.1f MiB cached", len(cached), num_bytes / 2**20)
    return cached


def tune(
    images: Sequence[CachedImage],
    categories: Mapping[int, bool],
    things: MergingThresholds,
    stuff: MergingThresholds,
    grid: Grid = DEFAULT_GRID,
    tolerance: float = 0.0,
    fixed: Mapping[str, Container[str]] | None = None,
) -> Tuning:
    """Search over two numbers of a kind at a time, in turn, until a round over all pairs finds nothing better.

    There are at most `MAX_ROUNDS` rounds.

    Args:
        images: cached images.
        categories: category id -> whether it is a thing.
        things, stuff: start values.
        grid: the values to try.
        tolerance: in percent; values with a PQ at most this much below the best count as equal. With T_KEEP, the least
            T_CNF among them is chosen: a model is more confident on its training images than on others.
        fixed: "things" and "stuff" -> names of numbers that are not searched.
    """
    grid = _with(grid, things, stuff)
    known: dict[tuple[MergingThresholds, ...], float] = {}

    def quality(chosen: Mapping[str, MergingThresholds]) -> float:
        key = (chosen["things"], chosen["stuff"])
        if key not in known:
            total = PanopticQuality(categories)
            for image in images:
                total.add_matches(match_cached(image, *key))
            mean = total.mean()
            known[key] = 0.0 if mean is None else 100 * mean.pq
        return known[key]

    chosen = {"things": things, "stuff": stuff}
    start = quality(chosen)
    surfaces: list[Surface] = []
    is_settled = False
    for round_number in range(1, MAX_ROUNDS + 1):
        before, surfaces = dict(chosen), []
        for kind in chosen:
            if not any(is_thing == (kind == "things") for is_thing in categories.values()):
                continue
            for names in PAIRS:
                held = (fixed or {}).get(kind, ())
                rows, columns = ((getattr(chosen[kind], n),) if n in held else getattr(grid, n) for n in names)
                tried = [[chosen[kind]._replace(**{names[0]: a, names[1]: b}) for b in columns] for a in rows]
                pq = [[quality({**chosen, kind: thresholds}) for thresholds in line] for line in tried]
                surfaces.append(Surface(kind, names, rows, columns, pq))
                best = max(max(line) for line in pq)
                equals = [t for line, row in zip(pq, tried) for value, t in zip(line, row) if value >= best - tolerance]
                if tolerance and "t_keep" in names:
                    chosen[kind] = min(equals, key=lambda t: (t.t_cnf, _distance(t, chosen[kind])))
                else:  # the smallest change
                    chosen[kind] = min(equals, key=lambda t: _distance(t, chosen[kind]))
        logger.info("round %d: PQ %.3f", round_number, quality(chosen))
        is_settled = chosen == before
        if is_settled:
            break
    return Tuning(chosen["things"], chosen["stuff"], quality(chosen), start, is_settled, surfaces)


def surface_table(surface: Surface) -> str:
    """A surface as a Markdown table with the best PQ in bold."""
    best = max(max(line) for line in surface.pq)
    names = [name.upper() for name in surface.names]
    rows = [
        [f"{value:g}", *(f"**{pq:.2f}**" if pq == best else f"{pq:.2f}" for pq in line)]
        for value, line in zip(surface.rows, surface.pq, strict=True)
    ]
    headers = [f"{names[0]} \\ {names[1]}", *(f"{value:g}" for value in surface.columns)]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def key_value_words(tuning: Tuning) -> list[str]:
    """The chosen numbers as config options with all digits; yacs reads back the same values."""
    words = []
    for kind, numbers in (("THINGS", tuning.things), ("STUFF", tuning.stuff)):
        for name, value in numbers._asdict().items():
            words += [f"MODEL.PSF.POST_PROCESSOR.{kind}.{name.upper()}", repr(float(value))]
    return words


def _distance(one: MergingThresholds, other: MergingThresholds) -> float:
    return sum(abs(a - b) for a, b in zip(one, other))


def _with(grid: Grid, *starts: MergingThresholds) -> Grid:
    added = ({*values, *(getattr(one, name) for one in starts)} for name, values in grid._asdict().items())
    return Grid(*(tuple(sorted(values)) for values in added))


def _cache_one(
    model: PanopticSegFormer,
    candidates: Candidates,
    geometry: ImageGeometry,
    grid: Grid,
    category_of: Callable[[int, bool], int],
    labels: Any,
    segments: Sequence[Mapping[str, Any]],
) -> CachedImage:
    processor, classes = model.post_processor, model.classes
    chosen = candidates.select(_can_be_painted(candidates, grid, processor.mask_threshold))
    mean_alone = MergingThresholds(alpha=0.0, beta=1.0, t_cnf=0.0, t_keep=0.0)
    scored = score_masks(
        chosen,
        geometry,
        per_candidate(chosen.is_thing, mean_alone, mean_alone),
        mask_threshold=processor.mask_threshold,
        extra_pixels=processor.extra_pixels,
    )
    categories = [
        category_of((classes.thing_ids if is_thing else classes.stuff_ids)[index], is_thing)
        for is_thing, index in zip(chosen.is_thing.tolist(), chosen.class_indices.tolist(), strict=True)
    ]
    return cache_image(
        chosen.class_scores, scored.confidence, scored.masks, chosen.is_thing, categories, labels, segments
    )


def _can_be_painted(candidates: Candidates, grid: Grid, mask_threshold: float) -> Tensor:
    """(N,) bool: the candidate reaches the least T_CNF with some ALPHA and BETA; no mean exceeds the highest score."""
    highest = 1.001 * candidates.mask_scores.flatten(1).amax(1).float()
    bound = candidates.class_scores.float() ** min(grid.alpha)
    bound = bound * torch.maximum(highest ** min(grid.beta), highest ** max(grid.beta))
    return (highest > mask_threshold) & (bound >= min(grid.t_cnf))
