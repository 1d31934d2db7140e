"""The two-layer feed-forward network of encoder and decoders."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """Linear, activation, dropout, linear, dropout; without residual and norm.

    Args:
        dim: channels in and out.
        hidden_dim: channels between.
        activation: None: ReLU, as in encoder and location decoder; GELU in the mask decoder.
        dropout: probability, after the activation and at the end.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: nn.Module | None = None, dropout: float = 0.0):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.activation = activation or nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(self.activation(self.fc1(x)))))
