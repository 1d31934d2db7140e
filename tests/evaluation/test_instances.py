"""Mask AP over a small dataset on disk, compared with Detectron2."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import detectron2.evaluation.coco_evaluation
import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from psf.errors import UserError
from psf.evaluation import (
    InstanceEvaluator,
    PanopticGroundTruth,
    instances,
    write_instance_json,
)
from psf.evaluation.instances import encode_mask
from tests.evaluation.predictions import run


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
        path.write_text("somebody's")
        with pytest.raises(UserError, match=r"instances\.json exists, and psf has not written it"):
            write_instance_json(mini, path)
        assert path.read_text() == "somebody's"

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


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (4, 0)])
@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_masks_are_encoded_as_by_detectron2(size: tuple[int, int], kind: type):
    mask = (np.random.default_rng(0).random(size) > 0.5).astype(kind)
    expected = mask_util.encode(np.array(mask[:, :, None], order="F", dtype="uint8"))[0]
    for one in (mask, mask[::-1].copy()[::-1]):  # also with strides of its own
        assert encode_mask(one) == {"size": list(size), "counts": expected["counts"].decode()}


class TestDerivedWhileEvaluating:
    def test_gives_the_same_file_and_results(self, mini: str, tmp_path: Path):
        before, path = tmp_path / "before.json", tmp_path / "new" / "instances.json"
        write_instance_json(mini, before)
        pairs = true_instances(mini)
        pairs[0][1]["instances"].pred_classes = pairs[0][1]["instances"].pred_classes.flip(0)
        expected = run(InstanceEvaluator(mini, str(before)), pairs)
        evaluator = InstanceEvaluator(mini, str(path), derive=True)
        assert not path.exists()
        assert str(run(evaluator, pairs)) == str(expected) and 0 < expected["segm"]["AP"] < 100
        assert path.read_text() == before.read_text()
        assert str(run(evaluator, pairs)) == str(expected)  # again, after a reset

    def test_images_that_are_not_evaluated_are_in_it(self, mini: str, tmp_path: Path):
        """Their instances count as missed."""
        before, path = tmp_path / "before.json", tmp_path / "instances.json"
        write_instance_json(mini, before)
        run(InstanceEvaluator(mini, str(path), derive=True), true_instances(mini)[2:])
        assert path.read_text() == before.read_text()

    def test_a_file_that_is_up_to_date_is_kept(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        path = tmp_path / "instances.json"
        write_instance_json(mini, path)
        before = path.stat()
        pairs = true_instances(mini)
        monkeypatch.setattr(instances, "_encode_things", None)
        assert run(InstanceEvaluator(mini, str(path), derive=True), pairs)["segm"]["AP"] == pytest.approx(100)
        assert path.stat() == before
        Path(MetadataCatalog.get(mini).panoptic_root, "0.png").touch()
        monkeypatch.undo()
        run(InstanceEvaluator(mini, str(path), derive=True), pairs)
        assert path.stat().st_mtime_ns != before.st_mtime_ns

    def test_an_image_that_the_ground_truth_lacks_is_refused(self, mini: str, tmp_path: Path):
        (_, output), *_ = true_instances(mini)
        with pytest.raises(ValueError, match=r"instances\.json does not contain image id 99"):
            run(InstanceEvaluator(mini, str(tmp_path / "instances.json"), derive=True), [({"image_id": 99}, output)])
