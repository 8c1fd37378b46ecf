"""Learnt weights of several losses (Kendall et al., CVPR 2018, arXiv:1705.07115), as MCLEA and
MEAformer use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

Regulariser = Literal["paper", "released"]


class Uncertainty(nn.Module):
    """Weighs loss m as L_m / alpha_m^2 plus a regulariser, with s_m = log alpha_m^2 learnt from 0.

    Args:
        regulariser: "paper" adds log alpha_m, "released" what the released codes of both models
            add, twice that.
    """

    def __init__(self, names: Iterable[str], regulariser: Regulariser = "paper"):
        super().__init__()
        if regulariser not in ("paper", "released"):
            raise ValueError(f"regulariser must be 'paper' or 'released', got {regulariser!r}")
        self.names = tuple(names)
        self.log_variance = nn.Parameter(torch.zeros(len(self.names)))
        self.strength = 0.5 if regulariser == "paper" else 1.0

    def forward(self, losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same names with weighted losses.

        A loss that is exactly zero had no samples and stays so: otherwise its regulariser would run
        off to minus infinity.
        """
        weighted = {}
        for name, loss in losses.items():
            log_variance = self.log_variance[self.names.index(name)]
            regulariser = self.strength * log_variance * (loss.detach() != 0)
            weighted[name] = (-log_variance).exp() * loss + regulariser
        return weighted

    def weights(self) -> dict[str, float]:
        """Name -> 1 / alpha^2, for the log."""
        weights = (-self.log_variance.detach()).exp().tolist()
        return dict(zip(self.names, weights, strict=True))
