"""Thing queries that a model learned, for a model with another number of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["adapt_query_count", "query_count_entry", "stored_query_count"]

ENTRY = "psf_num_thing_queries"  # of a checkpoint
QUERIES = ("location_decoder.content.weight", "location_decoder.position.weight")  # a row for each


def query_count_entry(num_thing_queries: int) -> dict[str, int]:
    """What a checkpoint holds of the number of thing queries, beside the weights."""
    return {ENTRY: num_thing_queries}


def stored_query_count(checkpoint: Mapping[str, Any]) -> int | None:
    """Number of thing queries that a checkpoint was trained with: its entry, or the number of its learned queries.

    None if it has neither, as weights of a backbone alone.
    """
    if ENTRY in checkpoint:
        return int(checkpoint[ENTRY])
    weights = checkpoint.get("model", checkpoint)
    found = [len(weights[name]) for name in QUERIES if name in weights]
    return found[0] if found else None


def adapt_query_count(state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """Give the model's number of thing queries to those in a checkpoint, in place.

    The first are taken, as many as both have: queries know no order. The others keep the model's values.

    Args:
        state_dict: the checkpoint's.
        model_state: the model's.

    Returns:
        The checkpoint's number and the model's, if they differ.
    """
    counts = None
    for name in QUERIES:
        if name not in state_dict or name not in model_state:
            continue
        found, wanted = state_dict[name], model_state[name]
        if found.shape[1:] == wanted.shape[1:] and len(found) != len(wanted):
            counts = (len(found), len(wanted))
            state_dict[name] = wanted.detach().to("cpu", copy=True)
            state_dict[name][: len(found)] = found[: len(wanted)]
    return counts
