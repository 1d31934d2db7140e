"""Readers of annotations: panoptic JSON, exports of annotation tools, label files."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from psf.commands.datasets import convert_dataset, validate
from psf.data import load_panoptic_json
from psf.data.panoptic_labels import read_panoptic_labels
from psf.output.annotations import encode_brush
from psf.tools.dataset_conversion.classes import read_classes
from psf.tools.dataset_conversion.sources import read_labels
from tests.faults.pictures import encoded
from tests.faults.reader import Reader, by_bytes, by_json, by_strategy, run_command
from tests.mini_set import write_mini_set

__all__ = ["ANNOTATIONS"]


def prepare_mini() -> list[bytes]:
    write_mini_set(Path("mini"))
    return [Path("mini/panoptic.json").read_bytes()]


def read_panoptic_json() -> None:
    for one in load_panoptic_json("input.json", "mini/panoptic", "mini/images"):
        if "segments_info" in one:
            read_panoptic_labels(one["pan_seg_file_name"], one["segments_info"])


def validate_panoptic_json() -> None:
    places = ("--json", "input.json", "--png-root", "mini/panoptic", "--image-root", "mini/images")
    run_command(validate.main, *places, "--html", "out/report.html", "--fix", "out/fixed.json", "--workers", "1")


def prepare_instances() -> list[bytes]:
    image = {"id": 1, "file_name": "a/1.png", "height": 12, "width": 16}
    shapes: list[Any] = [
        [[1, 1, 9, 1, 9, 9, 1, 9]],
        {"size": [12, 16], "counts": [20, 30, 142]},
        {"size": [12, 16], "counts": "d0n0R4"},
        [[0, 0, 16, 0, 16, 12], [3, 3, 5, 3, 5, 5.5]],
    ]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1 + i % 2, "segmentation": one, "iscrowd": 0, "bbox": [1, 1, 8, 8]}
        for i, one in enumerate(shapes, 1)
    ]
    categories = [{"id": 1, "name": "ball", "supercategory": ""}, {"id": 2, "name": "grass"}]
    Path("stuff.txt").write_text("7,grass\n8,sky\n")
    content = {"images": [image, {**image, "id": 2, "file_name": "2.jpg"}], "annotations": annotations}
    return [json.dumps({**content, "categories": categories}).encode()]


def convert_instances() -> None:
    convert("--instances", "input.json")


def convert(*words: str) -> None:
    fixed = ("--semantic-labels", "stuff.txt", "--overlap", "smaller-on-top", "--output", "out", "--workers", "1")
    run_command(convert_dataset.main, *words, *fixed)


def prepare_labelme() -> list[bytes]:
    Path("labelme").mkdir()
    Path("stuff.txt").write_text("7,grass\n8,sky\n")
    mask = base64.b64encode(encoded(Image.new("1", (4, 4), 1), "PNG")).decode()
    points = {
        "polygon": [[1, 1], [9, 1], [9, 9.5]],
        "rectangle": [[0, 0], [16, 4]],
        "circle": [[5, 5], [8, 5]],
        "rotation": [[0, 0], [5, 0], [5, 5], [0, 5]],
        "mask": [[2, 2], [5, 5]],
        "line": [[0, 0], [3, 3]],
    }
    shapes = [
        {"label": "ball", "points": value, "shape_type": kind, "group_id": None, "flags": {}}
        | ({"mask": mask} if kind == "mask" else {})
        for kind, value in points.items()
    ]
    shapes.append({"label": "grass", "points": [[0, 0], [16, 0], [16, 12]], "group_id": 3})
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "../labelme/1.png", "imageData": None}
    return [json.dumps({**content, "imageHeight": 12, "imageWidth": 16}).encode()]


def convert_labelme() -> None:
    convert("--labelme", "labelme")


def prepare_supervisely() -> list[bytes]:
    for name in ("ann", "img"):
        Path("project/ds", name).mkdir(parents=True)
    Image.new("RGB", (16, 12)).save("project/ds/img/1.png")
    Path("project/meta.json").write_text(json.dumps({"classes": [{"title": "ball"}, {"title": "grass"}]}))
    data = base64.b64encode(zlib.compress(encoded(Image.new("1", (4, 4), 1), "PNG"))).decode()
    points = {"exterior": [[1, 1], [9, 1], [9, 9.5]], "interior": [[[2, 2], [3, 2], [3, 3]]]}
    common = {"classTitle": "ball", "tags": [], "description": ""}
    objects = [
        {**common, "geometryType": "bitmap", "bitmap": {"data": data, "origin": [2, 3]}},
        {**common, "geometryType": "polygon", "points": points},
        {**common, "geometryType": "multipolygon", "parts": [points, {"exterior": [[0, 0], [5, 0], [5, 5]]}]},
        {**common, "geometryType": "rectangle", "points": {"exterior": [[0, 0], [3, 3]], "interior": []}},
        {**common, "geometryType": "line", "points": {"exterior": [[0, 0], [3, 3]], "interior": []}},
    ]
    return [json.dumps({"size": {"height": 12, "width": 16}, "objects": objects, "tags": []}).encode()]


def convert_supervisely() -> None:
    fixed = ("--overlap", "smaller-on-top", "--background", "rest", "--output", "out", "--overwrite", "--workers", "1")
    run_command(convert_dataset.main, "--supervisely", "project", *fixed)


def convert_again(*words: str) -> None:
    fixed = ("--overlap", "smaller-on-top", "--output", "out", "--overwrite", "--workers", "1")
    run_command(convert_dataset.main, *words, *fixed)


def prepare_cvat() -> list[bytes]:
    box = 'left="1" top="1" width="3" height="2"'
    shapes = (
        f'<mask label="ball" source="auto" occluded="0" rle="0, 2, 2, 2" {box} z_order="0">'
        '<attribute name="score">0.9</attribute></mask>'
        '<polygon label="grass" points="0.5,0;16,0;16,12.25" group_id="2" z_order="1"/>'
        '<box label="ball" xtl="1" ytl="1" xbr="5" ybr="4.5" rotation="30"/>'
        '<ellipse label="ball" cx="4" cy="5" rx="3" ry="2"/><points label="ball" points="1,1"/>'
    )
    labels = "<label><name>ball</name></label><label><name>grass</name></label>"
    meta = f"<annotations><version>1.1</version><meta><task><labels>{labels}</labels></task></meta>"
    image = f'<image id="0" name="a/1.png" width="16" height="12">{shapes}</image>'
    text = f'{meta}{image}<image id="1" name="2.png" width="5" height="4"></image></annotations>'
    runs = ["999999999999999"] * 18446 + ["744073709570064"]  # 2^64 + 2 pixels: 2 for int64
    wrapped = text.replace("0, 2, 2, 2", ",".join(runs))
    entity = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    head = "<?xml version='1.0' encoding='utf-8'?>"
    return [f"{head}{one}".encode() for one in (text, text, f"{entity}{text}", wrapped)]


def convert_cvat() -> None:
    convert_again("--cvat", "input.xml")


def prepare_label_studio() -> list[bytes]:
    common = {"id": "r", "from_name": "a", "to_name": "b", "original_width": 16, "original_height": 12}
    mask = np.zeros((12, 16), dtype=bool)
    mask[2:5, 3:7] = True
    values: dict[str, dict[str, Any]] = {
        "brushlabels": {"format": "rle", "rle": encode_brush(mask)},
        "polygonlabels": {"points": [[1, 1], [90, 1], [90, 95.5]], "closed": True},
        "rectanglelabels": {"x": 1, "y": 2.5, "width": 30, "height": 40, "rotation": 20},
        "ellipselabels": {"x": 40, "y": 50, "radiusX": 10, "radiusY": 20, "rotation": 0},
        "keypointlabels": {"x": 1, "y": 1, "width": 1},
    }
    regions = [
        {**common, "type": kind, "image_rotation": 0, "value": {**value, kind: ["ball"]}}
        for kind, value in values.items()
    ]
    task = {"id": 1, "data": {"image": "/data/local-files/?d=a/1.png"}, "predictions": [{"result": regions[:1]}]}
    annotations = [{"result": regions, "was_cancelled": False}, {"result": [], "was_cancelled": True}]
    return [json.dumps([{**task, "annotations": annotations}, {**task, "data": {"image": "x/2.png"}}]).encode()]


def convert_label_studio() -> None:
    convert_again("--label-studio", "input.json")


def prepare_yolo() -> list[bytes]:
    for folder in ("yolo/images/train", "yolo/labels/train"):
        Path(folder).mkdir(parents=True)
    Image.new("RGB", (16, 12)).save("yolo/images/train/1.png")
    Path("yolo/data.yaml").write_text("names: {0: ball, 1: grass}")
    return [b"0 0.1 0.1 0.5 0.1 0.5 0.9\n1 0.5 0.5 0.2 0.2\n", b"1 0 0 1 0 1 1 0 1 0 0\n"]


def convert_yolo() -> None:
    convert_again("--yolo", "yolo")


def prepare_yolo_names() -> list[bytes]:
    prepare_yolo()
    return [b"train: images/train\nnames:\n  0: ball\n  1: grass\n", b"nc: 2\nnames: [ball, 'grass']\n"]


def prepare_classes() -> list[bytes]:
    return [
        b"name,value,isthing\nball,1,1\ngrass,2,0\n",
        b"\xef\xbb\xbfname;r;g;b;isthing;ignore\r\nball;1;2;3;1;\r\nedge;255;255;255;;1\r\n",
        json.dumps({"labels": [{"name": "sky", "instances": False, "readable": "Sky", "evaluate": True}]}).encode(),
    ]


def read_classes_file() -> None:
    read_classes(Path("input.csv"))
    read_classes(Path("input.csv"), things=["ball"], ignore=["255", "#ffffff"])


def prepare_labels() -> list[bytes]:
    return [b"1,ball\n2,box\n# more\n\n21,grass\n", "\ufeff1,Stra\u00dfe\r\n2,sky, blue\r\n".encode()]


def labels_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    number = st.one_of(st.integers().map(str), st.text(max_size=4), st.sampled_from(("1", "01", "\u00b2", "9" * 30)))
    line = st.tuples(number, st.sampled_from((",", ";", ", ", "", "\t")), st.text(max_size=8)).map("".join)
    texts = st.lists(line, max_size=5).flatmap(
        lambda lines: st.sampled_from(("\n", "\r\n", "\r")).map(lambda e: e.join(lines))
    )
    return st.one_of(st.sampled_from(sound), texts.map(lambda text: text.encode("utf-8", "surrogatepass")))


def read_labels_file() -> None:
    read_labels(Path("input.txt"))


ANNOTATIONS = (
    Reader("panoptic JSON", 60, ("input.json",), prepare_mini, by_strategy(by_json), read_panoptic_json),
    Reader(
        "panoptic JSON, psf validate", 30, ("input.json",), prepare_mini, by_strategy(by_json), validate_panoptic_json
    ),
    Reader("panoptic JSON, damaged bytes", 40, ("input.json",), prepare_mini, by_bytes, read_panoptic_json),
    Reader(
        "instances JSON, psf convert-dataset",
        40,
        ("input.json",),
        prepare_instances,
        by_strategy(by_json),
        convert_instances,
    ),
    Reader(
        "labelme JSON, psf convert-dataset",
        40,
        ("labelme/1.json",),
        prepare_labelme,
        by_strategy(by_json),
        convert_labelme,
    ),
    Reader(
        "Supervisely JSON, psf convert-dataset",
        30,
        ("project/ds/ann/1.png.json",),
        prepare_supervisely,
        by_strategy(by_json),
        convert_supervisely,
    ),
    Reader("CVAT XML, psf convert-dataset", 60, ("input.xml",), prepare_cvat, by_bytes, convert_cvat),
    Reader(
        "Label Studio JSON, psf convert-dataset",
        50,
        ("input.json",),
        prepare_label_studio,
        by_strategy(by_json),
        convert_label_studio,
    ),
    Reader("YOLO text, psf convert-dataset", 40, ("yolo/labels/train/1.txt",), prepare_yolo, by_bytes, convert_yolo),
    Reader("YOLO data.yaml, psf convert-dataset", 20, ("yolo/data.yaml",), prepare_yolo_names, by_bytes, convert_yolo),
    Reader("table of classes", 30, ("input.csv",), prepare_classes, by_bytes, read_classes_file),
    Reader("labels file", 20, ("input.txt",), prepare_labels, by_strategy(labels_strategy), read_labels_file),
)
