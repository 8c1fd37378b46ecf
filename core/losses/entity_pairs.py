"""Losses of aligned pairs of entities in older baselines: EVA's neighbourhood components and
GCN-Align's margin. Each tells a pair from the other pairs of the whole global batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.losses.gather_rows import check_rows, gather_for_global_loss, select_rows
from core.losses.in_batch import is_itself


class PairLoss(nn.Module):
    """Base of both: this rank's pairs, (B, D) rows of each side, to the loss of all ranks' pairs.

    Rows are scaled to length one here. Pairs of weight 0 take no part; gradients are right after
    averaging over ranks; no pairs give zero. O(n^2) memory.
    """

    def forward(self, left: Tensor, right: Tensor, weight: Tensor | None = None) -> Tensor:
        """The scalar, the same on every rank.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
        """
        check_rows(type(self).__name__, left)
        (left, right), sizes = select_rows(weight, left, right)
        left = gather_for_global_loss(left, sizes)
        right = gather_for_global_loss(right, sizes)
        if not len(left):
            return (left.sum() + right.sum()) * 0
        return self.of_all(left, right)

    def of_all(self, left: Tensor, right: Tensor) -> Tensor:
        """Of (n, D) rows of length one, n at least 1."""
        raise NotImplementedError


class NCA(PairLoss):
    """Neighbourhood components with a term for the pair itself (Liu et al., "Visual Pivoting",
    AAAI 2021, arXiv:2009.13603, after Liu et al., ACM MM 2020).

    With S the cosines: the mean over pairs i of log(1 + sum of exp(alpha S_ij)) / alpha over j
    other than i, the same over j for S_ji, less beta log(1 + S_ii), where S_ii counts from 0 on.

    Args:
        alpha: how much the nearest wrong partners count before others.
        beta: of the pair itself.
    """

    def __init__(self, alpha: float, beta: float):
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def of_all(self, left: Tensor, right: Tensor) -> Tensor:
        similarity = left @ right.T  # (n, n)
        wrong = (self.alpha * similarity).masked_fill(is_itself(left), float("-inf"))
        one = wrong.new_zeros(len(wrong), 1)  # the 1 in the logarithm, as an exponent
        of_left = torch.cat([wrong, one], dim=1).logsumexp(1)
        of_right = torch.cat([wrong.T, one], dim=1).logsumexp(1)
        itself = torch.log1p(F.relu(similarity.diagonal()))
        return ((of_left + of_right) / self.alpha - self.beta * itself).mean()


class Margin(PairLoss):
    """How much a pair is not nearer than wrong ones by a margin, by the sum of absolute differences
    (Wang et al., "GCN-Align", EMNLP 2018, D18-1032): the mean over wrong pairs of both directions
    of max(0, d_ii + margin - d_ij)."""

    def __init__(self, margin: float):
        super().__init__()
        self.margin = margin

    def of_all(self, left: Tensor, right: Tensor) -> Tensor:
        if len(left) < 2:
            return (left.sum() + right.sum()) * 0
        distance = torch.cdist(left, right, p=1.0)  # (n, n)
        itself = distance.diagonal()
        of_left = F.relu(itself[:, None] + self.margin - distance)
        of_right = F.relu(itself[None] + self.margin - distance)
        wrong = ~is_itself(left)
        return (of_left + of_right)[wrong].mean() / 2
