"""Which query and which class: best per query, or best pairs."""

from __future__ import annotations

import pytest
import torch

from psf.inference import best_class, choose_things, thing_candidates, top_pairs

LOGITS = torch.tensor([[0.0, 2.0, -1.0], [3.0, 1.0, 2.5], [-4.0, -3.0, -5.0]])


def test_best_class_by_hand():
    rows, classes, scores = best_class(LOGITS)
    assert rows.tolist() == [0, 1, 2] and classes.tolist() == [1, 0, 1]
    torch.testing.assert_close(scores, torch.tensor([2.0, 3.0, -3.0]).sigmoid())


def test_top_pairs_by_hand():
    rows, classes, scores = top_pairs(LOGITS, 4)
    assert list(zip(rows.tolist(), classes.tolist(), strict=True)) == [(1, 0), (1, 2), (0, 1), (1, 1)]
    torch.testing.assert_close(scores, torch.tensor([3.0, 2.5, 2.0, 1.0]).sigmoid())


@pytest.mark.parametrize("wanted, given", [(0, 0), (9, 9), (100, 9)])
def test_no_more_pairs_than_there_are(wanted, given):
    rows, classes, scores = top_pairs(LOGITS, wanted)
    assert len(rows) == len(classes) == len(scores) == given
    assert len(set(zip(rows.tolist(), classes.tolist(), strict=True))) == given


def test_no_queries():
    for result in (best_class(torch.zeros(0, 3)), top_pairs(torch.zeros(0, 3), 5)):
        assert [len(x) for x in result] == [0, 0, 0]


def test_a_batch_is_its_images():
    batch = torch.stack((LOGITS, -LOGITS))
    for way, one_image in (("best_class", best_class), ("top_pairs", lambda logits: top_pairs(logits, 4))):
        chosen = choose_things(batch, way, 4)
        for b, logits in enumerate(batch):
            for found, expected in zip(chosen, one_image(logits), strict=True):
                assert torch.equal(found[b], expected)


def test_things_of_each_image():
    masks, boxes = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4)
    chosen = choose_things(torch.stack((LOGITS, -LOGITS)), "best_class", 0)
    for b, one in enumerate(thing_candidates(chosen, masks, boxes)):
        assert torch.equal(one.class_scores, chosen.scores[b]) and torch.equal(one.class_indices, chosen.classes[b])
        assert one.is_thing.dtype == torch.bool and one.is_thing.all()
        assert torch.equal(one.mask_scores, masks[b]) and torch.equal(one.boxes_cxcywh_norm, boxes[b])
    assert [one.boxes_cxcywh_norm for one in thing_candidates(chosen, masks, None)] == [None, None]
