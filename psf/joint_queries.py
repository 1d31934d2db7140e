"""One set of queries for things and stuff (table 8, "joint"): to them, each stuff class is one more thing class.

The model then learns on targets whose stuff has joined the things, and its candidates are told apart again by their
class. Nothing keeps two queries from naming one stuff class, so their segments are joined.
"""

from __future__ import annotations

import torch

from psf.classes import PanopticClasses
from psf.inference import tight_boxes
from psf.predictions import Candidates, PanopticSegmentation, PanopticTargets, Segment

__all__ = ["all_as_things", "join_stuff_segments", "separate_stuff", "stuff_as_things"]


def all_as_things(classes: PanopticClasses) -> PanopticClasses:
    """The classes as joint queries know them: thing classes, then stuff classes, all of them things."""
    return PanopticClasses(classes.thing_ids + classes.stuff_ids, ())


def stuff_as_things(target: PanopticTargets, num_thing_classes: int) -> PanopticTargets:
    """The truth as joint queries learn it: each stuff region is a thing, of a class after the thing classes.

    Args:
        target: of one image.
        num_thing_classes: K_things of the data set.
    """
    stuff_boxes, _ = tight_boxes(target.stuff_masks)
    return target._replace(
        thing_classes=torch.cat((target.thing_classes, target.stuff_classes + num_thing_classes)),
        thing_masks=torch.cat((target.thing_masks, target.stuff_masks)),
        thing_boxes_xyxy_px=torch.cat((target.thing_boxes_xyxy_px, stuff_boxes.to(target.thing_boxes_xyxy_px))),
        stuff_classes=target.stuff_classes[:0],
        stuff_masks=target.stuff_masks[:0],
    )


def separate_stuff(candidates: Candidates, num_thing_classes: int) -> Candidates:
    """Candidates of joint queries, with classes `all_as_things` -> things and stuff, in the same order."""
    indices = candidates.class_indices
    is_thing = indices < num_thing_classes
    return candidates._replace(
        class_indices=torch.where(is_thing, indices, indices - num_thing_classes), is_thing=is_thing
    )


def join_stuff_segments(segmentation: PanopticSegmentation, candidates: Candidates) -> PanopticSegmentation:
    """Segments of one stuff class become one, which takes the place of the first and the score of the best.

    Args:
        segmentation: with ids from 1, in the order of its segments.
        candidates: that it was made from.

    Returns:
        The map with ids from 1 again; the same one if no two segments are of one stuff class.
    """
    is_thing, classes = candidates.is_thing.tolist(), candidates.class_indices.tolist()
    joined: list[Segment] = []
    position_of: dict[int, int] = {}  # stuff class -> where its segment is among those joined
    new_ids = [0]
    for segment in segmentation.segments:
        position = len(joined)
        if not is_thing[segment.candidate]:
            position = position_of.setdefault(classes[segment.candidate], position)
        new_ids.append(position + 1)
        if position == len(joined):
            joined.append(segment._replace(id=position + 1))
        else:
            first = joined[position]
            best = max(first, segment, key=lambda one: one.score)
            joined[position] = best._replace(id=first.id, area=first.area + segment.area)
    if len(joined) == len(segmentation.segments):
        return segmentation
    segment_map = segmentation.segment_map
    return PanopticSegmentation(segment_map.new_tensor(new_ids)[segment_map.long()], joined)
