"""Panels: which images they show, and what stands in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage
from PIL import Image

from psf.evaluation import (
    PanelEvaluator,
    PanelRow,
    PanopticGroundTruth,
    PanopticMap,
    PanopticQualityEvaluator,
    draw_panel,
    panels,
)
from psf.evaluation.panels import MAX_KEPT, choose_rows
from tests.mini_set import register_mini_set, unregister_mini_set, write_mini_set

CELL, GAP, HEADER = 480, 6, 32


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[str]:
    write_mini_set(tmp_path / "mini")
    yield register_mini_set(tmp_path / "mini")
    unregister_mini_set()


def test_rows_of_unequal_and_extreme_sizes(mini: str, tmp_path: Path):
    rows = []
    for height, width in ((40, 60), (17, 4000), (4000, 17), (1, 1)):
        ids = torch.zeros(height, width, dtype=torch.int32)
        ids[:, width // 2 :] = 1
        segments = [{"id": 1, "category_id": 1, "isthing": True, "score": 0.5, "area": -1}]
        segmentation = PanopticMap(ids, segments)
        rows.append(PanelRow(np.zeros((height, width, 3), np.uint8), segmentation, segmentation))
    panel = draw_panel(rows, MetadataCatalog.get(mini), tmp_path / "new" / "panel.png")
    assert segments[0]["area"] == -1
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "panel.png")), panel)
    np.testing.assert_array_equal(draw_panel(rows, MetadataCatalog.get(mini)), panel)
    assert panel.shape[1] == 3 * CELL + 2 * GAP
    assert panel[:HEADER].min() < 100  # the header's letters
    top = panel[HEADER : HEADER + 320]  # 40 x 60 drawn at 320 x 480: black, but red in the right half
    assert top[:, :CELL].max() == 0
    assert top[30, CELL + GAP + 450, 0] > 100 > 20 > top[30, CELL + GAP + 450, 1]
    assert top[160, CELL + GAP + 100].max() == 0
    below = panel[HEADER + 320 : HEADER + 340]
    assert below[:, :CELL].min() == 255  # no caption
    is_red = (below[:, CELL + GAP :] == (250, 0, 0)).all(axis=-1)  # the legend has the class's own colour
    assert is_red.sum() == 2 * 13 * 13


def test_caption_is_written_below_the_input(mini: str):
    nothing = PanopticMap(np.zeros((40, 60)), [])
    row = PanelRow(np.zeros((40, 60, 3), np.uint8), nothing, nothing)
    plain, named = (draw_panel([one], MetadataCatalog.get(mini)) for one in (row, row._replace(caption="PQ 12.3")))
    rows, columns = np.nonzero((plain != named).any(axis=-1))
    assert rows.min() > HEADER + 320 and columns.max() < CELL


def kept(*qualities: float) -> list[Any]:
    nothing = PanopticMap(np.zeros((1, 1)), [])
    image = np.zeros((1, 1, 3), np.uint8)
    return [panels._Kept(one, PanelRow(image, nothing, nothing, f"image {one}")) for one in qualities]


class TestChoice:
    def captions(self, qualities: list[float], among: list[float], num_rows: int) -> list[str]:
        return [row.caption for row in choose_rows(kept(*among), qualities, num_rows)]

    def test_best_median_and_worst(self):
        qualities = [0.1, 0.9, 0.2, 0.5, 0.3]
        assert self.captions(qualities, qualities, 3) == [
            "best, PQ 90.0, image 0.9, of 5 images",
            "median, PQ 30.0, image 0.3, of 5 images",
            "worst, PQ 10.0, image 0.1, of 5 images",
        ]

    def test_equal_numbers_of_images_lie_between(self):
        qualities = [i / 100 for i in range(101)]
        found = self.captions(qualities, qualities, 5)
        assert [one.split("PQ ")[1].split(",")[0] for one in found] == ["100.0", "75.0", "50.0", "25.0", "0.0"]
        assert [one.split(", ")[0] for one in found][::2] == ["best", "median", "worst"]

    def test_the_nearest_of_those_kept(self):
        found = self.captions([0.0, 0.4, 0.4, 0.5, 1.0], [1.0, 0.45, 0.0], 3)
        assert [one.split(", ")[1] for one in found] == ["PQ 100.0", "PQ 45.0", "PQ 0.0"]

    def test_few_images(self):
        assert self.captions([0.5], [0.5], 5) == ["PQ 50.0, image 0.5, of 1 images"]
        two = self.captions([0.5, 0.5], [0.5, 0.5], 5)
        assert [one.split(", ")[0] for one in two] == ["best", "worst"]


class TestEvaluator:
    def pairs(self, mini: str, image_format: str = "RGB") -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The ground truth as prediction; of the image in place i the first i segments are missing."""
        gt = PanopticGroundTruth(mini)
        found = []
        for place, image in enumerate(DatasetCatalog.get(mini)):
            labels, segments = gt.read_contiguous(image["image_id"])
            ids, infos = np.zeros(labels.shape, dtype=np.int32), []
            for number, segment in enumerate(segments[place:], 1):
                if not segment["iscrowd"]:
                    ids[labels == segment["id"]] = number
                    infos.append(
                        {"id": number, "category_id": segment["category_id"], "isthing": segment["isthing"], "score": 1}
                    )
            pixels = np.asarray(Image.open(image["file_name"]).resize((30, 20)))  # not the output's size
            ordered = pixels if image_format == "RGB" else pixels[:, :, ::-1]
            image = {**image, "image": torch.from_numpy(ordered.transpose(2, 0, 1).copy())}
            found.append((image, {"panoptic_seg": (torch.from_numpy(ids), infos)}))
        return found

    def run(self, mini: str, pairs: list, path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> list[PanelRow]:
        """The rows that are drawn."""
        quality = PanopticQualityEvaluator(mini)
        evaluator = PanelEvaluator(mini, "RGB", path, quality, **more)
        drawn: list[PanelRow] = []

        def draw(rows: list[PanelRow], *args: Any) -> np.ndarray:
            drawn.extend(rows)
            return draw_panel(rows, *args)

        monkeypatch.setattr(panels, "draw_panel", draw)
        for image, output in pairs:
            for one in (quality, evaluator):
                one.process([image], [output])
        assert len(evaluator._kept) <= MAX_KEPT
        assert evaluator.evaluate() == {}
        return drawn

    def test_rows_go_from_the_best_image_to_the_worst(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        rows = self.run(mini, self.pairs(mini), tmp_path / "panel.png", monkeypatch, num_rows=3)
        # All of image 1 is found, and nothing of the last.
        assert [row.caption.split(",")[0] for row in rows] == ["best", "median", "worst"]
        qualities = [float(row.caption.split("PQ ")[1].split(",")[0]) for row in rows]
        assert qualities[0] == 100.0 and qualities == sorted(qualities, reverse=True) and qualities[-1] == 0.0
        assert (tmp_path / "panel.png").is_file()

    @pytest.mark.parametrize("image_format", ["RGB", "BGR"])
    def test_pictures_are_those_of_the_model(self, mini: str, tmp_path: Path, image_format: str):
        pairs = self.pairs(mini, image_format)[:1]
        quality = PanopticQualityEvaluator(mini)
        evaluator = PanelEvaluator(mini, image_format, tmp_path / "panel.png", quality)
        with EventStorage() as storage:
            for one in (quality, evaluator):
                one.process(*([x] for x in pairs[0]))
            evaluator.evaluate()
            [(title, picture, _)] = storage._vis_data
        assert title == f"panel/{mini}"
        panel = np.asarray(Image.open(tmp_path / "panel.png"))
        np.testing.assert_array_equal(picture, panel.transpose(2, 0, 1))
        # The first image is 40 x 60 with a blue sky in its upper left corner.
        np.testing.assert_array_equal(panel[34, 2], [0, 0, 250])

    def test_memory_is_bounded_and_extremes_are_kept(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Of 400 images of qualities in any order; the images themselves are the same one."""
        [pair, *_] = self.pairs(mini)
        values = np.random.default_rng(0).permutation(400) / 399
        remaining = iter(values.tolist())
        monkeypatch.setattr(PanopticQualityEvaluator, "image_quality", lambda self, image_id: next(remaining))
        rows = self.run(mini, [pair] * 400, tmp_path / "panel.png", monkeypatch)
        qualities = [float(row.caption.split("PQ ")[1].split(",")[0]) for row in rows]
        assert qualities[0] == 100.0 and qualities[-1] == 0.0
        assert qualities == pytest.approx([100, 75, 50, 25, 0], abs=8)
        assert all("of 400 images" in row.caption for row in rows)

    def test_images_without_segments_are_not_shown(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(PanopticQualityEvaluator, "image_quality", lambda self, image_id: None)
        assert self.run(mini, self.pairs(mini), tmp_path / "panel.png", monkeypatch) == []
        assert not (tmp_path / "panel.png").exists()

    def test_processes_share_a_panel(self, mini: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        other = kept(0.25, 0.75), [0.25, 0.75]
        monkeypatch.setattr(panels, "comm", SimpleNamespace(gather=lambda mine: [mine, other]))
        rows = self.run(mini, self.pairs(mini)[:1], tmp_path / "panel.png", monkeypatch)
        assert [row.caption.rpartition(", of")[0] for row in rows] == [
            "best, PQ 100.0, image id 1",
            "median, PQ 75.0, image 0.75",
            "worst, PQ 25.0, image 0.25",
        ]
        monkeypatch.setattr(panels, "comm", SimpleNamespace(gather=lambda mine: []))  # not the main process
        assert self.run(mini, self.pairs(mini)[:1], tmp_path / "no.png", monkeypatch) == []
