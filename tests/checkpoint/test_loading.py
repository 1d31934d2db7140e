"""MODEL.WEIGHTS in every layout: read or converted, or refused in one line; code in it is never executed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from torch import nn

from psf.checkpoint import (
    arrange_weights,
    convert_checkpoint,
    convert_imagenet,
    convert_released,
    read_checkpoint,
    read_state_dict,
)
from psf.checkpoint.saving import find_damage
from psf.engine import Checkpointer
from psf.errors import UserError
from tests.checkpoint.conftest import META, OPTIMIZER, released_content
from tests.checkpoint.test_reading import Touch

WEIGHTS = {"neck.a": torch.arange(6.0).view(2, 3), "neck.b": torch.ones(2)}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}


def load_weights(path: str) -> dict[str, Any]:
    return arrange_weights(read_checkpoint(path), path)


def saved(path: Path, content: Any) -> str:
    torch.save(content, path)
    return str(path)


def pickled(path: Path, content: Any, protocol: int = 2) -> str:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return str(path)


def is_same(weights: dict[str, Any], names: dict[str, str] | None = None) -> bool:
    wanted = {(names or {}).get(name, name): value for name, value in WEIGHTS.items()}
    return list(weights) == list(wanted) and all(np.array_equal(weights[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_the_model_zoo(tmp_path: Path, protocol: int) -> None:
    """As Detectron2's own reader, which executes what it reads."""
    zoo = {"model": ARRAYS, "__author__": "somebody", "matching_heuristics": True, "scale": np.float32(2)}
    read = load_weights(path := pickled(tmp_path / "zoo.pkl", zoo, protocol))
    assert is_same(read["model"]) and read["matching_heuristics"] is True
    assert list(read) == [name for name in read if name in DetectionCheckpointer(nn.Linear(1, 1))._load_file(path)]
    caffe2 = {"blobs": {**ARRAYS, "neck.a_momentum": np.zeros(1)}}
    read = load_weights(pickled(tmp_path / "caffe2.pkl", caffe2, protocol))
    assert is_same(read["model"]) and read["__author__"] == "Caffe2" and read["matching_heuristics"] is True


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["zoo.pkl", "checkpoint.pth", "pycls.pyth"])
def test_code_is_refused(tmp_path: Path, name: str, protocol: int) -> None:
    path = pickled(tmp_path / name, {"model": ARRAYS, "__author__": Touch(tmp_path / "executed")}, protocol)
    with pytest.raises(UserError, match=f"{name}: (refused, and nothing in it was executed|damaged)") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


def test_code_is_refused_on_resume(tmp_path: Path) -> None:
    """`last_checkpoint` may name any file."""
    pickled(tmp_path / "evil.pkl", {"model": Touch(tmp_path / "executed"), "__author__": "x"})
    (tmp_path / "last_checkpoint").write_text("evil.pkl")
    checkpointer = Checkpointer(nn.Linear(1, 1), str(tmp_path), trainer=nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"last_checkpoint has 'evil\.pkl': expected the name of a \.pth file"):
        checkpointer.resume_or_load("", resume=True)
    assert not (tmp_path / "executed").exists()
    checkpointer.load(saved(tmp_path / "good.pth", {"model": nn.Linear(1, 1).state_dict()}), checkpointables=[])


