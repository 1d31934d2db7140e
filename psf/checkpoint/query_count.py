"""Thing queries that a model learned, for a model with another number of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["adapt_query_count"]

QUERIES = ("location_decoder.content.weight", "location_decoder.position.weight")  # a row for each


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
