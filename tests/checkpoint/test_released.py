"""Released checkpoints under psf's names: every entry is accounted for, every parameter of the model is filled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from psf.checkpoint import convert_released
from psf.checkpoint.name_table import rename
from psf.engine import build_config


@pytest.mark.parametrize(("manifest", "config"), [("r50", "psf_R50_24ep"), ("r101", "psf_R101_24ep")])
def test_every_entry_of_a_released_model_has_its_place(shared: Path, manifest: str, config: str) -> None:
    shapes = json.loads((shared / "golden" / f"manifest_{manifest}.json").read_text())
    released = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    cfg = build_config(f"coco/released/{config}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        wanted = build_model(cfg).state_dict()
    converted = convert_released(released)
    assert {name: tuple(x.shape) for name, x in converted.items()} == {
        name: tuple(x.shape) for name, x in wanted.items()
    }


@pytest.mark.parametrize("manifest", ["pvtb5", "swinl"])
def test_other_backbones_are_known(shared: Path, manifest: str) -> None:
    shapes = json.loads((shared / "golden" / f"manifest_{manifest}.json").read_text())
    converted = convert_released({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    dropped = [name for name in shapes if "reg_branches2" in name or "cls_thing_branches" in name]
    split = 2  # query_embedding and stuff_query become two each
    assert len(converted) == len(shapes) - len(dropped) + split


def test_an_unknown_entry_is_named() -> None:
    with pytest.raises(ValueError, match="entries are not known"):
        convert_released({"backbone.layer1.0.conv1.weight": torch.zeros(1), "neck.surprise": torch.zeros(1)})


def test_a_foreign_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="no released Panoptic SegFormer"):
        convert_released({"model.weight": torch.zeros(1)})


def test_rename_fills_numbers_and_the_rest() -> None:
    entry = torch.arange(4.0).view(1, 4)
    table = {"a.#.b.#.*": "x.#.y.#.*", "both": ("left", "right")}
    renamed = rename({"a.3.b.12.weight": entry, "both": entry, "old": entry}, table, ["ol*"], source="here")
    assert list(renamed) == ["x.3.y.12.weight", "left", "right"]
    assert renamed["left"].tolist() == [[0.0, 1.0]]
    assert renamed["right"].tolist() == [[2.0, 3.0]]


def test_rename_refuses_two_entries_of_one_name() -> None:
    with pytest.raises(ValueError, match='both mean "c"'):
        rename({"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": "c", "b": "c"}, [], source="here")
