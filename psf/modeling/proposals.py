"""Thing queries made of the encoder's most promising tokens (two-stage Deformable DETR, arXiv 2010.04159)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from psf.modeling.heads import initial_class_bias, inverse_sigmoid, mlp_head
from psf.modeling.position_encoding import sine_point_encoding, token_centres
from psf.precision import at_least_float32
from psf.predictions import FeatureTokens, LocationLayer

__all__ = ["ProposedQueries", "QueryProposals"]

ANCHOR_TOKENS = 4.0  # side of the box that a token starts from, in tokens of its level
NOT_PROPOSED = -1e4  # class logit of padded tokens; within float16, and its sigmoid is 0
NOT_A_PEAK = -1e3  # added to the logits of tokens that are none: they come after all peaks, and before padding


class ProposedQueries(NamedTuple):
    """The chosen tokens as queries, and what the heads say of all tokens."""

    queries: Tensor  # (B, N, D)
    position: Tensor  # (B, N, D), encoding of the proposed boxes
    boxes_cxcywh_norm: Tensor  # (B, N, 4), without gradient
    all_tokens: LocationLayer  # (B, T, K_things) and (B, T, 4)


class QueryProposals(nn.Module):
    """Every token predicts classes and a box; the most probable peaks become queries.

    A token whose neighbour (3 x 3, of its level) is more probable comes after all peaks, so that one thing, which
    several tokens describe, does not use up the queries of others.

    Args:
        dim: D.
        num_queries: N_things; fewer where there are fewer tokens.
        num_classes: K_things.
    """

    def __init__(self, *, dim: int, num_queries: int, num_classes: int):
        super().__init__()
        self.num_queries = num_queries
        self.projection, self.norm = nn.Linear(dim, dim), nn.LayerNorm(dim)
        self.class_head = nn.Linear(dim, num_classes)
        nn.init.constant_(self.class_head.bias, initial_class_bias())
        self.box_head = mlp_head(dim, 4)
        self.content = nn.Linear(dim, dim)
        self.position = nn.Linear(2 * dim, dim)
        for linear in (self.projection, self.content, self.position):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, features: FeatureTokens) -> ProposedQueries:
        """Tokens of all levels -> queries."""
        tokens = self.norm(self.projection(features.tokens))
        logits = self.class_head(tokens)
        if features.padding_mask is not None:
            logits = logits.masked_fill(features.padding_mask[..., None], NOT_PROPOSED)
        with torch.autocast(tokens.device.type, enabled=False):
            raw = at_least_float32(self.box_head(tokens.to(self.content.weight.dtype)))
            boxes = (raw + inverse_sigmoid(_anchors(features))).sigmoid()
        rows = self._choose(at_least_float32(logits.detach()).amax(-1), features.spatial_shapes)[..., None]
        chosen_boxes = torch.take_along_dim(boxes.detach(), rows, dim=1)
        return ProposedQueries(
            queries=self.content(torch.take_along_dim(tokens, rows, dim=1)),
            position=self.encode(chosen_boxes),
            boxes_cxcywh_norm=chosen_boxes,
            all_tokens=LocationLayer(logits, boxes),
        )

    def encode(self, boxes_cxcywh_norm: Tensor) -> Tensor:
        """(B, N, 4) -> (B, N, D): the sine encodings of centre and size, projected."""
        dim = self.content.in_features
        centre = sine_point_encoding(boxes_cxcywh_norm[..., :2], dim)
        size = sine_point_encoding(boxes_cxcywh_norm[..., 2:], dim)
        return self.position(torch.cat((centre, size), dim=-1).to(self.position.weight.dtype))

    def _choose(self, scores: Tensor, shapes: list[tuple[int, int]]) -> Tensor:
        """(B, T) best class logit of each token -> (B, N) rows of the chosen ones, best first."""
        ranked = []
        for level, (h, w) in zip(scores.split([h * w for h, w in shapes], dim=1), shapes, strict=True):
            highest = F.max_pool2d(level.view(-1, 1, h, w), kernel_size=3, stride=1, padding=1).flatten(1)
            ranked.append(torch.where(level >= highest, level, level + NOT_A_PEAK))
        return torch.cat(ranked, dim=1).topk(min(self.num_queries, scores.shape[1]), dim=1).indices


def _anchors(features: FeatureTokens) -> Tensor:
    """(B, T, 4) boxes_cxcywh_norm around the tokens' centres, of `ANCHOR_TOKENS` tokens each way."""
    centres = token_centres(features)
    sizes = []
    for level, (h, w) in enumerate(features.spatial_shapes):
        in_tokens = features.valid_ratios[:, level] * centres.new_tensor((w, h))
        sizes.append((ANCHOR_TOKENS / in_tokens)[:, None].expand(-1, h * w, -1))
    return torch.cat((centres, torch.cat(sizes, dim=1)), dim=-1)
