"""`psf predict` on images: what lies in the three files of each, and what bad input and settings give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from panopticapi.utils import rgb2id
from PIL import Image

from psf.errors import UserError
from psf.output import PanopticOutput


def load_output(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray, dict]:
    """The drawn picture without its legend, the ids of the panoptic PNG and the JSON."""
    ids = rgb2id(np.array(Image.open(folder / f"{name}_panoptic.png")))
    with_legend = np.array(Image.open(folder / f"{name}.jpg"))
    drawn = with_legend[: ids.shape[0], : ids.shape[1]]
    has_segments = bool(ids.any())
    assert (with_legend.shape[0] > ids.shape[0]) == has_segments  # the legend is below
    return drawn, ids, json.loads((folder / f"{name}.json").read_text())


def found_classes(folder: Path, name: str = "a") -> list[str]:
    return [segment["class"] for segment in load_output(folder, name)[2]["segments_info"]]


def test_three_files_of_an_image_agree(run, image, out):
    image = image.rename(image.with_name("a.b.png"))
    assert run("--input", image, "--output", out) == 0
    assert sorted(file.name for file in out.glob("[!.]*")) == ["a.b.jpg", "a.b.json", "a.b_panoptic.png"]
    drawn, ids, record = load_output(out, "a.b")
    assert drawn.shape == (60, 90, 3) and set(np.unique(ids)) == {0, 1, 2}
    sky, ball = record.pop("segments_info")
    size = {"height": 60, "width": 90}
    assert record == {"file_name": str(image), **size, "task": "panoptic", "panoptic_file_name": "a.b_panoptic.png"}
    # 40 rows of 90 are blue, of which the box takes 5 x 16.
    assert sky == {
        "id": 1,
        "class": "sky",
        "category_id": 30,
        "contiguous_id": 0,
        "isthing": False,
        "score": 0.4,
        "area": 40 * 90 - 5 * 16,
        "bbox": [0, 0, 90, 40],
    }
    assert ball["bbox"] == [20, 35, 16, 10] and ball["area"] == 160 and ball["category_id"] == 7 and ball["isthing"]
    for segment in (sky, ball):
        assert (ids == segment["id"]).sum() == segment["area"]


def test_picture_keeps_the_order_of_colours(run, image, out):
    run("--input", image, "--output", out)
    drawn = load_output(out, "a")[0].astype(int)
    red, _, blue = drawn[2:8, 60:].mean(axis=(0, 1))
    assert blue > 200 > 100 > red
    assert np.abs(drawn[52:, 60:] - 128).max() < 12  # void shows the image


@pytest.mark.parametrize(("threshold", "classes"), [("0.3", ["sky", "ball"]), ("0.5", ["ball"]), ("0.95", [])])
def test_confidence_threshold_leaves_segments_out_everywhere(run, image, scene, out, threshold, classes):
    assert run("--input", image, "--output", out, "--confidence-threshold", threshold) == 0
    assert found_classes(out) == classes
    drawn, ids, record = load_output(out, "a")
    assert set(np.unique(ids)) - {0} == {segment["id"] for segment in record["segments_info"]}
    is_drawn = np.abs(drawn.astype(int) - scene()).max(axis=2) > 60
    assert is_drawn.any() == bool(classes)


def test_config_decides_without_a_threshold(run, image, out):
    run("--input", image, "--output", out, "--opts", "MODEL.PSF.POST_PROCESSOR.STUFF.T_CNF", "0.5")
    assert found_classes(out) == ["ball"]


def write_config_of_real_model(config: Path) -> None:
    config.write_text(
        "VERSION: 2\n"
        "DATASETS: {TEST: [psf_test_demo]}\n"
        "INPUT: {FORMAT: RGB, MIN_SIZE_TEST: 64}\n"
        "MODEL:\n  META_ARCHITECTURE: PanopticSegFormer\n  WEIGHTS: ''\n  DEVICE: cpu\n"
        "  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}\n"
        "  PSF: {HIDDEN_DIM: 32, NUM_THING_QUERIES: 10, POST_PROCESSOR: {MASK_THRESHOLD: 0.0}}\n"
    )


def test_real_model_obeys_the_threshold(run, config, image, out):
    write_config_of_real_model(config)
    assert run("--input", image, "--output", out, "--confidence-threshold", "0") == 0
    _, ids, record = load_output(out, "a")
    segments = record["segments_info"]
    assert segments and all(0 < segment["score"] < 1 for segment in segments)
    assert {segment["id"]: segment["area"] for segment in segments} == {
        i: (ids == i).sum() for i in np.unique(ids) if i
    }
    assert run("--input", image, "--output", out, "--confidence-threshold", "1") == 0
    assert found_classes(out) == []


def test_files_folders_and_globs_each_image_once(run, scene, tmp_path, out):
    for name in ("one/x.png", "two/x.jpg", "two/X.png", "three/y.bmp", "three/x_2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(scene()).save(tmp_path / name)
    (tmp_path / "two" / "notes.txt").write_text("not an image")
    inputs = [tmp_path / "one" / "x.png", tmp_path / "two", tmp_path / "t*" / "[xy]*.[pb][nm][gp]"]
    assert run("--input", *inputs, "--output", out) == 0
    sources = {file.stem: json.loads(file.read_text())["file_name"] for file in out.glob("*.json")}
    assert len(sources) == len(set(sources.values())) == 5
    assert sources["x"] == str(inputs[0]) and "y" in sources
    assert len({name.lower() for name in sources}) == 5  # also where upper and lower case name one file


def test_unusual_images_simply_work(run, scene, tmp_path, out):
    pictures = {
        "tiny.png": np.full((1, 1, 3), (255, 0, 0), np.uint8),
        "thin.png": np.full((3, 2, 3), (255, 0, 0), np.uint8),
        "long.png": np.tile(scene(width=17)[:50], (80, 1, 1)),  # 4000 x 17
        "wide.png": np.tile(scene()[30:47, :40], (1, 100, 1)),  # 17 x 4000
        "line.png": np.full((1, 4000, 3), (255, 0, 0), np.uint8),
        "gray.png": scene()[..., 0],
        "rgba.png": np.dstack([scene(), np.full((60, 90), 9, np.uint8)]),
        "deep.png": scene()[..., 2].astype(np.uint16) * 257,
    }
    (tmp_path / "in").mkdir()
    for name, picture in pictures.items():
        Image.fromarray(picture).save(tmp_path / "in" / name)
    Image.fromarray(scene()).quantize(8).save(tmp_path / "in" / "palette.gif")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.fromarray(scene()).save(tmp_path / "in" / "turned.jpg", exif=exif)

    assert run("--input", tmp_path / "in", "--output", out) == 0
    sizes = {Path(name).stem: picture.shape[:2] for name, picture in pictures.items()}
    for name, size in {**sizes, "palette": (60, 90), "turned": (90, 60)}.items():
        drawn, ids, record = load_output(out, name)
        assert drawn.shape[:2] == ids.shape == (record["height"], record["width"]) == size


def test_bad_images_are_named_and_skipped(run, image, tmp_path, out, caplog, capsys):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "cut.png").write_bytes(image.read_bytes()[:60])
    Image.new("RGB", (90, 60)).save(tmp_path / "black.png")  # which this model refuses
    names = ("empty.jpg", "cut.png", "black.png", "missing.png")
    assert run("--input", *(tmp_path / name for name in names), image, "--output", out) == 1
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    for name in names:
        assert sum(name in error for error in errors) == 1
        assert not list(out.glob(f"{Path(name).stem}*"))
    assert found_classes(out) == ["sky", "ball"]
    summary = capsys.readouterr().out
    assert "1 of 4 images" in summary and all(name in summary for name in names)


def test_no_image_at_all_in_a_process_of_its_own(run_python, repository, tmp_path):
    arguments = ["demo/demo.py", "--config-file", "none.yaml", "--input", str(tmp_path / "*.png")]
    result = run_python(*arguments, path=[repository])
    assert result.returncode == 2
    assert "no image found" in result.stderr and "Traceback" not in result.stderr


def test_a_folder_of_folders_says_how_to_look_into_them(run, image, out, caplog):
    folder = image.parent.parent
    assert run("--input", folder, "--output", out) == 2
    assert f"no image found; sub-folders are not searched; use --input '{folder}/**/*'" in caplog.text
    assert run("--input", f"{folder}/in/**/*", "--output", out) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--opts", "MODEL.PSF.NO_SUCH_KEY", "1"], "NO_SUCH_KEY"),
        (["--opts", "MODEL.PSF.NUM_HEADS"], "KEY VALUE pairs"),
        (["--opts", "MODEL.WEIGHTS", "no_such_weights.pth"], "no_such_weights.pth"),
        (["--opts", "DATASETS.TEST", "()"], "DATASETS.TEST"),
        (["--config-file", "no_such_config.yaml"], "no_such_config.yaml"),
    ],
)
def test_wrong_setting_is_one_clear_error(run, image, out, capsys, more, message):
    assert run("--input", image, "--output", out, *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("neighbour", ["a.json", "a.jpg", "a_panoptic.png"])
def test_nothing_beside_an_input_is_overwritten(run, image, capsys, neighbour):
    """The input itself, what labelme wrote of it, another image: they are named like results of a.png."""
    (image.parent / neighbour).write_text("somebody's")
    assert run("--input", image, "--output", image.parent) == 2
    assert f"{image} is in the output folder" in capsys.readouterr().err
    assert sorted(file.name for file in image.parent.iterdir()) == sorted(["a.png", neighbour])
    assert (image.parent / neighbour).read_text() == "somebody's"


def test_inputs_below_the_output_and_behind_links(run, image, scene, tmp_path, capsys):
    assert run("--input", image, "--output", tmp_path, "--save", "json") == 0
    masks = image.parent / "a_masks" / "2_ball.png"
    masks.parent.mkdir()
    Image.fromarray(scene()).save(masks)
    assert run("--input", image, masks, "--output", image.parent, "--save", "masks") == 2
    assert run("--input", masks, "--output", image.parent, "--save", "masks") == 2
    (tmp_path / "link.png").symlink_to(image)
    (tmp_path / "folder").symlink_to(image.parent)
    for source, folder in (("link.png", "."), ("link.png", "in"), ("folder/a.png", "in"), ("in/a.png", "folder")):
        assert run("--input", tmp_path / source, "--output", tmp_path / folder) == 2, (source, folder)
        assert "is in the output folder" in capsys.readouterr().err


def test_output_that_is_a_file(run, image, capsys):
    assert run("--input", image, "--output", image) == 2
    assert str(image) in capsys.readouterr().err


@pytest.mark.parametrize("threshold", ["-0.1", "1.5", "half", "nan"])
def test_threshold_outside_its_range(run, capsys, threshold):
    with pytest.raises(SystemExit, match="2"):
        run("--input", "a.png", "--confidence-threshold", threshold)
    assert f"--confidence-threshold: '{threshold}' is not a number between 0 and 1" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_device(run, image, out, caplog, capsys):
    assert run("--input", image, "--output", out, "--device", "cuda") == 2
    assert "no CUDA GPU" in capsys.readouterr().err
    with caplog.at_level("INFO"):
        assert run("--input", image, "--output", out, "--opts", "MODEL.DEVICE", "cuda") == 0
    assert "no CUDA GPU found: running on the CPU" in caplog.text


def test_weights_of_a_backbone_alone_are_a_loud_warning(run, config, image, out, tmp_path, caplog):
    write_config_of_real_model(config)
    torch.save({"model": {"backbone.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}, tmp_path / "imagenet.pth")
    assert run("--input", image, "--output", out, "--opts", "MODEL.WEIGHTS", str(tmp_path / "imagenet.pth")) == 0
    [warning, reason] = [
        r.getMessage() for r in caplog.records if r.name.startswith("psf") and r.levelname == "WARNING"
    ]
    assert "THE RESULTS WILL BE RANDOM" in warning and "thing_decoder" in warning and "backbone," not in warning
    assert "no segments of 11 candidates" in reason


def test_other_tasks_and_masks(run, image, out):
    assert run("--input", image, "--output", out, "--task", "instance", "--save", "json,masks") == 0
    assert sorted(file.name for file in out.glob("[!.]*")) == ["a.json", "a_masks"]
    [ball] = json.loads((out / "a.json").read_text())["instances"]
    assert (ball["class"], ball["bbox"]) == ("ball", [20, 35, 16, 10])
    assert np.array(Image.open(out / ball["mask_file_name"])).sum() == 160

    assert run("--input", image, "--output", out / "classes", "--task", "semantic") == 0
    assert sorted(file.name for file in (out / "classes").glob("[!.]*")) == ["a.jpg", "a.json", "a_semantic.png"]
    labels = np.array(Image.open(out / "classes" / "a_semantic.png"))
    assert np.array_equal(np.unique(labels, return_counts=True), [[7, 30], [160, 60 * 90 - 160]])


@pytest.mark.parametrize(
    ("settings", "num_instances"),
    [
        ([], 1),
        (["--confidence-threshold", "0.95"], 0),
        (["--opts", "MODEL.PSF.POST_PROCESSOR.THINGS.T_CNF", "0.95"], 0),
        (["--opts", "MODEL.PSF.TEST.INSTANCE.SCORE_THRESH", "0.95"], 0),
    ],
)
def test_thresholds_of_instances(run, image, out, settings, num_instances):
    assert run("--input", image, "--output", out, "--task", "instance", *settings) == 0
    assert len(json.loads((out / "a.json").read_text())["instances"]) == num_instances


def test_a_threshold_for_classes_of_pixels(run, image, out, capsys):
    assert run("--input", image, "--output", out, "--task", "semantic", "--confidence-threshold", "0.5") == 2
    assert "--confidence-threshold has no effect with --task semantic" in capsys.readouterr().err


def test_files_of_an_unknown_kind(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        run("--input", "a.png", "--save", "json,mask")
    assert "'mask' is none of picture, png, json, masks" in capsys.readouterr().err


def test_a_png_of_instances_is_refused_and_not_the_default(run, image, out, capsys):
    assert run("--input", image, "--output", out, "--task", "instance", "--save", "png,json") == 2
    assert "--save png has no effect with --task instance" in capsys.readouterr().err and not out.exists()
    assert run("--input", image, "--output", out, "--task", "instance") == 0
    assert sorted(file.name for file in out.glob("[!.]*")) == ["a.jpg", "a.json"]


def test_an_image_whose_files_cannot_be_made_is_skipped(run, image, scene, out, caplog, monkeypatch):
    """Here one in two, as its picture cannot be drawn."""
    Image.fromarray(scene(width=91)).save(image.with_name("b.png"))
    regions = PanopticOutput.regions

    def refuse_wide(self):
        if self.size[1] == 91:
            raise UserError("too wide")
        return regions(self)

    monkeypatch.setattr(PanopticOutput, "regions", refuse_wide)
    assert run("--input", image.with_name("b.png"), image, "--output", out) == 1
    assert "b.png: skipped: too wide" in caplog.text
    assert sorted(file.name for file in out.glob("[!.]*")) == ["a.jpg", "a.json", "a_panoptic.png"]


def test_frames_of_images(run, image, out, capsys):
    assert run("--input", image, "--output", out, "--max-frames", "1") == 2
    assert "--max-frames needs --video-input or --webcam" in capsys.readouterr().err


def test_a_folder_has_images_of_all_kinds_and_other_files(run, image, out, caplog):
    picture = Image.open(image)
    for name, kind in (("b.jfif", "JPEG"), ("c.TGA", "TGA"), ("d.jp2", "JPEG2000")):
        picture.save(image.with_name(name), kind)
    image.with_name("._a.png").write_bytes(b"\0\5\x16\7Mac OS X")
    image.with_name("notes.txt").touch()
    image.with_name("e.png").mkdir()
    caplog.set_level("INFO")
    assert run("--input", image.parent, "--output", out, "--save", "json") == 0
    assert sorted(file.stem for file in out.glob("*.json")) == ["a", "b", "c", "d"]
    assert "1 files are no images (.txt)" in caplog.text


def test_a_name_that_is_too_long_is_skipped(run, image, out, capsys):
    long = image.rename(image.with_name(250 * "a" + ".png"))
    Image.open(long).save(image.with_name("b.png"))
    assert run("--input", image.parent, "--output", out) == 1
    assert (out / "b.jpg").is_file() and f"skipped: {long}" in capsys.readouterr().out


def test_the_output_is_a_file(run, image, tmp_path, capsys):
    (tmp_path / "taken").touch()
    assert run("--input", image, "--output", tmp_path / "taken") == 2
    assert "taken: expected a folder, found a file" in capsys.readouterr().err


def test_large_images_are_skipped_by_a_key(run, image, out, monkeypatch, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # restored afterwards
    assert run("--input", image, "--output", out, "--opts", "INPUT.PSF_MAX_PIXELS", 5399) == 1
    assert "a.png: skipped: " in caplog.text and "to 5400 or more" in caplog.text
    assert run("--input", image, "--output", out, "--opts", "INPUT.PSF_MAX_PIXELS", 5400) == 0


@pytest.mark.parametrize("name", ["a.jpg", "a.json", "a_panoptic.png", "a_masks/1_left.png"])
def test_files_in_the_output_that_psf_has_not_written_stay(run, image, out, capsys, name):
    """It stops before the first image; --overwrite insists, and then psf knows its own files again."""
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("somebody's")
    words = ("--input", image, "--output", out, "--save", "picture,png,json,masks")
    assert run(*words) == 2
    assert f"{name} exists, and psf has not written it" in capsys.readouterr().err
    assert (out / name).read_text() == "somebody's" and len(list(out.rglob("*.*"))) == 1
    assert run(*words, "--overwrite") == run(*words) == 0
    assert not (out / name).exists() or (out / name).read_bytes() != b"somebody's"


def test_results_of_another_image_of_the_same_name_stay(run, image, scene, tmp_path, out, capsys):
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / image.name
    Image.fromarray(scene(left=30)).save(other)
    assert run("--input", image, "--output", out) == 0
    assert run("--input", image, "--output", out, "--save", "picture") == 0
    before = {path: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    for kinds in ("picture,png,json", "picture"):
        assert run("--input", other, "--output", out, "--save", kinds) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"{out / image.stem}.json has the results of {image}" in line
        assert "--overwrite" in line
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert run("--input", other, "--output", out, "--overwrite") == 0
    assert json.loads((out / f"{image.stem}.json").read_text())["file_name"] == str(other)


def test_a_link_in_the_place_of_the_masks_is_not_followed(run, image, tmp_path, out, capsys):
    (tmp_path / "mine").mkdir()
    out.mkdir()
    (out / f"{image.stem}_masks").symlink_to(tmp_path / "mine")
    assert run("--input", image, "--output", out, "--save", "masks") == 2
    assert "is a link" in capsys.readouterr().err
    assert not list((tmp_path / "mine").iterdir())


def test_links_in_a_circle_and_unknown_users_are_one_line(run, image, tmp_path, capsys):
    (tmp_path / "loop").symlink_to("loop")
    for arguments in (
        ["--input", image, "--output", tmp_path / "loop"],
        ["--input", tmp_path / "loop", "--output", tmp_path / "out"],
        ["--input", "~nosuchuser/x.png", "--output", tmp_path / "out"],
    ):
        assert run(*arguments) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
