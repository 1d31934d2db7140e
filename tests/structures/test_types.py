"""The tuples that travel between the rooms, where they do more than travel."""

from __future__ import annotations

import torch

from psf.structures import LocatedQueries
from tests.candidates import make_candidates
from tests.features import random_features


def test_finest_levels_alone():
    features = random_features([(4, 6), (2, 3), (1, 2)], own_shares=[(1.0, 1.0), (0.5, 0.5)])
    finest = features.finest(2)
    assert finest.spatial_shapes == [(4, 6), (2, 3)]
    assert torch.equal(finest.tokens, features.tokens[:, :30]) and torch.equal(
        finest.pos_embed, features.pos_embed[:, :30]
    )
    assert torch.equal(finest.padding_mask, features.padding_mask[:, :30])
    assert torch.equal(finest.valid_ratios, features.valid_ratios[:, :2])
    assert random_features([(2, 2), (1, 1)]).finest(1).padding_mask is None


def test_picked_queries():
    queries, rows = torch.arange(12.0).view(2, 3, 2), torch.tensor([[2, 0], [1, 1]])
    picked = LocatedQueries(queries, -queries, []).pick(rows)
    assert picked.queries.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]
    assert torch.equal(picked.query_pos, -picked.queries)
    nothing = LocatedQueries(queries, None, []).pick(rows)
    assert nothing.query_pos is None and nothing.boxes_cxcywh_norm is None
    boxes = torch.rand(2, 3, 4)
    picked = LocatedQueries(queries, None, [], boxes).pick(rows).boxes_cxcywh_norm
    assert torch.equal(picked, torch.stack((boxes[0, [2, 0]], boxes[1, [1, 1]])))


def test_selected_candidates():
    candidates = make_candidates([0.1, 0.2, 0.3], torch.rand(3, 2, 2), things=[True, False, True], classes=[5, 6, 7])
    boxes = torch.rand(3, 4)
    for index in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        chosen = candidates._replace(boxes_cxcywh_norm=boxes).select(index)
        rows = index if index.dtype == torch.long else torch.tensor([0, 2])
        assert chosen.class_indices.tolist() == [5 + int(i) for i in rows]
        assert torch.equal(chosen.mask_scores, candidates.mask_scores[rows])
        assert torch.equal(chosen.boxes_cxcywh_norm, boxes[rows])
    assert candidates.select(torch.tensor([0])).boxes_cxcywh_norm is None
