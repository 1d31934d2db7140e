"""Put our rankings into the reference's order where scores are nearly equal, because both orders are correct there.

Rows that a near-tie moved out of a ranking are not compared. Each function changes our tensors in place; two of them
return the rows to compare.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from fidelity.stored import StoredTensors

__all__ = ["name_instances_alike", "put_instances_in_order", "put_pairs_in_order"]

TIE = 1e-4  # scores that are closer may be in either order
OTHER = 1e6  # pixels; instances that are farther apart are not the same


def put_pairs_in_order(ours: dict[str, np.ndarray], stored: StoredTensors, image: str) -> np.ndarray:
    """Order the best pairs of query and class, and the tensors decoded from them.

    Returns:
        (N,) bool, the rows to compare: without pairs that only one side has, if each scores like the last pair.
    """
    wanted = list(zip(stored[image + "topk_query"].tolist(), stored[image + "topk_labels"].tolist(), strict=True))
    found = list(zip(ours[image + "topk_query"].tolist(), ours[image + "topk_labels"].tolist(), strict=True))
    expected, scores = stored[image + "topk_boxes"][:, 4], ours[image + "topk_boxes"][:, 4]
    all_rows = np.ones(len(wanted), bool)
    if len(found) != len(wanted):
        return all_rows  # the comparison will fail
    counts = np.array([pair in found for pair in wanted], bool)
    others = iter([i for i, pair in enumerate(found) if pair not in wanted])
    order = np.array([found.index(pair) if known else next(others) for pair, known in zip(wanted, counts, strict=True)])
    moved = np.abs(scores[order] - scores)[counts]
    alone = np.concatenate((expected[~counts], scores[order][~counts])) - expected.min(initial=np.inf)
    if np.abs(np.concatenate((moved, alone))).max(initial=0) > TIE:
        return all_rows
    for name in ("topk_query", "topk_labels", "topk_boxes", "things_tail_mask"):
        ours[image + name] = ours[image + name][order]
    for name in ("things_block_masks", "things_block_queries"):
        ours[image + name] = ours[image + name][:, order]
    return counts


def put_instances_in_order(ours: dict[str, np.ndarray], stored: StoredTensors, image: str) -> np.ndarray:
    """Move each instance to its row of the reference, which has the same label, score and box.

    Returns:
        (N,) bool, the rows to compare: without rows that only the reference has, if their scores are near 0. The
        reference ends with empty masks in arbitrary order, which psf drops. Ours may have such rows, too.
    """
    boxes, labels = stored[image + "inst_boxes"], stored[image + "inst_labels"]
    found, found_labels = ours[image + "inst_boxes"], ours[image + "inst_labels"]
    apart = np.abs(found[None, :, 4] - boxes[:, None, 4]) > TIE
    other = labels[:, None] != found_labels[None]
    distance = np.abs(found[None, :, :4] - boxes[:, None, :4]).max(-1)
    distance = np.where(apart | other, OTHER, distance)
    rows, own = linear_sum_assignment(distance)
    known = distance[rows, own] < OTHER
    rows, own = rows[known], own[known]
    counts = np.isin(np.arange(len(boxes)), rows)
    alone = np.concatenate((boxes[~counts, 4], np.delete(found[:, 4], own)))
    if alone.max(initial=0) > TIE:
        return np.ones(len(boxes), bool)  # the comparison will fail
    for name in ("inst_boxes", "inst_labels", "inst_masks"):
        ordered = np.zeros((len(boxes), *ours[image + name].shape[1:]), ours[image + name].dtype)
        ordered[rows] = ours[image + name][own]
        ours[image + name] = ordered
    return counts


def name_instances_alike(ours: dict[str, np.ndarray], stored: StoredTensors, image: str) -> None:
    """Give the things of the panoptic map the reference's ids, which follow the order of painting.

    Only if the two maps match the things one to one, and things that change their id have nearly equal scores.
    """
    found, expected = ours[image + "panoptic_instance"], stored[image + "panoptic_instance"]
    scores = ours[image + "panoptic_scores"]
    number = len(scores)
    if found.shape != expected.shape or expected.max(initial=0) != number:
        return
    overlap = np.zeros((number + 1, number + 1), int)
    np.add.at(overlap, (found, expected), 1)
    names = overlap[1:, 1:].argmax(axis=1) if number else np.zeros(0, int)
    if len(set(names)) == number and np.abs(scores[names] - scores).max(initial=0) <= TIE:
        ours[image + "panoptic_instance"] = np.concatenate(([0], names + 1))[found]
