"""Released checkpoints under psf's names: every entry is accounted for, every parameter of the model is filled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from psf.checkpoint import convert_released
from psf.checkpoint.name_table import rename
from psf.engine import build_config

# Parameters with gradient of the released models less 612,688, the heads whose losses were multiplied by zero; neck.
SIZES = {
    "r50": ("psf_R50_24ep", 50_383_692, 5_638_144),
    "r101": ("psf_R101_24ep", 69_936_284 - 612_688, 5_638_144),
    "pvtb5": ("psf_PVTv2-B5_24ep", 104_996_188 - 612_688, 1_427_456),
    "swinl": ("psf_Swin-L_24ep", 221_342_832 - 612_688, 4_229_120),
}


def meta_model(config: str) -> nn.Module:
    """The model of a released config, without the memory of its weights."""
    cfg = build_config(f"coco/released/{config}.yaml")
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def trained_size(module: nn.Module) -> int:
    return sum(x.numel() for x in module.parameters() if x.requires_grad)


@pytest.mark.parametrize("manifest", SIZES)
def test_every_entry_of_a_released_model_has_its_place(shared: Path, manifest: str) -> None:
    shapes = json.loads((shared / "golden" / f"manifest_{manifest}.json").read_text())
    released = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    wanted = meta_model(SIZES[manifest][0]).state_dict()
    converted = convert_released(released)
    assert {name: tuple(x.shape) for name, x in converted.items()} == {
        name: tuple(x.shape) for name, x in wanted.items()
    }
    zeroed = [name for name in shapes if "reg_branches2" in name or "cls_thing_branches" in name]
    assert sum(released[name].numel() for name in zeroed) == 612_688
    counters = [name for name in shapes if name.endswith("num_batches_tracked")]
    halves = 2  # query_embedding and stuff_query become two each
    assert len(converted) == len(shapes) - len(zeroed) - len(counters) + halves


@pytest.mark.parametrize(("config", "size", "neck_size"), SIZES.values(), ids=SIZES)
def test_sizes_of_the_released_models(config: str, size: int, neck_size: int) -> None:
    model = meta_model(config)
    assert trained_size(model) == size
    assert trained_size(model.neck) == neck_size
    assert size - neck_size - trained_size(model.backbone) == 22_125_724 - 612_688  # the head, with every backbone


def test_frozen_parts_of_the_released_models() -> None:
    """Swin-L: the patch embedding, 9,792 parameters; PVTv2-B5: nothing."""
    frozen = [(n, x.numel()) for n, x in meta_model("psf_Swin-L_24ep").named_parameters() if not x.requires_grad]
    assert all(name.startswith("backbone.patch_embed.") for name, _ in frozen)
    assert sum(size for _, size in frozen) == 9_792
    assert all(x.requires_grad for x in meta_model("psf_PVTv2-B5_24ep").parameters())


def test_an_unknown_entry_is_named() -> None:
    with pytest.raises(ValueError, match="unknown entries"):
        convert_released({"backbone.layer1.0.conv1.weight": torch.zeros(1), "neck.surprise": torch.zeros(1)})


def test_a_foreign_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="not a released Panoptic SegFormer"):
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
