"""Steps whose loss or gradients are not finite change nothing, are reported, and end the training if they go on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from psf.engine.train_step import METRICS_PERIOD, TrainStep
from psf.errors import UserError

NAN, INF = float("nan"), float("inf")


class Model(nn.Module):
    """loss_good is w; loss_bad is the image's value, with a gradient of 2 * sqrt(w - 1) or of NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.norm = nn.BatchNorm1d(1)

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        value = torch.stack([one["image"] for one in batch])
        self.norm(value[:, None].expand(2, 1))
        bad = value.sum() * 0.5 * self.weight.sum()
        if batch[0].get("has_bad_gradient"):
            bad = bad + (self.weight.sum() - 1).sqrt() * 0  # the gradient of sqrt at 0 is infinite: 0 * inf
        return {"loss_good": self.weight.sum(), "loss_bad": bad}


def image(value: float, name: str = "a.png", **more: object) -> list[dict]:
    return [{"image": torch.tensor(value), "file_name": name, **more}]


@pytest.fixture
def storage() -> Iterator[EventStorage]:
    with EventStorage() as storage:
        yield storage


def make_step(batches: list[list[dict]], **more: object) -> TrainStep:
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return TrainStep(model, batches, optimizer, dtype=None, device_type="cpu", **{"max_skipped": 3, **more})


