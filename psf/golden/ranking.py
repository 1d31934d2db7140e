"""Where scores are nearly equal, two right implementations may rank differently: put ours in the reference's order."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from psf.golden.stored import StoredTensors

__all__ = ["num_instances", "put_instances_in_order", "put_pairs_in_order"]

TIE = 1e-4  # scores that are closer may be in either order


def num_instances(stored: StoredTensors, image: str) -> int:
    """Instances with a score; the reference goes on with empty masks, whose order means nothing."""
    return int((stored[image + "inst_boxes"][:, 4] > 0).sum())


def put_pairs_in_order(ours: dict[str, np.ndarray], stored: StoredTensors, image: str) -> None:
    """Where pairs of query and class have nearly equal scores, put ours in the reference's order."""
    wanted = list(zip(stored[image + "topk_query"].tolist(), stored[image + "topk_labels"].tolist(), strict=True))
    place = {
        pair: i for i, pair in enumerate(zip(ours[image + "topk_query"].tolist(), ours[image + "topk_labels"].tolist()))
    }
    if set(wanted) != set(place):
        return  # other pairs altogether, which the comparison will tell
    order = np.array([place[pair] for pair in wanted])
    scores = ours[image + "topk_boxes"][:, 4]
    if np.abs(scores[order] - scores).max() > TIE:
        return
    for name in ("topk_query", "topk_labels", "topk_boxes", "things_tail_mask"):
        ours[image + name] = ours[image + name][order]
    for name in ("things_block_masks", "things_block_queries"):
        ours[image + name] = ours[image + name][:, order]


def put_instances_in_order(ours: dict[str, np.ndarray], stored: StoredTensors, image: str) -> None:
    """The same for instances, which are known again by label and box."""
    boxes, labels = stored[image + "inst_boxes"], stored[image + "inst_labels"]
    number = num_instances(stored, image)
    found, found_labels = ours[image + "inst_boxes"], ours[image + "inst_labels"]
    if len(found) != number:
        return
    apart = np.abs(found[None, :, 4] - boxes[:number, None, 4]) > TIE
    other = labels[:number, None] != found_labels[None]
    distance = np.abs(found[None, :, :4] - boxes[:number, None, :4]).max(-1)
    _, order = linear_sum_assignment(np.where(apart | other, 1e6, distance))
    for name in ("inst_boxes", "inst_labels", "inst_masks"):
        ours[image + name] = ours[image + name][order]
