"""Detectron2's checkpointer, outspoken about weights that do not fit the model."""

from __future__ import annotations

import logging
import os
from typing import Any
from urllib.parse import urlparse

from detectron2.checkpoint import DetectionCheckpointer

__all__ = ["Checkpointer"]

logger = logging.getLogger(__name__)


class Checkpointer(DetectionCheckpointer):
    """Says in one warning which parameters a checkpoint of another shape (of another class count, mostly) leaves out.

    Where optimizer and iteration are to be loaded too, it raises ValueError instead: their state would not fit.
    Made without them, which means that the model will not be trained, it warns of parts of it that stay random.
    """

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As Detectron2's; a ValueError, and no AssertionError, if there is no such file."""
        file = urlparse(path)._replace(query="").geturl()  # Detectron2 knows an option: "?matching_heuristics=True"
        if file and "://" not in file and not os.path.isfile(file):
            raise ValueError(f"{file}: no such checkpoint file (MODEL.WEIGHTS, or OUTPUT_DIR's last with --resume)")
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
        # Those of another shape, which have had their warning, are among the missing keys as well.
        random = self._untouched_parts(set(incompatible.missing_keys).difference(name for name, _, _ in skipped))
        if random and not self.checkpointables:
            logger.warning(
                "THE RESULTS WILL BE RANDOM: the checkpoint (MODEL.WEIGHTS) has nothing for the model's %s; weights of "
                "a backbone alone are for training to start from",
                ", ".join(random),
            )
        super()._log_incompatible_keys(incompatible._replace(incorrect_shapes=[]))

    def _untouched_parts(self, absent: set[str]) -> list[str]:
        """Names of the model's parts that have parameters, all of which are `absent` from the checkpoint."""
        parts: dict[str, bool] = {}
        for name, _ in self.model.named_parameters():
            part = name.partition(".")[0]
            parts[part] = parts.get(part, True) and name in absent
        return [part for part, is_untouched in parts.items() if is_untouched]
