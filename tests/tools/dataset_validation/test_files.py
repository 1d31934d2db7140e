"""Which annotations are corrected by their PNG, and which have the PNG of another image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from psf.data.panoptic_labels import measure_panoptic_png
from psf.tools.dataset_validation.validation import validate_panoptic, write_corrected
from tests.data.conftest import save_ids
from tests.data.damaged_set import change, places, segments, validate
from tests.mini_set import CATEGORIES, write_mini_set


def test_swapped_pngs_with_the_same_ids_stay(tmp_path):
    """Ids 1, 2, ... in each image: the PNGs of two images fit each other's lists, but for areas and boxes."""
    root = tmp_path / "set"
    root.mkdir()
    layouts = [[[1, 1, 1, 2]] * 3, [[1, 2, 2, 2]] * 3, [[1, 1, 2, 2]] * 3]
    content = {"categories": CATEGORIES, "images": [], "annotations": []}
    for folder in ("images", "panoptic"):
        (root / folder).mkdir()
    for number, layout in enumerate(layouts):
        ids, name = np.array(layout), f"{number}.png"
        save_ids(root / "panoptic" / name, ids)
        Image.new("RGB", (4, 3)).save(root / "images" / name)
        measured = measure_panoptic_png(str(root / "panoptic" / name))
        listed = [
            {"id": one, "category_id": 7 if one == 1 else 3, "area": area, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            for one, area, (x0, y0, x1, y1) in zip(*(part.tolist() for part in measured[1:]))
        ]
        content["images"].append({"id": number, "file_name": name, "height": 3, "width": 4})
        content["annotations"].append({"image_id": number, "file_name": name, "segments_info": listed})
    (root / "panoptic.json").write_text(json.dumps(content))
    assert validate(root).unfixed() == {}  # no iscrowd, which is corrected
    swapped = [root / "panoptic" / name for name in ("0.png", "1.png")]
    pixels = [path.read_bytes() for path in swapped]
    for path, other in zip(swapped, pixels[::-1]):
        path.write_bytes(other)
    report = validate(root)
    kind = "PNG of another image?"
    assert [fault.where for fault in report.faults if fault.kind == kind] == ["0.png", "1.png"]
    write_corrected(report, tmp_path / "fixed.json")
    fixed = json.loads((tmp_path / "fixed.json").read_text())
    assert fixed["annotations"][:2] == content["annotations"][:2]
    assert fixed["annotations"][2] != content["annotations"][2]
    again = validate_panoptic(str(tmp_path / "fixed.json"), *places(root)[1:])
    assert again.unfixed()[kind] == 2


@pytest.mark.parametrize(
    "change_one",
    [
        lambda one: one.update(area=one["area"] * 0.97, bbox=[side + 0.3 for side in one["bbox"]]),  # of polygons
        lambda one: one.update(area=0, bbox=[0, 0, 0, 0]),  # not filled in
        lambda one: (one.pop("area"), one.pop("bbox")),
        lambda one: one.update(bbox=[0, 0, 1, 1]),
        lambda one: one.update(area="many", bbox=None),
    ],
)
def test_areas_and_boxes_of_another_making_are_corrected(tmp_path, change_one):
    root = tmp_path / "set"
    write_mini_set(root)
    source = json.loads((root / "panoptic.json").read_text())
    change(root, lambda x: [change_one(one) for image in range(5) for one in segments(x, image)])
    report = validate(root)
    assert not report.is_clean and report.unfixed() == {} and report.corrected == source
