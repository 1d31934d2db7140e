"""Files of others become files for MODEL.WEIGHTS, or an error that says why they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from psf.checkpoint import ClassNames, ModelEntry, convert_checkpoint
from psf.data import panoptic_metadata
from tests.models import tiny_config


class Recording(DetectionCheckpointer):
    """Remembers which keys did not match."""

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        self.incompatible = incompatible


def changed(path: Path, **entries: torch.Tensor | None) -> Path:
    """The checkpoint with other entries, or without those that are None; "__" stands for the dot."""
    content = torch.load(path, weights_only=True)
    for name, value in entries.items():
        if value is None:
            del content["state_dict"][name.replace("__", ".")]
        else:
            content["state_dict"][name.replace("__", ".")] = value
    torch.save(content, path)
    return path


def test_detectron2_loads_the_file(released: Path, model: nn.Module, cfg: CfgNode, tmp_path: Path) -> None:
    target = tmp_path / "new" / "weights.pth"
    conversion = convert_checkpoint(released, target, cfg)
    assert [file.name for file in target.parent.iterdir()] == ["weights.pth"]  # no draft stays
    wanted = model.state_dict()
    assert not conversion.is_backbone and conversion.fresh == {}
    assert conversion.num_written == len(wanted)
    assert conversion.num_source == len(wanted) - 2 + 2  # two pairs in one piece each; two dropped
    assert conversion.dropped == {"*.num_batches_tracked": 1, "bbox_head.reg_branches2.*": 1}

    torch.manual_seed(5)
    other = build_model(cfg)
    checkpointer = Recording(other)
    checkpointer.load(str(target))
    assert not any(checkpointer.incompatible)  # neither missing nor unexpected keys, nor other shapes
    assert all(torch.equal(x, wanted[name]) for name, x in other.state_dict().items())


def test_names_of_the_classes_go_with_it(released: Path, cfg: CfgNode, tmp_path: Path) -> None:
    categories = [{"id": 9 - i, "name": f"class {i}", "isthing": i < 3} for i in range(7)]
    MetadataCatalog.get("psf_test_seven").set(**panoptic_metadata(categories))
    cfg.DATASETS.TRAIN = ("psf_test_seven",)
    convert_checkpoint(released, tmp_path / "out.pth", cfg)
    MetadataCatalog.remove("psf_test_seven")
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    names, entry = ClassNames.of_checkpoint(content), ModelEntry.of_checkpoint(content)
    assert entry is not None and "- thing 0 9 " in entry.config  # usable alone
    assert names == (("class 0", "class 1", "class 2"), ("class 3", "class 4", "class 5", "class 6"))


def test_backbone(cfg: CfgNode, tmp_path: Path) -> None:
    """An ImageNet ResNet fills the backbone; the rest of the model is not asked for."""
    cfg.MODEL.RESNETS.merge_from_list(
        ["DEPTH", 18, "STEM_OUT_CHANNELS", 64, "WIDTH_PER_GROUP", 64, "RES2_OUT_CHANNELS", 64]
    )
    source = torchvision.models.resnet18().state_dict()
    torch.save(source, tmp_path / "resnet18.pth")
    conversion = convert_checkpoint(tmp_path / "resnet18.pth", tmp_path / "out.pth", cfg)
    assert conversion.is_backbone and conversion.fresh == {}
    assert conversion.dropped == {"fc.*": 2, "*.num_batches_tracked": 20}
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "out.pth"))
    assert torch.equal(model.backbone.stem.conv1.weight, source["conv1.weight"])
    assert torch.equal(model.backbone.res5[1].conv2.norm.running_var, source["layer4.1.bn2.running_var"])


def test_what_a_classifier_lacks_is_said(tmp_path: Path) -> None:
    """Swin's classifier has no norms for the maps, and timm computes the tables of positions."""
    timm = pytest.importorskip("timm")
    stages = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
    keys = {f"SWIN.{key.upper()}": value for key, value in stages.items()}
    cfg = tiny_config(keys, MODEL__BACKBONE__NAME="build_psf_swin_backbone")
    source = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, **stages).state_dict()
    torch.save(source, tmp_path / "swin.pth")
    conversion = convert_checkpoint(tmp_path / "swin.pth", tmp_path / "out.pth", cfg)
    assert conversion.fresh == {"backbone.norm#.*": 6, "*.relative_position_index": 5}
    assert conversion.dropped == {"norm.*": 2, "head.*": 2}
    assert conversion.num_written == len(source) - 4


def test_what_does_not_fit_is_named(released: Path, cfg: CfgNode, tmp_path: Path) -> None:
    zeros = torch.zeros(2, 2)
    changed(released, neck__convs__1__gn__bias=None, neck__convs__7__gn__bias=zeros, backbone__conv1__weight=zeros)
    with pytest.raises(ValueError, match="does not fit the model of this config") as caught:
        convert_checkpoint(released, tmp_path / "out.pth", cfg)
    text = str(caught.value)
    assert "1 not in the model: neck.input_proj.7.1.bias;" in text
    assert "1 not filled: neck.input_proj.1.1.bias;" in text
    assert "1 of another shape: backbone.stem.conv1.weight (2, 2), expected (8, 3, 7, 7)" in text
    assert not (tmp_path / "out.pth").exists()


def test_unknown_entries_are_named(released: Path, cfg: CfgNode, tmp_path: Path) -> None:
    changed(released, bbox_head__surprise=torch.zeros(1))
    with pytest.raises(ValueError, match=r"1 unknown entries: bbox_head\.surprise"):
        convert_checkpoint(released, tmp_path / "out.pth", cfg)


def test_nothing_is_overwritten_unasked(released: Path, cfg: CfgNode, tmp_path: Path) -> None:
    target = tmp_path / "out.pth"
    target.write_text("mine")
    with pytest.raises(ValueError, match=r"out\.pth: already exists"):
        convert_checkpoint(released, target, cfg)
    assert target.read_text() == "mine"
    convert_checkpoint(released, target, cfg, overwrite=True)
    assert "model" in torch.load(target, weights_only=True)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match="loop: already exists"):
        convert_checkpoint(released, tmp_path / "loop", cfg)
    for wrong in (released, tmp_path):
        with pytest.raises(ValueError, match="a folder, or the source itself"):
            convert_checkpoint(released, wrong, cfg, overwrite=True)


def test_a_target_that_cannot_be_written(released: Path, cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"out\.pth: cannot be written"):
        convert_checkpoint(released, released / "out.pth", cfg)
