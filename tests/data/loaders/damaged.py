"""Datasets some of whose images cannot be read."""

from __future__ import annotations

from psf.errors import UserError


def read(dataset_dict: dict) -> dict:
    """A mapper: some images are damaged, and one ends its worker."""
    if dataset_dict["file_name"] in dataset_dict["damaged"]:
        raise UserError(f"{dataset_dict['file_name']}: damaged")
    return dataset_dict


def with_damage(number: int, *damaged: str) -> list[dict]:
    return [{"file_name": f"{i}.png", "height": 4, "width": 4, "damaged": damaged} for i in range(number)]