@pytest.mark.parametrize("gadget", [b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"cnumpy.f2py\nx\n."])
def test_other_functions_are_refused(tmp_path: Path, gadget: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(gadget)
    with pytest.raises(UserError, match=r"a\.pkl: refused, and nothing in it was executed"):
        load_weights(str(tmp_path / "a.pkl"))


@pytest.mark.parametrize("name", ["torn.pth", "torn.pkl", "torn.pyth"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer .*`git lfs pull`"),
        (b"\n<!DOCTYPE html><html>404</html>", "an HTML page; download the file again"),
        (b"", "the file is empty; download the file again"),
        (b"weights of my model\n", "a text file; expected a checkpoint"),
        (b"\x80\x04", "damaged, or not written by torch.save"),
        (b"PK\x03\x04" + bytes(99), "damaged, or not written by torch.save"),
        (b"\x1f\x00\x00\x00\x00\x00\x00\x00" + b'{"a":{}}', "a safetensors file"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*{message}") as caught:
        load_weights(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    checkpointer = Checkpointer(nn.Linear(1, 1))
    for path, message in (
        (str(tmp_path), "is a folder"),
        (str(tmp_path / "none.pth"), "no such checkpoint file"),
        ("http://127.0.0.1:9/none.pth", "http://127.0.0.1:9/none.pth cannot be downloaded"),
        ("nowhere://none.pth", "nowhere://none.pth"),
        ("none.pth?matching=True", r"the only option of a file is \?matching_heuristics=True"),
    ):
        with pytest.raises(UserError, match=message):
            checkpointer.load(path)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_wrapped_models(tmp_path: Path, prefix: str, key: str | None) -> None:
    weights = {prefix + name: value for name, value in WEIGHTS.items()}
    content = weights if key is None else {key: weights, "iteration": 7}
    read = load_weights(saved(tmp_path / "a.pth", content))
    assert is_same(read["model"]) and read.get("iteration") == (None if key is None else 7)


def test_a_wrapped_part(tmp_path: Path) -> None:
    weights = {name.replace("neck.", "neck._orig_mod."): value for name, value in WEIGHTS.items()}
    assert is_same(load_weights(saved(tmp_path / "a.pth", weights))["model"])


def test_pycls(tmp_path: Path) -> None:
    state = {**WEIGHTS, "neck.num_batches_tracked": torch.tensor(3)}
    read = load_weights(saved(tmp_path / "a.pyth", {"model_state": state, "epoch": 3}))
    assert is_same(read["model"]) and read["matching_heuristics"] is True


def test_released_models_are_converted(released: Path, model: nn.Module) -> None:
    read = load_weights(str(released))
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert all(torch.equal(read["model"][name], value) for name, value in wanted.items())


def classifiers() -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """Kind -> an ImageNet classifier's entries, and the name of one of them in psf's backbone."""
    timm = pytest.importorskip("timm")
    from tests.checkpoint.test_imagenet import PVT_TO_ITS_AUTHORS, SWIN_STAGES, SWIN_TO_ITS_AUTHORS, renamed

    pvt = timm.create_model("pvt_v2_b0", pretrained=False)
    swin = timm.create_model("swin_tiny_patch4_window7_224", pretrained=False, **SWIN_STAGES)
    return {
        "torchvision": (torchvision.models.resnet18().state_dict(), "backbone.res5.1.conv2.norm.running_var"),
        "timm": (
            timm.create_model("resnet18", pretrained=False).state_dict(),
            "backbone.res5.1.conv2.norm.running_var",
        ),
        "timm's PVTv2": (renamed(pvt, []), "backbone.model.stages_3.blocks.1.mlp.dwconv.weight"),
        "PVTv2": (renamed(pvt, PVT_TO_ITS_AUTHORS), "backbone.model.stages_3.blocks.1.mlp.dwconv.weight"),
        "timm's Swin": (renamed(swin, []), "backbone.layers.2.blocks.1.attn.qkv.weight"),
        "Swin": (renamed(swin, SWIN_TO_ITS_AUTHORS), "backbone.layers.2.blocks.1.attn.qkv.weight"),
    }


CONTAINERS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda weights: weights,
    "model": lambda weights: {"model": weights},  # Swin's authors
    "mmcv": lambda weights: {"meta": META, "state_dict": weights, "optimizer": OPTIMIZER},
    "wrapped": lambda weights: {"state_dict": {f"module.{name}": value for name, value in weights.items()}},
}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_foreign_files_are_converted_in_every_layout(
    tmp_path: Path, model: nn.Module, container: str, is_zip: bool
) -> None:
    """Every kind of classifier, and a released model, of torch's formats since and before 1.6."""
    released = (released_content(model)["state_dict"], "location_decoder.layers.1.cross_attention_norm.weight")
    for kind, (weights, name) in {**classifiers(), "released": released}.items():
        for position, value in enumerate(weights.values()):
            value.copy_(torch.linspace(position, position + 1, value.numel()).view(value.shape))  # no two are alike
        path = tmp_path / f"{kind}.pth"
        torch.save(CONTAINERS[container](weights), path, _use_new_zipfile_serialization=is_zip)
        read = load_weights(str(path))["model"]
        converted = convert_released(weights) if kind == "released" else convert_imagenet(weights)
        assert read.keys() == converted.keys() and name in read, kind
        assert all(torch.equal(value, converted[name]) for name, value in read.items()), kind


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_converter_reads_every_layout(tmp_path: Path, model: nn.Module, cfg: CfgNode, container: str) -> None:
    content = CONTAINERS[container](released_content(model)["state_dict"])
    convert_checkpoint(saved(tmp_path / "in.pth", content), tmp_path / "out.pth", cfg)
    written = torch.load(tmp_path / "out.pth", weights_only=True)["model"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in written.items())
    assert find_damage(tmp_path / "out.pth") is None


def test_a_foreign_model_is_refused(released: Path) -> None:
    content = torch.load(released, weights_only=True)
    content["state_dict"]["bbox_head.other.weight"] = torch.zeros(1)
    with pytest.raises(UserError, match=r"released\.pth: cannot be converted, as by psf convert-weights: .*other"):
        load_weights(saved(released, content))


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.eye(2).to_sparse(), r"not dense \(torch\.sparse_coo\)"),
        (torch.zeros(2, device="meta"), "without values"),
        (torch.ones(2) * 1j, r"torch\.complex64"),
        (np.array(["a"]), "an array of <U1"),
        (np.array(["2020-01-01"], "M8[D]"), "an array of datetime64"),
        (np.ones(2, np.complex64), "an array of complex64"),
        (np.ones(2, np.longdouble), "an array of float128"),
    ],
)
def test_weights_that_cannot_be_used(tmp_path: Path, value: Any, found: str) -> None:
    """torch would raise an error of its own, or drop the imaginary part."""
    content = {"model": {"neck.c": value, **WEIGHTS}}
    path = saved(tmp_path / "a.pth", content)
    if isinstance(value, np.ndarray):
        path = pickled(tmp_path / "a.pkl", {"model": {"neck.c": value, **ARRAYS}, "__author__": "a"})
    with pytest.raises(UserError, match=rf"no weights, such as 'neck\.c', .*{found}") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)
    if isinstance(value, torch.Tensor):
        with pytest.raises(UserError, match=rf"'neck\.c' is a tensor .*{found}"):
            read_state_dict(path)


@pytest.mark.filterwarnings("ignore")  # torch will drop these tensors
def test_quantized_weights(tmp_path: Path) -> None:
    value = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    with pytest.raises(UserError, match=r"such as 'neck\.c', a tensor of torch\.qint8"):
        load_weights(saved(tmp_path / "a.pth", {"model": {"neck.c": value}}))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float64])
def test_weights_of_other_kinds(tmp_path: Path, kind: torch.dtype) -> None:
    read = load_weights(saved(tmp_path / "a.pth", {"model": {"a": torch.ones(2, dtype=kind)}}))
    assert read["model"]["a"].dtype == kind


@pytest.mark.parametrize("content", [{}, {"model": {"a": 3}}, {"epoch": 3}, {3: torch.zeros(1)}])
def test_without_weights(tmp_path: Path, content: Any) -> None:
    with pytest.raises(UserError, match=r"a\.pth: expected a dict of tensors"):
        load_weights(saved(tmp_path / "a.pth", content))
