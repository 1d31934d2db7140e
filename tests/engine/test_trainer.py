"""A run from start to end with a toy model: what it writes, resumes, refuses and says."""

from __future__ import annotations

import errno
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.utils.events import EventStorage, EventWriter
from torch import nn

from psf import add_psf_config
from psf.engine import Checkpointer, Trainer, build_config, build_optimizer, launch, main, setup
from psf.engine.train_step import TrainStep
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA
from tests.engine.conftest import ParseArgs
from tests.mini_set import PsfTestColorModel
from tests.models import tiny_config, tiny_model


def metrics(output: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def iterations(output: Path) -> list[int]:
    return [line["iteration"] for line in metrics(output)]


def test_train_resume_and_evaluate(mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    output = tmp_path / "output"
    monkeypatch.setattr("psf.engine.trainer.used_implementations", lambda: ["deformable attention: by hand"])

    results = main(parse_args("SOLVER.CHECKPOINT_PERIOD", "1"))
    assert set(results) == {"panoptic_seg", "panoptic_boundary", "bbox", "segm", "sem_seg"}
    assert 0 < results["panoptic_seg"]["PQ"] < 100
    written = json.loads((output / "results.json").read_text())
    assert written["panoptic_seg"] == results["panoptic_seg"]
    assert written["segm"]["APl"] is None  # NaN: nothing is large
    assert {"config.yaml", "log.txt", "panel.png", "per_class.csv", "model_final.pth", "model_0000000.pth"} <= set(
        path.name for path in output.iterdir()
    )
    assert "| panoptic_seg" in (output / "log.txt").read_text()
    config = (output / "config.yaml").read_text()
    assert config.endswith("\n# deformable attention: by hand\n") and CfgNode.load_cfg(config).SOLVER.MAX_ITER == 2
    assert iterations(output)[-1] == 2
    assert not list(elsewhere.iterdir())  # nothing is written elsewhere

    main(parse_args("--resume", "SOLVER.MAX_ITER", "4"))
    assert "Starting training from iteration 2" in (output / "log.txt").read_text()
    assert iterations(output)[-1] == 4
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    states = checkpoint["trainer"]["_trainer"]["optimizer"]["state"]
    assert {int(state["step"]) for state in states.values()} == {4}

    before = metrics(output)
    again = main(parse_args("--eval-only", "MODEL.WEIGHTS", str(output / "model_final.pth")))
    assert again["panoptic_seg"] == results["panoptic_seg"]  # the toy's predictions do not depend on its weights
    assert (output / "evaluation" / "results.json").is_file()  # OUTPUT_DIR holds a training, which stays as it is
    [line] = metrics(output / "evaluation")
    assert str(metrics(output)) == str(before) and line["iteration"] == checkpoint["iteration"] == 3
    flat = {f"{task}/{name}" for task, figures in again.items() for name in figures}
    assert set(line) == {"iteration", *flat} and line["panoptic_seg/PQ"] == again["panoptic_seg"]["PQ"]


def test_evaluates_in_between_and_shows_panels(mini: str, parse_args: ParseArgs, tmp_path: Path):
    main(parse_args("TEST.EVAL_PERIOD", "1", "MODEL.PSF.TEST.INSTANCE_ON", "False"))
    last = metrics(tmp_path / "output")[-1]
    assert "panoptic_seg/PQ" in last
    assert not any(key.startswith("segm/") for key in last)
    events = b"".join(path.read_bytes() for path in (tmp_path / "output").glob("events.*"))
    assert events.count(f"panel/{mini}".encode()) == 2


def test_evaluation_does_not_change_the_training_after_it(mini: str, parse_args: ParseArgs):
    cfg = setup(parse_args("DATALOADER.NUM_WORKERS", "1"))
    model = Trainer.build_model(cfg)
    before = torch.get_rng_state()
    Trainer.test(cfg, model)
    assert torch.equal(torch.get_rng_state(), before)


def test_loss_falls(mini: str, parse_args: ParseArgs):
    trainer = Trainer(setup(parse_args("SOLVER.MAX_ITER", "30", "DATASETS.TEST", f"('{mini}',)")))
    trainer.register_hooks([])
    before = next(iter(trainer.data_loader))
    with torch.no_grad():
        start = sum(trainer.model(before).values())
    trainer.train()
    trainer.model.train()
    assert sum(trainer.model(before).values()) < start


def test_a_set_that_is_named_twice_is_a_warning(mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
    texts: list[str] = []
    monkeypatch.setattr("psf.engine.trainer.logger.warning", lambda text, *values: texts.append(text % values))
    Trainer(setup(parse_args("DATASETS.TRAIN", f"('{mini}', '{mini}')", "DATASETS.TEST", f"('{mini}',)")))
    assert [text for text in texts if f"DATASETS.TRAIN names {mini} more than once" in text]


class TestViews:
    @pytest.mark.parametrize("words", [(), ("--eval-only",)])
    def test_one_more_evaluation(
        self,
        mini: str,
        parse_args: ParseArgs,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: tuple[str, ...],
    ):
        """Its results join the others: in what is returned, in results.json, in the last table and in metrics.json."""
        extra = {"panoptic_seg_TTA": {"PQ": 12.34}}
        monkeypatch.setattr(Trainer, "test_with_TTA", classmethod(lambda cls, cfg, model: extra))
        for name in ("has_joint_queries", "has_tiles"):
            monkeypatch.setattr(PsfTestColorModel, name, False, raising=False)
        again = words or ("--overwrite",)
        plain, both = main(parse_args(*words)), main(parse_args(*again, "TEST.AUG.ENABLED", "True"))
        assert list(both) == [*plain, *extra] and both["panoptic_seg"] == plain["panoptic_seg"]
        output = tmp_path / "output"
        assert list(json.loads((output / "results.json").read_text())) == list(both)
        table = (output / "log.txt").read_text().rpartition("Results, also in")[2]
        assert "| panoptic_seg " in table and "PQ 12.34" in table
        assert metrics(output)[-1]["panoptic_seg_TTA/PQ"] == 12.34
        assert ("panoptic_seg/PQ" in metrics(output)[-1]) == bool(words)  # training has written it before

    @pytest.mark.parametrize("words", [(), ("--eval-only",)])
    def test_are_checked_first(
        self, mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
    ):
        monkeypatch.setattr(PsfTestColorModel, "forward", None)
        args = parse_args(*words, "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "()")
        with pytest.raises(ValueError, match=r"TEST\.AUG\.MIN_SIZES is empty"):
            main(args)

    def test_has_its_own_files_and_sizes(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        keys = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1}
        more = {"DATASETS__TEST": (mini,), "INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}
        views = {"TEST__AUG__MIN_SIZES": (24, 40), "TEST__AUG__MAX_SIZE": 80, "OUTPUT_DIR": str(tmp_path / "output")}
        cfg = tiny_config(keys, **more, **views)
        cfg.freeze()
        seen = []
        plain_forward = PanopticSegFormerWithTTA.forward

        def forward(self: PanopticSegFormerWithTTA, batch: list[dict]) -> list[dict]:
            seen.extend(tuple(x["image"].shape[1:]) for x in batch)
            return plain_forward(self, batch)

        monkeypatch.setattr(PanopticSegFormerWithTTA, "forward", forward)
        results = Trainer.test_with_TTA(cfg, tiny_model(keys, **more))
        tasks = {"panoptic_seg", "panoptic_boundary", "bbox", "segm", "sem_seg"}
        assert set(results) == {f"{task}_TTA" for task in tasks}
        assert seen == [(40, 60), (60, 40), (40, 80), (40, 40), (40, 58)]  # the largest view of each image
        assert {path.name for path in (tmp_path / "output").iterdir()} == {"TTA"}
        written = {path.name for path in (tmp_path / "output" / "TTA").glob("[!.]*")}
        assert written == {"inference", "panel.png", "per_class.csv"}


class TestMixedPrecision:
    def test_bfloat16_on_the_cpu(self, mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
        seen = []
        trainer = Trainer(setup(parse_args("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16")))
        trainer.model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        trainer.train()
        assert set(seen) == {torch.bfloat16}
        assert trainer.model.backbone.weight.grad.dtype == torch.float32

    @pytest.mark.parametrize(("dtype", "message"), [("float16", "MODEL.DEVICE"), ("float8", "SOLVER.AMP.DTYPE")])
    def test_other_types(self, mini: str, parse_args: ParseArgs, dtype: str, message: str):
        with pytest.raises(ValueError, match=message):
            Trainer(setup(parse_args("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype)))

    def test_scaled_gradients_are_clipped_at_their_true_norm(self):
        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(1))

            def forward(self, batch: list[float]) -> dict[str, torch.Tensor]:
                return {"loss": self.weight.sum() * sum(batch)}

        cfg = get_cfg()
        add_psf_config(cfg)
        cfg.merge_from_list(["SOLVER.OPTIMIZER", "SGD", "SOLVER.MOMENTUM", 0.0, "SOLVER.BASE_LR", 1.0])
        cfg.merge_from_list(["SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model"])
        model = Model()
        batches = [[0.5], [4.0]]
        step = TrainStep(model, batches, build_optimizer(cfg, model), dtype=torch.float16, device_type="cpu")
        with EventStorage():
            for step.iter in range(2):
                step.run_step()
        # Gradients 0.5 and 4 at learning rate 1, clipped at CLIP_VALUE 1.
        assert model.weight.item() == pytest.approx(-0.5 - 1.0, abs=1e-4)
        other = TrainStep(model, [], build_optimizer(cfg, model), dtype=torch.float16, device_type="cpu")
        other.load_state_dict(step.state_dict())
        assert other.state_dict()["grad_scaler"] == step.state_dict()["grad_scaler"]
        in_full_precision = TrainStep(model, [], build_optimizer(cfg, model), dtype=None, device_type="cpu")
        other.load_state_dict(in_full_precision.state_dict())  # a run may go on in another precision
        assert other.state_dict()["grad_scaler"] == step.state_dict()["grad_scaler"]


class TestCheckpointOfAnotherShape:
    def save(self, folder: Path) -> str:
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))
        trainer = {"iteration": 3, "_trainer": {"optimizer": {"state": {}, "param_groups": []}}}
        Checkpointer(model, str(folder)).save("five_classes", iteration=3, trainer=trainer)
        return str(folder / "five_classes.pth")

    def test_one_loud_warning(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        path = self.save(tmp_path)
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        with caplog.at_level(logging.WARNING):
            Checkpointer(model).load(path)
        [loud] = [record.getMessage() for record in caplog.records if record.name.startswith("psf")]
        assert "SKIPPED" in loud and "2 parameters" in loud
        assert "1.weight  (5, 3) -> (4, 3)" in loud and "1.bias" in loud and "0.weight" not in loud
        assert torch.equal(model[0].weight, torch.load(path, weights_only=True)["model"]["0.weight"])

    def test_no_warning_where_all_fits(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        with caplog.at_level(logging.WARNING):
            Checkpointer(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5))).load(self.save(tmp_path))
        assert not caplog.records

    @pytest.mark.parametrize("is_training", [False, True])
    def test_weights_that_lack_a_part(self, is_training: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        path = self.save(tmp_path)
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
        more = {"optimizer": torch.optim.SGD(model.parameters(), 0.1)} if is_training else {}
        Checkpointer(model, **more).load(path, checkpointables=[])
        loud = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert ["RANDOM" in one and "model's 3;" in one for one in loud[:1]] == ([] if is_training else [True])

    def test_resume_refuses(self, tmp_path: Path):
        self.save(tmp_path)
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with pytest.raises(ValueError, match="cannot resume: 2 parameters"):
            Checkpointer(model, str(tmp_path), optimizer=optimizer).resume_or_load("", resume=True)


class TestDataSets:
    def test_train_must_be_named(self, mini: str, parse_args: ParseArgs):
        with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
            Trainer(setup(parse_args("DATASETS.TRAIN", "()")))

    @pytest.mark.parametrize("flags", [(), ("--eval-only",)])
    def test_missing_test_set_is_found_before_training(self, mini: str, parse_args: ParseArgs, flags: tuple[str, ...]):
        json_file = Path(MetadataCatalog.get(mini).panoptic_json)
        json_file.rename(json_file.with_suffix(".away"))
        with pytest.raises(ValueError, match=str(json_file)):
            main(parse_args(*flags))


class TestWithoutAnnotations:
    """A JSON of images and categories alone, like that of a test split whose ground truth is secret."""

    @pytest.fixture(autouse=True)
    def _bare(self, mini: str) -> None:
        path = Path(MetadataCatalog.get(mini).panoptic_json)
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))

    @pytest.mark.parametrize("flags", [(), ("--eval-only",)])
    def test_nothing_can_be_measured(self, parse_args: ParseArgs, flags: tuple[str, ...]):
        with pytest.raises(
            ValueError, match=r"DATASETS\.TEST: .*panoptic\.json .* no annotations.*WRITE_PANOPTIC True"
        ):
            main(parse_args(*flags))

    def test_nothing_can_be_learnt(self, parse_args: ParseArgs):
        with pytest.raises(ValueError, match=r"0\.png: no panoptic ground truth.*a panoptic set with annotations"):
            Trainer.build_train_loader(setup(parse_args()))

    def test_predictions_can_be_written(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        assert main(parse_args("--eval-only", "MODEL.PSF.TEST.WRITE_PANOPTIC", "True")) == {}
        folder = tmp_path / "output" / "inference" / mini
        found = json.loads((folder / "panoptic_predictions.json").read_text())["annotations"]
        assert [one["image_id"] for one in found] == [1, 11, 21, 31, 41]
        assert len(list((folder / "panoptic_predictions").glob("*.png"))) == 5


def test_the_first_error_wins(mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
    """A failure in the last iteration: Detectron2 would evaluate then, and raise what that raises."""
    trainer = Trainer(setup(parse_args("SOLVER.MAX_ITER", "1")))

    def fail(message: str) -> None:
        raise ValueError(message)

    monkeypatch.setattr(trainer, "run_step", lambda: fail("first"))
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model: fail("second")))
    with pytest.raises(ValueError, match="first"):
        trainer.train()


class TestConfigOfAResumedRun:
    def test_refused_run_keeps_it(
        self, mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        main(parse_args("SOLVER.MAX_ITER", "1"))
        monkeypatch.setattr(Trainer, "build_writers", lambda self: [])  # a refused run leaves its files open
        path = tmp_path / "output" / "config.yaml"
        before = path.read_text()
        MetadataCatalog.get(mini).thing_classes[1] = "orb"
        with pytest.raises(ValueError, match="cannot resume"):
            main(parse_args("--resume", "SOLVER.MAX_ITER", "3"))
        assert path.read_text() == before

    def test_run_that_goes_on_writes_its_own(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        main(parse_args("SOLVER.MAX_ITER", "1"))
        main(parse_args("--resume", "SOLVER.MAX_ITER", "2"))
        assert "MAX_ITER: 2" in (tmp_path / "output" / "config.yaml").read_text()


class TestBatchesAtTest:
    def test_no_image_is_padded_to_another(self, mini: str, parse_args: ParseArgs):
        names = {}
        for size in ("1", "3"):
            cfg = setup(parse_args("MODEL.PSF.TEST.BATCH_SIZE", size))
            batches = list(Trainer.build_test_loader(cfg, mini))
            assert all(len({image["image"].shape for image in batch}) == 1 for batch in batches)
            names[size] = sorted(image["file_name"] for batch in batches for image in batch)
        assert names["1"] == names["3"] and len(set(names["1"])) == len(names["1"]) == 5

    def test_none_is_refused(self, mini: str, parse_args: ParseArgs):
        with pytest.raises(ValueError, match=r"MODEL\.PSF\.TEST\.BATCH_SIZE is 0"):
            Trainer.build_test_loader(setup(parse_args("MODEL.PSF.TEST.BATCH_SIZE", "0")), mini)


class TestKeysOfTheTrainer:
    def test_no_checkpoints_in_between(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        main(parse_args("SOLVER.CHECKPOINT_PERIOD", "0"))
        assert [path.name for path in (tmp_path / "output").glob("*.pth")] == ["model_final.pth"]

    def test_processes_share_the_batch(self, mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("psf.data.loaders.training.comm.get_world_size", lambda: 2)
        with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH is 3, .* expected a multiple of 2"):
            Trainer(build_config(parse_args().config_file, ["SOLVER.IMS_PER_BATCH", "3", "MODEL.DEVICE", "cpu"]))

    def test_nothing_to_evaluate_on(self, mini: str, parse_args: ParseArgs):
        with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
            main(parse_args("--eval-only", "DATASETS.TEST", "()"))

    def test_random_weights_are_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, parse_args: ParseArgs
    ):
        Checkpointer(torch.nn.Linear(1, 1)).load("")
        assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
            "MODEL.WEIGHTS is empty: the weights are random, and so are the results"
        ]


class TestResume:
    def rates(self, output: Path) -> list[float]:
        return [line["lr"] for line in metrics(output) if "lr" in line]

    def test_changed_options_are_used(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        keys = ("SOLVER.STEPS", "(1000,)")
        main(parse_args("SOLVER.BASE_LR", "0.01", *keys))
        main(
            parse_args(
                "--resume", "SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "0.001", "SOLVER.WEIGHT_DECAY", "0.5", *keys
            )
        )
        output = tmp_path / "output"
        assert self.rates(output) == pytest.approx([0.001, 0.0001])  # of the backbone: a tenth of BASE_LR
        log = (output / "log.txt").read_text()
        assert "SOLVER has changed since the checkpoint, and the new values are used: lr " in log
        assert "weight_decay 0.0001 -> 0.5" in log
        assert "BASE_LR: 0.001" in (output / "config.yaml").read_text()
        groups = torch.load(output / "model_final.pth", weights_only=True)["trainer"]["_trainer"]["optimizer"]
        assert {group["weight_decay"] for group in groups["param_groups"]} == {0.5, 0.0}  # 0: of norms

    def test_finished_run_is_only_evaluated(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        results = main(parse_args())
        output = tmp_path / "output"
        config, weights = (output / "config.yaml").read_bytes(), (output / "model_final.pth").read_bytes()
        again = main(parse_args("--resume", "SOLVER.BASE_LR", "0.5"))
        assert again["panoptic_seg"] == results["panoptic_seg"]
        assert "has finished its 2 iterations (SOLVER.MAX_ITER)" in (output / "log.txt").read_text()
        assert (output / "config.yaml").read_bytes() == config  # 0.5 did not run
        assert (output / "model_final.pth").read_bytes() == weights

    def test_fewer_iterations_than_have_run(self, mini: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
        main(parse_args())
        monkeypatch.setattr(Trainer, "build_writers", lambda self: [])  # a refused run leaves its files open
        with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER is 1, but the checkpoint has been trained for 2"):
            main(parse_args("--resume", "SOLVER.MAX_ITER", "1"))

    def test_torn_checkpoint_is_named_and_the_one_before_taken(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        main(parse_args("SOLVER.CHECKPOINT_PERIOD", "1"))
        output = tmp_path / "output"
        path = output / "model_final.pth"
        path.write_bytes(path.read_bytes()[:1000])
        before = len((output / "log.txt").read_text())
        main(parse_args("--resume", "SOLVER.MAX_ITER", "3"))
        log = (output / "log.txt").read_text()[before:]
        assert f"NOT USED: {path}: torn" in log and "model_0000000.pth" in log
        assert "Starting training from iteration 1" in log

    def test_without_any_checkpoint_a_run_starts(self, mini: str, parse_args: ParseArgs, tmp_path: Path):
        main(parse_args("--resume"))
        assert "Starting training from iteration 0" in (tmp_path / "output" / "log.txt").read_text()


def test_full_disk_is_one_line(
    mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    plain_save = torch.save

    def save(content: dict, file: Any) -> None:
        if content["iteration"] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain_save(content, file)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(
        ValueError, match=r"^[^\n]*model_final\.pth cannot be written \(No space[^\n]*model_0000000\.pth is"
    ):
        main(parse_args("SOLVER.CHECKPOINT_PERIOD", "1"))
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_0000000.pth"
    assert not list((tmp_path / "output").glob(".psf-*-*"))
    assert "Traceback" not in (tmp_path / "output" / "log.txt").read_text()


def test_full_disk_is_one_line_in_other_files(
    mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Such as metrics.json: Detectron2's loop logs the error with its traceback, and its writers fail once more."""
    errors: list[Exception] = [ZeroDivisionError("float division by zero"), OSError(errno.EFBIG, "File too large")]

    class Writer(EventWriter):
        def write(self) -> None:
            raise errors.pop()

    monkeypatch.setattr(Trainer, "build_writers", lambda self: [Writer()])
    with pytest.raises(ValueError, match=r"^[^\n]*output cannot be written \(File too large\)"):
        main(parse_args())
    assert not errors and "Traceback" not in (tmp_path / "output" / "log.txt").read_text()


def test_a_dead_worker_is_one_line(mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch raises the error wherever the main process is, such as in the model."""

    def losses(self: PsfTestColorModel, batch: list[dict]) -> None:
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 1.")

    monkeypatch.setattr(PsfTestColorModel, "losses", losses)
    with pytest.raises(ValueError, match=r"^DataLoader worker \(pid 7\) exited .*DATALOADER\.NUM_WORKERS"):
        launch(main, parse_args("--num-processes", "1"))
    assert "Traceback" not in (tmp_path / "output" / "log.txt").read_text()


def test_weights_that_are_not_finite_are_not_saved(
    mini: str, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Trainer, "build_writers", lambda self: [])  # they would stay open
    trainer = Trainer(setup(parse_args("SOLVER.CHECKPOINT_PERIOD", "1")))
    trainer.save_checkpoint("model_0000000")
    with torch.no_grad():
        trainer.model.backbone.weight[0] = float("inf")
    with pytest.raises(
        ValueError, match=r"is not written: backbone\.weight .*model_0000000\.pth is the last checkpoint"
    ):
        trainer.save_checkpoint("model_0000001")
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_0000000.pth"
