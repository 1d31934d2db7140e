"""A checkpoint for other classes: re-mapped by name and told, refused where a run goes on, left out where unnamed.

And one for images of other channels: its first convolution is adapted, however the names are found.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from psf.checkpoint import ClassNames, adapted_weight
from psf.engine import Checkpointer
from psf.engine.checkpointer import check_weights, file_of_weights
from psf.errors import UserError

FOUND = ClassNames(("ball", "box"), ("sky", "ground", "sea"))
WANTED = ClassNames(("box", "ring", "ball"), ("sea", "sky"))

# As a trainer stores its state.
TRAINER = {"iteration": 3, "_trainer": {"optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}}


def model_of(names: ClassNames, seed: int = 0) -> nn.Module:
    """What of the model has rows for classes, and a part that has not."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.body = nn.Linear(4, 4)
    model.thing_classifier = nn.Module()
    model.thing_classifier.layers = nn.ModuleList([nn.Linear(4, len(names.things))])
    model.stuff_query_feat = nn.Embedding(len(names.stuff), 4)
    return model


@pytest.fixture
def path(tmp_path: Path) -> str:
    Checkpointer(model_of(FOUND), str(tmp_path), class_names=FOUND).save("model", iteration=3, trainer=TRAINER)
    return str(tmp_path / "model.pth")


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name.startswith("psf")]


def test_rows_move_to_their_names(path: str, caplog: pytest.LogCaptureFixture):
    old, model = model_of(FOUND), model_of(WANTED, seed=1)
    fresh = model_of(WANTED, seed=1).thing_classifier.layers[0]
    with caplog.at_level(logging.INFO):
        checkpointer = Checkpointer(model, class_names=WANTED, optimizer=torch.optim.SGD(model.parameters(), 0.1))
        rest = checkpointer.load(path, checkpointables=[])
    assert rest["iteration"] == 3
    assert torch.equal(model.body.weight, old.body.weight)
    assert torch.equal(model.stuff_query_feat.weight, old.stuff_query_feat.weight[[2, 0]])
    head, old_head = model.thing_classifier.layers[0], old.thing_classifier.layers[0]
    assert torch.equal(head.weight[[0, 2]], old_head.weight[[1, 0]])
    assert torch.equal(head.weight[1], fresh.weight[1]) and torch.equal(head.bias[1], fresh.bias[1])
    [(level, text)] = messages(caplog)
    assert level == logging.INFO and "box (1 -> 0), ball (0 -> 2)" in text
    assert "ring" in text and "ground" in text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_new_classes_are_random_at_test(path: str, caplog: pytest.LogCaptureFixture):
    Checkpointer(model_of(WANTED), class_names=WANTED).load(path)
    [(level, text)] = messages(caplog)
    assert level == logging.WARNING and "NEW CLASSES WILL BE RANDOM" in text


def test_fewer_classes_are_no_reason_to_warn(path: str, caplog: pytest.LogCaptureFixture):
    names = ClassNames(("box",), ("sea",))
    Checkpointer(model_of(names), class_names=names).load(path)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_same_classes_are_no_news(path: str, caplog: pytest.LogCaptureFixture):
    model = model_of(FOUND, seed=1)
    with caplog.at_level(logging.INFO):
        Checkpointer(model, class_names=FOUND).load(path)
    assert not messages(caplog)
    assert torch.equal(model.stuff_query_feat.weight, model_of(FOUND).stuff_query_feat.weight)


def test_equal_numbers_do_not_hide_other_classes(path: str):
    names = ClassNames(FOUND.things[::-1], FOUND.stuff)
    model = model_of(names)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"(?s)cannot resume: classes.*ball \(0 -> 1\).*Name another OUTPUT_DIR"):
        Checkpointer(model, str(Path(path).parent), class_names=names, optimizer=optimizer).resume_or_load("")


