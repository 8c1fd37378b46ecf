"""SupCon: supervised contrast by class (Khosla et al., NeurIPS 2020, arXiv:2004.11362); HSCL's ablation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from core import distributed
from core.losses.gather_rows import (
    check_rows,
    drop_padding_rows,
    gather_for_global_loss,
    sizes_if_finite,
)
from core.losses.in_batch import log_sums_over_ranks, own_columns, sum_over_ranks
from core.losses.info_nce import at_temperature, unit_rows
from core.losses.labels import on_grid
from core.losses.temperature import temperature_of


class SupCon(nn.Module):
    """SupCon over the rows of all ranks: rows of equal label attract each other.

    Label-free contrast (SimCLR) is the same loss with the sample's index as label. Anchors without a positive are
    left out of the mean.

    Args:
        resolution: step of the labels' grid where labels are decimal scores; see ``on_grid``.
        learnable: the temperature becomes a parameter (its logarithm, shape [1]).
        fused: compute it in linear memory; otherwise by the definition.
    """

    def __init__(
        self,
        temperature: float,
        *,
        resolution: float | None = None,
        learnable: bool = False,
        fused: bool = True,
    ) -> None:
        super().__init__()
        self.resolution, self.fused = resolution, fused
        self.temperature = temperature_of("SupCon", temperature, learnable)

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """This rank's (B, D) rows and (B,) labels to the scalar loss of all ranks' rows, the same on every rank.

        Rows are scaled to length one here; rows of weight 0 take no part. Without any positive pair the loss is zero.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
        """
        check_rows("SupCon", features, labels)
        features, labels = drop_padding_rows(weight, features, labels)
        sizes = sizes_if_finite(weight, features)
        labels = on_grid(distributed.gather_rows(labels, sizes), self.resolution)
        rows, temperature = unit_rows(features), self.temperature()
        if self.fused:
            return self._in_linear_memory(at_temperature(rows, temperature), labels, sizes)
        return supcon(gather_for_global_loss(rows, sizes), labels, temperature)

    def _in_linear_memory(self, rows: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        mine = classes[own_columns(sizes, rows.device)]  # (B,)
        sums = (
            rows.detach().new_zeros(len(counts), rows.shape[1]).index_add_(0, mine, rows.detach())
        )
        positives = (
            distributed.all_reduce_sum(sums)[mine] - rows.detach()
        )  # (B, D), sum of each row's positives
        products = (rows * positives).sum(1)
        products = (
            2 * products - products.detach()
        )  # a row is anchor, and as often candidate, of the same pairs
        number = counts[mine] - 1
        losses = log_sums_over_ranks(rows, sizes) - products / number.clamp(min=1)
        anchors = max(1, int(counts[counts > 1].sum()))
        return sum_over_ranks(losses.masked_fill(number == 0, 0.0).sum() / anchors)


def supcon(features: Tensor, labels: Tensor, temperature: Tensor | float) -> Tensor:
    """The definition of SupCon (its L_out) for (n, D) rows, taken as they are, in O(n^2) memory."""
    self_pair = torch.eye(len(features), dtype=torch.bool, device=features.device)
    positive = (labels[:, None] == labels[None]) & ~self_pair  # (n, n)
    anchor = positive.any(-1)
    if not bool(anchor.any()):
        return (features / temperature).sum() * 0.0
    log_q = (
        (features @ features.T / temperature).masked_fill(self_pair, float("-inf")).log_softmax(-1)
    )
    of_positives = log_q.masked_fill(~positive, 0.0).sum(-1)  # (n,)
    return -(of_positives[anchor] / positive.sum(-1)[anchor]).mean()
