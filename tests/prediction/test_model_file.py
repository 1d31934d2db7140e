"""A model file alone: its config, its classes, and what it may not do."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import psf
from psf.checkpoint import ModelEntry, read_checkpoint, write_checkpoint
from psf.config import leaves
from psf.errors import UserError
from psf.prediction import read_config, read_model_file
from tests.model_files import CLASSES, EASY, model_config, noise

ALONE = """
import json, sys
import psf
predictor = psf.load(sys.argv[1])
result = predictor("photo.png")
names = [[one.class_name, one.category_id] for one in result.segments]
print(json.dumps([names, [str(one) for one in predictor.classes], predictor.metadata.thing_colors[0]]))
"""


def test_alone_in_a_fresh_process(model_file: Path, predictor: psf.Predictor, run_python: Any, tmp_path: Path) -> None:
    """Nothing but the file and a picture: no dataset, no config, no folder of datasets."""
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "m.pth").write_bytes(model_file.read_bytes())
    Image.fromarray(noise()).save(tmp_path / "alone" / "photo.png")
    repository = Path(psf.__file__).parents[1]
    code = "import os; os.environ['DETECTRON2_DATASETS'] = '/nowhere'\n" + ALONE
    done = run_python("-W", "ignore", "-c", code, "m.pth", path=[repository], cwd=tmp_path / "alone")
    assert done.returncode == 0, done.stderr
    names, classes, color = json.loads(done.stdout.splitlines()[-1])
    assert names == [[one.class_name, one.category_id] for one in predictor(noise()).segments] and names
    assert classes == [str(one) for one in CLASSES] and color == [250, 0, 0]


def test_the_config_is_that_of_the_training(model_file: Path) -> None:
    found = dict(leaves(read_model_file(model_file, device="cpu").cfg))
    expected = dict(leaves(model_config()))
    own = {key for key in expected if ModelEntry.is_model_key(key) and key != "DATASETS.TEST"}
    assert {key: found[key] for key in own} == {key: expected[key] for key in own}
    assert found["MODEL.WEIGHTS"] == str(model_file)


def test_options_come_last(model_file: Path) -> None:
    cfg = read_model_file(model_file, options=["MODEL.PSF.TEST.TILES.SIZE", "64"], device="cpu").cfg
    assert cfg.MODEL.PSF.TEST.TILES.SIZE == 64
    with pytest.raises(UserError, match=r"unknown config key 'MODEL\.PSF\.TILES'"):
        read_model_file(model_file, options=["MODEL.PSF.TILES", "64"])


def test_unnamed_classes_get_names() -> None:
    entry = ModelEntry.of_config(model_config({**EASY, "CLASSES": []}))
    cfg = read_config(entry.as_entry(), "m.pth")
    assert cfg.MODEL.PSF.CLASSES[2:4] == ["thing 2 2 - class 2", "stuff 3 3 - class 3"]


def test_modules_are_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a model file says, only --import and imports= have a module imported."""
    (tmp_path / "psf_test_evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.chdir(tmp_path)
    entry = ModelEntry.of_config(model_config({**EASY, "IMPORTS": ["psf_test_evil"]})).as_entry()
    with pytest.raises(UserError, match=r"m\.pth needs your module 'psf_test_evil'.* add --import psf_test_evil"):
        read_config(entry, "m.pth")
    assert "psf_test_evil" not in sys.modules
    with pytest.raises(SystemExit, match="imported"):
        read_config(entry, "m.pth", imports=["psf_test_evil"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['touch x']", "the tag .* is refused, and nothing was executed"),
        ("_BASE_: /etc/passwd", "has the key '_BASE_': expected only keys that describe the model"),
        ("OUTPUT_DIR: elsewhere", "has the key 'OUTPUT_DIR'"),
        ("MODEL: {WEIGHTS: other.pth}", "has the key 'MODEL.WEIGHTS'"),
        ("MODEL: {PSF: {TIMM: {PRETRAINED: true}}}", "has the key 'MODEL.PSF.TIMM.PRETRAINED'"),
        ("INPUT: {PSF_MAX_PIXELS: 10000000000}", "has the key 'INPUT.PSF_MAX_PIXELS'"),
        ("MODEL: {PSF: {OF_TOMORROW: 1}}", r"unknown config key 'MODEL\.PSF\.OF_TOMORROW' in .*m\.pth \(of psf 9\.9"),
        ("MODEL: {PSF: {HIDDEN_DIM: many}}", "MODEL.PSF.HIDDEN_DIM in .* is 'many': expected a whole number"),
        ("a: [" * 50, "not valid YAML"),
        ("x" * 400_000, "has 400000 characters"),
    ],
)
def test_hostile_configs_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_config(ModelEntry(text, "9.9").as_entry(), "m.pth")
    assert "\n" not in str(caught.value) and "m.pth" in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "no config of its model: .* --config-file"),
        (7, "has 7 under 'psf_model': expected texts under config and psf_version"),
        ({"version": 1, "config": 1, "psf_version": "x"}, "expected texts under config and psf_version"),
        ({"version": 2, "psf_version": "3.0"}, r"version '2' \(of psf 3\.0\), this psf .* reads version 1: update psf"),
    ],
)
def test_other_entries_are_refused(entry: Any, message: str) -> None:
    with pytest.raises(UserError, match=rf"m\.pth.*{message}"):
        read_config({"psf_model": entry}, "m.pth")


