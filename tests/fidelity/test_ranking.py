"""Near-ties of rankings, by hand: what is put in order, what is left out, and what is not excused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fidelity.evaluation import INSTANCE_TIE, PAIR_TIE, compare_evaluation
from fidelity.ranking import name_instances_alike, put_instances_in_order, put_pairs_in_order
from fidelity.stored import StoredTensors

Arrays = dict[str, np.ndarray]


@pytest.fixture
def store(tmp_path: Path):
    def store(arrays: Arrays) -> StoredTensors:
        np.savez(tmp_path / "x.npz", **arrays)
        return StoredTensors([tmp_path / "x.npz"])

    return store


def pairs(queries: list[int], scores: list[float]) -> Arrays:
    """Things whose every number tells the query."""
    row = np.array(queries, float)
    boxes = np.stack([row] * 4 + [np.array(scores)], axis=1)
    tensors = {"topk_query": np.array(queries), "topk_labels": np.array(queries) % 3, "topk_boxes": boxes}
    tensors |= {"things_tail_mask": np.tile(row[:, None], 2), "things_block_masks": np.tile(row[:, None], (2, 1, 2))}
    return {**tensors, "things_block_queries": np.tile(row[:, None], (2, 1, 5))}


class TestPairs:
    def test_put_in_order(self, store) -> None:
        ours = pairs([8, 5, 7], [0.9, 0.50001, 0.5])
        wanted = pairs([8, 7, 5], [0.9, 0.5, 0.5])
        assert put_pairs_in_order(ours, store(wanted), "").all()
        assert all(np.array_equal(ours[name], wanted[name]) for name in ours if name != "topk_boxes")
        assert ours["topk_boxes"][:, 4].tolist() == [0.9, 0.5, 0.50001]

    def test_the_last_may_be_others(self, store) -> None:
        # Ours has query 2 before 6, the reference has 4 in the last place instead.
        ours = pairs([8, 2, 6], [0.9, 0.30005, 0.30001])
        stored = store(pairs([8, 6, 4], [0.9, 0.30001, 0.3]))
        assert put_pairs_in_order(ours, stored, "").tolist() == [True, True, False]
        assert ours["topk_query"].tolist() == [8, 6, 2] and ours["things_block_masks"][1, :, 0].tolist() == [8, 6, 2]

    @pytest.mark.parametrize("scores", [[0.9, 0.5, 0.3002], [0.9, 0.3002, 0.3]])
    def test_others_with_another_score_are_not_excused(self, store, scores: list[float]) -> None:
        ours = pairs([8, 6, 2], scores)
        assert put_pairs_in_order(ours, store(pairs([8, 4, 6], [0.9, 0.5, 0.3])), "").all()
        assert ours["topk_query"].tolist() == [8, 6, 2]


def instances(labels: list[int], scores: list[float]) -> Arrays:
    """Boxes and masks tell the label."""
    row = np.array(labels, float)
    masks = np.array(labels)[:, None, None] > np.arange(6).reshape(2, 3)
    boxes = np.stack([row] * 4 + [np.array(scores)], axis=1)
    return {"inst_boxes": boxes, "inst_labels": np.array(labels), "inst_masks": masks}


class TestInstances:
    def test_put_in_order(self, store) -> None:
        ours = instances([1, 4, 2], [0.9, 0.50005, 0.5])
        assert put_instances_in_order(ours, store(instances([1, 2, 4], [0.9, 0.5, 0.5])), "").all()
        assert ours["inst_labels"].tolist() == [1, 2, 4]

    def test_one_more_or_less_that_scores_nothing(self, store) -> None:
        ours = instances([1, 3, 5], [0.9, 2e-5, 1e-5])
        stored = store(instances([1, 5, 2, 2], [0.9, 2e-5, 1e-5, 0.0]))
        assert put_instances_in_order(ours, stored, "").tolist() == [True, True, False, False]
        assert ours["inst_labels"].tolist() == [1, 5, 0, 0] and ours["inst_masks"].shape == (4, 2, 3)

    @pytest.mark.parametrize("longer", ["ours", "theirs"])
    def test_one_more_or_less_that_scores_is_not_excused(self, store, longer: str) -> None:
        arrays = [instances([1, 3], [0.9, 2e-4]), instances([1], [0.9])]
        ours, theirs = arrays if longer == "ours" else arrays[::-1]
        number = len(ours["inst_labels"])
        assert put_instances_in_order(ours, store(theirs), "").all()
        assert len(ours["inst_labels"]) == number

    def test_none_at_all(self, store) -> None:
        ours, nothing = instances([], []), instances([], [])
        assert put_instances_in_order(ours, store(nothing), "").shape == (0,)
        assert not put_instances_in_order(ours, store(instances([4], [0.0])), "").any()


class TestNames:
    MAP = np.array([[1, 1, 0], [2, 2, 3]])

    def found(self, scores: list[float]) -> Arrays:
        renamed = np.array([0, 1, 3, 2])[self.MAP]
        return {"panoptic_instance": renamed, "panoptic_scores": np.array(scores)}

    def test_of_nearly_equal_scores_are_changed(self, store) -> None:
        ours = self.found([0.9, 0.50005, 0.5])
        name_instances_alike(ours, store({"panoptic_instance": self.MAP}), "")
        assert np.array_equal(ours["panoptic_instance"], self.MAP)

    def test_of_other_scores_stay(self, store) -> None:
        ours = self.found([0.9, 0.6, 0.5])
        name_instances_alike(ours, store({"panoptic_instance": self.MAP}), "")
        assert np.array_equal(ours["panoptic_instance"], [[1, 1, 0], [3, 3, 2]])

    def test_of_a_map_with_another_number_of_things_stay(self, store) -> None:
        ours = self.found([0.5, 0.5, 0.5])
        name_instances_alike(ours, store({"panoptic_instance": np.minimum(self.MAP, 2)}), "")
        assert np.array_equal(ours["panoptic_instance"], [[1, 1, 0], [3, 3, 2]])

    def test_of_an_empty_map(self, store) -> None:
        ours = {"panoptic_instance": np.zeros((2, 2), int), "panoptic_scores": np.zeros(0)}
        name_instances_alike(ours, store({"panoptic_instance": np.zeros((2, 2), int)}), "")
        assert not ours["panoptic_instance"].any()


def test_rows_left_out_are_reported(store) -> None:
    """A whole image, with a tie at the end of each ranking."""
    panoptic = {"panoptic_category": np.ones((2, 3), int), "panoptic_instance": np.zeros((2, 3), int)}
    ours = {
        **pairs([8, 2], [0.9, 0.30001]),
        **instances([1, 3], [0.9, 1e-5]),
        **panoptic,
        "panoptic_scores": np.zeros(0),
    }
    theirs = {**pairs([8, 4], [0.9, 0.3]), **instances([1, 2], [0.9, 0.0]), **panoptic}
    found = {f"img0_{name}": torch.from_numpy(value.copy()) for name, value in ours.items()}
    stored = store({f"img0_{name}": value for name, value in theirs.items()})
    comparisons, skipped = compare_evaluation("case", found, stored, [])
    assert len(comparisons) == len(theirs) and all(comparison.passed for comparison in comparisons)
    assert skipped == {"img0_topk_* and img0_things_*: rows 1": PAIR_TIE, "img0_inst_*: rows 1": INSTANCE_TIE}
