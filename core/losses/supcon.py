"""SupCon: supervised contrast by class (Khosla et al., NeurIPS 2020, arXiv:2004.11362); HSCL's
ablation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from core import distributed
from core.losses.gather_rows import (
    check_rows,
    drop_padding_rows,
    gather_for_global_loss,
    local_slice,
    select_rows,
)
from core.losses.in_batch import (
    is_itself,
    log_softmax_of_others,
    log_sums_over_ranks,
    sum_over_ranks,
)
from core.losses.labels import on_grid
from core.losses.temperature import at_temperature, temperature_of


class SupCon(nn.Module):
    """SupCon over the rows of all ranks: rows of equal label attract each other.

    Label-free contrast (SimCLR) is the same loss with the sample's index as label. Anchors without
    a positive are left out of the mean.

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
        """This rank's (B, D) rows and (B,) labels to the scalar loss of all ranks' rows, the same
        on every rank.

        Rows are scaled to length one here; rows of weight 0 take no part. Without any positive pair
        the loss is zero.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
        """
        check_rows("SupCon", features, labels)
        (rows,), sizes = select_rows(weight, features)
        (labels,) = drop_padding_rows(weight, labels)
        labels = on_grid(distributed.gather_rows(labels, sizes), self.resolution)
        if self.fused:
            return self._in_linear_memory(rows, labels, sizes)
        return supcon(gather_for_global_loss(rows, sizes), labels, self.temperature())

    def _in_linear_memory(self, rows: Tensor, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        rows = at_temperature(rows, self.temperature())
        constant = rows.detach()
        _, classes, counts = labels.unique(return_inverse=True, return_counts=True)
        local_classes = classes[local_slice(sizes)]  # (B,)
        class_sums = constant.new_zeros(len(counts), rows.shape[1])
        if constant.is_cuda:  # where index_add_ adds in any order, and this sorts first
            class_sums.index_put_((local_classes,), constant, accumulate=True)
        else:
            class_sums.index_add_(0, local_classes, constant)
        # Each row's sum of positives: its class less itself, over all ranks.
        positives = distributed.all_reduce_sum(class_sums)[local_classes] - constant  # (B, D)
        products = (rows * positives).sum(1)
        # A row is anchor, and as often candidate, of the same pairs: twice the gradient, once the
        # value.
        products = 2 * products - products.detach()
        num_positives = counts[local_classes] - 1
        mean_products = products / num_positives.clamp(min=1)
        losses = log_sums_over_ranks(rows, sizes) - mean_products
        losses = losses.masked_fill(num_positives == 0, 0.0)
        num_anchors = max(1, int(counts[counts > 1].sum()))
        return sum_over_ranks(losses.sum() / num_anchors)


def supcon(features: Tensor, labels: Tensor, temperature: Tensor | float) -> Tensor:
    """The definition of SupCon (its L_out) for (n, D) rows, taken as they are, in O(n^2) memory."""
    same_label = labels[:, None] == labels[None]
    is_positive = same_label & ~is_itself(features)  # (n, n)
    is_anchor = is_positive.any(-1)
    if not bool(is_anchor.any()):
        return (features / temperature).sum() * 0.0
    log_q = log_softmax_of_others(features, temperature)
    of_positives = log_q.masked_fill(~is_positive, 0.0).sum(-1)  # (n,)
    num_positives = is_positive.sum(-1)
    return -(of_positives[is_anchor] / num_positives[is_anchor]).mean()