def test_old_checkpoints_need_a_config(tmp_path: Path, model_file: Path) -> None:
    content = {"model": read_checkpoint(model_file)["model"]}
    write_checkpoint(content, tmp_path / "old.pth")
    with pytest.raises(UserError, match="--config-file"):
        psf.load(tmp_path / "old.pth")
    (tmp_path / "config.yaml").write_text(model_config().dump(), encoding="utf-8")
    old = psf.load(tmp_path / "old.pth", config_file=tmp_path / "config.yaml", device="cpu")
    assert [one.name for one in old.classes] == [one.name for one in CLASSES]


def test_a_pickle_with_code_is_refused(tmp_path: Path, model_file: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return (Path(tmp_path / "canary").write_text, ("x",))

    torch.save({**read_checkpoint(model_file), "psf_model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match="nothing in it was executed"):
        psf.load(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("model", "message"), [("", "the model is empty"), ("no.pth", r"no\.pth: no such"), (".", "folder")]
)
def test_what_is_no_file(model: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        psf.load(model)


def edited(model_file: Path, folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy whose config is changed, and whose weights are not."""
    content = read_checkpoint(model_file)
    config = yaml.safe_load(content["psf_model"]["config"])
    edit(config)
    content["psf_model"] = {**content["psf_model"], "config": yaml.safe_dump(config)}
    write_checkpoint(content, folder / "edited.pth")
    return folder / "edited.pth"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"HIDDEN_DIM": 96_000}, r"weights do not fit the config in it \(.* has the shape .*, expected .*96000.*other"),
        ({"NUM_THING_QUERIES": 99_999}, r"do not fit .*query_.* expected \(99999, "),
        ({"PIXEL_ENCODER": {"NUM_LAYERS": 900_000}}, "a model of more than .* modules and parameters"),
        (
            {"CLASSES": [str(one) for one in CLASSES[:3]], "NUM_STUFF_CLASSES": 0},
            r"names other classes than .* \(3 against 7; ",
        ),
        ({"CLASSES": [str(one._replace(name="x")) for one in CLASSES]}, "two classes with the same name"),
        ({"CLASSES": [str(one._replace(category_id=1)) for one in CLASSES]}, "two classes with the same category id"),
        ({"CLASSES": [str(CLASSES[0]) + "x" * 255]}, "a name of 259 characters"),
    ],
)
def test_a_config_of_other_weights_is_refused_before_the_model_is_built(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], message: str
) -> None:
    def edit(config: dict[str, Any]) -> None:
        for key, value in keys.items():
            node = config["MODEL"]["PSF"]
            node[key] = {**node[key], **value} if isinstance(value, dict) else value

    path = edited(model_file, tmp_path, edit)
    monkeypatch.setattr("psf.engine.predictor.build_model", None)
    with pytest.raises(UserError, match=message) as caught:
        psf.load(path, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_model_of_detectron2_is_refused(model_file: Path, tmp_path: Path) -> None:
    path = edited(model_file, tmp_path, lambda config: config["MODEL"].update(META_ARCHITECTURE="GeneralizedRCNN"))
    with pytest.raises(UserError, match=r"a model of Detectron2.* GeneralizedRCNN: expected PanopticSegFormer"):
        psf.load(path, device="cpu")


def test_options_may_change_the_model(model_file: Path) -> None:
    """The user's own options are no damage of the file."""
    predictor = psf.load(model_file, options=["MODEL.PSF.NUM_THING_QUERIES", "30"], device="cpu")
    assert predictor.cfg.MODEL.PSF.NUM_THING_QUERIES == 30
