"""Every reader of files and texts from outside, with sound inputs and the way in which these are changed."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from hypothesis import strategies as st
from PIL import Image

from psf import add_psf_config
from psf.checkpoint import newest_sound_checkpoint, write_checkpoint
from psf.checkpoint.saving import TAG
from psf.commands import convert_dataset, validate
from psf.config_file import merge_config_file
from psf.data import load_panoptic_json
from psf.data.images import is_turned, read_image
from psf.data.panoptic_labels import measure_panoptic_png, read_panoptic_labels
from psf.engine import Checkpointer, build_config
from psf.errors import UserError, escape_controls
from psf.output import TimedFrame, VideoFile, VideoWriter
from psf.tools.dataset_conversion.sources import read_labels
from tests.faults.mutations import CANARY, HOSTILE_VALUES, damage, edited_json, hostile_pickle
from tests.mini_set import write_mini_set

__all__ = ["READERS", "Reader"]

MAX_FRAMES = 50  # of a video; a damaged header may announce any number
Judge = Callable[[bytes], None]


class Reader(NamedTuple):
    """A reader and its inputs.

    share: of 1000 inputs.
    files: in the present folder; an input is written to all of them.
    prepare: writes the files that the inputs need beside them to the present folder; returns the sound inputs.
    generate: function of the sound inputs, a number, a seed and a function that is called with each input.
    read: reads `files`, and may write below out/.
    """

    name: str
    share: int
    files: tuple[str, ...]
    prepare: Callable[[], list[bytes]]
    generate: Callable[[list[bytes], int, int, Judge], None]
    read: Callable[[], Any]


def by_bytes(sound: list[bytes], number: int, seed: int, judge: Judge) -> None:
    """Sound inputs with damaged bytes, or parts of two of them joined."""
    chance = random.Random(seed)
    for _ in range(number):
        content = chance.choice(sound)
        if chance.randrange(10) == 0:
            other = chance.choice(sound)
            content = content[: chance.randrange(len(content) + 1)] + other[chance.randrange(len(other) + 1) :]
        judge(damage(content, chance))


def by_strategy(strategy: Callable[[list[bytes]], st.SearchStrategy[bytes]]) -> Callable[..., None]:
    """Inputs that hypothesis draws; one in eight has damaged bytes besides."""

    def generate(sound: list[bytes], number: int, seed: int, judge: Judge) -> None:
        chance = random.Random(seed)

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=number,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(strategy(sound))
        def run(content: bytes) -> None:
            judge(damage(content, chance) if chance.randrange(8) == 0 else content)

        run()

    return generate


def by_json(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    return edited_json([json.loads(one) for one in sound])


def run_command(main: Callable[[Sequence[str]], int], *words: str) -> None:
    """Run a command as a user does; check that it ends with results, or with one line and exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(words)
    lines = [line for line in errors.getvalue().split("\n") if line.startswith("error: ")]
    if code not in (0, 1, 2) or len(lines) != (code == 2) or "Traceback" in errors.getvalue():
        raise AssertionError(f"exit code {code}, {len(lines)} lines: {errors.getvalue()[-300:]!a}")
    if lines and escape_controls(lines[0]) != lines[0]:
        raise AssertionError(f"unprintable line {lines[0][:300]!a}")


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


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def prepare_panoptic_pngs() -> list[bytes]:
    ids = np.zeros((12, 16, 3), dtype=np.uint8)
    ids[:6, :8, 0], ids[6:, :, 1] = 1, 2
    images = [Image.fromarray(ids), Image.fromarray(ids).convert("RGBA"), Image.fromarray(ids).quantize(4)]
    import cv2

    return [*(encoded(image, "PNG") for image in images), cv2.imencode(".png", ids.astype(np.uint16))[1].tobytes()]


def read_panoptic_png() -> None:
    results = []
    for read in (
        lambda: measure_panoptic_png("input.png"),
        lambda: read_panoptic_labels(
            "input.png", [{"id": one, "category_id": 0, "isthing": True} for one in (1, 512, 3)]
        ),
    ):
        with keep_user_error(results):
            read()
    raise_first(results)


