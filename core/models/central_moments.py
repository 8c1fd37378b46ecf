"""CMD: how far two sets of rows are apart in their central moments (Zellinger et al., ICLR 2017, arXiv:1702.08811)."""

from __future__ import annotations

import torch
from torch import Tensor


def central_moment_discrepancy(left: Tensor, right: Tensor, moments: int = 3) -> Tensor:
    """Sum of the distances between means and central moments 2..``moments`` of (n, D) and (m, D) rows, as a scalar.

    Without the paper's scaling by powers of the range, as MISA's code and those that took it over compute it.
    """
    means = left.mean(0), right.mean(0)
    apart = _norm(means[0] - means[1])
    centred = left - means[0], right - means[1]
    for order in range(2, moments + 1):
        apart = apart + _norm((centred[0] ** order).mean(0) - (centred[1] ** order).mean(0))
    return apart


def _norm(x: Tensor) -> Tensor:
    return torch.sqrt(x.square().sum() + 1e-12)  # a root whose gradient is finite at zero
