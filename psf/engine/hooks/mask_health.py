"""Log how many pixels each mask head predicts, and warn of dead heads."""

from __future__ import annotations

import logging
from typing import Protocol

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from psf.engine.train_step import METRICS_PERIOD
from psf.losses import HeadCounts, MaskHealth

__all__ = ["MaskHealthHook"]

logger = logging.getLogger(__name__)

PATIENCE = 100  # iterations without any mask after which a head counts as dead


class MeasuresMasks(Protocol):
    """A model that counts the pixels that its mask heads predict; `PanopticSegFormer` does."""

    mask_health: MaskHealth | None  # of the last training step; None before the first


class MaskHealthHook(HookBase):
    """Writes the scalars mask_health/things_0, ..., mask_health/stuff, and warns of dead mask heads, each once.

    A scalar is the share of pixels with a score above the mask threshold in the masks that are assigned to a ground
    truth, over the last 20 iterations. Names end like those of the loss terms: the tail, which predicts the masks at
    test, has no number. With ReLU masks there is also mask_nonzero/..., the share of pixels with a score above 0.

    A head is dead after 100 iterations in a row without a mask: no pixel above 0 (ReLU), or none above the threshold
    (sigmoid). Iterations without a ground truth for it do not count. With several processes, only the main process
    reports, for its own images.

    Args:
        model: the model that is trained, without the DDP wrapper.
        activation: MODEL.PSF.MASK_DECODER.MASK_ACTIVATION.
        relu_gradient: MODEL.PSF.MASK_DECODER.RELU_GRADIENT.
        mask_threshold: MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD.
    """

    def __init__(self, model: MeasuresMasks, *, activation: str, relu_gradient: str, mask_threshold: float) -> None:
        self._model, self._mask_threshold = model, mask_threshold
        self._activation, self._relu_gradient = activation, relu_gradient
        self._pending: list[MaskHealth] = []
        self._num_dead: dict[tuple[str, int], int] = {}  # (kind, head) -> iterations without a mask, in a row
        self._warned: set[tuple[str, int]] = set()

    @classmethod
    def from_config(cls, cfg: CfgNode, model: MeasuresMasks) -> MaskHealthHook:
        """The hook for a config's model."""
        node = cfg.MODEL.PSF
        return cls(
            model,
            activation=node.MASK_DECODER.MASK_ACTIVATION,
            relu_gradient=node.MASK_DECODER.RELU_GRADIENT,
            mask_threshold=node.POST_PROCESSOR.MASK_THRESHOLD,
        )

    def after_step(self) -> None:
        """Keep this step's counts on the device; every 20 iterations read them."""
        health = self._model.mask_health
        if health is not None:
            self._pending.append(health)
        iteration = self.trainer.iter + 1
        if self._pending and (iteration % METRICS_PERIOD == 0 or iteration == self.trainer.max_iter):
            died = self._read("things", [one.things for one in self._pending if one.things is not None])
            died += self._read("stuff", [one.stuff for one in self._pending if one.stuff is not None])
            self._pending = []
            if died:
                logger.warning("%s", self._describe(died))

    def _read(self, kind: str, steps: list[HeadCounts]) -> list[str]:
        """Write the scalars of one decoder; returns the names of the heads that have died since the last time."""
        if not steps:
            return []
        zero, threshold = torch.stack(
            [torch.stack([one.above_zero, one.above_threshold]) for one in steps], dim=1
        ).tolist()  # (2, steps, heads): the only wait for the device
        num_pixels, num_heads = sum(one.num_pixels for one in steps), len(zero[0])
        is_relu, died = self._activation == "relu", []
        for head in range(num_heads):
            name = kind if head == num_heads - 1 else f"{kind}_{head}"
            share = sum(counts[head] for counts in threshold) / num_pixels
            self.trainer.storage.put_scalar(f"mask_health/{name}", share, smoothing_hint=False)
            if is_relu:
                share = sum(counts[head] for counts in zero) / num_pixels
                self.trainer.storage.put_scalar(f"mask_nonzero/{name}", share, smoothing_hint=False)
            if self._has_died((kind, head), [counts[head] for counts in (zero if is_relu else threshold)]):
                died.append(f"of layer {head} ({kind})" if head < num_heads - 1 else f"after the last layer ({kind})")
        return died

    def _has_died(self, key: tuple[str, int], counts: list[int]) -> bool:
        """Add the counts of further iterations; returns whether the head has become dead for the first time."""
        for count in counts:
            self._num_dead[key] = 0 if count else self._num_dead.get(key, 0) + 1
            if self._num_dead[key] >= PATIENCE and key not in self._warned:
                self._warned.add(key)
                return True
        return False

    def _describe(self, heads: list[str]) -> str:
        """The warning in one line; layers are counted from 0, as in the names of the loss terms."""
        several = len(heads) > 1
        start = f"mask head{'s' if several else ''} {', '.join(heads)} {'have' if several else 'has'}"
        it = "they" if several else "it"
        if self._activation == "relu":
            start = f"{start} been zero for {PATIENCE} iterations: {it}"
            if self._relu_gradient == "plain":
                return (
                    f"{start} get{'' if several else 's'} no gradient and will predict no masks; set "
                    'MODEL.PSF.MASK_DECODER.RELU_GRADIENT to "revive" or MASK_ACTIVATION to "sigmoid", or lower '
                    "SOLVER.BASE_LR"
                )
            return (
                f'{start} will predict no masks; set MODEL.PSF.MASK_DECODER.MASK_ACTIVATION to "sigmoid", or lower '
                "SOLVER.BASE_LR"
            )
        return (
            f"{start} had no score above MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD ({self._mask_threshold}) for "
            f"{PATIENCE} iterations: so far {it} will predict no masks; if loss_seg in metrics.json does not fall, "
            "lower SOLVER.BASE_LR"
        )
