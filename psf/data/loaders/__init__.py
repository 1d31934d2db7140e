"""Loaders for training, which can be resumed exactly, and for evaluation."""

from psf.data.loaders.evaluation import TestLoader, build_test_loader, same_size_batches, spread_evenly
from psf.data.loaders.resumable import RandomState, TrainingLoader, unchanged_random_state
from psf.data.loaders.training import (
    SkipUnreadable,
    build_train_loader,
    check_sampler,
    repeat_factors,
    without_empty_images,
)
from psf.data.loaders.workers import explain_dead_workers, why_workers_failed

__all__ = [
    "RandomState",
    "SkipUnreadable",
    "TestLoader",
    "TrainingLoader",
    "build_test_loader",
    "build_train_loader",
    "check_sampler",
    "explain_dead_workers",
    "repeat_factors",
    "same_size_batches",
    "spread_evenly",
    "unchanged_random_state",
    "why_workers_failed",
    "without_empty_images",
]
