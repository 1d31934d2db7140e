"""The folders of trainings and evaluations, and images and packages that a training can do without."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest

from psf.engine import Trainer, argument_parser, main, setup
from psf.engine.results import build_writers
from psf.errors import UserError
from tests.engine.conftest import ParseArgs


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


class TestFolders:
    def evaluate(self, trained: Path, *words: str) -> None:
        """From the config that the training has written, without OUTPUT_DIR."""
        run = ["--config-file", str(trained / "config.yaml"), "--num-gpus", "0", "--eval-only", *words]
        main(argument_parser().parse_args(run))

    def test_an_evaluation_leaves_the_training_alone(self, trained: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("psf.engine.runs.run.used_implementations", lambda: ["deformable attention: by hand"])
        before = contents(trained)
        assert not (trained / ".psf-lock").exists()
        self.evaluate(trained, "MODEL.WEIGHTS", str(trained / "model_final.pth"))
        self.evaluate(trained, "MODEL.WEIGHTS", str(trained / "model_final.pth"))
        assert contents(trained) == before
        assert {"config.yaml", "log.txt", "metrics.json", "panel.png", "per_class.csv", "results.json"} <= {
            file.name for file in (trained / "evaluation").iterdir()
        }
        assert (trained / "evaluation" / "config.yaml").read_text().endswith("\n# deformable attention: by hand\n")
        assert len(metrics(trained / "evaluation")) == 2
        self.evaluate(trained, "--resume")  # the last checkpoint of the training
        assert metrics(trained / "evaluation_2")[-1]["iteration"] == 0
        assert contents(trained) == before

    @pytest.mark.parametrize("manifest", [True, False])
    def test_it_stays_where_an_evaluation_is_sent_to_its_folder(self, manifest: bool, trained: Path, caplog):
        """Also without the manifest that earlier versions have not written."""
        if not manifest:
            (trained / ".psf-files").unlink()
        before = contents(trained)
        self.evaluate(trained, "--resume", "MODEL.PSF.TEST.SEMANTIC_ON", "False", "OUTPUT_DIR", str(trained))
        assert contents(trained) == before
        assert "sem_seg" not in json.loads((trained / "evaluation" / "results.json").read_text())
        assert metrics(trained / "evaluation")[-1]["iteration"] == 0  # of the last checkpoint
        assert f"OUTPUT_DIR {trained} holds a training: the results go to {trained / 'evaluation'}" in caplog.text

    def test_a_folder_without_its_manifest_is_resumed(self, trained: Path, parse_args: ParseArgs, caplog):
        (trained / ".psf-files").unlink()
        before = (trained / "config.yaml").read_bytes()
        main(parse_args("--resume", "SOLVER.MAX_ITER", "2"))
        assert (trained / "config.yaml").read_bytes() == before
        assert "MAX_ITER: 2" in (trained / "config_2.yaml").read_text()
        assert [line["iteration"] for line in metrics(trained) if "total_loss" in line] == [0, 1]

    def test_metrics_of_a_training_without_a_checkpoint_are_kept(self, trained: Path, parse_args: ParseArgs):
        first = (trained / "metrics.json").read_bytes()
        (trained / "model_final.pth").unlink()
        (trained / "last_checkpoint").unlink()
        main(parse_args("SOLVER.MAX_ITER", "1"))
        assert (trained / "metrics_2.json").read_bytes() == first
        assert [line["iteration"] for line in metrics(trained) if "total_loss" in line] == [0]

    def test_a_second_training(self, trained: Path, parse_args: ParseArgs):
        before = contents(trained)
        with pytest.raises(UserError, match="holds another training"):
            main(parse_args("SOLVER.MAX_ITER", "1"))
        assert contents(trained) == before
        torn = trained.with_name("torn.pth")
        torn.write_bytes((trained / "model_final.pth").read_bytes()[:9000])
        with pytest.raises(UserError, match="torn"):  # found after the model is built
            main(parse_args("--overwrite", "MODEL.WEIGHTS", str(torn)))
        assert contents(trained) == before
        main(parse_args("--overwrite", "SOLVER.MAX_ITER", "1", "SEED", "5"))
        assert not list(trained.glob("metrics_*"))
        assert "SEED: 5" in (trained / "config.yaml").read_text()

    @pytest.mark.parametrize("flags", [(), ("--eval-only",)])
    def test_a_config_of_the_user_stays(
        self, flags: tuple[str, ...], mini: str, config_file: Path, parse_args: ParseArgs, tmp_path: Path
    ):
        own = tmp_path / "output" / "config.yaml"
        own.parent.mkdir()
        own.write_text(f"# my notes\n_BASE_: {config_file}\n")
        with pytest.raises(UserError, match=r"config\.yaml exists, and psf has not written it"):
            main(parse_args(*flags))
        assert own.read_text().startswith("# my notes")
        assert [file.name for file in own.parent.iterdir()] == ["config.yaml"]


def contents(folder: Path) -> dict[str, bytes]:
    """Of all files but the log, which the loggers of this process go on writing, and hidden files."""
    return {file.name: file.read_bytes() for file in folder.glob("[!.]*") if file.is_file() and file.name != "log.txt"}


def test_a_training_without_tensorboard(mini: str, parse_args: ParseArgs, tmp_path: Path, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    caplog.set_level(logging.WARNING)
    writers = build_writers(str(tmp_path), 1)
    assert [type(writer).__name__ for writer in writers] == ["CommonMetricPrinter", "MetricsWriter"]
    writers[1].close()
    assert "pip install tensorboard" in caplog.text


@pytest.mark.parametrize("position", [0, 4])
def test_one_damaged_image_does_not_end_a_training(position: int, mini_root: Path, mini: str, parse_args: ParseArgs):
    """The first image is read before the training starts."""
    (mini_root / "images" / f"{position}.png").write_bytes(b"no image")
    loader = Trainer.build_train_loader(setup(parse_args()))
    names = {image["file_name"] for _, batch in zip(range(10), loader) for image in batch}
    assert names == {str(mini_root / "images" / f"{number}.png") for number in range(5) if number != position}
