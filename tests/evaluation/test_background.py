"""Evaluators in a thread: the same results, in order, with bounded memory; errors and ends as without it."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_on_dataset

import psf.evaluation.background
from psf.data import panoptic_labels
from psf.errors import UserError
from psf.evaluation import BackgroundEvaluators, PanelEvaluator, PanopticGroundTruth, PanopticQualityEvaluator
from tests.evaluation.predictions import perturbed, run

SECONDS = 10.0  # after which a test has failed: nothing here takes so long


class Slow(DatasetEvaluator):
    """Waits for `go`; keeps the thread and the image ids that it has seen."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def reset(self) -> None:
        self.seen: list[Any] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        self.begun.release()
        assert self.go.wait(SECONDS)
        self.seen += [(threading.current_thread().name, image["image_id"]) for image in inputs]


def threads() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("psf-")]


def batch(image_id: int, num_bytes: int = 4) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [{"image_id": image_id}], [{"other": torch.zeros(num_bytes, dtype=torch.uint8)}]


def test_results_are_those_of_detectron2s_evaluators(mini: str, tmp_path: Path):
    def evaluators(name: str) -> list[DatasetEvaluator]:
        quality = PanopticQualityEvaluator(mini, boundary=True, by_size=True)
        return [quality, PanelEvaluator(mini, "BGR", tmp_path / name, quality)]

    pairs = [({**image, "image": torch.zeros(3, 8, 8, dtype=torch.uint8)}, one) for image, one in perturbed(mini)]
    expected = run(DatasetEvaluators(evaluators("one.png")), pairs)
    background = BackgroundEvaluators(evaluators("other.png"), PanopticGroundTruth(mini))
    assert run(background, pairs) == expected and 0 < expected["panoptic_seg"]["PQ"] < 100
    assert run(background, pairs) == expected  # again, after a reset
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "other.png").read_bytes()
    assert threads() == []


def test_process_does_not_wait_for_the_evaluators():
    slow = Slow()
    evaluators = BackgroundEvaluators([slow])
    evaluators.reset()
    for number in range(3):
        evaluators.process(*batch(number))
    assert slow.seen == []
    slow.go.set()
    evaluators.evaluate()
    assert slow.seen == [("psf-evaluators_0", number) for number in range(3)]
    assert threads() == []


@pytest.mark.parametrize(("limits", "number"), [((8, 100), 2), ((8, 5), 1), ((3, 1000), 3)])
def test_waiting_batches_are_few(monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], number: int):
    """Batches of 40 bytes: two in 100 bytes; a batch that is too large waits alone."""
    monkeypatch.setattr(psf.evaluation.background, "MAX_WAITING", limits[0])
    monkeypatch.setattr(psf.evaluation.background, "MAX_WAITING_BYTES", limits[1])
    slow, queued = Slow(), []
    evaluators = BackgroundEvaluators([slow])
    evaluators.reset()

    def model() -> None:
        for i in range(number + 1):
            evaluators.process(*batch(i, 40))
            queued.append(i)

    thread = threading.Thread(target=model)
    thread.start()
    assert slow.begun.acquire(timeout=SECONDS)
    end = time.monotonic() + SECONDS
    while len(queued) < number and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.1)  # in which no other batch is queued
    assert len(queued) == number
    slow.go.set()
    thread.join(SECONDS)
    evaluators.evaluate()
    assert len(slow.seen) == number + 1


def test_ground_truth_is_decoded_once_and_not_in_the_main_thread(mini: str, monkeypatch: pytest.MonkeyPatch):
    decoded: list[str] = []
    read = panoptic_labels._read_ids

    def counting(file_name: str) -> Any:
        decoded.append(threading.current_thread().name)
        return read(file_name)

    pairs = perturbed(mini)
    monkeypatch.setattr(panoptic_labels, "_read_ids", counting)
    both = [PanopticQualityEvaluator(mini), PanopticQualityEvaluator(mini, boundary=True)]
    for one in both[1:]:
        one.evaluate = lambda: None  # type: ignore[method-assign]  # the keys of the first would be there twice
    run(BackgroundEvaluators(both, PanopticGroundTruth(mini)), pairs)
    assert decoded == ["psf-ground-truth_0"] * len(pairs)


class TestErrors:
    def test_of_a_batch_are_raised_in_the_main_thread(self, mini: str):
        (image, output), *others = perturbed(mini)
        evaluators = BackgroundEvaluators([PanopticQualityEvaluator(mini)], PanopticGroundTruth(mini))
        evaluators.reset()
        evaluators.process([{**image, "image_id": 99}], [output])
        with pytest.raises(UserError, match=r"^[^\n]*panoptic\.json has no annotation for image id 99$"):
            for other in others:
                evaluators.process([other[0]], [other[1]])
            evaluators.evaluate()
        assert threads() == []

    def test_of_the_last_batch_too(self, mini: str):
        Path(MetadataCatalog.get(mini).panoptic_root, "4.png").unlink()
        evaluators = BackgroundEvaluators([PanopticQualityEvaluator(mini)], PanopticGroundTruth(mini))
        evaluators.reset()
        image = {"image_id": 41}
        evaluators.process([image], [{"panoptic_seg": (torch.zeros(36, 52, dtype=torch.int32), [])}])
        with pytest.raises(UserError, match=r"4\.png: no such image file"):
            evaluators.evaluate()
        assert threads() == []

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_of_the_model_end_the_threads(self, error: type[BaseException]):
        """What waits is not evaluated: a stopped evaluation ends at once."""
        slow = Slow()
        evaluators = BackgroundEvaluators([slow])

        def model(inputs: Any) -> Any:
            if inputs[0]["image_id"] == 3:
                raise error
            return batch(0)[1]

        with pytest.raises(error):
            inference_on_dataset(model, [batch(number)[0] for number in range(4)], evaluators)
        slow.go.set()
        evaluators.close()
        assert len(slow.seen) <= 1 and threads() == []


def test_scores_become_classes_and_other_evaluators_get_them_unchanged():
    class Keeps(DatasetEvaluator):
        def process(self, inputs: Any, outputs: Any) -> None:
            self.kept, self.thread = outputs[0]["sem_seg"], threading.current_thread()

    scores = torch.rand(5, 3, 4)
    front, back = Keeps(), Keeps()
    evaluators = BackgroundEvaluators([back], in_foreground=[front])
    evaluators.process([{"image_id": 1}], [{"sem_seg": scores}])
    evaluators.evaluate()
    assert front.kept is scores and front.thread is threading.main_thread()
    assert torch.equal(back.kept, scores.argmax(dim=0)) and back.thread is not threading.main_thread()
