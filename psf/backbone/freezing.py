"""Parameters that are not trained, by their names or those of the modules that they are in."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from psf.errors import UserError

__all__ = ["freeze_parameters"]


def freeze_parameters(model: nn.Module, frozen_names: Iterable[str], *, key: str, name: str) -> None:
    """Switch off the gradients of parameters.

    Args:
        model: the names are those inside it.
        frozen_names: of parameters, and of modules, which stand for all parameters in them.
        key: of the config that holds `frozen_names`, for the error message.
        name: of the model, for the error message.

    Raises:
        UserError: if one of `frozen_names` is of no parameter, and of no module that has any.
    """
    for one in frozen_names:
        frozen = [p for n, p in model.named_parameters() if f"{n}.".startswith(f"{one}.")]
        if not frozen:
            raise UserError(f'{key} holds "{one}", which names no parameter of {name}, and no module with parameters')
        for parameter in frozen:
            parameter.requires_grad_(False)
