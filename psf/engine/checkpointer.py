"""Detectron2's checkpointer, outspoken about weights that do not fit the model."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer"]

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Says in one warning which parameters a checkpoint of another shape (of another class count, mostly) leaves out.

    Where optimizer and iteration are to be loaded too, it raises ValueError instead: their state would not fit.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        self._resumes = checkpointables is None and bool(self.checkpointables)
        return super().load(path, checkpointables)

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        skipped = incompatible.incorrect_shapes
        if skipped:
            width = max(len(name) for name, _, _ in skipped)
            lines = [f"  {name:{width}}  {tuple(found)} -> {tuple(wanted)}" for name, found, wanted in skipped]
            message = (
                f"{len(skipped)} parameters of the checkpoint have another shape than the model's (checkpoint -> "
                "model; is it of a data set with another number of classes?):\n" + "\n".join(lines)
            )
            if self._resumes:
                raise ValueError(f"cannot resume: {message}\nName another OUTPUT_DIR, or train without --resume.")
            logger.warning("SKIPPED, AND LEFT AT THEIR INITIAL VALUES: %s", message)
        super()._log_incompatible_keys(incompatible._replace(incorrect_shapes=[]))
