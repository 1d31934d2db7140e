from __future__ import annotations

import json
from pathlib import Path

import pytest

from psf.errors import UserError
from psf.tools.dataset_conversion.classes import named_classes, parse_list, read_classes

ROAD = {"id": 7, "name": "road", "supercategory": "", "isthing": 0}
CAR = {"id": 26, "name": "car, small", "supercategory": "", "isthing": 1}


@pytest.mark.parametrize(
    "content",
    [
        b'name,value,isthing\nroad,7,0\n"car, small",26,1\n',
        b"\xef\xbb\xbfName;Value;IsThing;\r\nroad;7;0;\r\ncar, small;26;1;\r\n;;;\r\n\r\n",  # Excel's, in German
        b'sep=;\nid;"name";thing\n7; road ;no\n26;car, small;yes\n',
        "name\tvalue\tisthing\nroad\t7\tFalse\ncar, small\t26\tTrue\n".encode("utf-16"),  # Excel's "Unicode text"
        b'\n\nisthing,hint,name,value\n0,x,road,7\n1,,"car, small",26',
        b'name,value,isthing,ignore\nroad,7,0,0\n"car, small",26,1,\nedge,255,,1\n',
    ],
)
def test_dialects_of_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.csv").write_bytes(content)
    classes = read_classes(tmp_path / "classes.csv")
    assert classes.categories == [ROAD, CAR] and classes.things == [26]
    assert {key: value for key, value in classes.by_value.items() if value is not None} == {7: 7, 26: 26}


def test_colors_rows_of_one_name_and_ignored_values(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("name,r,g,b,color,isthing\nroad,128,64,128,,0\nroad,,,,#010203,0\ncar,0,0,142,,1\n")
    classes = read_classes(path, ignore=["255", "#ffffff"])
    assert classes.by_color == {0x804080: 1, 0x010203: 1, 0x00008E: 2, 0xFFFFFF: None}
    assert classes.by_value == {255: None}
    assert [one["color"] for one in classes.categories] == [[128, 64, 128], [0, 0, 142]]


def test_things_of_the_argument_override_the_column(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    path.write_text("name,value,isthing\nroad,1,1\ncar,2,0\n")
    assert read_classes(path, things=["car"]).things == [2]
    assert read_classes(path, things=[]).things == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found the first line '', expected a header"),
        ("road,7\ncar,26\n", "found the first line 'road,7', expected a header such as name,value,isthing"),
        ("name,value\nroad,7\n", "found no column isthing, expected one .* or --things"),
        ("name,value,isthing\n", "found no class that is not ignored"),
        ("name,value,isthing\nroad,7,0\ncar,7,1\n", "line 3: an earlier line has the same value, 7"),
        ("name,color,isthing\nroad,#000001,0\ncar,000001,1\n", r"line 3: .* same color, #000001 \(0, 0, 1\)"),
        ("name,value,isthing\nroad,7,0\nroad,8,1\n", "line 3: 'road' has another isthing"),
        ("name,value,isthing\nroad,-1,0\n", "line 2: value is '-1', expected a whole number from 0"),
        ("name,value,isthing\nroad,7.0,0\n", "line 2: value is '7.0'"),
        ("name,value,isthing\nroad,\u0663,0\n", "line 2: value is"),
        ("name,value,isthing\nroad,7,maybe\n", "line 2: isthing is 'maybe', expected 0 or 1"),
        ("name,r,g,b,isthing\nroad,1,2,,0\n", "line 2: found a part of r, g and b"),
        ("name,r,g,b,isthing\nroad,1,2,256,0\n", "line 2: b is '256', expected a whole number from 0 to 255"),
        ("name,color,isthing\nroad,red,0\n", "line 2: the color is 'red', expected #rrggbb"),
        ("name,value,isthing\n,7,0\n", "line 2: the name is ''"),
        ('name,value,isthing\n"road,7,0\n', "line 2: found .* expected a line of a CSV"),
    ],
)
def test_mistakes_in_a_csv(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "classes.csv"
    path.write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_classes(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_files_that_are_no_csv(tmp_path: Path) -> None:
    path = tmp_path / "classes.csv"
    with pytest.raises(UserError, match=r"classes\.csv: cannot be read"):
        read_classes(path)
    path.write_bytes("name,value\nStra\u00dfe,1\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"not in UTF-8 .* save it as `CSV UTF-8`"):
        read_classes(path)
    path.write_bytes(b"name,value,isthing\n" + b"x" * 2_000_000)
    with pytest.raises(UserError, match="found more than 1000000 bytes"):
        read_classes(path)
    with pytest.raises(UserError, match="a folder, expected a regular file"):
        read_classes(tmp_path)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ({"name": "road"}, "label 1: 'instances' is missing"),
        ({"name": 3, "instances": True}, "label 1: 'name' is 3"),
        ({"name": "x", "instances": "yes"}, "label 1: 'instances' is 'yes'"),
        (7, "label 1: found 7"),
    ],
)
def test_mistakes_in_the_config_of_mapillary(tmp_path: Path, label: object, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"labels": [{"name": "sky", "instances": False}, label]}))
    with pytest.raises(UserError, match=message):
        read_classes(path)
    path.write_text("{}")
    with pytest.raises(UserError, match=r"expected a config\.json of Mapillary Vistas, or a CSV: 'labels' is missing"):
        read_classes(path)


def test_full_names_where_short_ones_repeat(tmp_path: Path) -> None:
    labels = [{"name": f"a--{i}", "readable": "Car", "instances": True} for i in range(2)]
    (tmp_path / "config.json").write_text(json.dumps({"labels": labels}))
    assert [one["name"] for one in read_classes(tmp_path / "config.json").categories] == ["a--0", "a--1"]


def test_lists_and_names_of_arguments() -> None:
    assert parse_list('car, "bus, large",, person') == ["car", "bus, large", "person"]
    assert parse_list("") == []
    assert [one["id"] for one in named_classes(["b", "a"]).categories] == [1, 2]
    with pytest.raises(UserError, match="--things: 'a' is repeated"):
        named_classes(["a", "a"])
