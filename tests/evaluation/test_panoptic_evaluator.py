"""Panoptic quality over a small dataset on disk, compared with panopticapi and Detectron2."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import panopticapi.evaluation
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.utils import rgb2id
from PIL import Image

from psf.evaluation import (
    PanopticGroundTruth,
    PanopticQualityEvaluator,
    PanopticWriter,
)
from psf.evaluation import panoptic_evaluator as panoptic_evaluator_module
from tests.evaluation.predictions import perturbed, run
from tests.mini_set import NAME


def rename_pngs(metadata: Any, names: list[str]) -> None:
    """Give the ground truth's PNGs other names below their folder, in the order of the JSON."""
    content = json.loads(Path(metadata.panoptic_json).read_text())
    for annotation, name in zip(content["annotations"], names):
        target = Path(metadata.panoptic_root, name)
        target.parent.mkdir(exist_ok=True)
        Path(metadata.panoptic_root, annotation["file_name"]).rename(target)
        annotation["file_name"] = name
    Path(metadata.panoptic_json).write_text(json.dumps(content))


class TestPanopticQualityEvaluator:
    def test_equals_detectron2(self, mini: str, monkeypatch: pytest.MonkeyPatch):
        # In one process: the pool that panopticapi opens is never closed, and adds the sums in another order.
        one_core = partial(panopticapi.evaluation.pq_compute_single_core, 0)
        monkeypatch.setattr(panopticapi.evaluation, "pq_compute_multi_core", one_core)
        ours = run(PanopticQualityEvaluator(mini), perturbed(mini))["panoptic_seg"]
        theirs = run(COCOPanopticEvaluator(mini), perturbed(mini))["panoptic_seg"]
        assert 0 < ours["PQ"] < 100
        assert ours == theirs
        assert list(ours) == list(theirs)

    def test_order_of_images_and_second_run_do_not_matter(self, mini: str):
        evaluator = PanopticQualityEvaluator(mini)
        first = run(evaluator, perturbed(mini))
        assert run(evaluator, perturbed(mini)[::-1]) == first

    def test_gathers_from_all_processes(self, mini: str, monkeypatch: pytest.MonkeyPatch):
        pairs = perturbed(mini)
        more = {"boundary": True, "by_size": True}
        alone = run(PanopticQualityEvaluator(mini, **more), pairs)
        other = PanopticQualityEvaluator(mini, **more)
        for image, output in pairs[1::2]:
            other.process([image], [output])
        comm = SimpleNamespace(
            synchronize=lambda: None, gather=lambda mine: [mine, other._measured], is_main_process=lambda: True
        )
        monkeypatch.setattr(panoptic_evaluator_module, "comm", comm)
        assert run(PanopticQualityEvaluator(mini, **more), pairs[::2]) == alone
        comm.is_main_process = lambda: False
        assert run(PanopticQualityEvaluator(mini, **more), pairs[::2]) is None
        assert run(PanopticQualityEvaluator(mini, distributed=False, **more), pairs) == alone

    def test_per_class_and_missing_image(self, mini: str, caplog: pytest.LogCaptureFixture):
        evaluator = PanopticQualityEvaluator(mini)
        with caplog.at_level(logging.WARNING):
            run(evaluator, perturbed(mini, shift=0)[:1])
        assert "4 of the 5 images" in caplog.text
        assert list(evaluator.per_class) == [7, 3, 12, 5, 9]  # as in the JSON
        assert [one.tp for one in evaluator.per_class.values()] == [1, 1, 1, 0, 0]
        assert evaluator.per_class[5].fn == 1
        assert not evaluator.per_class[9].occurs

    @pytest.mark.parametrize("kinds", [(), (False,)])
    def test_things_that_are_not_found_count_as_zero(self, mini: str, kinds: tuple[bool, ...]):
        """Nothing is predicted, or stuff alone."""
        pairs = perturbed(mini, shift=0)
        for _, output in pairs:
            ids, segments = output["panoptic_seg"]
            kept = [one for one in segments if one["isthing"] in kinds]
            is_kept = torch.isin(ids, torch.tensor([one["id"] for one in kept], dtype=torch.int32))
            output["panoptic_seg"] = (torch.where(is_kept, ids, 0), kept)
        result = run(PanopticQualityEvaluator(mini), pairs)["panoptic_seg"]
        assert result["PQ_th"] == result["SQ_th"] == result["RQ_th"] == 0.0
        # Of the four classes that occur, sky and ground are found or not.
        assert result["PQ_st"] == pytest.approx(100.0 if kinds else 0.0)
        assert result["PQ"] == pytest.approx(50.0 if kinds else 0.0)

    def test_segments_without_isthing_have_the_datasets_ids(self, mini: str):
        pairs = perturbed(mini, shift=0)[:1]
        _, segments = pairs[0][1]["panoptic_seg"]
        gt = PanopticGroundTruth(mini)
        dataset_ids = {gt.contiguous_id(one): one for one in gt.categories}
        for segment in segments:
            del segment["isthing"]
            segment["category_id"] = dataset_ids[segment["category_id"]]
        evaluator = PanopticQualityEvaluator(mini)
        run(evaluator, pairs)
        assert [one.tp for one in evaluator.per_class.values()] == [1, 1, 1, 0, 0]

    def test_boundary_and_sizes_beside_pq(self, mini: str, caplog: pytest.LogCaptureFixture):
        pairs = perturbed(mini)
        plain = PanopticQualityEvaluator(mini)
        assert run(plain, pairs).keys() == {"panoptic_seg"}
        evaluator = PanopticQualityEvaluator(mini, boundary=True, by_size=True)
        with caplog.at_level(logging.INFO):
            results = run(evaluator, pairs)
        assert results["panoptic_seg"] == run(plain, pairs)["panoptic_seg"]
        assert list(results["panoptic_boundary"]) == list(results["panoptic_seg"])
        assert 0 < results["panoptic_boundary"]["PQ"] < results["panoptic_seg"]["PQ"]
        assert list(results["panoptic_sizes"]) == [
            "PQ_small",
            "SQ_small",
            "RQ_small",
            "PQ_medium",
            "SQ_medium",
            "RQ_medium",
        ]
        for text in ("things, boundary", "medium", "boundary PQ", "ground"):
            assert text in caplog.text
        for category, one in evaluator.boundary_per_class.items():  # matches get fewer, segments do not
            mask = evaluator.per_class[category]
            assert one.tp <= mask.tp and one.tp + one.fn == mask.tp + mask.fn

    def test_set_without_things(self, mini: str):
        """A kind without categories, and classes that never occur."""
        source = Path(MetadataCatalog.get(mini).panoptic_json)
        content = json.loads(source.read_text())
        content["categories"] = [one for one in content["categories"] if not one["isthing"]]
        content["annotations"] = content["annotations"][1:2]  # sky alone
        source.write_text(json.dumps(content))
        vars(MetadataCatalog.get(mini))["thing_dataset_id_to_contiguous_id"] = {}
        pairs = perturbed(mini)
        results = run(PanopticQualityEvaluator(mini, boundary=True, by_size=True), pairs)
        assert results["panoptic_seg"].keys() == {"PQ", "SQ", "RQ", "PQ_st", "SQ_st", "RQ_st"}
        assert results["panoptic_seg"]["RQ"] == results["panoptic_boundary"]["RQ_st"] == 100
        assert results["panoptic_sizes"].keys() == {"PQ_medium", "SQ_medium", "RQ_medium"}  # 40 x 32 pixels

    def test_writes_coco_format(self, mini: str, tmp_path: Path):
        pairs = perturbed(mini)
        run(PanopticQualityEvaluator(mini, output_dir=tmp_path / "dump"), pairs)
        content = json.loads((tmp_path / "dump" / "panoptic_predictions.json").read_text())
        assert [one["image_id"] for one in content["annotations"]] == [1, 11, 21, 31, 41]
        _, output = pairs[2]
        annotation = content["annotations"][2]
        written = rgb2id(np.array(Image.open(tmp_path / "dump" / "panoptic_predictions" / annotation["file_name"])))
        np.testing.assert_array_equal(written, output["panoptic_seg"][0].numpy())
        assert annotation["segments_info"] == [{"id": 1, "category_id": 12}, {"id": 2, "category_id": 3},
                                               {"id": 3, "category_id": 3}]  # fmt: skip
        # panopticapi takes the files, and sees in them what the evaluator has seen
        metadata = MetadataCatalog.get(mini)
        stat = panopticapi.evaluation.pq_compute_single_core(
            0,
            list(zip(json.loads(Path(metadata.panoptic_json).read_text())["annotations"], content["annotations"])),
            metadata.panoptic_root,
            str(tmp_path / "dump" / "panoptic_predictions"),
            PanopticGroundTruth(mini).categories,
        )
        evaluator = PanopticQualityEvaluator(mini)
        run(evaluator, pairs)
        for category, one in evaluator.per_class.items():
            assert (one.tp, one.fp, one.fn, one.iou_sum) == tuple(
                getattr(stat[category], name) for name in ("tp", "fp", "fn", "iou")
            )

    def test_writer_needs_no_ground_truth(self, mini: str, tmp_path: Path):
        pairs = perturbed(mini)
        Path(MetadataCatalog.get(mini).panoptic_json).unlink()
        assert run(PanopticWriter(mini, tmp_path / "dump"), pairs) is None
        content = json.loads((tmp_path / "dump" / "panoptic_predictions.json").read_text())
        assert len(content["annotations"]) == len(list((tmp_path / "dump" / "panoptic_predictions").iterdir())) == 5

    def test_written_names_are_those_of_the_ground_truth(self, mini: str, tmp_path: Path):
        """In sub-folders, where images of several folders and kinds have one base name."""
        metadata, names = MetadataCatalog.get(mini), [f"d{number % 2}/{number // 2}.png" for number in range(5)]
        rename_pngs(metadata, names)
        run(PanopticWriter(mini, tmp_path / "dump"), perturbed(mini))
        content = json.loads((tmp_path / "dump" / "panoptic_predictions.json").read_text())
        assert [one["file_name"] for one in content["annotations"]] == names
        folder = tmp_path / "dump" / "panoptic_predictions"
        gt = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
        stat = panopticapi.evaluation.pq_compute_single_core(
            0,
            list(zip(gt, content["annotations"])),
            metadata.panoptic_root,
            str(folder),
            PanopticGroundTruth(mini).categories,
        )
        evaluator = PanopticQualityEvaluator(mini)
        run(evaluator, perturbed(mini))
        assert {key: stat[key].tp for key in evaluator.per_class} == {
            key: one.tp for key, one in evaluator.per_class.items()
        }

    def test_written_names_without_ground_truth(self, mini: str, tmp_path: Path):
        """Image ids are names, as in COCO; one with a slash leads to no other folder."""
        pairs = perturbed(mini)
        pairs[3][0]["image_id"] = "city/7"
        Path(MetadataCatalog.get(mini).panoptic_json).unlink()
        run(PanopticWriter(mini, tmp_path / "dump"), pairs)
        written = {file.name for file in (tmp_path / "dump" / "panoptic_predictions").rglob("*")}
        assert written == {f"0000000000{number}.png" for number in ("01", "11", "21", "41")} | {"city%2F7.png"}

    def test_mistakes_name_the_image_or_the_file(self, mini: str):
        evaluator = PanopticQualityEvaluator(mini)
        (image, output), *_ = perturbed(mini)
        ids, segments = output["panoptic_seg"]
        with pytest.raises(ValueError, match=r"image 1: .*height"):
            evaluator.process([image], [{"panoptic_seg": (ids[:-1], segments)}])
        with pytest.raises(ValueError, match="no annotation for image id 77"):
            evaluator.process([{"image_id": 77}], [output])
        with pytest.raises(ValueError, match="class 44 as a thing"):
            evaluator.process([image], [{"panoptic_seg": (ids, [{"id": 1, "category_id": 44, "isthing": True}])}])
        source = Path(MetadataCatalog.get(mini).panoptic_json)
        content = json.loads(source.read_text())
        unlisted = content["annotations"][0]["segments_info"].pop()["id"]
        source.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=rf"0\.png: the PNG has ids .* not list: \[{unlisted}\]"):
            PanopticQualityEvaluator(mini).process([image], [output])
        Path(MetadataCatalog.get(mini).panoptic_root, "0.png").unlink()
        with pytest.raises(ValueError, match=r"0\.png"):
            evaluator.process([image], [output])


def test_ground_truth_is_found_by_ids_of_either_type(mini: str):
    gt = PanopticGroundTruth(mini)
    np.testing.assert_array_equal(gt.read("00000000021").labels, gt.read(21).labels)
    assert mini == NAME
