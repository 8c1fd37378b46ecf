"""ICL, intra-modal contrast: aligned pairs, negatives of both graphs (MCLEA, COLING 2022,
arXiv:2209.00891)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from core.losses.gather_rows import check_rows, gather_for_global_loss, select_rows
from core.losses.in_batch import log_softmax_of_others, log_sums_over_ranks, sum_over_ranks
from core.losses.temperature import at_temperature, temperature_of

Form = Literal["half_sum", "log_mean"]


class ICL(nn.Module):
    """InfoNCE over the pairs of all ranks, in-batch negatives from both sides.

    Args:
        alpha: share of the direction left to right; the other gets 1 - alpha.
        form: "half_sum" averages the two directions' -log q (released code), "log_mean" is -log of
            the averaged q (the paper's formula, never the larger one).
        learnable: the temperature becomes a parameter (its logarithm, shape [1]).
        fused: compute it in linear memory; otherwise by the definition.
    """

    def __init__(
        self,
        temperature: float,
        alpha: float = 0.5,
        form: Form = "half_sum",
        *,
        learnable: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= alpha <= 1:
            raise ValueError(f"ICL needs alpha between 0 and 1, got {alpha}")
        if form not in ("half_sum", "log_mean"):
            raise ValueError(f"ICL form must be 'half_sum' or 'log_mean', got {form!r}")
        self.alpha, self.form, self.fused = alpha, form, fused
        self.temperature = temperature_of("ICL", temperature, learnable)

    def forward(self, left: Tensor, right: Tensor, weight: Tensor | None = None) -> Tensor:
        """This rank's pairs, (B, D) rows of each side, to the scalar loss of all ranks' pairs, the
        same on every rank.

        Rows are scaled to length one here. Pairs of weight 0 take no part; ranks may hold different
        numbers of pairs, or none; gradients are right after averaging over ranks. No pairs at all
        give zero.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
        """
        check_rows("ICL", left)
        if left.shape != right.shape:
            raise ValueError(
                f"ICL needs pairs, got left {tuple(left.shape)} and right {tuple(right.shape)}"
            )
        (left, right), sizes = select_rows(weight, left, right)
        if self.fused:
            return self._in_linear_memory(left, right, sizes)
        left = gather_for_global_loss(left, sizes)
        right = gather_for_global_loss(right, sizes)
        return info_nce(left, right, self.temperature(), alpha=self.alpha, form=self.form)

    def _in_linear_memory(self, left: Tensor, right: Tensor, sizes: Sequence[int]) -> Tensor:
        rows = at_temperature(torch.cat([left, right]), self.temperature())
        left, right = rows.tensor_split(2)
        products = (left * right).sum(1)  # (B,)
        log_sums = log_sums_over_ranks(rows, [2 * size for size in sizes])
        left_sums, right_sums = log_sums.tensor_split(2)
        losses = _mix_directions(products - left_sums, products - right_sums, self.alpha, self.form)
        return sum_over_ranks(losses.sum() / max(1, sum(sizes)))


def _mix_directions(
    left_to_right: Tensor, right_to_left: Tensor, alpha: float, form: Form
) -> Tensor:
    """Each pair's loss from its log q in both directions."""
    if form == "half_sum":
        return -(alpha * left_to_right + (1 - alpha) * right_to_left)
    shares = left_to_right.new_tensor([alpha, 1 - alpha]).log()
    return -torch.logaddexp(left_to_right + shares[0], right_to_left + shares[1])


def info_nce(
    left: Tensor,
    right: Tensor,
    temperature: Tensor | float,
    *,
    alpha: float = 0.5,
    form: Form = "half_sum",
) -> Tensor:
    """The definition of ICL for N pairs of rows, taken as they are, in O(N^2) memory (MCLEA,
    equations 6 and 7).

    q(i) is the softmax of i's partner among all other rows of both sides, whichever side i is on.
    """
    num_pairs = len(left)
    if num_pairs == 0:
        return ((left + right) / temperature).sum() * 0.0
    log_q = log_softmax_of_others(torch.cat([left, right]), temperature)  # (2N, 2N)
    left_to_right = log_q.diagonal(num_pairs)  # (N,)
    right_to_left = log_q.diagonal(-num_pairs)
    return _mix_directions(left_to_right, right_to_left, alpha, form).mean()
