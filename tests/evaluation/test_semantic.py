"""mIoU over a small dataset on disk, compared with Detectron2."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from psf.evaluation import (
    PanopticGroundTruth,
    SemanticEvaluator,
)
from psf.evaluation import semantic as semantic_module
from tests.evaluation.predictions import perturbed, run
from tests.mini_set import unregister_mini_set


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

    def test_classes_in_place_of_scores(self, mini: str):
        pairs = as_semantic(perturbed(mini), 5)
        classes = [(image, {"sem_seg": output["sem_seg"].argmax(dim=0)}) for image, output in pairs]
        result = run(SemanticEvaluator(mini), classes)
        assert result == run(SemanticEvaluator(mini), pairs) and 0 < result["sem_seg"]["mIoU"] < 100

    def test_another_size_is_refused(self, mini: str):
        image, output = as_semantic(perturbed(mini), 5)[0]
        turned = {"sem_seg": output["sem_seg"].transpose(1, 2)}  # the same number of pixels
        with pytest.raises(ValueError, match=r"\(60, 40\), the ground truth \(40, 60\)"):
            run(SemanticEvaluator(mini), [(image, turned)])

    def test_gathers_from_all_processes(self, mini: str, monkeypatch: pytest.MonkeyPatch):
        pairs, sent = as_semantic(perturbed(mini), 5), []
        alone = run(SemanticEvaluator(mini), pairs)
        comm = SimpleNamespace(
            synchronize=lambda: None, gather=lambda mine: sent.append(mine) or [mine], is_main_process=lambda: True
        )
        monkeypatch.setattr(semantic_module, "comm", comm)
        half = run(SemanticEvaluator(mini), pairs[1::2])
        comm.gather = lambda mine: [mine, sent[0]]
        assert run(SemanticEvaluator(mini), pairs[::2]) == alone != half
        comm.is_main_process = lambda: False
        assert run(SemanticEvaluator(mini), pairs[::2]) is None
        assert run(SemanticEvaluator(mini, distributed=False), pairs) == alone

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

    def test_maps_of_classes_count_as_scores(self, mini: str):
        pairs = as_semantic(perturbed(mini), 5)
        maps = [(image, {"sem_seg": output["sem_seg"].argmax(0).int()}) for image, output in pairs]
        assert run(SemanticEvaluator(mini), maps) == run(SemanticEvaluator(mini), pairs)

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
