"""What a robustness record is of, so that no run goes on with the figures of another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlparse

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

__all__ = ["describe_measurement"]

# Said beside the settings, or without influence on what is measured.
LEFT_OUT = {"MODEL.WEIGHTS", "MODEL.DEVICE"}


def describe_measurement(cfg: CfgNode, dataset_name: str, num_images: int | None) -> dict[str, Any]:
    """Plain values: weights and panoptic truth by name and by content, and all of MODEL and INPUT.

    Args:
        cfg: of the model.
        dataset_name: a registered data set, whose files are there.
        num_images: as in `evaluate_robustness`.
    """
    settings = {**_values(cfg.MODEL, "MODEL."), **_values(cfg.INPUT, "INPUT.")}
    return {
        "weights": cfg.MODEL.WEIGHTS,
        "weights_sha256": _digest(cfg.MODEL.WEIGHTS),
        "dataset": dataset_name,
        "panoptic_json_sha256": _digest(MetadataCatalog.get(dataset_name).get("panoptic_json") or ""),
        "num_images": num_images,
        **{key: value for key, value in settings.items() if key not in LEFT_OUT},
    }


def _values(node: CfgNode, prefix: str) -> dict[str, Any]:
    def pairs(inner: CfgNode, name: str) -> Iterator[tuple[str, Any]]:
        for key, value in inner.items():
            if isinstance(value, CfgNode):
                yield from pairs(value, f"{name}{key}.")
            else:
                yield name + key, value

    return dict(pairs(node, prefix))


def _digest(path: str) -> str | None:
    """Of a file on this machine; None of anything else: what a URL names does not change."""
    file = urlparse(path)._replace(query="").geturl()  # as the checkpointer reads MODEL.WEIGHTS
    if not os.path.isfile(file):
        return None
    digest = hashlib.sha256()
    with open(file, "rb") as content:
        while part := content.read(2**20):
            digest.update(part)
    return digest.hexdigest()