@contextlib.contextmanager
def keep_user_error(errors: list[UserError]) -> Iterator[None]:
    """Go on with the next reader of the same input after a UserError."""
    try:
        yield
    except UserError as error:
        errors.append(error)


def raise_first(errors: list[UserError]) -> None:
    if errors:
        raise errors[0]


IMAGES = {  # format -> modes
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "RGBA", "L", "I;16", "F", "1", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "BMP": ("RGB", "L"),
    "JPEG2000": ("RGB",),
    "TGA": ("RGB",),
    "ICO": ("RGBA",),
    "PPM": ("RGB",),
    "PCX": ("P",),
    "SGI": ("RGB",),
}


def image_inputs(*formats: str) -> Callable[[], list[bytes]]:
    def prepare() -> list[bytes]:
        pixels = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
        sound = []
        for kind in formats:
            for mode in IMAGES[kind]:
                picture = Image.fromarray(pixels)
                picture = (
                    Image.new(mode, (24, 20), 7)
                    if mode in ("I;16", "F")
                    else picture.convert("RGB").convert(mode)
                    if mode != "RGBA"
                    else picture
                )
                exif = Image.Exif()
                exif[0x0112] = 6
                options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
                sound += [encoded(picture, kind), encoded(picture, kind, **options)]
        return sound

    return prepare


def prepare_arrays() -> list[bytes]:
    sound = []
    for kind in ("u1", "<u2", ">f4", "f8", "?"):
        file = io.BytesIO()
        np.save(file, np.ones((5, 6, 4), dtype=kind))
        sound.append(file.getvalue())
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return [*sound, file.getvalue()]


def image_reader(suffix: str) -> Callable[[], None]:
    def read() -> None:
        path = f"input.{suffix}"
        errors: list[UserError] = []
        for format in ("BANDS",) if suffix == "npy" else ("BGR", "BANDS"):
            with keep_user_error(errors):
                read_image(path, format)
        if not errors:
            is_turned(path)
        raise_first(errors)

    return read


BASE_YAML = (
    "VERSION: 2\nMODEL: {META_ARCHITECTURE: PanopticSegFormer, PIXEL_MEAN: [1.0, 2.0, 3.0]}\nOUTPUT_DIR: ./out\n"
)
YAML_LINES = (
    *("_BASE_: base.yaml", "_BASE_: [base.yaml, base.yaml]", "_BASE_: input.yaml", "_BASE_: ../input.yaml"),
    *("_BASE_: /etc/passwd", "_BASE_: none.yaml", "_BASE_: .", "_BASE_: 3", "_BASE_: ['']", "_BASE_: ~/x.yaml"),
    *("SOLVER: {BASE_LR: 1e999}", "SOLVER:", "  MAX_ITER: 10", "  STEPS: (1, 2)", "  STEPS: [a]", "SEED: 0x10"),
    *("SEED: .nan", "SEED: 1e3", "VERSION: 1", "VERSION: two", "OUTPUT_DIR: 2024-01-01", "OUTPUT_DIR: !!binary aGk="),
    *(
        "DATASETS: {TRAIN: mine}",
        "MODEL: &a {WEIGHTS: *a}",
        "<<: {SEED: 1}",
        "? [a]",
        ": :",
        "\t- x",
        "- a",
        "---",
        "...",
    ),
    "OUTPUT_DIR: !!python/object/apply:os.system ['touch canary']",
    "OUTPUT_DIR: !!python/object/apply:builtins.open [canary, w]",
    "SEED: !!python/name:os.system",
    "MODEL: !!python/object/new:subprocess.Popen [[touch, canary]]",
    "!!python/module:canary",
    'SEED: !!python/object/apply:builtins.eval [\'open("canary", "w")\']',
    "MODEL: {a: &a [x, x], b: &b [*a, *a], c: &c [*b, *b, *b, *b], d: &d [*c, *c, *c, *c], e: [*d, *d, *d, *d]}",
    "MODEL: " + "[" * 3000,
    "MODEL: " + "{a: " * 500,
)


def prepare_configs() -> list[bytes]:
    Path("base.yaml").write_text(BASE_YAML)
    Path("derived.yaml").write_text("_BASE_: input.yaml\nSEED: 1\n")
    return [BASE_YAML.encode(), (BASE_YAML + "_BASE_: base.yaml\n").encode()]


