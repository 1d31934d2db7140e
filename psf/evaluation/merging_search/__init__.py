"""Search for the thresholds and exponents of mask-wise merging on a dataset."""

from psf.evaluation.merging_search.cache import CachedImage, cache_image, match_cached
from psf.evaluation.merging_search.search import (
    COARSE_GRID,
    DEFAULT_GRID,
    Grid,
    Surface,
    Tuning,
    cache_dataset,
    cache_images,
    check_can_be_tuned,
    key_value_words,
    surface_table,
    tune,
)

__all__ = [
    "COARSE_GRID",
    "DEFAULT_GRID",
    "CachedImage",
    "Grid",
    "Surface",
    "Tuning",
    "cache_dataset",
    "cache_image",
    "cache_images",
    "check_can_be_tuned",
    "key_value_words",
    "match_cached",
    "surface_table",
    "tune",
]
