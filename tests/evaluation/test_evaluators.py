"""Evaluators over a small dataset on disk, against Detectron2's own."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import detectron2.evaluation.coco_evaluation
import numpy as np
import panopticapi.evaluation
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator, SemSegEvaluator
from detectron2.structures import Boxes, Instances
from panopticapi.utils import rgb2id
from PIL import Image

from psf.evaluation import (
    InstanceEvaluator,
    PanopticGroundTruth,
    PanopticQualityEvaluator,
    PanopticWriter,
    SemanticEvaluator,
    write_instance_json,
)
from psf.evaluation import panoptic_evaluator as panoptic_evaluator_module
from tests.mini_set import NAME, register_mini_set, unregister_mini_set, write_mini_set


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


def rename_pngs(metadata: Any, names: list[str]) -> None:
    """Give the ground truth's PNGs other names below their folder, in the order of the JSON."""
    content = json.loads(Path(metadata.panoptic_json).read_text())
    for annotation, name in zip(content["annotations"], names):
        target = Path(metadata.panoptic_root, name)
        target.parent.mkdir(exist_ok=True)
        Path(metadata.panoptic_root, annotation["file_name"]).rename(target)
        annotation["file_name"] = name
    Path(metadata.panoptic_json).write_text(json.dumps(content))


def perturbed(name: str, shift: int = 3) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(input, output) pairs: the ground truth moved to the right, one segment dropped, ids renumbered."""
    gt = PanopticGroundTruth(name)
    pairs = []
    for image in DatasetCatalog.get(name):
        labels, segments = gt.read_contiguous(image["image_id"])
        moved = np.roll(labels, shift, axis=1)
        ids = np.zeros(labels.shape, dtype=np.int32)
        kept = []
        for number, segment in enumerate(segments[:3], 1):
            ids[moved == segment["id"]] = number
            kept.append(
                {"id": number, "category_id": segment["category_id"], "isthing": segment["isthing"], "score": 0.5}
            )
        pairs.append((image, {"panoptic_seg": (torch.from_numpy(ids), kept)}))
    return pairs


def run(evaluator: Any, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, dict[str, float]]:
    evaluator.reset()
    for image, output in pairs:
        evaluator.process([image], [output])
    return evaluator.evaluate()


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

    @pytest.mark.parametrize("names", [["../0.png"], ["{root}/0.png"], ["a.png"] * 5, None])
    def test_written_names_where_the_ground_truth_has_none_to_take(
        self, mini: str, tmp_path: Path, names: list[str] | None
    ):
        """They lead out of the folder, or are one, or there is no ground truth: image ids are names, as in COCO."""
        metadata = MetadataCatalog.get(mini)
        pairs = perturbed(mini)
        pairs[3][0]["image_id"] = "city/7"
        if names is None:
            Path(metadata.panoptic_json).unlink()
        else:
            content = json.loads(Path(metadata.panoptic_json).read_text())
            for annotation, name in zip(content["annotations"], names):
                annotation["file_name"] = name.format(root=metadata.panoptic_root)
            Path(metadata.panoptic_json).write_text(json.dumps(content))
        before = Path(metadata.panoptic_root, "0.png").read_bytes()
        run(PanopticWriter(mini, tmp_path / "dump"), pairs)
        written = {file.name for file in (tmp_path / "dump" / "panoptic_predictions").rglob("*")}
        assert written == {f"0000000000{number}.png" for number in ("01", "11", "21", "41")} | {"city%2F7.png"}
        assert Path(metadata.panoptic_root, "0.png").read_bytes() == before

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


def as_semantic(pairs: list[tuple[dict[str, Any], dict[str, Any]]], num_classes: int) -> list[tuple[dict, dict]]:
    """The same predictions as class scores; what is in no segment becomes class 4."""
    result = []
    for image, output in pairs:
        ids, segments = output["panoptic_seg"]
        classes = torch.full(ids.shape, 4)
        for segment in segments:
            classes[ids == segment["id"]] = segment["category_id"]
        result.append((image, {"sem_seg": torch.nn.functional.one_hot(classes, num_classes).permute(2, 0, 1).float()}))
    return result


class TestSemanticEvaluator:
    def test_equals_detectron2_on_written_pngs(self, mini: str, tmp_path: Path):
        pairs = as_semantic(perturbed(mini), 5)
        ours = run(SemanticEvaluator(mini), pairs)["sem_seg"]

        gt = PanopticGroundTruth(mini)
        for image, _ in pairs:
            labels, segments = gt.read_contiguous(image["image_id"])
            classes = np.full(labels.shape, 255, dtype=np.uint8)
            for segment in segments:
                classes[labels == segment["id"]] = segment["category_id"]
            image["sem_seg_file_name"] = str(tmp_path / f"{image['image_id']}.png")
            Image.fromarray(classes).save(image["sem_seg_file_name"])
        name = "psf_test_mini_semantic"
        DatasetCatalog.register(name, lambda: [image for image, _ in pairs])
        MetadataCatalog.get(name).set(stuff_classes=gt.metadata.stuff_classes, ignore_label=255)
        try:
            evaluator = SemSegEvaluator(name, sem_seg_loading_fn=lambda path, dtype: np.array(Image.open(path), dtype))
            theirs = run(evaluator, pairs)["sem_seg"]
        finally:
            unregister_mini_set(name)
        assert 0 < ours["mIoU"] < 100
        assert "IoU-cloud" not in ours  # NaN in Detectron2's
        assert ours == pytest.approx({key: theirs[key] for key in ours}, rel=1e-12)

    def test_perfect_prediction(self, mini: str):
        gt = PanopticGroundTruth(mini)
        pairs = []
        for image in DatasetCatalog.get(mini):
            labels, segments = gt.read_contiguous(image["image_id"])
            scores = np.zeros((5, *labels.shape), dtype=np.float32)
            for segment in segments:
                scores[segment["category_id"]][labels == segment["id"]] = 1
            pairs.append((image, {"sem_seg": torch.from_numpy(scores)}))
        assert set(run(SemanticEvaluator(mini), pairs)["sem_seg"].values()) == {100.0}

    def test_no_score_above_zero(self, mini: str):
        """Nothing speaks for any class: the first takes all pixels, and the others' IoU is 0."""
        pairs = as_semantic(perturbed(mini), 5)
        for _, output in pairs:
            output["sem_seg"].zero_()
        result = run(SemanticEvaluator(mini), pairs)["sem_seg"]
        assert all(math.isfinite(value) for value in result.values())
        assert result["IoU-ball"] == result["IoU-ground"] == result["IoU-box"] == 0.0

    def test_refuses_separated_ids(self, mini: str):
        name = "psf_test_mini_separated"
        MetadataCatalog.get(name).set(
            thing_dataset_id_to_contiguous_id={3: 0, 5: 1}, stuff_dataset_id_to_contiguous_id={7: 1, 12: 2}
        )
        with pytest.raises(ValueError, match=r"contiguous ids \[1\]"):
            SemanticEvaluator(name)
        MetadataCatalog.remove(name)


