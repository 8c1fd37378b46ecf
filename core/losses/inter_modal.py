"""IAL, inter-modal alignment: a view's neighbourhoods towards the joint ones (MCLEA, COLING 2022,
arXiv:2209.00891)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from core.losses.gather_rows import check_rows, gather_for_global_loss, select_rows
from core.losses.in_batch import (
    divergences_over_ranks,
    is_itself,
    log_softmax_of_others,
    sum_over_ranks,
)
from core.losses.temperature import at_temperature, temperature_of

Scale = Literal["mean", "released"]


class IAL(nn.Module):
    """KL divergence from a view's in-batch distributions to the joint embedding's, over the pairs
    of all ranks.

    The joint side gets no gradient, so that only the view moves (released code; the paper does not
    say).

    Args:
        scale: "mean" is the mean KL of the paper. "released" is what the released code computes,
            0.1 / (2 N) times that for N pairs, which leaves the loss next to no effect; for
            comparison only.
        learnable: the temperature becomes a parameter (its logarithm, shape [1]).
        fused: compute it in linear memory; otherwise by the definition.
    """

    def __init__(
        self,
        temperature: float,
        *,
        scale: Scale = "mean",
        learnable: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        if scale not in ("mean", "released"):
            raise ValueError(f"IAL scale must be 'mean' or 'released', got {scale!r}")
        self.scale, self.fused = scale, fused
        self.temperature = temperature_of("IAL", temperature, learnable)

    def forward(
        self,
        view: tuple[Tensor, Tensor],
        joint: tuple[Tensor, Tensor],
        weight: Tensor | None = None,
    ) -> Tensor:
        """This rank's pairs to the scalar loss of all ranks' pairs, the same on every rank.

        Args:
            view: left and right rows of one view, (B, D) each; scaled to length one here.
            joint: left and right rows of the joint embedding, (B, J) each; likewise.
            weight: (B,); pairs of weight 0 take no part.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
        """
        for side in view:
            check_rows("IAL", side)
        counts = [len(side) for side in (*view, *joint)]
        if len(set(counts)) != 1:
            raise ValueError(f"IAL needs as many joint as view rows, got {counts}")
        joint_left, joint_right = joint
        sides, sizes = select_rows(weight, *view, joint_left.detach(), joint_right.detach())
        num_pairs = max(1, sum(sizes))
        if self.fused:
            loss = self._in_linear_memory(sides, sizes)
        else:
            left, right, joint_left, joint_right = [
                gather_for_global_loss(side, sizes) for side in sides
            ]
            loss = ial(left, right, joint_left, joint_right, self.temperature())
        return loss if self.scale == "mean" else loss * (0.1 / (2 * num_pairs))

    def _in_linear_memory(self, sides: list[Tensor], sizes: list[int]) -> Tensor:
        left, right, joint_left, joint_right = sides
        temperature = self.temperature()
        view_rows = at_temperature(torch.cat([left, right]), temperature)  # (2 B, D)
        joint_rows = at_temperature(torch.cat([joint_left, joint_right]), temperature).detach()
        row_sizes = [2 * size for size in sizes]
        divergences = divergences_over_ranks(view_rows, joint_rows, row_sizes)  # (2 B,)
        return sum_over_ranks(divergences.sum() / max(1, sum(row_sizes)))


def ial(
    left: Tensor,
    right: Tensor,
    joint_left: Tensor,
    joint_right: Tensor,
    temperature: Tensor | float,
) -> Tensor:
    """The definition of IAL for N pairs of rows, taken as they are, in O(N^2) memory (MCLEA,
    equation 9).

    For each row of the stacked pairs: KL(joint || view) of its softmax over all other rows. Mean
    over the 2N rows.
    """
    if len(left) == 0:
        return ((left + right) / temperature).sum() * 0.0
    log_view = log_softmax_of_others(torch.cat([left, right]), temperature)  # (2N, 2N)
    log_joint = log_softmax_of_others(torch.cat([joint_left, joint_right]), temperature).detach()
    log_ratio = log_joint - log_view
    log_ratio = log_ratio.masked_fill(is_itself(log_view), 0.0)  # -inf less -inf
    divergences = (log_joint.exp() * log_ratio).sum(-1)  # (2N,)
    return divergences.mean()
