"""Freeze parameters by their names or by the names of their modules."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from psf.errors import UserError

__all__ = ["freeze_parameters"]


def freeze_parameters(model: nn.Module, frozen_names: Iterable[str], *, key: str, name: str) -> None:
    """Switch off the gradients of parameters.

    Args:
        model: contains the parameters.
        frozen_names: names of parameters or modules in `model`; a module stands for all of its parameters.
        key: the config key of `frozen_names`, for the error message.
        name: name of the model, for the error message.

    Raises:
        UserError: if a name matches neither a parameter nor a module with parameters.
    """
    for frozen_name in frozen_names:
        frozen = [p for n, p in model.named_parameters() if f"{n}.".startswith(f"{frozen_name}.")]
        if not frozen:
            raise UserError(
                f'{key} contains "{frozen_name}": expected the name of a parameter of {name}, or of a module with '
                "parameters"
            )
        for parameter in frozen:
            parameter.requires_grad_(False)
