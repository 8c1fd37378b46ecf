"""What TFR-Net is built of: its gate, SimAM, and the central moment discrepancy of summed powers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.encoders.sequence import BiGRU, masked_max
from core.losses.subspaces import distance

SIMAM_LAMBDA = 1e-4


class Gate(nn.Module):
    """C-GATE: a recurrent encoder whose states a convolution opens and closes, pooled by maximum to
    (B, hidden)."""

    def __init__(self, width: int, hidden: int, gru_layers: int, dropout: float):
        super().__init__()
        self.states = BiGRU(width, hidden, gru_layers)
        self.gate = nn.Conv1d(2 * hidden, 1, 3, padding=1)
        self.out = nn.Linear(width + 2 * hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        states = self.states(x, mask)  # (B, T, 2 hidden)
        gate = self.gate(states.transpose(1, 2)).transpose(1, 2).sigmoid()  # (B, T, 1)
        joined = torch.tanh(self.out(torch.cat([x, states.tanh() * gate], dim=2)))
        return self.dropout(masked_max(joined, mask))


def simam(x: Tensor, mask: Tensor) -> Tensor:
    """SimAM, attention without parameters, by how much a value stands out (Yang et al., ICML 2021).

    (B, T, C) scaled per sample and channel by what stands out over the existing times of ``mask``
    (B, T). Equation 5 of the paper turned upside down: d / (4 (v + lambda)) + 1/2, d the squared
    distance from the mean, v the variance over n - 1. Padding gives zero.
    """
    kept = mask[..., None].to(x.dtype)  # (B, T, 1)
    size = kept.sum(1, keepdim=True)
    mean = (x * kept).sum(1, keepdim=True) / size.clamp(min=1)
    squared = (x - mean).square() * kept
    variance = squared.sum(1, keepdim=True) / (size - 1).clamp(min=1)
    return x * kept * (squared / (4 * (variance + SIMAM_LAMBDA)) + 0.5).sigmoid()


def power_sums(rows: Tensor) -> Tensor:
    """(..., 3, D) float64, sums of first, second and third powers of (..., n, D) rows.

    They add up over samples and ranks, and moments follow from them; in float32 too little would be
    left of a central moment, which is their difference.
    """
    rows = rows.double()
    return torch.stack([(rows**order).sum(-2) for order in (1, 2, 3)], dim=-2)


def discrepancy_of_moments(left: Tensor, right: Tensor) -> Tensor:
    """The central moment discrepancy of two sets of rows (``core.losses.subspaces``), with moments
    1 to 3, given (3, D) means of their powers."""
    pairs = zip(_central_moments(left), _central_moments(right), strict=True)
    distances = [distance(of_left, of_right) for of_left, of_right in pairs]
    return torch.stack(distances).sum()


def _central_moments(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The mean and the central moments 2 and 3, each (D,)."""
    mean, square, cube = raw
    return mean, square - mean**2, cube - 3 * mean * square + 2 * mean**3