def true_instances(name: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    gt = PanopticGroundTruth(name)
    pairs = []
    for image in DatasetCatalog.get(name):
        labels, segments = gt.read_contiguous(image["image_id"])
        things = [one for one in segments if one["isthing"] and not one["iscrowd"]]
        instances = Instances(labels.shape)
        masks = [torch.from_numpy(labels == one["id"]) for one in things]
        instances.pred_masks = torch.stack(masks) if masks else torch.zeros(0, *labels.shape, dtype=torch.bool)
        instances.pred_boxes = Boxes(torch.zeros(len(things), 4))
        instances.scores = torch.ones(len(things))
        instances.pred_classes = torch.tensor([one["category_id"] for one in things], dtype=torch.int64)
        pairs.append((image, {"instances": instances}))
    return pairs


class TestInstanceEvaluator:
    def test_joint_ids(self, mini: str, tmp_path: Path):
        path = tmp_path / "derived" / "instances.json"
        write_instance_json(mini, path)
        pairs = true_instances(mini)
        result = run(InstanceEvaluator(mini, str(path)), pairs)["segm"]
        assert result["AP"] == pytest.approx(100)
        balls = [one for _, output in pairs for one in output["instances"].pred_classes.tolist() if one == 1]
        assert len(balls) == 3
        for _, output in pairs:  # no box is found any more: class 3, "box", becomes 1, "ball"
            output["instances"].pred_classes = torch.ones_like(output["instances"].pred_classes)
        result = run(InstanceEvaluator(mini, str(path)), pairs)["segm"]
        assert result["AP-box"] == 0
        assert 0 < result["AP-ball"] < 100

    def test_boxes(self, mini: str, tmp_path: Path):
        """Boxes of no size find nothing, the masks' own find all; a ground truth of boxes alone gives no mask AP."""
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        pairs = true_instances(mini)
        assert run(InstanceEvaluator(mini, str(path)), pairs)["bbox"]["AP"] == 0
        for _, output in pairs:
            masks = output["instances"].pred_masks
            boxes = [[float(f(i)) for f in (min, max) for i in mask.nonzero().T.flip(0)] for mask in masks]
            output["instances"].pred_boxes = Boxes(torch.tensor(boxes).view(-1, 4) + torch.tensor([0.0, 0, 1, 1]))
        result = run(InstanceEvaluator(mini, str(path)), pairs)
        assert result["bbox"]["AP"] == pytest.approx(100) and result["segm"]["AP"] == pytest.approx(100)
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        boxes_alone = tmp_path / "boxes.json"
        boxes_alone.write_text(json.dumps(content))
        assert run(InstanceEvaluator(mini, str(boxes_alone)), pairs).keys() == {"bbox"}

    @pytest.mark.parametrize("ids", [[12, "a1", "07", "b/2", 41], [2**63 + 1, 3, 21, 31, 41], list("abcde")])
    def test_image_ids_of_any_kind(self, mini: str, tmp_path: Path, ids: list[int | str]):
        """NumPy, which COCOeval sorts them by, makes text of all ids if one is, and floats of large and small ones."""
        source = Path(MetadataCatalog.get(mini).panoptic_json)
        content = json.loads(source.read_text())
        for image, annotation, image_id in zip(content["images"], content["annotations"], ids, strict=True):
            image["id"] = annotation["image_id"] = image_id
        source.write_text(json.dumps(content))
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        pairs = true_instances(mini)
        assert run(InstanceEvaluator(mini, str(path)), pairs)["segm"]["AP"] == pytest.approx(100)
        pairs[0][1]["instances"].pred_classes = pairs[0][1]["instances"].pred_classes.flip(0)  # ball and box exchanged
        worse = run(InstanceEvaluator(mini, str(path)), pairs)["segm"]
        assert 0 < worse["AP-ball"] < 100 and 0 < worse["AP-box"] < 100

    def test_an_image_that_the_ground_truth_lacks_is_refused(self, mini: str, tmp_path: Path):
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        evaluator = InstanceEvaluator(mini, str(path))
        (image, output), *_ = true_instances(mini)
        with pytest.raises(ValueError, match=r"instances\.json does not contain image id 99"):
            evaluator.process([{**image, "image_id": 99}], [output])

    @pytest.mark.parametrize("use_fast_impl", [False, True])
    def test_no_prediction_is_an_ap_of_zero(
        self, mini: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, use_fast_impl: bool
    ):
        """As it is when all predictions are wrong: both give NaN for what has no ground truth, and 0 for the rest."""
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        nothing, wrong = true_instances(mini), true_instances(mini)
        for (_, empty), (_, output) in zip(nothing, wrong, strict=True):
            empty["instances"] = empty["instances"][:0]
            output["instances"].pred_masks[:] = False
        evaluator = InstanceEvaluator(mini, str(path))
        evaluator._use_fast_impl = evaluator._use_fast_impl and use_fast_impl
        with caplog.at_level(logging.WARNING):
            result = run(evaluator, nothing)
        assert caplog.text.count("no instance was predicted") == 2  # of boxes and of masks
        assert str(result) == str(run(evaluator, wrong))  # str: NaN is not equal to NaN
        for task in ("bbox", "segm"):
            figures = result[task]
            # The things have 150 to 450 pixels: all are small (below 32 x 32), none is medium or large.
            assert [figures[key] for key in ("AP", "AP50", "AP75", "APs", "AP-ball", "AP-box")] == [0.0] * 6
            assert math.isnan(figures["APm"]) and math.isnan(figures["APl"])

    @pytest.mark.parametrize("thing_ids", [{3: 1}, {3: 1, 5: 3}])
    def test_no_prediction_where_a_class_has_no_ground_truth(self, mini: str, tmp_path: Path, thing_ids: dict):
        """The class is in no mean and has no figure of its own; with a single class Detectron2 gives the mean alone."""
        nothing = [(image, {"instances": output["instances"][:0]}) for image, output in true_instances(mini)]
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        derived = json.loads(path.read_text())
        derived["annotations"] = [one for one in derived["annotations"] if one["category_id"] != 5]
        derived["categories"] = [one for one in derived["categories"] if one["id"] in thing_ids]
        path.write_text(json.dumps(derived))
        vars(MetadataCatalog.get(mini))["thing_dataset_id_to_contiguous_id"] = thing_ids
        figures = run(InstanceEvaluator(mini, str(path)), nothing)["segm"]
        assert figures["AP"] == figures["APs"] == 0
        names = {key for key in figures if "-" in key}
        assert names == ({"AP-ball", "AP-box"} if len(thing_ids) == 2 else set())
        assert all(math.isnan(figures[name]) == (name == "AP-box") for name in names)

    def test_no_prediction_and_no_ground_truth(self, mini: str, tmp_path: Path):
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
        nothing = [(image, {"instances": output["instances"][:0]}) for image, output in true_instances(mini)]
        result = run(InstanceEvaluator(mini, str(path)), nothing)
        assert result["bbox"] and all(math.isnan(value) for value in result["bbox"].values())

    def test_no_prediction_in_one_process_of_two(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        pairs = true_instances(mini)
        other = InstanceEvaluator(mini, str(path))
        other.reset()
        for image, output in pairs[2:]:
            other.process([image], [output])
        comm = SimpleNamespace(
            synchronize=lambda: None, gather=lambda mine, dst: [mine, other._predictions], is_main_process=lambda: True
        )
        monkeypatch.setattr(detectron2.evaluation.coco_evaluation, "comm", comm)
        nothing = [(image, {"instances": output["instances"][:0]}) for image, output in pairs[:2]]
        # Of 3 balls 2 and of 4 boxes 3 are in the other process's images.
        figures = run(InstanceEvaluator(mini, str(path)), nothing)["segm"]
        assert figures["AP"] == pytest.approx((figures["AP-ball"] + figures["AP-box"]) / 2)
        assert 60 < figures["AP-ball"] < figures["AP-box"] < 80

    def test_derived_json(self, mini: str, tmp_path: Path):
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        content = json.loads(path.read_text())
        assert [one["name"] for one in content["categories"]] == ["ball", "box"]
        assert [one["image_id"] for one in content["annotations"]] == [1, 1, 21, 21, 21, 31, 31, 41]
        crowd = content["annotations"][4]
        assert (crowd["iscrowd"], crowd["area"], crowd["bbox"]) == (1, 200, [40, 20, 20, 10])
        before = path.stat().st_mtime_ns
        write_instance_json(mini, path)
        assert path.stat().st_mtime_ns == before

    def test_derived_json_of_another_ground_truth_is_replaced(self, mini: str, tmp_path: Path):
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        source = Path(MetadataCatalog.get(mini).panoptic_json)
        content = json.loads(source.read_text())
        content["annotations"] = content["annotations"][:1]
        vars(MetadataCatalog.get(mini))["panoptic_json"] = str(tmp_path / "smaller.json")
        (tmp_path / "smaller.json").write_text(json.dumps(content))
        os.utime(tmp_path / "smaller.json", (0, 0))  # older than what was derived of the other
        write_instance_json(mini, path)
        assert [one["image_id"] for one in json.loads(path.read_text())["annotations"]] == [1, 1]
        path.write_text("damaged")
        write_instance_json(mini, path)
        assert len(json.loads(path.read_text())["images"]) == 1

    @pytest.mark.parametrize("is_time_kept", [False, True])
    def test_derived_json_of_other_pngs_is_replaced(self, mini: str, tmp_path: Path, is_time_kept: bool):
        """The JSON and even a PNG's size and time of modification may be as they were."""
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        png = Path(MetadataCatalog.get(mini).panoptic_root, "0.png")
        before, pixels = os.stat(png), np.array(Image.open(png))
        other = np.flip(pixels, axis=0)
        Image.fromarray(other).save(png)
        png.write_bytes(png.read_bytes()[: before.st_size].ljust(before.st_size, b"\0"))  # what follows IEND is ignored
        if is_time_kept:
            os.utime(png, ns=(before.st_atime_ns, before.st_mtime_ns))
        write_instance_json(mini, path)
        ball = json.loads(path.read_text())["annotations"][0]
        assert ball["bbox"] == [5, 40 - 20, 15, 15]

    def test_derived_json_of_a_png_that_is_gone(self, mini: str, tmp_path: Path):
        write_instance_json(mini, tmp_path / "instances.json")
        Path(MetadataCatalog.get(mini).panoptic_root, "0.png").unlink()
        with pytest.raises(ValueError, match=r"0\.png: no such image file"):
            write_instance_json(mini, tmp_path / "instances.json")

    def test_stuff_is_refused(self, mini: str, tmp_path: Path):
        write_instance_json(mini, tmp_path / "instances.json")
        evaluator = InstanceEvaluator(mini, str(tmp_path / "instances.json"))
        (image, output), *_ = true_instances(mini)
        output["instances"].pred_classes[:] = 0
        with pytest.raises(ValueError, match=r"classes \[0\], but the thing classes are \[1, 3\]"):
            evaluator.process([image], [output])


def test_ground_truth_is_found_by_ids_of_either_type(mini: str):
    gt = PanopticGroundTruth(mini)
    np.testing.assert_array_equal(gt.read("00000000021").labels, gt.read(21).labels)
    assert mini == NAME
