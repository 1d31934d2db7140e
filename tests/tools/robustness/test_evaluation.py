"""Corrupted evaluations of a model that knows the mini set's colours, and going on with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model

from psf.tools.robustness import RobustnessRecord, corrupt, evaluate_corruption, evaluate_robustness
from psf.tools.robustness import evaluation as evaluation_module
from psf.tools.robustness.evaluation import Corrupt
from tests.mini_set import NAME, register_mini_set, unregister_mini_set, write_mini_set
from tests.models import tiny_config


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


@pytest.fixture
def cfg(mini: str) -> CfgNode:
    more = {"DATASETS__TEST": (mini,), "INPUT__MIN_SIZE_TEST": 32, "DATALOADER__NUM_WORKERS": 0}
    return tiny_config({}, MODEL__META_ARCHITECTURE="PsfTestColorModel", **more)


def run(cfg: CfgNode, record: RobustnessRecord, **more: Any) -> None:
    chosen = {"corruptions": ["contrast", "fog"], "severities": [1, 5], **more}
    evaluate_robustness(cfg, build_model(cfg), NAME, record, **chosen)


class TestAugmentation:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    @pytest.mark.parametrize("order", ["RGB", "BGR"])
    def test_changes_the_image_alone(self, order: str):
        """Water is turquoise, so the order of the channels matters."""
        inputs = T.AugInput(self.image, sem_seg=np.eye(40, 50))
        transform = Corrupt("spatter", 3, order)(inputs)
        assert np.array_equal(inputs.sem_seg, np.eye(40, 50))
        assert np.array_equal(transform.apply_image(self.image), inputs.image)  # the same each time
        flip = slice(None, None, -1) if order == "BGR" else slice(None)
        seed = transform.op.keywords["seed"]
        rgb = np.ascontiguousarray(self.image[..., flip])
        assert np.array_equal(inputs.image[..., flip], corrupt(rgb, "spatter", 3, seed))

    def test_images_differ_in_their_noise(self):
        first, other = self.image, self.image[::-1].copy()
        noises = [Corrupt("gaussian_noise", 1, "RGB").get_transform(x).op.keywords["seed"] for x in (first, other)]
        assert noises[0] != noises[1]


def test_images_are_corrupted_before_they_are_resized(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    sizes = []

    def record_size(image: np.ndarray, *more: Any) -> np.ndarray:
        sizes.append(image.shape[:2])
        return image

    monkeypatch.setattr(evaluation_module, "corrupt", record_size)
    clean = evaluate_corruption(cfg, build_model(cfg), NAME, None)
    assert evaluate_corruption(cfg, build_model(cfg), NAME, Corrupt("fog", 1, "BGR")) == clean
    assert sizes == [(40, 60), (48, 32), (32, 64), (30, 30), (36, 52)]


def test_corruption_does_harm_and_images_are_spread(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    model = build_model(cfg)
    clean = evaluate_corruption(cfg, model, NAME, None)
    gray = evaluate_corruption(cfg, model, NAME, Corrupt("contrast", 5, "BGR"))
    assert clean["PQ"] > gray["PQ"] and set(clean) >= {"PQ", "SQ", "RQ", "PQ_th", "PQ_st"}
    seen = []
    monkeypatch.setattr(model, "segment", lambda x, plain=model.segment: seen.append(x["image_id"]) or plain(x))
    evaluate_corruption(cfg, model, NAME, None, num_images=2)
    assert seen == [1, 21]  # of 1, 11, 21, 31, 41


def test_goes_on_where_it_stopped(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[Any] = []

    def evaluate(cfg: CfgNode, model: Any, name: str, augmentation: Corrupt | None, num_images: int | None) -> Any:
        calls.append(augmentation and (augmentation.name, augmentation.severity))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return {"PQ": float(len(calls))}

    monkeypatch.setattr(evaluation_module, "evaluate_corruption", evaluate)
    path = tmp_path / "record.json"
    with pytest.raises(KeyboardInterrupt):
        run(cfg, RobustnessRecord(path, {}))
    assert calls == [None, ("contrast", 1), ("contrast", 5)]
    run(cfg, RobustnessRecord(path, {}))
    assert calls[3:] == [("contrast", 5), ("fog", 1), ("fog", 5)]
    record = RobustnessRecord(path, {})
    assert record.clean_figure() == 1.0 and record.figures("contrast", [1, 5]) == [2.0, 4.0]
    run(cfg, record)
    assert len(calls) == 6


def test_mapper_without_augmentations(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation_module, "build_mapper", lambda cfg, is_train: lambda x: x)
    with pytest.raises(ValueError, match=r"INPUT\.DATASET_MAPPER_NAME is 'psf_panoptic'"):
        evaluate_corruption(cfg, build_model(cfg), NAME, Corrupt("fog", 1, "BGR"))


def test_images_that_are_no_pictures_in_colour(cfg: CfgNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Said before anything is evaluated."""
    monkeypatch.setattr(evaluation_module, "evaluate_corruption", lambda *args: pytest.fail("evaluated"))
    cfg.INPUT.FORMAT = "BANDS"
    with pytest.raises(ValueError, match=r"INPUT\.FORMAT is 'BANDS', expected 'BGR' or 'RGB'"):
        run(cfg, RobustnessRecord(tmp_path / "record.json", {}))
