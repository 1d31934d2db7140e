"""The merging thresholds that were tuned at the end of a training, as a checkpoint stores them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from psf.inference import MergingThresholds

__all__ = ["TunedMerging"]

ENTRY = "psf_merging"  # of a checkpoint


class TunedMerging(NamedTuple):
    """Thresholds of both kinds before and after the search (MODEL.PSF.POST_PROCESSOR.{THINGS,STUFF})."""

    things: MergingThresholds
    stuff: MergingThresholds
    things_before: MergingThresholds  # of the training's config
    stuff_before: MergingThresholds

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> TunedMerging | None:
        """What a checkpoint holds; None if its training did not tune."""
        entry = checkpoint.get(ENTRY)
        return None if entry is None else cls(*(MergingThresholds(**entry[name]) for name in cls._fields))

    def as_entry(self) -> dict[str, dict[str, dict[str, float]]]:
        """What a checkpoint holds of it, beside the weights."""
        numbers = {
            name: {key: float(value) for key, value in one._asdict().items()} for name, one in self._asdict().items()
        }
        return {ENTRY: numbers}

    def in_force(
        self, things: MergingThresholds, stuff: MergingThresholds
    ) -> tuple[MergingThresholds, MergingThresholds]:
        """Thresholds of things and stuff for a config that has `things` and `stuff`.

        A number that the training's config had, or that the search found, becomes the tuned one. Any other number was
        set by the user after the training, and stays.
        """
        return _choose(self.things, self.things_before, things), _choose(self.stuff, self.stuff_before, stuff)


def _choose(tuned: MergingThresholds, before: MergingThresholds, config: MergingThresholds) -> MergingThresholds:
    return MergingThresholds(
        *(new if now in (old, new) else now for new, old, now in zip(tuned, before, config, strict=True))
    )