def config_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    scalar = st.one_of(st.text(max_size=6), st.sampled_from([repr(one)[:50] for one in HOSTILE_VALUES]))
    key = st.sampled_from(("SEED", "MODEL.WEIGHTS", "SOLVER", "OUTPUT_DIR", "INPUT", "DATASETS"))
    line = st.one_of(
        st.sampled_from(YAML_LINES), st.sampled_from(BASE_YAML.splitlines()), st.builds("{}: {}".format, key, scalar)
    )
    return st.lists(line, max_size=6).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


def new_config() -> CfgNode:
    cfg = get_cfg()
    add_psf_config(cfg)
    return cfg


DEFAULTS = new_config()


def read_config() -> None:
    """The input is the config and, in a second reading, the base of a sound one."""
    errors: list[UserError] = []
    for name in ("input.yaml", "derived.yaml"):
        with keep_user_error(errors):
            merge_config_file(DEFAULTS.clone(), name)
    raise_first(errors)


def _keys(node: CfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def options_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    names = sorted(key for key in _keys(DEFAULTS) if not key.startswith("MODEL.PSF.IMPORTS"))  # trusted by design
    key = st.one_of(st.sampled_from(names), st.sampled_from(names), st.text(max_size=8))
    literals = [
        *(repr(one)[:200] for one in HOSTILE_VALUES),
        "(1,)",
        "('a', 1)",
        "[" * 300,
        "1e999",
        "-1",
        "__import__('os')",
    ]
    word = st.one_of(st.sampled_from(literals), st.text(max_size=6), st.integers().map(str), st.floats().map(str))
    pairs = st.lists(st.tuples(key, word), min_size=1, max_size=2)
    return pairs.map(lambda words: json.dumps([word for pair in words for word in pair]).encode())


def read_options() -> None:
    try:
        words = json.loads(Path("words.json").read_bytes())
    except ValueError:  # damaged bytes: no words that a command line could have
        return
    build_config("base.yaml", [str(word) for word in words], warn=False)


def prepare_checkpoints() -> list[bytes]:
    model = torch.nn.Linear(3, 2)
    content = {"model": model.state_dict(), "iteration": 3, "trainer": {"iteration": 3}, "note": "x"}
    write_checkpoint(content, Path("model_0000003.pth"))
    sound = [Path("model_0000003.pth").read_bytes()]
    for is_zip in (True, False):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=is_zip)
        sound.append(file.getvalue())
    arrays = {name: value.numpy() for name, value in model.state_dict().items()}
    sound += [pickle.dumps({"model": arrays, "__author__": "x"}, protocol) for protocol in (2, 4, 5)]
    return sound


CHECKPOINTS = ("input.pth", "input.pkl", "input.pyth")


def hostile_checkpoints(sound: list[bytes], number: int, seed: int, judge: Judge) -> None:
    """Half are damaged; half have pickles that call functions: plain, in a zip, or after the header of an old file."""
    by_bytes(sound, number // 2, seed, judge)
    chance = random.Random(seed)
    [old] = [one for one in sound if one.startswith(b"\x80") and b"protocol_version" in one]
    header = old[: old.index(b"protocol_version") - 20]
    for _ in range(number - number // 2):
        content = hostile_pickle(chance, CANARY)
        match chance.randrange(4):
            case 0:
                file = io.BytesIO()
                with zipfile.ZipFile(file, "w") as archive:
                    archive.writestr("archive/data.pkl", content)
                    archive.writestr("archive/version", "3\n")
                    archive.writestr(chance.choice(("archive/data/0", "../canary", "/canary")), b"\0" * 8)
                content = file.getvalue()
            case 1:
                content = header + content
        judge(damage(content, chance) if chance.randrange(5) == 0 else content)


def read_checkpoint_file() -> None:
    errors: list[UserError] = []
    for name in CHECKPOINTS:
        with keep_user_error(errors):
            Checkpointer(torch.nn.Linear(3, 2), "").load(name)
    raise_first(errors)


def tag_strategy(sound: list[bytes]) -> st.SearchStrategy[bytes]:
    names = (
        "model_0000003.pth",
        "model_0000004.pth",
        "../model.pth",
        "/etc/passwd",
        "evil.pkl",
        "",
        "\0",
        ".",
        "a/b.pth",
    )
    text = st.one_of(st.sampled_from(names), st.text(max_size=12))
    return st.tuples(text, st.sampled_from(("", "\n", "\r\n", "\0", " "))).map(
        lambda two: "".join(two).encode("utf-8", "replace")
    )


def read_tag() -> None:
    """Whatever the tag says: the sound checkpoint is found, or one line says why not."""
    found = newest_sound_checkpoint(Path())
    if found is None or found.path.name != "model_0000003.pth":
        raise AssertionError(f"found {found and found.path}")


def prepare_tags() -> list[bytes]:
    prepare_checkpoints()
    Path("evil.pkl").write_bytes(hostile_pickle(random.Random(0), CANARY))
    return [b"model_0000003.pth"]


def prepare_videos() -> list[bytes]:
    rng = np.random.default_rng(0)
    for suffix in ("mp4", "mkv", "avi", "ts"):
        with VideoWriter(Path(f"sound.{suffix}"), Fraction(10)) as writer:
            for number in range(4):
                writer.write(TimedFrame(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8), number / 10))
    frames = [Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)) for _ in range(3)]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    return [*(path.read_bytes() for path in sorted(Path().glob("sound.*"))), animation]


