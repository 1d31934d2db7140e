"""An evaluation that finds nothing says why: in the log and in results.json."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import verify_results
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from psf.engine import Trainer
from psf.engine.results import MetricsWriter, append_metrics, build_writers, drop_later_metrics, results_table
from psf.evaluation import ResultCounter, result_counter
from tests.models import tiny_config, tiny_model

ALL_KEPT = {f"POST_PROCESSOR.{kind}.{key}": 0.0 for kind in ("THINGS", "STUFF") for key in ("T_CNF", "T_KEEP")}


def evaluate(mini: str, output: Path, caplog: pytest.LogCaptureFixture, **psf: Any) -> tuple[dict[str, Any], list[str]]:
    """Evaluate a random model; returns the results and the warnings that speak of predictions."""
    keys = {"NUM_THING_CLASSES": -1, "NUM_STUFF_CLASSES": -1, **ALL_KEPT, **psf}
    more = {"DATASETS__TEST": (mini,), "INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}
    cfg = tiny_config(keys, OUTPUT_DIR=str(output), **more)
    output.mkdir(exist_ok=True)
    with caplog.at_level(logging.WARNING):
        results = Trainer.test(cfg, tiny_model(keys, **more))
    assert results.keys() == json.loads((output / "results.json").read_text()).keys()
    return results, [one.getMessage() for one in caplog.records if "were predicted" in one.getMessage()]


def test_a_threshold_that_nothing_reaches(mini: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    results, [line] = evaluate(mini, tmp_path / "output", caplog, **{"POST_PROCESSOR.THINGS.T_CNF": 2.0})
    things = json.loads((tmp_path / "output" / "results.json").read_text())["empty_result"]["things"]
    assert list(results["empty_result"]) == ["things"]
    # Five images with six thing queries each.
    assert (things["images"], things["candidates"]) == (5, 30)
    assert sum(things["rejected_by"].values()) == 30 and things["rejected_by"]["T_CNF"] > 0
    assert 0 < things["largest_confidence"] < things["largest_class_score"] < 1
    assert results["panoptic_seg"]["PQ_th"] == 0.0
    assert line.startswith(f"{mini}: no things were predicted; of 30 candidates in 5 images these were rejected: ")
    assert "MODEL.PSF.POST_PROCESSOR.THINGS.T_CNF (2; the largest confidence is 0." in line and "\n" not in line


def test_programs_that_read_results_go_on(mini: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    keys = {"POST_PROCESSOR.MASK_THRESHOLD": 1.0}  # no sigmoid is above
    results, [line] = evaluate(mini, tmp_path / "output", caplog, **keys)
    assert list(results["empty_result"]) == ["things", "stuff", "instances"]
    for kind, num_candidates in (("things", 30), ("stuff", 15), ("instances", 30)):
        found = results["empty_result"][kind]
        assert found["rejected_by"] == {"empty_mask": num_candidates} and found["largest_confidence"] == 0.0
        assert 0 < found["largest_mask_score"] <= 1
    assert line.count("MODEL.PSF.POST_PROCESSOR.MASK_THRESHOLD (1.0; the largest mask score is 0.") == 3
    assert results["segm"]["AP"] == results["bbox"]["AP"] == results["panoptic_seg"]["PQ"] == 0.0

    table = results_table(results)
    assert "panoptic_seg" in table and "empty_result" not in table
    assert table == results_table({key: value for key, value in results.items() if key != "empty_result"})
    nested = results_table({"first_set": results})
    assert "first_set panoptic_seg" in nested and "empty_result" not in nested
    append_metrics(str(tmp_path), results, 7)
    line = json.loads((tmp_path / "metrics.json").read_text())
    assert line["empty_result/things/rejected_by/empty_mask"] == 30 and line["panoptic_seg/PQ"] == 0.0
    (tmp_path / "metrics.json").write_text('{"accuracy": 1}\n')  # somebody's
    append_metrics(str(tmp_path), results, 7)
    append_metrics(str(tmp_path), results, 8)
    assert (tmp_path / "metrics.json").read_text() == '{"accuracy": 1}\n'
    lines = (tmp_path / "metrics_2.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [7, 8]
    expected = SimpleNamespace(TEST=SimpleNamespace(EXPECTED_RESULTS=[["panoptic_seg", "PQ", 0.0, 0.1]]))
    assert verify_results(expected, results)


@pytest.mark.parametrize(
    ("keys", "kinds"),
    [
        ({}, []),
        ({"TEST.INSTANCE.SCORE_THRESH": 1.0}, ["instances"]),
        ({"POST_PROCESSOR.NAME": "PixelArgmax", "POST_PROCESSOR.STUFF.T_CNF": 2.0}, ["stuff"]),
        ({"TEST.PANOPTIC_ON": False, "POST_PROCESSOR.THINGS.T_CNF": 2.0}, []),
    ],
)
def test_only_what_is_empty_is_explained(
    mini: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, keys: dict[str, Any], kinds: list[str]
):
    results, lines = evaluate(mini, tmp_path / "output", caplog, **keys)
    assert list(results.get("empty_result", {})) == kinds and len(lines) == bool(kinds)


class TestCounter:
    IDS = torch.zeros(2, 2, dtype=torch.int32)

    def output(self, *are_things: bool, num_instances: int = 0) -> dict[str, Any]:
        segments = [{"id": i, "category_id": 0, "isthing": is_thing} for i, is_thing in enumerate(are_things, 1)]
        instances = Instances((2, 2), scores=torch.zeros(num_instances))
        return {"panoptic_seg": (self.IDS, segments), "instances": instances}

    def count(self, mini: str, outputs: list[dict[str, Any]], **kinds: bool) -> ResultCounter:
        counter = ResultCounter(mini, has_gt=True, **{"panoptic": True, "instance": True, **kinds})
        counter.process(list(DatasetCatalog.get(mini))[: len(outputs)], outputs)
        return counter

    @pytest.mark.parametrize(
        ("outputs", "empty"),
        [
            ([(), (), ()], ("things", "stuff", "instances")),
            ([(True,), (), ()], ("stuff", "instances")),
            ([(), (), (False,)], ("things", "instances")),
        ],
    )
    def test_kinds(self, mini: str, outputs: list[tuple[bool, ...]], empty: tuple[str, ...]):
        counter = self.count(mini, [self.output(*one) for one in outputs])
        assert counter.evaluate() == {} and counter.empty_kinds == empty
        only = self.count(mini, [self.output(*one) for one in outputs], instance=False)
        only.evaluate()
        assert only.empty_kinds == tuple(kind for kind in empty if kind != "instances")

    def test_what_the_ground_truth_does_not_have_may_be_missing(self, mini: str):
        counter = ResultCounter(mini, has_gt=True, panoptic=True, instance=True)
        counter.process(list(DatasetCatalog.get(mini))[1:2], [self.output()])  # sky alone
        counter.evaluate()
        assert counter.empty_kinds == ("stuff",)

    def test_a_crowd_need_not_be_found(self, mini: str):
        """Crowds are no target."""
        counter = ResultCounter(mini, has_gt=True, panoptic=True, instance=False)
        counter._gt.annotations[1]["segments_info"][:] = [{"category_id": 3, "iscrowd": 1}]
        counter.process(list(DatasetCatalog.get(mini))[:1], [self.output()])
        counter.evaluate()
        assert counter.empty_kinds == ()

    def test_processes_count_together(self, mini: str, monkeypatch: pytest.MonkeyPatch):
        other = self.count(mini, [self.output(True, num_instances=2)])
        counter = self.count(mini, [self.output(False)])
        comm = SimpleNamespace(
            gather=lambda mine: [mine, (other._expected, other._predicted)], is_main_process=lambda: True
        )
        monkeypatch.setattr(result_counter, "comm", comm)
        counter.evaluate()
        assert counter.empty_kinds == ()


def test_metrics_are_strict_json(tmp_path: Path):
    """Numbers that are not finite are null: other programs cannot read NaN."""
    writer = next(one for one in build_writers(str(tmp_path), 3) if isinstance(one, MetricsWriter))
    with EventStorage(1) as storage:
        storage.put_scalars(loss=float("nan"), lr=0.5, smoothing_hint=False)
        writer.write()
        writer.write()
    writer.close()
    append_metrics(str(tmp_path), {"panoptic_seg": {"PQ": float("inf")}}, 2)
    lines = [
        json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.json").read_text().splitlines()
    ]
    assert lines == [{"iteration": 1, "loss": None, "lr": 0.5}, {"iteration": 2, "panoptic_seg/PQ": None}]


class TestDropLaterMetrics:
    LINES = (
        '{"iteration": 3, "lr": 1}\n',
        '{"iteration": 7, "lr": 1}\n',
        '{"iteration": 8, "panoptic_seg/PQ": 5.0}\n',
        '{"iteration": 8, "lr": 1}\n',
        '{"iteration": 11, "lr": 1}\n',
    )

    def drop(self, folder: Path, text: str, num_iterations: int = 8, *, is_finished: bool = False) -> list[str]:
        (folder / "metrics.json").write_text(text)
        drop_later_metrics(str(folder), num_iterations, is_finished=is_finished)
        path = folder / "metrics.json"
        return path.read_text().splitlines(keepends=True) if path.exists() else []

    def test_what_is_written_again(self, tmp_path: Path):
        """An evaluation after the last iteration is repeated only if nothing is trained before."""
        assert self.drop(tmp_path, "".join(self.LINES)) == [*self.LINES[:3]]
        assert self.drop(tmp_path, "".join(self.LINES), is_finished=True) == [*self.LINES[:2]]

    @pytest.mark.parametrize("half", ['{"iteration": 7, "lr', "{", '{"iteration": 7}garbage', "7"])
    def test_half_a_line(self, tmp_path: Path, half: str):
        assert self.drop(tmp_path, self.LINES[0] + half) == [self.LINES[0]]
        assert self.drop(tmp_path, self.LINES[0].rstrip()) == [self.LINES[0]]
        assert self.drop(tmp_path, self.LINES[0][:9]) == []

    @pytest.mark.parametrize(
        "text", ['{"accuracy": 1}\n{', '{\n "iteration": 1\n}', '[{"iteration": 12}]', '{"accuracy": 1}']
    )
    def test_of_somebody_else(self, tmp_path: Path, text: str):
        assert "".join(self.drop(tmp_path, text)) == text

    def test_a_run_without_checkpoint_is_kept_apart(self, tmp_path: Path):
        for name in ("metrics_2.json", "metrics_3.json"):
            assert self.drop(tmp_path, self.LINES[0], 0) == []
            assert (tmp_path / name).read_text() == self.LINES[0]


def test_curves_of_a_resumed_run_replace_those_after_its_checkpoint(tmp_path: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for first, iterations, value in ((0, range(8), 1.0), (5, range(5, 9), 2.0)):
        *_, writer = build_writers(str(tmp_path), 9, lambda first=first: first)
        with EventStorage(first) as storage:
            for storage.iter in iterations:
                storage.put_scalar("loss", value, smoothing_hint=False)
                writer.write()
        writer.close()
        time.sleep(1.1)  # the names of the files have seconds
    curves = accumulator.EventAccumulator(str(tmp_path))
    curves.Reload()
    assert [(one.step, one.value) for one in curves.Scalars("loss")] == [
        *((step, 1.0) for step in range(5)),
        *((step, 2.0) for step in range(5, 9)),
    ]
