"""Which metrics a dataset gets."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

import psf.data.panoptic_json
import psf.data.panoptic_labels
from psf import PanopticSegFormer
from psf.data import register_panoptic
from psf.data.shapes import dataset as shapes
from psf.data.shapes import register_shapes
from psf.engine import build_config, build_evaluator, main
from psf.engine.evaluators import needed_results
from psf.engine.results import results_table, write_results
from psf.evaluation import PanopticQualityEvaluator, PanopticWriter, SemanticEvaluator, write_instance_json
from psf.meta_arch.test_time_augmentation import PanopticSegFormerWithTTA
from tests.engine.conftest import ParseArgs
from tests.mini_set import IMAGES, PsfTestColorModel, unregister_mini_set
from tests.models import tiny_model


@pytest.fixture
def cfg(config_file: Path, tmp_path: Path) -> CfgNode:
    return build_config(str(config_file), ["OUTPUT_DIR", str(tmp_path / "output")])


def kinds(cfg: CfgNode, name: str) -> list[str]:
    """Of the evaluators but the one that counts, which is there for any of PQ and AP."""
    names = [type(one).__name__ for one in build_evaluator(cfg, name)._evaluators]
    assert ("ResultCounter" in names) == bool({ALL[0], ALL[2]} & set(names))
    return [one for one in names if one != "ResultCounter"]


ALL = ["PanopticQualityEvaluator", "PanelEvaluator", "InstanceEvaluator", "SemanticEvaluator"]


def test_panoptic_ground_truth_gives_all(mini: str, cfg: CfgNode, tmp_path: Path):
    assert kinds(cfg, mini) == ALL


@pytest.mark.parametrize(
    ("key", "left"), [("PANOPTIC_ON", ALL[2:]), ("INSTANCE_ON", ALL[:2] + ALL[3:]), ("SEMANTIC_ON", ALL[:3])]
)
def test_switches(mini: str, cfg: CfgNode, key: str, left: list[str]):
    cfg.MODEL.PSF.TEST[key] = False
    assert kinds(cfg, mini) == left


def test_keys_beside_pq(mini: str, cfg: CfgNode, tmp_path: Path):
    cfg.MODEL.PSF.TEST.INSTANCE_ON = cfg.MODEL.PSF.TEST.SEMANTIC_ON = False
    cfg.MODEL.PSF.TEST.PQ_BY_SIZE = cfg.MODEL.PSF.TEST.WRITE_PANOPTIC = True
    evaluators = build_evaluator(cfg, mini)
    assert [type(one).__name__ for one in evaluators._evaluators] == [*ALL[:2], "PanopticWriter", "ResultCounter"]
    evaluators.reset()
    assert evaluators.evaluate().keys() == {"panoptic_seg", "panoptic_boundary", "panoptic_sizes"}
    assert (tmp_path / "output" / "inference" / mini / "panoptic_predictions.json").is_file()
    Path(MetadataCatalog.get(mini).panoptic_json).unlink()
    assert kinds(cfg, mini) == ["PanopticWriter"]


def test_own_instance_json_is_preferred(mini: str, cfg: CfgNode, tmp_path: Path):
    own = tmp_path / "own.json"
    MetadataCatalog.get(mini).json_file = str(own)  # named, but not there: as in Detectron2's coco_2017_val_panoptic
    assert kinds(cfg, mini) == ALL
    derived = tmp_path / "output" / "inference" / f"{mini}_instances.json"
    for own_is_there in (False, True):
        if own_is_there:
            write_instance_json(mini, own)
        evaluators = build_evaluator(cfg, mini)
        evaluators.reset()
        evaluators.evaluate()
        assert derived.exists() != own_is_there
        derived.unlink(missing_ok=True)


def test_log_says_what_is_left_out_and_why(mini: str, cfg: CfgNode, caplog: pytest.LogCaptureFixture):
    Path(MetadataCatalog.get(mini).panoptic_json).unlink()
    with caplog.at_level(logging.WARNING):
        assert kinds(cfg, mini) == []
    for part in (mini, "PQ (no panoptic_json", "mask AP and box AP (", "mIoU ("):
        assert part in caplog.text


def test_separated_ids_take_semantic_pngs(mini: str, cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    metadata = MetadataCatalog.get(mini)
    vars(metadata)["stuff_dataset_id_to_contiguous_id"] = {7: 1, 12: 2, 9: 3}
    metadata.sem_seg_root = str(tmp_path / "semantic")
    assert kinds(cfg, mini) == ALL[:3]
    Path(metadata.sem_seg_root).mkdir()
    # Detectron2's loader of semantic sets: class 1 on the left half of the image, 2 on the right one; 255 is void.
    ground_truth = np.array([[1, 1, 2, 2], [1, 1, 2, 255]], np.uint8)
    Image.fromarray(ground_truth).save(tmp_path / "semantic" / "1.png")
    image = {"file_name": "1.png", "sem_seg_file_name": str(tmp_path / "semantic" / "1.png"), "height": 2, "width": 4}
    monkeypatch.setitem(DatasetCatalog.data, mini, lambda: [image])
    metadata.set(ignore_label=255)
    vars(metadata)["stuff_classes"] = ["things", "sky", "ground", "cloud"]
    assert kinds(cfg, mini) == [*ALL[:3], "SemSegEvaluator"]
    cfg.MODEL.PSF.TEST.PANOPTIC_ON = cfg.MODEL.PSF.TEST.INSTANCE_ON = False
    evaluators = build_evaluator(cfg, mini)
    evaluators.reset()
    predicted = torch.tensor([[1, 1, 1, 2], [1, 1, 2, 1]])
    evaluators.process([image], [{"sem_seg": torch.nn.functional.one_hot(predicted, 4).permute(2, 0, 1)}])
    result = evaluators.evaluate()["sem_seg"]
    assert (result["IoU-sky"], result["IoU-ground"]) == pytest.approx((80, 200 / 3))  # 4 of 5, 2 of 3


@pytest.mark.parametrize("names", [("psf_test_mini",), ("psf_test_mini", "another")])
def test_table_of_the_classes(mini: str, cfg: CfgNode, tmp_path: Path, names: tuple[str, ...]):
    cfg.DATASETS.TEST = names
    cfg.MODEL.PSF.TEST.INSTANCE_ON = cfg.MODEL.PSF.TEST.SEMANTIC_ON = False
    evaluators = build_evaluator(cfg, mini)
    evaluators.reset()
    evaluators.evaluate()
    name = "per_class.csv" if len(names) == 1 else f"per_class_{mini}.csv"
    lines = (tmp_path / "output" / name).read_text().splitlines()
    assert len(lines) == 1 + 5 and lines[1].startswith("sky,7,stuff,")


def test_results_file_and_table(tmp_path: Path):
    path = tmp_path / "results.json"
    write_results(str(tmp_path), {})  # of an earlier evaluation
    one = {"segm": {"AP": 12.345, "APs": math.nan, "AP-person": 3.0}, "panoptic_seg": {}}
    assert write_results(str(tmp_path), one) == path
    assert json.loads(path.read_text()) == {"segm": {"AP": 12.345, "APs": None, "AP-person": 3.0}, "panoptic_seg": {}}
    path.write_text("somebody's")
    assert write_results(str(tmp_path), one) == write_results(str(tmp_path), one) == tmp_path / "results_2.json"
    assert path.read_text() == "somebody's"
    table = results_table(one)
    assert "AP 12.35" in table or "AP 12.34" in table
    assert "person" not in table
    nested = results_table({"first_set": one, "second_set": {"sem_seg": {"mIoU": 1.0}}})
    assert "first_set segm" in nested and "second_set sem_seg" in nested and "mIoU 1.00" in nested


def under_ddp(model: torch.nn.Module) -> DistributedDataParallel:
    """As in a training with several processes, without a group of processes."""
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    torch.nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


class TestNeededResults:
    def on(self, evaluator: DatasetEvaluator) -> tuple[bool, ...]:
        """Panoptic, instance, semantic, and classes in place of scores."""
        model = tiny_model()
        before = model.settings
        for wrapped in (
            model,
            under_ddp(model),
            PanopticSegFormerWithTTA(model, min_sizes=(8,), max_size=8, flip=False),
        ):
            with needed_results(wrapped, evaluator):
                settings = model.settings
            assert model.settings == before
        return settings.panoptic, settings.instance, settings.semantic, settings.semantic_classes

    def test_all_metrics(self, mini: str, cfg: CfgNode):
        assert self.on(build_evaluator(cfg, mini)) == (True, True, True, True)

    def test_none_that_cannot_be_measured(self, mini: str, cfg: CfgNode, tmp_path: Path):
        assert self.on(SemanticEvaluator(mini)) == (False, False, True, True)
        assert self.on(DatasetEvaluators([PanopticWriter(mini, tmp_path)])) == (True, False, False, True)
        Path(MetadataCatalog.get(mini).panoptic_json).unlink()
        assert self.on(build_evaluator(cfg, mini)) == (False, False, False, True)

    def test_everything_for_an_unknown_evaluator(self, mini: str):
        class Own(SemanticEvaluator):
            """May read scores."""

        assert self.on(DatasetEvaluators([SemanticEvaluator(mini), Own(mini)])) == (True, True, True, False)

    def test_everything_for_whoever_reads_the_results_first(self, mini: str):
        """Such as an ensemble, or a subclass that changes them; a subclass with a network of its own does not."""

        class Own(PanopticSegFormer):
            """Reads semantic scores."""

            def result(self, *inputs: Any) -> dict[str, Any]:
                result = super().result(*inputs)
                return {"panoptic_seg": result["panoptic_seg"], "sem_seg": result["sem_seg"].softmax(dim=0)}

        class Other(PanopticSegFormer):
            """Has the results of psf."""

        model, own, other, by_hand = (tiny_model() for _ in range(4))
        own.__class__, other.__class__ = Own, Other
        by_hand.result = PanopticSegFormer.result.__get__(by_hand)
        evaluator = SemanticEvaluator(mini)
        for outer, inner in (
            (torch.nn.Sequential(model), model),
            (own, own),
            (under_ddp(own), own),
            (by_hand, by_hand),
        ):
            before = inner.settings
            with needed_results(outer, evaluator):
                assert inner.settings == before
        with needed_results(other, evaluator):
            assert other.settings.semantic_classes

    def test_what_is_off_stays_off(self, mini: str, cfg: CfgNode):
        model = tiny_model({"TEST.PANOPTIC_ON": False})
        with needed_results(model, build_evaluator(cfg, mini)):
            assert not model.settings.panoptic and model.settings.instance


def test_a_generated_set_is_written_first(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its files decide what can be measured, and an evaluation may be the first to need them."""
    monkeypatch.setenv("PSF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shapes, "NUM_SCENES", {"fresh": 2})
    make_scene = shapes.make_scene
    monkeypatch.setattr(shapes, "make_scene", lambda index, split: make_scene(index, split="val"))
    register_shapes()
    try:
        assert kinds(cfg, "psf_shapes_fresh") == ALL
    finally:
        unregister_mini_set("psf_shapes_fresh")


class TestTheWholeRoad:
    """psf evaluate reads the ground truth once, and leaves the main thread to the model."""

    @pytest.fixture
    def name(self, mini_root: Path, monkeypatch: pytest.MonkeyPatch):
        """The mini set, registered as by --register."""
        monkeypatch.setattr(psf.data.panoptic_json, "SETTLED_SECONDS", 0.0)
        register_panoptic("psf_test_road", mini_root / "panoptic.json", mini_root / "panoptic", mini_root / "images")
        yield "psf_test_road"
        unregister_mini_set("psf_test_road")

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
        """(file name, thread) -> how often the ground truth's file is read."""
        reads: Counter[tuple[str, str]] = Counter()

        def count(module: Any, function: str) -> None:
            read = getattr(module, function)

            def counting(path: str) -> Any:
                reads[Path(path).name, threading.current_thread().name] += 1
                return read(path)

            monkeypatch.setattr(module, function, counting)

        count(psf.data.panoptic_json, "read_json")
        count(psf.data.panoptic_labels, "_read_ids")
        return reads

    @pytest.mark.parametrize("workers", ["0", "1"])
    def test_files_are_read_once(
        self, name: str, parse_args: ParseArgs, mini_root: Path, reads: Counter[tuple[str, str]], workers: str
    ):
        words = ("--eval-only", "DATASETS.TRAIN", f"['{name}']", "DATASETS.TEST", f"['{name}']")
        words += ("DATALOADER.NUM_WORKERS", workers)
        results = main(parse_args(*words))
        assert 0 < results["panoptic_seg"]["PQ"] < 100 and 0 < results["sem_seg"]["mIoU"] < 100
        pngs = {(f"{number}.png", "psf-ground-truth_0"): 1 for number in range(len(IMAGES))}
        assert reads == {("panoptic.json", "MainThread"): 1, **pngs}
        reads.clear()
        assert str(main(parse_args(*words))) == str(results)
        assert reads == pngs
        # A JSON that changes is read anew: without an annotation, its image does not count.
        content = json.loads((mini_root / "panoptic.json").read_text())
        for key in ("images", "annotations"):
            content[key] = content[key][:2]
        (mini_root / "panoptic.json").write_text(json.dumps(content))
        reads.clear()
        assert main(parse_args(*words))["panoptic_seg"] != results["panoptic_seg"]
        assert reads == {("panoptic.json", "MainThread"): 1, **dict(list(pngs.items())[:2])}

    def test_an_error_of_the_model_ends_the_threads(
        self, name: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch
    ):
        segment, images = PsfTestColorModel.segment, []

        def fail(model: PsfTestColorModel, image: dict[str, Any]) -> dict[str, Any]:
            images.append(image)
            if len(images) == 3:
                raise RuntimeError("of the model")
            return segment(model, image)

        monkeypatch.setattr(PsfTestColorModel, "segment", fail)
        with pytest.raises(RuntimeError, match="of the model"):
            main(parse_args("--eval-only", "DATASETS.TRAIN", f"['{name}']", "DATASETS.TEST", f"['{name}']"))
        assert [one.name for one in threading.enumerate() if one.name.startswith("psf-")] == []

    def test_the_model_sets_the_pace(self, name: str, parse_args: ParseArgs, monkeypatch: pytest.MonkeyPatch):
        """Evaluators that take 70 % of the model's time add at most 10 % to it, and what follows the last image.

        Both sleep, so that other programs on the machine hardly matter; the least of five runs counts.
        """
        seconds, num_images = 0.2, len(IMAGES)
        times: list[float] = []
        segment, process = PsfTestColorModel.segment, PanopticQualityEvaluator.process

        def sleep_and_segment(model: PsfTestColorModel, image: dict[str, Any]) -> dict[str, Any]:
            times.append(time.monotonic())
            time.sleep(seconds)
            return segment(model, image)

        def sleep_and_process(evaluator: PanopticQualityEvaluator, inputs: Any, outputs: Any) -> None:
            time.sleep(0.7 * seconds)
            process(evaluator, inputs, outputs)

        monkeypatch.setattr(PsfTestColorModel, "segment", sleep_and_segment)
        monkeypatch.setattr(PanopticQualityEvaluator, "process", sleep_and_process)
        least = math.inf
        for _ in range(5):
            times.clear()
            main(parse_args("--eval-only", "DATASETS.TRAIN", f"['{name}']", "DATASETS.TEST", f"['{name}']"))
            least = min(least, (times[-1] - times[0]) / (num_images - 1))
            if least <= 1.1 * seconds:
                break
        assert least <= 1.1 * seconds