@pytest.mark.parametrize("unnamed", ["file", "model"])
def test_without_names_it_says_what_is_missing(unnamed: str, path: str, caplog: pytest.LogCaptureFixture):
    if unnamed == "file":
        torch.save({"model": model_of(FOUND).state_dict()}, path)
    model = model_of(WANTED)
    Checkpointer(model, class_names=WANTED if unnamed == "file" else None).load(path)
    [(_, text)] = messages(caplog)
    assert "SKIPPED" in text and "stuff_query_feat.weight  " in text and "psf convert-weights" in text
    assert torch.equal(model.stuff_query_feat.weight, model_of(WANTED).stuff_query_feat.weight)


def test_a_run_does_not_go_on_with_another_number_of_queries(tmp_path: Path):
    """Also where no parameter has a row for each, as with proposals."""
    model = model_of(FOUND)
    Checkpointer(model, str(tmp_path), num_thing_queries=100).save("model", iteration=3, trainer=TRAINER)
    others = {"optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    with pytest.raises(ValueError, match=r"cannot resume: .*NUM_THING_QUERIES is 160, the .* trained with 100\. Name"):
        Checkpointer(model, str(tmp_path), num_thing_queries=160, **others).resume_or_load("")
    assert Checkpointer(model, str(tmp_path), num_thing_queries=100, **others).resume_or_load("")["iteration"] == 3


def test_weights_of_a_backbone_alone_are_one_line_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = model_of(FOUND)
    torch.save(
        {"model": {f"body.{name}": value for name, value in model.body.state_dict().items()}}, tmp_path / "b.pth"
    )
    caplog.set_level(logging.INFO)
    checkpointer = Checkpointer(model, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    checkpointer.load(str(tmp_path / "b.pth"), checkpointables=[])
    assert "MODEL.WEIGHTS has no weights for thing_classifier, stuff_query_feat: they start from random" in caplog.text
    assert "not found in the checkpoint" not in caplog.text


def test_detectron2s_own_reads_the_file(path: str):
    model = model_of(FOUND, seed=1)
    assert DetectionCheckpointer(model).load(path)["iteration"] == 3
    assert torch.equal(model.body.weight, model_of(FOUND).body.weight)


# ------------------------------------------------------------------ other channels


def model_of_channels(channels: int, seed: int = 0) -> nn.Module:
    """A part of a backbone, with the names of Detectron2's ResNet."""
    torch.manual_seed(seed)
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.stem, model.backbone.res2 = nn.Module(), nn.ModuleList([nn.Module()])
    model.backbone.stem.conv1 = nn.Conv2d(channels, 4, 3, bias=False)
    model.backbone.res2[0].conv1 = nn.Conv2d(4, 4, 1, bias=False)
    return model


def write_weights(kind: str, folder: Path) -> str:
    """Those of three channels: by psf's names, or by names for Detectron2's heuristics, also in Caffe2's .pkl."""
    weights = model_of_channels(3).state_dict()
    if kind == "psf":
        torch.save({"model": weights}, folder / "weights.pth")
        return str(folder / "weights.pth")
    if kind == "heuristics":
        torch.save(
            {"model": {name.removeprefix("backbone."): w for name, w in weights.items()}}, folder / "weights.pth"
        )
        return f"{folder / 'weights.pth'}?matching_heuristics=True"
    if kind == "detectron2.pkl":
        named = {name.removeprefix("backbone."): w.numpy() for name, w in weights.items()}
        content = {"model": named, "__author__": "Detectron2", "matching_heuristics": True}
    else:
        names = {"conv1_w": "backbone.stem.conv1.weight", "res2_0_branch2a_w": "backbone.res2.0.conv1.weight"}
        content = {old: weights[new].numpy() for old, new in names.items()}
    (folder / "weights.pkl").write_bytes(pickle.dumps(content))
    return str(folder / "weights.pkl")


@pytest.mark.parametrize("kind", ["psf", "heuristics", "detectron2.pkl", "caffe2.pkl"])
@pytest.mark.parametrize("channels", [1, 4])
def test_first_convolution_is_adapted(kind: str, channels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, old = model_of_channels(channels, seed=1), model_of_channels(3)
    with caplog.at_level(logging.INFO):
        Checkpointer(model).load(write_weights(kind, tmp_path))
    assert torch.equal(model.backbone.stem.conv1.weight, adapted_weight(old.backbone.stem.conv1.weight, channels))
    assert torch.equal(model.backbone.res2[0].conv1.weight, old.backbone.res2[0].conv1.weight)
    [(level, text)] = messages(caplog)
    assert level == logging.INFO and "MODEL.PIXEL_MEAN" in text
    assert text.endswith(f"backbone.stem.conv1.weight  (4, 3, 3, 3) -> (4, {channels}, 3, 3)")


def test_a_frozen_one_is_a_warning_in_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model, path = model_of_channels(4), write_weights("psf", tmp_path)
    model.backbone.stem.conv1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.backbone.res2.parameters(), 0.1)
    with caplog.at_level(logging.WARNING, logger="psf"):
        Checkpointer(model).load(path)
        assert not messages(caplog)
        Checkpointer(model, optimizer=optimizer).resume_or_load(path, resume=False)
    [(level, text)] = messages(caplog)
    assert level == logging.WARNING and "stem.conv1.weight is frozen" in text and "FREEZE_AT" in text


def test_three_channels_are_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    model = model_of_channels(3, seed=1)
    with caplog.at_level(logging.INFO):
        Checkpointer(model).load(write_weights("caffe2.pkl", tmp_path))
    assert not messages(caplog)
    assert torch.equal(model.backbone.stem.conv1.weight, model_of_channels(3).backbone.stem.conv1.weight)


def test_a_run_does_not_go_on_with_other_channels(tmp_path: Path):
    Checkpointer(model_of_channels(3), str(tmp_path)).save("model", iteration=3, trainer=TRAINER)
    model = model_of_channels(4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"(?s)cannot resume: .*conv1\.weight  \(4, 3, 3, 3\) -> \(4, 4, 3, 3\)"):
        Checkpointer(model, str(tmp_path), optimizer=optimizer).resume_or_load("")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, path: str):
    content = torch.load(path)
    content["model"]["body.weight"][1, 2] = value
    content["model"]["stuff_query_feat.weight"][0, 0] = value
    torch.save(content, path)
    with pytest.raises(UserError, match=rf"{path}: body\.weight and 1 other weights are NaN or infinite: .*WEIGHTS"):
        Checkpointer(model_of(FOUND)).load(path)


def test_others_than_the_models_may_be_anything(path: str):
    model = model_of(FOUND)
    model.register_buffer("bias_mask", torch.zeros(2))
    content = torch.load(path)
    content["model"] |= {"bias_mask": torch.tensor([0, -torch.inf]), "other": torch.tensor([torch.nan])}
    torch.save(content, path)
    Checkpointer(model).load(path)
    assert model.bias_mask[1] == -torch.inf


@pytest.mark.parametrize("entry", ["psf_class_names", "psf_num_thing_queries", "psf_merging"])
@pytest.mark.parametrize("value", [5.5, "x", {}, [], {"things": 5, "stuff": [1]}, {"things": {"alpha": "x"}}])
def test_entries_of_another_form_are_refused(entry: str, value: object, path: str):
    torch.save({**torch.load(path), entry: value}, path)
    with pytest.raises(UserError, match=f"the checkpoint .MODEL.WEIGHTS. has .* under '{entry}': expected "):
        Checkpointer(model_of(FOUND), class_names=FOUND, num_thing_queries=3).load(path)


@pytest.fixture
def only_signed(tmp_path: Path) -> Iterator[str]:
    """An address under which the weights of `path` are only with its query."""
    weights = Path(str(tmp_path / "model.pth"))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_signed = self.path == "/model.pth?key=a&signature=b%3D"
            self.send_response(200 if is_signed else 403)
            self.end_headers()
            if is_signed:
                self.wfile.write(weights.read_bytes())

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/model.pth?key=a&signature=b%3D"
        server.shutdown()


def test_a_presigned_address_keeps_its_query(
    path: str, only_signed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    check_weights(only_signed)
    model = model_of(FOUND, seed=1)
    Checkpointer(model).load(only_signed)
    assert torch.equal(model.body.weight, model_of(FOUND).body.weight)
    assert file_of_weights(only_signed) == only_signed
    assert file_of_weights("https://a/b.pth?matching_heuristics=True") == "https://a/b.pth"
