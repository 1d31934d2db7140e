"""Why an image has the segments that it has: the best candidates, and what rejected the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from psf.inference import KEPT
from psf.prediction.outputs import Explainable

__all__ = ["ExplainedCandidate", "Explanation", "explain_candidates"]

NUM_BEST = 5
_MEANINGS = {
    "empty_mask": "no pixel has a mask score above MASK_THRESHOLD",
    "T_CNF": "confidence below T_CNF",
    "T_KEEP": "more confident segments cover so much of the mask that the rest is a smaller share than T_KEEP",
    "SCORE_THRESH": "confidence below SCORE_THRESH",
    "higher_scores": "other candidates have higher scores at all its pixels",
}


@dataclasses.dataclass(frozen=True)
class ExplainedCandidate:
    """One candidate mask."""

    class_name: str
    is_thing: bool
    confidence: float  # the number that is compared with T_CNF, from class score and mask scores
    class_score: float  # probability of the class
    highest_mask_score: float
    reason: str  # "kept", "empty_mask", or the name of the key that rejected it, such as "T_CNF"

    def __str__(self) -> str:
        return (
            f"{self.class_name}: confidence {self.confidence:.3g} (class {self.class_score:.3g}, highest mask score "
            f"{self.highest_mask_score:.3g}): {self.reason}"
        )


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The outcome of each candidate of an image; str() gives a text for users.

    Attributes:
        num_segments: candidates that were kept; parts of one stuff class become one segment.
        num_candidates: masks that the model has proposed.
        counts: number of candidates by reason: "kept", "empty_mask", and the names of keys, "T_CNF", "T_KEEP".
        best: the best candidates that were rejected, most confident first, at most five.
        t_cnf: least confidence of (things, stuff).
        t_keep: least share of its pixels that a segment keeps, of (things, stuff).
        mask_threshold: a pixel belongs to a mask if its score is higher.
    """

    num_segments: int
    num_candidates: int
    counts: Mapping[str, int]
    best: tuple[ExplainedCandidate, ...]
    t_cnf: tuple[float, float]
    t_keep: tuple[float, float]
    mask_threshold: float

    @property
    def summary(self) -> str:
        """The first line of the text: the reason, and what to change."""
        rejected = ", ".join(f"{count} by {reason}" for reason, count in self.counts.items() if reason != KEPT)
        found = f"{self.num_segments or 'no'} segment{'s' * (self.num_segments != 1)}"
        if not self.num_candidates:
            return f"{found}: the model has proposed nothing"
        text = f"{found} of {self.num_candidates} candidates"
        if rejected:
            text += f"; rejected: {rejected}"
        if self.best:
            best = self.best[0]
            text += f"; the best of these is {best.class_name} with confidence {best.confidence:.3g}"
            if best.reason == "T_CNF":
                text += f", below T_CNF {self.t_cnf[0 if best.is_thing else 1]:g}"
                text += ": lower the confidence threshold, or train for longer"
        return text

    def __str__(self) -> str:
        meanings = [f"  {reason}: {_MEANINGS[reason]}" for reason in self.counts if reason in _MEANINGS]
        things, stuff = (f"{cnf:g}, T_KEEP {keep:g}" for cnf, keep in zip(self.t_cnf, self.t_keep, strict=True))
        numbers = f"  things: T_CNF {things}; stuff: T_CNF {stuff}; MASK_THRESHOLD {self.mask_threshold:g}"
        return "\n".join([self.summary, *(f"  {one}" for one in self.best), *meanings, numbers])


def explain_candidates(found: Explainable, metadata: Any) -> Explanation:
    """Sum up the outcomes of an image's candidates; `metadata` is Detectron2's, with the class names."""
    outcomes, processor = found.outcomes, found.processor
    names = {True: metadata.get("thing_classes", []), False: metadata.get("stuff_classes", [])}
    rows = zip(
        found.class_ids,
        outcomes.is_thing.tolist(),
        outcomes.confidence.tolist(),
        outcomes.class_scores.tolist(),
        outcomes.highest_mask_scores.tolist(),
        outcomes.reasons,
        strict=True,
    )
    candidates = [ExplainedCandidate(names[kind][i], kind, *numbers) for i, kind, *numbers in rows]
    counts: dict[str, int] = {}
    for one in candidates:
        counts[one.reason] = counts.get(one.reason, 0) + 1
    rejected = [one for one in candidates if one.reason != KEPT]
    # Empty masks have no confidence: among them, the class decides.
    rejected.sort(key=lambda one: (-one.confidence, -one.class_score))
    return Explanation(
        counts.get(KEPT, 0),
        len(candidates),
        dict(sorted(counts.items(), key=lambda pair: -pair[1])),
        tuple(rejected[:NUM_BEST]),
        (processor.things.t_cnf, processor.stuff.t_cnf),
        (processor.things.t_keep, processor.stuff.t_keep),
        processor.mask_threshold,
    )
