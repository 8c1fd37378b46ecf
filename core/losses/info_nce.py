"""ICL, intra-modal contrast: aligned pairs, negatives of both graphs (MCLEA, COLING 2022, arXiv:2209.00891)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import distributed
from core.losses.gather import check_rows, gather_for_global_loss, taking_part
from core.losses.temperature import temperature_of

Form = Literal["half_sum", "log_mean"]


class ICL(nn.Module):
    """InfoNCE over the pairs of all ranks, in-batch negatives from both sides.

    Args:
        alpha: share of the direction left to right; the other gets 1 - alpha.
        form: "half_sum" averages the two directions' -log q (released code), "log_mean" is -log of the averaged q
            (the paper's formula, never the larger one).
        learnable: the temperature becomes a parameter (its logarithm, shape [1]).
    """

    def __init__(
        self, temperature: float, alpha: float = 0.5, form: Form = "half_sum", *, learnable: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"ICL needs alpha between 0 and 1, got {alpha}")
        if form not in ("half_sum", "log_mean"):
            raise ValueError(f"ICL form must be 'half_sum' or 'log_mean', got {form!r}")
        self.alpha, self.form = alpha, form
        self.temperature = temperature_of("ICL", temperature, learnable)

    def forward(self, left: Tensor, right: Tensor, weight: Tensor | None = None) -> Tensor:
        """This rank's pairs, (B, D) rows of each side, to the scalar loss of all ranks' pairs, the same on every rank.

        Rows are scaled to length one here. Pairs of weight 0 take no part; ranks may hold different numbers of pairs,
        or none; gradients are right after averaging over ranks. No pairs at all give zero.
        """
        check_rows("ICL", left)
        if left.shape != right.shape:
            raise ValueError(f"ICL needs pairs, got left {tuple(left.shape)} and right {tuple(right.shape)}")
        left, right = taking_part(weight, left, right)
        sizes = distributed.gather_sizes(len(left), left.device)
        left, right = (gather_for_global_loss(unit_rows(side), sizes) for side in (left, right))
        return info_nce(left, right, self.temperature(), alpha=self.alpha, form=self.form)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length one, in float32 unless they are float64; rows of zeros stay zeros."""
    return F.normalize(rows if rows.dtype == torch.float64 else rows.float(), dim=-1)


def log_softmax_of_pairs(left: Tensor, right: Tensor, temperature: Tensor | float) -> Tensor:
    """(2N, 2N) log q: row i of the stack [left; right] against every other row of it; -inf for itself."""
    rows = torch.cat([left, right])
    self_pair = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    return (rows @ rows.T / temperature).masked_fill(self_pair, float("-inf")).log_softmax(-1)


def info_nce(
    left: Tensor, right: Tensor, temperature: Tensor | float, *, alpha: float = 0.5, form: Form = "half_sum"
) -> Tensor:
    """The definition of ICL for N pairs of rows, taken as they are, in O(N^2) memory (MCLEA, equations 6 and 7).

    q(i) is the softmax of i's partner among all other rows of both sides, whichever side i is on.
    """
    pairs = len(left)
    if pairs == 0:
        return (left.sum() + right.sum()) * 0.0
    log_q = log_softmax_of_pairs(left, right, temperature)
    forward, backward = log_q.diagonal(pairs), log_q.diagonal(-pairs)  # (N,) each: left to right, right to left
    if form == "half_sum":
        return -(alpha * forward + (1 - alpha) * backward).mean()
    shares = forward.new_tensor([alpha, 1 - alpha]).log()
    return -torch.logaddexp(forward + shares[0], backward + shares[1]).mean()
