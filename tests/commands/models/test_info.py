"""`psf info` on model files and on weights of other kinds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from psf.checkpoint import read_checkpoint
from psf.commands.models.info import main
from tests.model_files import write_model_file


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_file(tmp_path_factory.mktemp("model"))


def test_model_file(model_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model_file)]) == 0
    text = capsys.readouterr().out
    number = sum(
        value.numel()
        for name, value in read_checkpoint(model_file)["model"].items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    )
    for line in (
        "sound (SHA-256 inside)",
        "PanopticSegFormer, backbone ResNet-50",
        "6 thing queries, 64 channels",
        "RGB, 3 channels, short side 64, long side at most 128 pixels",
        "3 things, 4 stuff",
        "things: ball, box, traffic light # 2",
        "stuff: alpha 1, beta 2, t_cnf 0.01, t_keep 0",
        f"{number:,} in",
        "42 iterations",
    ):
        assert line in text, line


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (
            {"model": {"pixel_encoder.a": torch.zeros(2, 3)}, "psf_class_names": {"things": ["car"], "stuff": []}},
            "a Panoptic SegFormer under psf's names",
        ),
        ({"model": {"backbone.a": torch.zeros(2, 3)}}, "a backbone"),
        ({"a": torch.zeros(2, 3)}, "weights of another model"),
    ],
)
def test_other_files(content: dict, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert main([str(tmp_path / "a.pth")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert kind in text and "no config inside: use it with --config-file" in text and "6 in 1 tensors" in text
    assert ("things: car" in text) == ("psf_class_names" in content)
    assert "sound (CRC-32 of each tensor)" in text


def test_damage_is_named(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray(model_file.read_bytes())
    data[-30] ^= 1  # in the checksum
    (tmp_path / "a.pth").write_bytes(data)
    assert main([str(tmp_path / "a.pth")]) == 0
    assert "DAMAGED: its checksum is wrong" in capsys.readouterr().out
    assert main([str(tmp_path / "no.pth")]) == 2
