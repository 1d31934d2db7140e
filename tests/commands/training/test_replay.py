"""psf replay: a step that was skipped runs again, and the term, the parameters and the images are named."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances

from psf.commands.training import replay
from psf.engine import argument_parser
from psf.engine import main as train
from tests.mini_set import PsfTestColorModel

BAD = "2.png"  # the image with a gradient of NaN


@META_ARCH_REGISTRY.register()
class PsfTestSpoiledModel(PsfTestColorModel):
    """The colour model, with a loss term of 0 whose gradient is NaN for one image."""

    def losses(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        losses = super().losses(batch)
        root = (self.sampling_offsets.bias * 0).sum().sqrt()  # its gradient at 0 is infinite
        is_bad = any(Path(one["file_name"]).name == BAD for one in batch)
        return {**losses, "loss_root": root * 0 if is_bad else self.classifier.bias.sum() * 0}


@pytest.fixture
def skipped(mini: str, config_file: Path, tmp_path: Path) -> list[str]:
    """Train until a step is skipped; returns the arguments of its replay."""
    config_file.write_text(config_file.read_text().replace("PsfTestColorModel", "PsfTestSpoiledModel"))
    opts = ["OUTPUT_DIR", str(tmp_path / "output"), "SOLVER.MAX_ITER", "3"]
    train(argument_parser().parse_args(["--config-file", str(config_file), "--num-gpus", "0", *opts]))
    [file] = (tmp_path / "output" / "skipped_steps").iterdir()
    return [str(file), "--config-file", str(tmp_path / "output" / "config.yaml"), "--num-gpus", "0"]


def test_names_what_is_not_finite(skipped: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in tmp_path.rglob("*"))
    assert replay.main(skipped) == 1
    printed = capsys.readouterr().out
    assert BAD in printed and f"Weights now: {tmp_path / 'output' / 'model_final.pth'}" in printed
    rows = [line.split() for line in printed.splitlines()]
    assert {row[0]: row[2:] for row in rows if row and row[0].startswith("loss_")} == {
        "loss_class": [],
        "loss_point": [],
        "loss_root": ["<-"],
    }
    assert ["norm", "of", "the", "gradients", "nan", "<-"] in rows and ["sampling_offsets.bias"] in rows
    assert ["backbone.weight"] not in rows and "Not finite: loss_root. Training would skip" in printed
    assert sorted(path for path in tmp_path.rglob("*")) == before


def test_a_step_that_is_finite_now(skipped: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(skipped[0])
    step = torch.load(file, weights_only=True)
    for one in step["batch"]:
        one["file_name"] = "good.png"
        one["instances"] = Instances((2, 2), gt_boxes=Boxes(torch.zeros(1, 4)))  # other models have them
    torch.save(step, file)
    assert replay.main(skipped) == 0
    assert "All is finite now" in capsys.readouterr().out


def test_weights_and_keys_of_the_command_line(skipped: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = [*skipped, "--opts", "MODEL.WEIGHTS", "", "MODEL.META_ARCHITECTURE", "PsfTestColorModel"]
    assert replay.main(words) == 0
    assert "Weights now: random" in capsys.readouterr().out


@pytest.mark.parametrize("content", [{"model": {"a": torch.zeros(1)}}, {"iteration": 1, "terms": {}, "batch": ["a"]}])
def test_other_files_are_refused(
    content: dict, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    for file, message in (
        (path, "expected a file of OUTPUT_DIR/skipped_steps"),
        (tmp_path / "none.pth", "no such file"),
    ):
        assert replay.main([str(file), "--config-file", str(config_file)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line


def test_a_file_with_code_is_refused(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"iteration": 1, "terms": {}, "batch": [{"image": logging.Formatter()}]}, tmp_path / "evil.pth")
    assert replay.main([str(tmp_path / "evil.pth"), "--config-file", str(config_file)]) == 2
    assert "refused, and nothing in it was executed" in capsys.readouterr().err
