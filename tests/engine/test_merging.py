"""Merging thresholds that are tuned at the end of a training, stored, and used where the model is loaded."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from hypothesis import given
from hypothesis import strategies as st

from psf.checkpoint import TunedMerging
from psf.data import spread_evenly
from psf.engine import Checkpointer, Trainer, main, merging
from psf.evaluation import PanopticQualityEvaluator
from psf.evaluation.merging_search.search import Tuning
from psf.inference import MergingThresholds
from tests.engine.conftest import ParseArgs
from tests.mini_set import candidates_by_color
from tests.models import tiny_config, tiny_model

BEFORE = MergingThresholds(1.0, 2.0, 0.25, 0.6), MergingThresholds(1.0, 2.0, 0.25, 0.8)  # the defaults
AFTER = MergingThresholds(0.5, 1.0, 0.15, 0.4), MergingThresholds(1.0, 2.0, 0.3, 0.8)
TUNED = TunedMerging(*AFTER, *BEFORE)
PSF = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, "POST_PROCESSOR.TUNE_IMAGES": 4}
ON_MINI = {"INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}


def test_entry():
    assert TunedMerging.of_checkpoint({"model": {}}) is None
    assert TunedMerging.of_checkpoint(TUNED.as_entry()) == TUNED


def test_numbers_of_the_user_win():
    """0.5 is neither what the training's config had nor what was found; the other numbers are tuned."""
    assert TUNED.in_force(*BEFORE) == AFTER and TUNED.in_force(*AFTER) == AFTER
    things, stuff = TUNED.in_force(BEFORE[0]._replace(t_cnf=0.5), BEFORE[1])
    assert things == AFTER[0]._replace(t_cnf=0.5) and stuff == AFTER[1]


@pytest.mark.parametrize(
    ("tune_images", "t_cnf", "expected", "text"),
    [
        (4, 0.25, AFTER[0], "of the checkpoint, tuned on training images: THINGS ALPHA 0.5"),
        (4, 0.5, AFTER[0]._replace(t_cnf=0.5), "except settings of the config: THINGS ALPHA 0.5"),
        (0, 0.25, BEFORE[0], "TUNE_IMAGES is 0: THINGS ALPHA 1"),
    ],
)
def test_loading(
    tune_images: int,
    t_cnf: float,
    expected: MergingThresholds,
    text: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
):
    source = Checkpointer(tiny_model(), str(tmp_path))
    source.save("without")
    source.merging = TUNED
    source.save("with")
    keys = {"POST_PROCESSOR.TUNE_IMAGES": tune_images, "POST_PROCESSOR.THINGS.T_CNF": t_cnf}
    model = tiny_model(keys)
    caplog.set_level(logging.INFO)
    Checkpointer(model).load(str(tmp_path / "with.pth"))
    assert model.post_processor.things == expected
    [line] = [one.getMessage() for one in caplog.records if one.name == "psf.engine.merging"]
    assert text in line
    caplog.clear()
    Checkpointer(tiny_model(keys)).load(str(tmp_path / "without.pth"))
    assert ("the checkpoint stores none" in caplog.text) == (tune_images > 0)

    training = tiny_model(keys)
    Checkpointer(training, optimizer=torch.optim.SGD(training.parameters(), 0.1)).load(str(tmp_path / "with.pth"), [])
    assert training.post_processor.things == training.post_processor.configured[0]  # fine-tuning starts anew