def read_video() -> None:
    with VideoFile("input.mp4") as video:
        for _ in islice(video, MAX_FRAMES):
            pass


def _image_reader(label: str, suffix: str, share: int, *formats: str) -> Reader:
    return Reader(
        f"images: {label}", share, (f"input.{suffix}",), image_inputs(*formats), by_bytes, image_reader(suffix)
    )


READERS = (
    Reader("panoptic JSON", 120, ("input.json",), prepare_mini, by_strategy(by_json), read_panoptic_json),
    Reader(
        "panoptic JSON, psf validate", 40, ("input.json",), prepare_mini, by_strategy(by_json), validate_panoptic_json
    ),
    Reader("panoptic JSON, damaged bytes", 60, ("input.json",), prepare_mini, by_bytes, read_panoptic_json),
    Reader(
        "instances JSON, psf convert-dataset",
        90,
        ("input.json",),
        prepare_instances,
        by_strategy(by_json),
        convert_instances,
    ),
    Reader(
        "labelme JSON, psf convert-dataset",
        90,
        ("labelme/1.json",),
        prepare_labelme,
        by_strategy(by_json),
        convert_labelme,
    ),
    Reader("labels file", 60, ("input.txt",), prepare_labels, by_strategy(labels_strategy), read_labels_file),
    Reader("panoptic PNG, 8 and 16 bits", 100, ("input.png",), prepare_panoptic_pngs, by_bytes, read_panoptic_png),
    _image_reader("JPEG", "jpg", 50, "JPEG"),
    _image_reader("PNG", "png", 50, "PNG"),
    _image_reader("TIFF", "tif", 50, "TIFF"),
    _image_reader("WebP, GIF", "webp", 50, "WEBP", "GIF"),
    _image_reader("BMP, JPEG 2000, TGA, ICO, PPM, PCX, SGI", "bmp", 40, *list(IMAGES)[5:]),
    Reader("arrays: .npy", 20, ("input.npy",), prepare_arrays, by_bytes, image_reader("npy")),
    Reader("configs: yaml and _BASE_", 50, ("input.yaml",), prepare_configs, by_strategy(config_strategy), read_config),
    Reader("configs: KEY VALUE", 30, ("words.json",), prepare_configs, by_strategy(options_strategy), read_options),
    Reader(
        "checkpoints: .pth, .pkl, .pyth",
        50,
        CHECKPOINTS,
        prepare_checkpoints,
        hostile_checkpoints,
        read_checkpoint_file,
    ),
    Reader("last_checkpoint", 20, (TAG,), prepare_tags, by_strategy(tag_strategy), read_tag),
    Reader("videos: .mp4 .mkv .avi .ts .gif", 30, ("input.mp4",), prepare_videos, by_bytes, read_video),
)
assert sum(reader.share for reader in READERS) == 1000, sum(reader.share for reader in READERS)
