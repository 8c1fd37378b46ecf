"""How far apart two sets of representations are, and how much they say the same: MISA's losses
over the rows of a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from core.rows import at_least_float32

SHORTEST = 1e-6  # added to a row's length before it is divided by it


def central_moment_discrepancy(left: Tensor, right: Tensor, moments: int = 3) -> Tensor:
    """CMD (Zellinger et al., ICLR 2017, arXiv:1702.08811): how far two sets of rows are apart in
    their moments.

    Sum of the distances between means and central moments 2 to ``moments`` of (n, D) and (m, D)
    rows, as a scalar, float64. Without the paper's scaling by powers of the range, as MISA's code
    and those that took it over compute it.
    """
    left, right = left.double(), right.double()
    left_mean, right_mean = left.mean(0), right.mean(0)
    total = distance(left_mean, right_mean)
    for order in range(2, moments + 1):
        left_moment = ((left - left_mean) ** order).mean(0)
        right_moment = ((right - right_mean) ** order).mean(0)
        total = total + distance(left_moment, right_moment)
    return total


def distance(left: Tensor, right: Tensor) -> Tensor:
    """The length of (D,) left - right, whose gradient is finite where they are equal."""
    return torch.sqrt((left - right).square().sum() + 1e-12)


def soft_orthogonality(left: Tensor, right: Tensor) -> Tensor:
    """DSN's difference loss (Bousmalis et al., NeurIPS 2016, arXiv:1608.06019): the mean square of
    the correlations between the columns of (n, D) rows and (n, D) rows of the same samples.

    Rows are centred and brought to length one. No gradient flows through that length, as in MISA's
    code, so a row may grow.
    """
    return (_centred_units(left).T @ _centred_units(right)).square().mean()


def _centred_units(rows: Tensor) -> Tensor:
    centred = at_least_float32(rows)
    centred = centred - centred.mean(0)
    length = centred.detach().norm(dim=1, keepdim=True)
    return centred / (length + SHORTEST)


def discrepancy_from_normal(rows: Tensor) -> Tensor:
    """The squared maximum mean discrepancy (Gretton et al., JMLR 2012) of (n, D) rows from the
    standard normal distribution, by the kernel exp(-|x - y|^2 / D^2); a scalar, zero without rows.

    What is compared with the distribution is its expectation in closed form, so nothing is drawn.
    """
    if not len(rows):
        return rows.sum() * 0
    rows = at_least_float32(rows)
    size = rows.shape[1]
    width = float(size * size)
    among_rows = torch.exp(-torch.cdist(rows, rows).square() / width).mean()
    # of |x - y|^2 with y normal: a Gaussian integral for each of D numbers
    scale = (width / (width + 2)) ** (size / 2)
    to_normal = scale * torch.exp(-rows.square().sum(1) / (width + 2)).mean()
    among_normal = (width / (width + 4)) ** (size / 2)
    return among_rows - 2 * to_normal + among_normal