def test_search_sees_the_ground_truth_of_training_images(mini: str, monkeypatch: pytest.MonkeyPatch):
    """PQ of the config's numbers is that of an evaluation of the same images: crowds, void and classes agree."""
    psf = {**PSF, "POST_PROCESSOR.TUNE_IMAGES": 99}
    keys = {"DATASETS__TRAIN": (mini,), **ON_MINI}
    cfg, model = tiny_config(psf, **keys), tiny_model(psf, **keys)
    monkeypatch.setattr(model, "candidates", partial(candidates_by_color, model), raising=False)
    seen: list[Tuning] = []

    def tune(*args: Any, **options: Any) -> Tuning:
        seen.append(plain(*args, **options))
        return seen[-1]

    plain = merging.tune
    monkeypatch.setattr(merging, "tune", tune)
    found = merging.find_merging(cfg, model.train())
    assert model.training and model.post_processor.things == found.things_before
    is_better = seen[0].pq >= seen[0].pq_at_start + merging.LEAST_GAIN
    kept = (found.things_before, found.stuff_before)
    assert (found.things, found.stuff) == ((seen[0].things, seen[0].stuff) if is_better else kept)
    evaluator = PanopticQualityEvaluator(mini)
    with torch.no_grad():
        for batch in Trainer.build_test_loader(cfg, mini):
            evaluator.process(batch, model.eval()(batch))
    quality = evaluator.evaluate()["panoptic_seg"]
    assert quality["PQ"] == pytest.approx(seen[0].pq_at_start, abs=1e-9)
    assert 0 < quality["PQ_th"] < 100 and quality["PQ_st"] > 0


def small_gain(*args: Any, **options: Any) -> Tuning:
    return Tuning(*AFTER, 10.2, 10.0, True, [])


