"""From words on the command line to a config; each mistake has one clear message."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from psf.checkpoint import ModelEntry, read_checkpoint
from psf.engine import Predictor, argument_parser, build_config, setup
from psf.errors import UserError
from tests.engine.conftest import ParseArgs


def test_setup_on_the_cpu(parse_args: ParseArgs, tmp_path: Path):
    cfg = setup(parse_args("SOLVER.MAX_ITER", "5"))
    assert cfg.MODEL.DEVICE == "cpu"
    assert cfg.SOLVER.MAX_ITER == 5
    assert cfg.is_frozen()
    assert sorted(path.name for path in (tmp_path / "output").glob("[!.]*")) == ["config.yaml", "log.txt"]


def test_gpus_by_default(monkeypatch: pytest.MonkeyPatch):
    for present, expected in ((0, 0), (1, 1), (8, 1)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda present=present: present)
        assert argument_parser().parse_args([]).num_gpus == expected


@pytest.mark.parametrize(
    ("written", "near"),
    [("MODEL.PSF.NUM_THING_QUERY", "MODEL.PSF.NUM_THING_QUERIES"), ("SOLVER.BASE_LRR", "SOLVER.BASE_LR")],
)
def test_unknown_key(config_file: Path, written: str, near: str):
    message = re.escape(f"unknown config key {written!r} in ") + ".*" + re.escape(f"did you mean {near}?")
    with pytest.raises(ValueError, match=message):
        build_config(str(config_file), [written, "1"])
    *parents, leaf = written.split(".")
    child = config_file.with_name("child.yaml")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(parents)]
    child.write_text("\n".join([f"_BASE_: {config_file.name}", *lines, f"{'  ' * len(parents)}{leaf}: 1"]))
    with pytest.raises(ValueError, match=message):
        build_config(str(child))


def test_value_of_another_type(config_file: Path):
    with pytest.raises(ValueError, match=r"SOLVER\.MAX_ITER"):
        build_config(str(config_file), ["SOLVER.MAX_ITER", "many"])


def test_words_must_be_pairs(config_file: Path):
    with pytest.raises(ValueError, match="KEY VALUE pairs"):
        build_config(str(config_file), ["SOLVER.MAX_ITER"])
    with pytest.raises(ValueError, match="flags come before"):
        build_config(str(config_file), ["SOLVER.MAX_ITER", "3", "--num-machines", "2"])


def test_config_file_must_exist(tmp_path: Path):
    for missing in ("", str(tmp_path / "none.yaml")):
        with pytest.raises(ValueError, match="--config-file"):
            build_config(missing)


def test_config_by_name():
    by_name = build_config("coco/psf_R50_24ep.yaml")
    assert by_name.MODEL.META_ARCHITECTURE == "PanopticSegFormer"


def test_set_up_by_the_name_of_a_config(parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # away from the checkout
    args = parse_args()
    args.config_file = "coco/psf_R50_24ep.yaml"
    assert setup(args).MODEL.META_ARCHITECTURE == "PanopticSegFormer"
    assert Path(args.config_file).is_file()


@pytest.mark.parametrize("written", ["one,two", "('one', 'two')", "['one','two']", ("one", "two")])
def test_plain_names_of_datasets(config_file: Path, written: str | tuple[str, ...]):
    cfg = build_config(str(config_file), ["DATASETS.TRAIN", written, "DATASETS.TEST", "()"])
    assert cfg.DATASETS.TRAIN == ("one", "two")
    assert cfg.DATASETS.TEST == ()


class TestRegister:
    @pytest.fixture(autouse=True)
    def _forget(self) -> Iterator[None]:
        yield
        for catalog in (DatasetCatalog, MetadataCatalog):
            if "psf_test_flag" in catalog:
                catalog.remove("psf_test_flag")

    def test_set_up_saves_where_the_set_lies(
        self, parse_args: ParseArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.chdir(tmp_path)
        cfg = setup(parse_args("--register", "psf_test_flag=a.json,b,c", "DATASETS.TRAIN", "psf_test_flag"))
        assert cfg.DATASETS.TRAIN == ("psf_test_flag",) and "psf_test_flag" in DatasetCatalog
        monkeypatch.chdir("/")
        again = build_config(str(tmp_path / "output" / "config.yaml"))
        expected = [f"psf_test_flag={tmp_path}/a.json,{tmp_path}/b,{tmp_path}/c"]
        found = again.DATASETS.PSF_REGISTER
        assert found == expected

    def test_unused(self, config_file: Path, caplog: pytest.LogCaptureFixture):
        build_config(str(config_file), [], ["psf_test_flag=a.json,b,c"])
        assert "--register: psf_test_flag is not used; add after the flags: DATASETS.TRAIN" in caplog.text

    def test_another_form(self, config_file: Path):
        with pytest.raises(ValueError, match="NAME=JSON,PNGS,IMAGES"):
            build_config(str(config_file), [], ["psf_test_flag=a.json"])


class TestImport:
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """The current folder, with modules that note that they were imported; it is not on sys.path."""
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
        package = tmp_path / "psf_test_package"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "decoder.py").write_text("imported = True\n")
        (tmp_path / "psf_test_broken.py").write_text("import psf_test_missing_requirement\n")
        yield
        for name in [name for name in sys.modules if name.startswith("psf_test_")]:
            del sys.modules[name]

    def test_flag_and_key(self, config_file: Path, parse_args: ParseArgs):
        cfg = setup(parse_args("--import", "psf_test_package.decoder", "MODEL.PSF.IMPORTS", "['json']"))
        assert sys.modules["psf_test_package.decoder"].imported
        assert cfg.MODEL.PSF.IMPORTS == ["json", "psf_test_package.decoder"]
        del sys.modules["psf_test_package.decoder"]
        again = build_config(str(Path(cfg.OUTPUT_DIR, "config.yaml")))  # stores the name
        assert again.MODEL.PSF.IMPORTS == cfg.MODEL.PSF.IMPORTS and "psf_test_package.decoder" in sys.modules

    def test_predictor(self, config_file: Path, mini: str):
        cfg = build_config(str(config_file), ["MODEL.DEVICE", "cpu"])
        cfg.MODEL.PSF.IMPORTS = ["psf_test_package.decoder"]
        Predictor(cfg)
        assert "psf_test_package.decoder" in sys.modules

    @pytest.mark.parametrize("name", ["psf_test_missing", "psf_test_package.missing", "psf_test_missing.decoder"])
    def test_missing(self, name: str, config_file: Path):
        with pytest.raises(
            UserError, match=rf"--import has '{name}': there is no module '[\w.]+' in the current folder"
        ):
            build_config(str(config_file), imports=[name])

    @pytest.mark.parametrize(
        "name", ["folder/decoder.py", "../decoder", ".decoder", "", "decoder.", "a-b", "/folder/x"]
    )
    def test_paths_are_refused(self, name: str, config_file: Path):
        with pytest.raises(UserError, match="expected the dotted name of a module"):
            build_config(str(config_file), imports=[name])

    def test_faults_of_the_module_keep_their_traceback(self, config_file: Path):
        with pytest.raises(ModuleNotFoundError, match="psf_test_missing_requirement"):
            build_config(str(config_file), imports=["psf_test_broken"])


@pytest.mark.parametrize("num_gpus", [1, 2])
@pytest.mark.parametrize("by", ["option", "yaml"])
def test_gpus_and_a_config_for_the_cpu(num_gpus: int, by: str, config_file: Path, parse_args: ParseArgs):
    args = parse_args(*(["MODEL.DEVICE", "cpu"] if by == "option" else []))
    if by == "yaml":
        config_file.write_text(config_file.read_text().replace("MODEL: {", "MODEL: {DEVICE: cpu, "))
    args.num_gpus = num_gpus
    with pytest.raises(ValueError, match=rf'--num-gpus is {num_gpus}, MODEL\.DEVICE is "cpu"'):
        setup(args)


def test_output_folder_must_be_writable(parse_args: ParseArgs, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"OUTPUT_DIR .*file/run.* cannot be written: Not a directory"):
        setup(parse_args("OUTPUT_DIR", str(tmp_path / "file" / "run")))


def test_config_file_and_checkpoint_have_the_classes(trained: Path) -> None:
    """Enough to use the model where its dataset is not: colours are those of the panoptic JSON."""
    texts = yaml.safe_load((trained / "config.yaml").read_text(encoding="utf-8"))["MODEL"]["PSF"]["CLASSES"]
    assert texts[:2] == ["thing 1 3 fa0000 ball", "thing 3 5 fafa00 box"] and len(texts) == 5
    entry = ModelEntry.of_checkpoint(read_checkpoint(trained / "model_final.pth"))
    assert entry is not None and yaml.safe_load(entry.config)["MODEL"]["PSF"]["CLASSES"] == texts


def test_the_same_evaluation_has_the_same_folder(mini: str, parse_args: ParseArgs, tmp_path: Path) -> None:
    """Also of a config without classes, which get into the config.yaml of the first evaluation."""
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "model_final.pth").touch()  # a training, which is not to be overwritten
    folders = [setup(parse_args("--eval-only")).OUTPUT_DIR for _ in range(2)]
    assert folders == [str(tmp_path / "output" / "evaluation")] * 2
    assert "thing 1 3 fa0000 ball" in Path(folders[0], "config.yaml").read_text()
