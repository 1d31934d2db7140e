"""A model that sees colours, pictures for it, and `psf predict` in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import BitMasks, Instances
from PIL import Image
from torch import nn

from psf.commands.predicting.predict import main
from psf.errors import UserError

DATASET = "psf_test_demo"
SKY, BALL = 0, 1  # contiguous: the stuff class comes first


@META_ARCH_REGISTRY.register()
class PsfTestColorSegmenter(nn.Module):
    """A ball where the picture is red, sky where it is blue, void elsewhere; thresholds are honoured, black refused."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg

    def forward(self, batched_inputs):
        asked, results = self.cfg.MODEL.PSF.TEST, []
        for sample in batched_inputs:
            ids, segments = self.segment(sample)
            result = {}
            if asked.PANOPTIC_ON:
                result["panoptic_seg"] = (ids, segments)
            if asked.INSTANCE_ON:
                result["instances"] = self.instances(ids, [one for one in segments if one["isthing"]])
            if asked.SEMANTIC_ON:  # where there is no ball, there is sky
                result["sem_seg"] = torch.stack([ids != 2, ids == 2]).float()
            results.append(result)
        return results

    def instances(self, ids, segments):
        kept = [one for one in segments if one["score"] >= self.cfg.MODEL.PSF.TEST.INSTANCE.SCORE_THRESH]
        found = Instances(tuple(ids.shape))
        found.pred_masks = torch.stack([ids == one["id"] for one in kept]) if kept else ids.new_zeros(0, *ids.shape) > 0
        found.scores = torch.tensor([one["score"] for one in kept])
        found.pred_classes = torch.tensor([one["category_id"] for one in kept], dtype=torch.int64)
        found.pred_boxes = BitMasks(found.pred_masks).get_bounding_boxes()
        return found

    def segment(self, sample):
        if sample["image"].mean() < 1:
            raise UserError("the image is black")
        size = (sample["height"], sample["width"])
        blue, _, red = nn.functional.interpolate(sample["image"][None], size=size)[0]  # INPUT.FORMAT is BGR
        thresholds = self.cfg.MODEL.PSF.POST_PROCESSOR
        ids, segments = torch.zeros(size, dtype=torch.int32), []
        for number, category, is_thing, score, mask, t_cnf in (
            (1, SKY, False, 0.4, (blue > 180) & (red <= 180), thresholds.STUFF.T_CNF),
            (2, BALL, True, 0.9, red > 180, thresholds.THINGS.T_CNF),
        ):
            if score >= t_cnf and mask.any():
                ids[mask] = number
                info = {"id": number, "category_id": category, "isthing": is_thing, "score": score}
                segments.append(info | {"area": int(mask.sum())})
        return ids, segments


@pytest.fixture(scope="module", autouse=True)
def metadata() -> Iterator[Metadata]:
    names, colors = ["sky", "ball"], [[0, 0, 255], [255, 0, 0]]
    yield MetadataCatalog.get(DATASET).set(
        thing_classes=names,
        stuff_classes=names,
        thing_colors=colors,
        stuff_colors=colors,
        thing_dataset_id_to_contiguous_id={7: BALL},
        stuff_dataset_id_to_contiguous_id={30: SKY},
    )
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        "VERSION: 2\n"
        "MODEL: {META_ARCHITECTURE: PsfTestColorSegmenter, WEIGHTS: '', DEVICE: cpu}\n"
        f"DATASETS: {{TEST: [{DATASET}]}}\n"
        "INPUT: {MIN_SIZE_TEST: 60, MAX_SIZE_TEST: 400}\n"
    )
    return path


@pytest.fixture
def run(config: Path) -> Callable[..., int]:
    """`psf predict` as a function of its arguments: run("--input", path, ...) gives the exit code."""
    return lambda *arguments: main(["--config-file", str(config), *map(str, arguments)])


def draw_scene(height: int = 60, width: int = 90, left: int = 20) -> np.ndarray:
    """RGB: blue above row 40, gray below, and a red box of 10 x 16 pixels on the border of the two."""
    image = np.full((height, width, 3), 128, np.uint8)
    image[:40] = (0, 0, 255)
    image[35:45, left : left + 16] = (255, 0, 0)
    return image


@pytest.fixture
def scene() -> Callable[..., np.ndarray]:
    """`draw_scene`."""
    return draw_scene


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The scene as a file named a.png, in a folder of its own."""
    path = tmp_path / "in" / "a.png"
    path.parent.mkdir()
    Image.fromarray(draw_scene()).save(path)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder for results that does not exist yet."""
    return tmp_path / "out"
