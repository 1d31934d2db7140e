"""Parameters that are not trained, by the beginnings of their names."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["freeze_parameters"]


def freeze_parameters(model: nn.Module, beginnings: Iterable[str], *, key: str, name: str) -> None:
    """Switch off the gradients of all parameters whose names begin so.

    Args:
        model: the names are those inside it.
        beginnings: of names of parameters.
        key: of the config that holds `beginnings`, for the error message.
        name: of the model, for the error message.

    Raises:
        ValueError: if no parameter's name begins with one of `beginnings`.
    """
    for beginning in beginnings:
        frozen = [p for n, p in model.named_parameters() if n.startswith(beginning)]
        if not frozen:
            raise ValueError(f'{key} holds "{beginning}", with which no parameter of {name} begins')
        for parameter in frozen:
            parameter.requires_grad_(False)