def state(step: TrainStep) -> list[torch.Tensor]:
    moments = [
        value["momentum_buffer"] for value in step.optimizer.state.values() if value.get("momentum_buffer") is not None
    ]
    return [value.clone() for value in [*step.model.state_dict().values(), *moments]]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (image(NAN, "broken.png"), "the loss is not finite (loss_bad nan); images broken.png"),
        (image(INF, "broken.png"), "the loss is not finite (loss_bad inf); images broken.png"),
        (
            image(2.0, "steep.png", has_bad_gradient=True),
            "gradients are not finite (of weight; from loss_bad 1); images",
        ),
    ],
)
def test_bad_step_is_skipped(
    bad: list[dict], words: str, storage: EventStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    step = make_step([image(1.0), bad, image(1.0)], output_dir=str(tmp_path))
    step.iter = 0
    if bad[0].get("has_bad_gradient"):
        step.optimizer.param_groups[0]["lr"] = 0.0  # stay at weight 1
    step.run_step()
    before, random = state(step), torch.get_rng_state()
    step.iter = 1
    with caplog.at_level(logging.WARNING, logger="psf"):
        step.run_step()
    assert all(torch.equal(old, new) for old, new in zip(before, state(step), strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    [message] = caplog.messages
    assert words in message and "SKIPPED iteration 1, step 1 of at most 3" in message and "\n" not in message
    assert storage.latest()["num_skipped_steps"][0] == 1
    stored = torch.load(tmp_path / "skipped_steps" / "iteration_0000001_process_0.pth", weights_only=True)
    assert stored["batch"][0]["file_name"] == bad[0]["file_name"] and set(stored["terms"]) == {"loss_bad"}
    step.optimizer.param_groups[0]["lr"] = 0.1
    step.iter = 2
    step.run_step()
    assert not torch.equal(before[0], state(step)[0])


def test_too_many_in_a_row_end_the_training(storage: EventStorage, tmp_path: Path):
    bad, good = image(NAN), image(1.0)
    step = make_step([bad, bad, good, bad, bad, bad], output_dir=str(tmp_path))
    for step.iter in range(5):
        step.run_step()
    weight = step.model.weight.clone()
    step.iter = 5
    with pytest.raises(
        UserError, match=r"^training ended at iteration 5: 3 steps in a row [^\n]*SOLVER\.BASE_LR[^\n]*$"
    ):
        step.run_step()
    assert torch.equal(step.model.weight, weight)
    assert storage.latest()["num_skipped_steps"][0] == 5


def test_the_count_survives_a_checkpoint(storage: EventStorage):
    step, other = make_step([image(NAN)] * 2), make_step([image(NAN)])
    for step.iter in range(2):
        step.run_step()
    other.load_state_dict(step.state_dict())
    with pytest.raises(UserError, match="3 steps in a row"):
        other.run_step()


def test_a_loss_that_is_not_finite_leaves_the_scale(storage: EventStorage):
    """In float16 its gradients are not finite either, but a lower scale would not help."""
    step = make_step([image(1.0), image(INF), image(1.0), image(1.0)])
    step._scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    scales = []
    for step.iter in range(4):
        before = state(step)
        step.run_step()
        scales.append(step._scaler.get_scale())
        is_same = all(torch.equal(old, new) for old, new in zip(before, state(step), strict=False))
        assert is_same == (step.iter == 1)
    assert scales == [8.0, 8.0, 8.0, 16.0]  # three good steps let it grow; the skipped one does not count


def test_gradients_that_overflow_lower_the_scale(storage: EventStorage):
    step = make_step([image(2.0, has_bad_gradient=True)] * 2)
    step._scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    step.iter = 0
    before = state(step)
    step.run_step()  # the scale may be to blame: no report
    assert step._scaler.get_scale() == 1.0 and "num_skipped_steps" not in storage.latest()
    assert torch.equal(before[0], state(step)[0])
    step.iter = 1
    step.run_step()
    assert storage.latest()["num_skipped_steps"][0] == 1


class TestMetrics:
    def test_they_are_written_under_their_iterations(self, storage: EventStorage):
        step = make_step([image(1.0), image(NAN), image(4.0), image(2.0)])
        step.optimizer.param_groups[0]["lr"] = 0.0
        for step.iter in range(4):
            step.run_step()
        assert "total_loss" not in storage.latest()
        step.write_metrics_so_far()
        # The loss is 1 + value / 2; a skipped iteration has none.
        assert storage.history("total_loss").values() == [(1.5, 0), (3.0, 2), (2.0, 3)]
        assert storage.history("loss_bad").values() == [(0.5, 0), (2.0, 2), (1.0, 3)]
        assert [iteration for _, iteration in storage.history("data_time").values()] == [0, 2, 3]
        step.write_metrics_so_far()
        assert len(storage.history("total_loss").values()) == 3

    def test_without_a_trainer_they_do_not_pile_up(self, storage: EventStorage):
        step = make_step([image(1.0)] * 50)
        for step.iter in range(50):
            step.run_step()
            assert len(step._noted) <= METRICS_PERIOD
        assert len(storage.history("total_loss").values()) == 40

    def test_no_graph_is_kept(self, storage: EventStorage):
        step = make_step([image(1.0)])
        step.iter = 0
        step.run_step()
        assert not step._noted[0].values.requires_grad


def test_the_scale_of_gradients_survives_a_checkpoint(storage: EventStorage):
    """In float16: the scale, and the number of steps since it was lowered."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    batches = [image(1.0), image(1e35), image(1.0), image(1.0)]  # times the first scale, 65536: above float32's range
    how = {"dtype": torch.float16, "device_type": "cpu", "max_skipped": 3}
    step, other = TrainStep(model, batches, optimizer, **how), TrainStep(model, [], optimizer, **how)
    for step.iter in range(4):
        step.run_step()
    stored = step.state_dict()["grad_scaler"]
    assert (stored["scale"], stored["_growth_tracker"]) == (2.0**15, 2)
    other.load_state_dict(step.state_dict())
    assert other.state_dict()["grad_scaler"] == stored


def test_an_update_uses_the_gradients_of_its_own_step(storage: EventStorage):
    """The loss is 1.5 and 2.5 times the weight: SGD without momentum takes both away, times the learning rate."""
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    step = TrainStep(model, [image(1.0), image(3.0)], optimizer, dtype=None, device_type="cpu")
    for step.iter in range(2):
        step.run_step()
    assert model.weight.item() == pytest.approx(1 - 0.1 * (1.5 + 2.5))


class NoisyModel(Model):
    """Its loss has a random factor, as with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.factors: list[float] = []

    def forward(self, batch: list[dict]) -> dict[str, torch.Tensor]:
        factor = torch.rand(())
        self.factors.append(factor.item())
        return {name: value * factor for name, value in super().forward(batch).items()}


def test_a_skipped_step_takes_the_random_numbers_of_one_forward_pass(storage: EventStorage):
    """For the report the forward pass is repeated, with the same numbers; the next step has the next ones."""
    model = NoisyModel()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)  # stay at weight 1, where the gradient can be infinite
    batches = [image(1.0), image(1.0, has_bad_gradient=True), image(1.0)]
    step = TrainStep(model, batches, optimizer, dtype=None, device_type="cpu", max_skipped=3)
    torch.manual_seed(0)
    expected = torch.rand(3).tolist()
    torch.manual_seed(0)
    for step.iter in range(3):
        step.run_step()
    assert model.factors == [expected[0], expected[1], expected[1], expected[2]]


def test_few_inputs_are_stored(storage: EventStorage, tmp_path: Path):
    step = make_step([image(NAN)] * 8, output_dir=str(tmp_path), max_skipped=100)
    for step.iter in range(8):
        step.run_step()
    assert len(list((tmp_path / "skipped_steps").iterdir())) == 5
