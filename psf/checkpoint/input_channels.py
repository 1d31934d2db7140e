"""A first convolution that was learned on colour pictures, for images of other channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["adapt_input_channels", "adapted_weight"]

COLORS = 3


def adapt_input_channels(
    state_dict: dict[str, Tensor], model_state: Mapping[str, Tensor], *, is_suffix: bool = False
) -> dict[str, tuple[int, ...]]:
    """Give the model's number of input channels to the backbone's first convolution in a checkpoint, in place.

    That is a 4-D weight under "backbone." whose shape differs from the model's in dimension 1 alone, 3 in the
    checkpoint.

    Args:
        state_dict: the checkpoint's.
        model_state: the model's.
        is_suffix: names of the checkpoint may lack their beginning, as where Detectron2 matches them by heuristics.

    Returns:
        By the model's names of what was changed, the shapes that it had.
    """
    changes = {}
    for name, wanted in model_state.items():
        if not name.startswith("backbone.") or wanted.ndim != 4 or wanted.shape[1] == COLORS:
            continue
        source = _find(state_dict, name, is_suffix)
        if source is not None and state_dict[source].shape == (len(wanted), COLORS, *wanted.shape[2:]):
            found = state_dict.pop(source)
            state_dict[name] = adapted_weight(found, wanted.shape[1])
            changes[name] = tuple(found.shape)
    return changes


def adapted_weight(weight: Tensor, num_channels: int) -> Tensor:
    """(O, 3, h, w) -> (O, C, h, w), by timm's rule.

    One channel gets the sum of the three, so that gray gives what it gave as colour; more take them in turn, times
    3 / C, so that what comes out is as large as before.
    """
    if num_channels == 1:
        return weight.sum(dim=1, keepdim=True)
    turns = -(-num_channels // COLORS)
    return weight.repeat(1, turns, 1, 1)[:, :num_channels] * (COLORS / num_channels)


def _find(state_dict: Mapping[str, Tensor], name: str, is_suffix: bool) -> str | None:
    """The checkpoint's entry of this name, or the longest one that it ends in."""
    if name in state_dict or not is_suffix:
        return name if name in state_dict else None
    return max((key for key in state_dict if name.endswith(f".{key}")), key=len, default=None)