def test_a_small_gain_is_none(mini: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    keys = {"DATASETS__TRAIN": (mini,), **ON_MINI}
    monkeypatch.setattr(merging, "tune", small_gain)
    caplog.set_level(logging.INFO)
    found = merging.find_merging(tiny_config(PSF, **keys), tiny_model(PSF, **keys))
    assert found == TunedMerging(*BEFORE, *BEFORE)
    assert "4 training images" in caplog.text and "PQ 10.00 -> 10.20, too small a gain" in caplog.text


@pytest.fixture
def run(mini: str, config_file: Path) -> list[str]:
    """Words for a run of the tiny model on the mini set."""
    cfg = tiny_config(PSF, DATASETS__TRAIN=(mini,), DATASETS__TEST=(mini,), **ON_MINI)
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS, cfg.INPUT.MIN_SIZE_TRAIN = 2, (), (32,)
    config_file.write_text(cfg.dump())
    return ["SOLVER.MAX_ITER", "2", "TEST.EVAL_PERIOD", "1"]


def test_a_run(run: list[str], parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    searches: list[int] = []
    evaluated: list[MergingThresholds] = []

    def find(cfg: CfgNode, model: Any) -> TunedMerging:
        searches.append(len(evaluated))
        return TUNED

    def test(cls: type, cfg: CfgNode, model: Any, evaluators: Any = None) -> dict[str, Any]:
        evaluated.append(model.post_processor.things)
        return {}

    monkeypatch.setattr("psf.engine.trainer.find_merging", find)
    monkeypatch.setattr(Trainer, "test", classmethod(test))
    output = tmp_path / "output"
    main(parse_args(*run))
    assert searches == [1]  # after the evaluation in between, before the last one
    assert evaluated == [BEFORE[0], AFTER[0]]
    assert TunedMerging.of_checkpoint(torch.load(output / "model_final.pth", weights_only=True)) == TUNED
    written = CfgNode.load_cfg((output / "config.yaml").read_text()).MODEL.PSF.POST_PROCESSOR
    assert (written.THINGS.T_CNF, written.STUFF.T_CNF, written.THINGS.T_KEEP) == (0.15, 0.3, 0.4)

    before = (output / "config.yaml").read_bytes()
    main(parse_args("--resume", *run))  # is finished
    assert len(searches) == 1 and evaluated[-1] == AFTER[0] and (output / "config.yaml").read_bytes() == before
    main(parse_args("--resume", *run, "SOLVER.MAX_ITER", "3", "TEST.EVAL_PERIOD", "0"))
    assert len(searches) == 2 and evaluated[-1] == AFTER[0]

    weights = ("MODEL.WEIGHTS", str(output / "model_final.pth"), "OUTPUT_DIR", str(tmp_path / "other"))
    main(parse_args("--eval-only", *weights))
    assert evaluated[-1] == AFTER[0]
    main(parse_args("--eval-only", *weights, "MODEL.PSF.POST_PROCESSOR.THINGS.T_CNF", "0.5"))
    assert evaluated[-1] == AFTER[0]._replace(t_cnf=0.5)


def test_a_killed_search_costs_no_training(
    run: list[str], parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def kill(cfg: CfgNode, model: Any) -> None:
        raise KeyboardInterrupt

    output, words = tmp_path / "output", [*run, "DATASETS.TEST", "()"]
    monkeypatch.setattr("psf.engine.trainer.find_merging", kill)
    with pytest.raises(KeyboardInterrupt):
        main(parse_args(*words))
    saved = torch.load(output / "model_final.pth", weights_only=True)
    assert saved["iteration"] == 1 and TunedMerging.of_checkpoint(saved) is None
    monkeypatch.setattr("psf.engine.trainer.find_merging", lambda cfg, model: TUNED)
    main(parse_args("--resume", *words))  # the search alone
    tuned = torch.load(output / "model_final.pth", weights_only=True)
    assert tuned["iteration"] == 1 and TunedMerging.of_checkpoint(tuned) == TUNED
    assert all(torch.equal(value, saved["model"][name]) for name, value in tuned["model"].items())


def test_tuned_numbers_in_a_config_are_tuned_again(mini: str):
    """In config.yaml they differ from the defaults; the user's own number, and one changed afterwards, stay."""
    cfg = tiny_config({**PSF, "POST_PROCESSOR.THINGS.BETA": 3.0}, DATASETS__TRAIN=(mini,), **ON_MINI)
    written = merging.with_merging(cfg, AFTER[0]._replace(beta=3.0), AFTER[1])
    assert merging._set_numbers(written, "things") == {"beta"} and merging._set_numbers(written, "stuff") == set()
    written.defrost()
    written.MODEL.PSF.POST_PROCESSOR.STUFF.T_CNF = 0.45
    assert merging._set_numbers(written, "stuff") == {"t_cnf"}


def test_says_why_it_does_not_tune(run: list[str], parse_args: ParseArgs, tmp_path: Path):
    main(parse_args(*run, "MODEL.PSF.POST_PROCESSOR.NAME", "PixelArgmax", "DATASETS.TEST", "()"))
    assert (
        "will not be tuned (TUNE_IMAGES): MODEL.PSF.POST_PROCESSOR.NAME is" in (tmp_path / "output/log.txt").read_text()
    )
    assert "psf_merging" not in torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)


def test_numbers_that_the_config_sets_are_not_searched(
    mini: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """0.25 is psf's default, so it has not been set."""
    seen: list[Any] = []
    plain = merging.tune
    monkeypatch.setattr(
        merging, "tune", lambda *args, **options: seen.append(options["fixed"]) or plain(*args, **options)
    )
    keys = {"DATASETS__TRAIN": (mini,), **ON_MINI}
    psf = {**PSF, "POST_PROCESSOR.THINGS.T_CNF": 0.01, "POST_PROCESSOR.STUFF.T_CNF": 0.25}
    caplog.set_level(logging.INFO)
    found = merging.find_merging(tiny_config(psf, **keys), tiny_model(psf, **keys))
    assert seen == [{"things": {"t_cnf"}, "stuff": set()}]
    assert found is not None and found.things.t_cnf == 0.01
    assert "Not tuned, as the config sets them: THINGS.T_CNF" in caplog.text


@pytest.mark.parametrize("failing", ["cache_images", "tune"])
def test_an_error_costs_the_tuning_alone(
    failing: str, run: list[str], parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*args: Any, **options: Any) -> None:
        raise OSError("damaged.png cannot be read")

    monkeypatch.setattr(merging, failing, fail)
    main(parse_args(*run, "DATASETS.TEST", "()"))
    output = tmp_path / "output"
    assert "were not tuned, the config's stay: OSError: damaged.png cannot be read" in (output / "log.txt").read_text()
    assert "psf_merging" not in torch.load(output / "model_final.pth", weights_only=True)


@given(total=st.integers(0, 200), count=st.none() | st.integers(1, 300))
def test_spread_evenly(total: int, count: int | None):
    chosen = spread_evenly(range(total), count)
    assert len(chosen) == (total if count is None else min(count, total))
    gaps = {after - before for before, after in zip(chosen, [*chosen[1:], total])}
    assert chosen[:1] == [0][:total]
    assert 0 not in gaps and max(gaps, default=0) - min(gaps, default=0) <= 1
