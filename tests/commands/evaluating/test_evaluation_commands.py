"""`psf robustness` and `psf tune-merging` on the mini set: what they write and say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from psf.commands import load_command
from psf.commands.evaluating import tune_merging
from psf.engine import Checkpointer, Trainer
from psf.evaluation.merging_search import search as tuning
from psf.tools.robustness import evaluation as robustness
from psf.tools.robustness.evaluation import Corrupt
from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set
from tests.models import tiny_config, tiny_model

pytestmark = pytest.mark.usefixtures("one_core")

Main = Callable[[Sequence[str]], int]


@pytest.fixture
def load() -> Callable[[str], Main]:
    return lambda name: load_command(name).main


@pytest.fixture
def words(tmp_path: Path) -> Iterator[list[str]]:
    """A model with weights, on a registered set; output goes to tmp_path/output."""
    write_mini_set(tmp_path / "mini")
    name = register_mini_set(tmp_path / "mini")
    counts = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}
    counts |= {f"POST_PROCESSOR.{kind}.T_CNF": 0.1 for kind in ("THINGS", "STUFF")}
    more = {"DATASETS__TEST": (name,), "INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}
    torch.save({"model": tiny_model(counts, **more).state_dict()}, tmp_path / "weights.pth")
    (tmp_path / "model.yaml").write_text(tiny_config(counts, **more).dump())
    options = ["MODEL.WEIGHTS", str(tmp_path / "weights.pth"), "OUTPUT_DIR", str(tmp_path / "output")]
    yield ["--config-file", str(tmp_path / "model.yaml"), "--num-gpus", "0", *options]
    unregister_mini_set()


class TestRobustness:
    chosen = ("--corruptions", "fog,saturate", "--severities", "3", "--num-images", "3")

    def test_measures_goes_on_and_refuses(
        self, load: Callable[[str], Main], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        main, output = load("robustness"), tmp_path / "output"
        assert main(["--corruptions", "fog", *self.chosen[2:], *words]) == 0
        record = json.loads((output / "robustness.json").read_text())
        assert set(record["results"]) == {"clean", "fog-3"} and record["about"]["num_images"] == 3
        record["results"]["clean"]["PQ"] = 99.5  # is kept as it is
        (output / "robustness.json").write_text(json.dumps(record))
        assert main([*self.chosen, *words]) == 0
        again = json.loads((output / "robustness.json").read_text())
        assert set(again["results"]) == {"clean", "fog-3", "saturate-3"} and again["about"] == record["about"]
        assert again["results"]["clean"]["PQ"] == 99.5
        text = capsys.readouterr().out
        assert "| saturate " in text and "mean of 2" in text and "99.50" in text
        assert "mean of 2" in (output / "robustness.md").read_text()
        assert (output / "robustness.png").stat().st_size > 1000

        assert main([*self.chosen, *words, "INPUT.MIN_SIZE_TEST", "40"]) == 2
        assert "was measured with INPUT.MIN_SIZE_TEST 32 (this run has 40);" in capsys.readouterr().err

    def test_other_contents_under_the_same_names(
        self, load: Callable[[str], Main], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        """A run for the weights and the ground truth as they are; each is then changed in its file, and put back."""
        main, run = load("robustness"), ["--corruptions", "contrast", *self.chosen[2:], *words]
        assert main(run) == 0
        for path, key in (
            (tmp_path / "weights.pth", "weights"),
            (tmp_path / "mini" / "panoptic.json", "panoptic_json"),
        ):
            before = path.read_bytes()
            path.write_bytes(before + b" ")
            assert main(run) == 2
            errors = capsys.readouterr().err
            assert f"was measured with {key}_sha256 '" in errors and "Traceback" not in errors
            path.write_bytes(before)
        assert main(run) == 0

    def test_makes_panoptic_maps_alone(self, load: Callable[[str], Main], words: list[str], tmp_path: Path):
        """Whatever the config asks for; of a model without stuff PQ_th is shown."""
        seen: set[tuple[bool, ...]] = set()
        plain = Trainer.build_model

        def build_model(cfg: CfgNode) -> nn.Module:
            model = plain(cfg)
            if cfg.MODEL.DEVICE == "meta":  # a check of the config as it was given
                return model
            seen.add((model.settings.panoptic, model.settings.instance, model.settings.semantic))
            return model

        asked = ["MODEL.PSF.TEST.PANOPTIC_ON", "False", "MODEL.PSF.NUM_STUFF_CLASSES", "0"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "build_model", build_model)
            assert load("robustness")(["--corruptions", "contrast", *self.chosen[2:], *words, *asked]) == 0
        assert seen == {(True, False, False)}
        assert "| PQ_th, %" in (tmp_path / "output" / "robustness.md").read_text()

    def test_each_once_and_a_report_after_each(
        self, load: Callable[[str], Main], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """Clean, fog at 2 and 3, and then it is interrupted: fog is in the table, contrast is not."""
        calls = []

        def evaluate(cfg: CfgNode, model: nn.Module, name: str, corruption: Corrupt | None, num_images: int) -> dict:
            if len(calls) == 4:
                raise KeyboardInterrupt
            calls.append(corruption and (corruption.name, corruption.severity))
            return {"PQ": 10.0 * len(calls)}

        monkeypatch.setattr(robustness, "evaluate_corruption", evaluate)
        assert load("robustness")(["--corruptions", "fog,fog,contrast", "--severities", "2,2,3", *words]) == 130
        assert calls == [None, ("fog", 2), ("fog", 3), ("contrast", 2)]
        table = (tmp_path / "output" / "robustness.md").read_text()
        assert "mean of 1" in table and "| fog " in table and "contrast" not in table
        assert (tmp_path / "output" / "robustness.png").is_file()

    def test_a_record_is_checked_before_processes_are_started(
        self, load: Callable[[str], Main], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        (tmp_path / "output").mkdir()
        (tmp_path / "output" / "robustness.json").write_text("[]")
        assert load("robustness")(["--num-processes", "2", *words]) == 2
        assert capsys.readouterr().err.count("\n") == 1

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            (("--corruptions", "rain"), "found rain, expected some of motion_blur"),
            (("--severities", "0"), "found 0, expected some of 1, 2"),
            (("--num-images", "0"), "expected a number from 1"),
        ],
    )
    def test_wrong_words(
        self, load: Callable[[str], Main], chosen: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ):
        assert message in refused(load("robustness"), chosen, capsys)


class TestTuning:
    def test_prints_and_writes_surfaces_and_options(
        self, load: Callable[[str], Main], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ):
        few = ("--alpha", "1", "--beta", "1,2", "--t-cnf", "0.1,0.3", "--t-keep", "0.5", "--num-images", "4")
        assert load("tune-merging")([*few, *words]) == 0
        text = capsys.readouterr().out
        assert "4 images" in text and "PQ over THINGS" in text and "PQ over STUFF" in text
        report = (tmp_path / "output" / "merging.md").read_text()
        assert text.endswith(report.partition("\n")[2]) and "4 images" in report.splitlines()[0]
        assert "search stopped" not in report
        options = report.splitlines()[-1].split()
        cfg = tiny_config()
        cfg.merge_from_list(options)
        assert len(options) == 16 and cfg.MODEL.PSF.POST_PROCESSOR.THINGS.T_CNF in (0.1, 0.3)

    def test_images_are_spread(self, load: Callable[[str], Main], words: list[str], monkeypatch: pytest.MonkeyPatch):
        """Of 1, 11, 21, 31 and 41; a batch of 2 is not filled up with others."""
        seen = []

        def cache(model: nn.Module, batches: Iterable[list[dict]], *more: object) -> None:
            seen.extend(x["image_id"] for batch in batches for x in batch)
            raise KeyboardInterrupt

        monkeypatch.setattr(tune_merging, "cache_dataset", cache)
        assert load("tune-merging")(["--num-images", "3", *words, "MODEL.PSF.TEST.BATCH_SIZE", "2"]) == 130
        assert sorted(seen) == [1, 11, 31]

    def test_says_that_the_search_was_ended(
        self, load: Callable[[str], Main], words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ):
        monkeypatch.setattr(tuning, "MAX_ROUNDS", 0)
        assert load("tune-merging")(["--num-images", "1", *words]) == 0
        assert "The search stopped" in (tmp_path / "output" / "merging.md").read_text()

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            (("MODEL.PSF.POST_PROCESSOR.NAME", "PixelArgmax"), "only MaskWiseMerging"),
            (("MODEL.PSF.QUERIES", "joint"), 'MODEL.PSF.QUERIES is "joint"'),
            (("MODEL.PSF.TEST.TILES.SIZE", "64"), "tuning uses whole images"),
        ],
    )
    def test_refuses_before_the_model_runs(
        self,
        load: Callable[[str], Main],
        words: list[str],
        keys: tuple[str, str],
        message: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ):
        monkeypatch.setattr(Checkpointer, "load", None)
        assert load("tune-merging")([*words, *keys]) == 2
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("chosen", "message"),
        [
            (("--num-images", "0"), "expected a number from 1, found '0'"),
            (("--num-images", "-1"), "expected a number from 1, found '-1'"),
            (("--t-cnf", "nan,0.1"), "expected finite numbers >= 0, found nan,0.1"),
            (("--alpha", "1,inf"), "expected finite numbers"),
            (("--beta=-1",), "expected finite numbers"),
        ],
    )
    def test_wrong_words(
        self, load: Callable[[str], Main], chosen: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ):
        assert message in refused(load("tune-merging"), chosen, capsys)


@pytest.mark.parametrize("tool", ["robustness", "tune-merging"])
def test_faults_that_are_not_the_users_keep_their_traceback(
    load: Callable[[str], Main], words: list[str], tool: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Trainer, "build_model", lambda cfg: nn.Conv2d(3, 4, 1, groups=2))
    with pytest.raises(ValueError, match="divisible by groups"):
        load(tool)(words)


@pytest.mark.parametrize("tool", ["robustness", "tune-merging"])
def test_a_set_without_panoptic_ground_truth(
    load: Callable[[str], Main], words: list[str], tool: str, capsys: pytest.CaptureFixture[str]
):
    for key, message in (
        ("('psf_shapes_train',)", "no panoptic_json and panoptic_root"),
        ("()", "DATASETS.TEST is empty"),
    ):
        assert load(tool)([*words, "DATASETS.TEST", key]) == 2
        assert message in capsys.readouterr().err


def refused(main: Main, chosen: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a parser that does not accept the words."""
    with pytest.raises(SystemExit) as stop:
        main([*chosen, "--config-file", "any.yaml"])
    assert stop.value.code == 2
    return capsys.readouterr().err
