"""A panoptic set of five small images, and a model that knows their colours: for tests that need no learning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor, nn

from psf import PanopticSegFormer
from psf.data import load_panoptic_json, panoptic_metadata
from psf.structures import Candidates

NAME = "psf_test_mini"
# Ids have gaps and stuff comes first. Nothing in the images is a "cloud".
CATEGORIES = [
    {"id": 7, "name": "sky", "isthing": 0, "color": [0, 0, 250]},
    {"id": 3, "name": "ball", "isthing": 1, "color": [250, 0, 0]},
    {"id": 12, "name": "ground", "isthing": 0, "color": [0, 250, 0]},
    {"id": 5, "name": "box", "isthing": 1, "color": [250, 250, 0]},
    {"id": 9, "name": "cloud", "isthing": 0, "color": [250, 250, 250]},
]
SKY, BALL, GROUND, BOX = 7, 3, 12, 5
# Per image: (height, width), and what is painted on it: category (None: void), top, left, bottom, right, crowd.
Shape = tuple[int | None, int, int, int, int, int]
IMAGES: list[tuple[tuple[int, int], list[Shape]]] = [
    ((40, 60), [(SKY, 0, 0, 25, 60, 0), (GROUND, 25, 0, 40, 60, 0), (BALL, 5, 5, 20, 20, 0), (BOX, 20, 40, 35, 55, 0)]),
    ((48, 32), [(SKY, 0, 0, 48, 32, 0), (None, 40, 0, 48, 32, 0)]),
    (
        (32, 64),
        [(GROUND, 0, 0, 32, 64, 0), (BALL, 4, 4, 14, 14, 0), (BALL, 4, 20, 14, 30, 0), (BALL, 20, 40, 30, 60, 1)],
    ),
    ((30, 30), [(BOX, 0, 0, 30, 15, 0), (BOX, 0, 15, 30, 30, 0)]),
    ((36, 52), [(SKY, 0, 0, 18, 52, 0), (GROUND, 18, 0, 36, 52, 0), (BOX, 10, 30, 30, 40, 0), (None, 0, 0, 4, 52, 0)]),
]


def write_mini_set(root: Path) -> None:
    """Write images, panoptic PNGs and panoptic.json below `root`; void pixels are gray."""
    for folder in ("images", "panoptic"):
        (root / folder).mkdir(parents=True)
    colors = {category["id"]: category["color"] for category in CATEGORIES}
    images, annotations = [], []
    for number, ((height, width), shapes) in enumerate(IMAGES):
        image_id, name = 10 * number + 1, f"{number}.png"
        picture = np.full((height, width, 3), 128, dtype=np.uint8)
        ids = np.zeros((height, width, 3), dtype=np.uint8)
        for position, (category, top, left, bottom, right, _) in enumerate(shapes, 1):
            area = np.s_[top:bottom, left:right]
            picture[area] = 128 if category is None else colors[category]
            ids[area] = 0 if category is None else (position, number, 1)
        segments = []
        for position, (category, *_, is_crowd) in enumerate(shapes, 1):
            if category is not None:
                rows, columns = np.nonzero((ids == (position, number, 1)).all(axis=-1))
                left, top = int(columns.min()), int(rows.min())
                box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
                own = {"id": position + 256 * number + 65536, "category_id": category, "iscrowd": is_crowd}
                segments.append({**own, "bbox": box, "area": len(rows)})
        Image.fromarray(picture).save(root / "images" / name)
        Image.fromarray(ids).save(root / "panoptic" / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations.append({"image_id": image_id, "file_name": name, "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (root / "panoptic.json").write_text(json.dumps(content))


def register_mini_set(root: Path, name: str = NAME) -> str:
    """Register what `write_mini_set` wrote; returns the name."""
    paths = {"json_file": root / "panoptic.json", "png_root": root / "panoptic", "image_root": root / "images"}
    DatasetCatalog.register(name, lambda: load_panoptic_json(**{key: str(path) for key, path in paths.items()}))
    MetadataCatalog.get(name).set(
        panoptic_json=str(paths["json_file"]),
        panoptic_root=str(paths["png_root"]),
        image_root=str(paths["image_root"]),
        **panoptic_metadata(CATEGORIES),
    )
    return name


def unregister_mini_set(name: str = NAME) -> None:
    """Forget the set again."""
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@META_ARCH_REGISTRY.register()
class PsfTestColorModel(nn.Module):
    """At test: each pixel has the class of the nearest colour, each class is one segment. In training: a toy loss."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.device = torch.device(cfg.MODEL.DEVICE)
        metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0])
        self.things = set(metadata.thing_dataset_id_to_contiguous_id.values())
        colors = torch.tensor(metadata.stuff_colors, dtype=torch.float32)
        self.register_buffer("colors", colors.flip(1), persistent=False)  # images come in BGR
        self.backbone = nn.Conv2d(3, 4, 1)
        self.norm = nn.GroupNorm(2, 4)
        self.sampling_offsets = nn.Linear(4, 2)
        self.classifier = nn.Linear(4, len(colors))

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        if self.training:
            return self.losses(batch)
        return [self.segment(image) for image in batch]

    def losses(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        means = [self.norm(self.backbone(one["image"][None].float() / 255)).mean(dim=(0, 2, 3)) for one in batch]
        features = torch.stack(means)
        return {
            "loss_class": self.classifier(features).square().mean(),
            "loss_point": (self.sampling_offsets(features) - 1).square().mean(),
        }

    def segment(self, image: dict[str, Any]) -> dict[str, Any]:
        pixels = nn.functional.interpolate(image["image"][None].float(), (image["height"], image["width"]))[0]
        scores = -(self.colors[:, :, None, None] - pixels).square().sum(dim=1)
        classes = scores.argmax(dim=0)
        ids = torch.zeros_like(classes, dtype=torch.int32)
        segments: list[dict[str, Any]] = []
        for number, one in enumerate(classes.unique().tolist(), 1):
            ids[classes == one] = number
            segments.append({"id": number, "category_id": one, "isthing": one in self.things, "score": 0.9})
        things = [one for one in segments if one["isthing"]]
        instances = Instances((image["height"], image["width"]))
        instances.pred_masks = torch.stack([ids == one["id"] for one in things]) if things else ids[None][:0].bool()
        instances.pred_boxes = Boxes(torch.zeros(len(things), 4))
        instances.scores = torch.full((len(things),), 0.9)
        instances.pred_classes = torch.tensor([one["category_id"] for one in things], dtype=torch.int64)
        return {"panoptic_seg": (ids, segments), "instances": instances, "sem_seg": scores}


def candidates_by_color(model: PanopticSegFormer, images: Tensor, padding_mask: Tensor | None) -> list[Candidates]:
    """Each pixel belongs to the class of the nearest colour; each class is one candidate, also of several things."""
    colors = torch.tensor([one["color"] for one in CATEGORIES], dtype=torch.float32)  # images come in RGB
    pixels = images * model.pixel_std + model.pixel_mean  # (B, 3, H, W)
    nearest = (pixels[:, None] - colors[:, :, None, None]).square().sum(dim=2).argmin(dim=1)  # (B, H, W)
    masks = torch.stack([nearest == position for position in range(len(colors))], dim=1).float()
    is_thing = torch.tensor([bool(one["isthing"]) for one in CATEGORIES])
    order = torch.cat((is_thing.nonzero()[:, 0], (~is_thing).nonzero()[:, 0]))
    indices = torch.cat((torch.arange(int(is_thing.sum())), torch.arange(int((~is_thing).sum()))))
    scores = torch.full((len(order),), 0.9)
    return [Candidates(scores, indices, is_thing[order], one[order], None) for one in masks]
