"""SupCR where labels are no numbers on a line: classes, which are equal or not, and vectors.

Its definition asks of two labels only how far they are from a third. Of classes that is 0 or 1; of
vectors it is the sum of absolute differences. One sort of each anchor's distances gives the sums of
all its denominators, so an anchor costs n log n, where the definition takes n squared.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from core import distributed
from core.losses.gather_rows import drop_padding_rows, gather_for_global_loss, select_rows
from core.losses.in_batch import is_itself
from core.losses.labels import on_grid
from core.losses.temperature import check_temperature

Distance = Literal["classes", "vectors"]


class SupCRByDistance(nn.Module):
    """SupCR over the rows of all ranks by distances of labels, in O(n^2) memory.

    Args:
        distance: "classes": 0 between equal labels, 1 between others; "vectors": the sum of
            absolute differences.
        resolution: step of the vectors' grid, so that ties are exact; see ``on_grid``.
    """

    def __init__(
        self, temperature: float, distance: Distance, *, resolution: float | None = None
    ) -> None:
        super().__init__()
        check_temperature("SupCR", temperature)
        self.temperature = temperature
        self.distance = distance
        self.resolution = resolution

    def forward(self, features: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """This rank's (B, D) rows and their labels, (B,) classes or (B, K) vectors, to the scalar
        loss of all ranks' rows, the same on every rank.

        Rows are scaled to length one here; rows of weight 0 take no part. Fewer than two rows give
        zero. Gradients are right after averaging over ranks.

        Raises:
            RowError: for a row that takes part and is not finite; on every rank.
            ValueError: labels of another shape than the distance is of.
        """
        axes = 1 if self.distance == "classes" else 2
        if labels.ndim != axes or len(labels) != len(features):
            raise ValueError(
                f"SupCR of {self.distance} needs {axes} axes of labels, one row for each of "
                f"{len(features)} rows of features, got {tuple(labels.shape)}"
            )
        (rows,), sizes = select_rows(weight, features)
        (labels,) = drop_padding_rows(weight, labels)
        labels = on_grid(distributed.gather_rows(labels, sizes), self.resolution)
        rows = gather_for_global_loss(rows, sizes)
        return supcr_by_distance(rows, self._distances(labels), self.temperature)

    def _distances(self, labels: Tensor) -> Tensor:
        """(n, n) float64."""
        if self.distance == "classes":
            return (labels[:, None] != labels[None]).double()
        return torch.cdist(labels.double(), labels.double(), p=1.0)


def supcr_by_distance(features: Tensor, distance: Tensor, temperature: float) -> Tensor:
    """The loss of (n, D) rows, taken as they are, by the (n, n) distances of their labels."""
    if len(features) < 2:
        return features.sum() * 0.0
    similarity = features @ features.T / temperature  # (n, n)
    self_pair = is_itself(features)
    # the farthest first, and a row itself behind all others
    ordered, order = distance.masked_fill(self_pair, -1.0).sort(dim=1, descending=True)
    sums = similarity.gather(1, order).logcumsumexp(1)
    # how many others are at least as far as each one: ties end at the same place
    as_far = torch.searchsorted(-ordered, -distance, right=True)
    # for a row itself, whose own place is left out below, any place will do
    last = (as_far - 1).clamp(max=len(features) - 2)
    log_denominator = sums.gather(1, last)
    return (log_denominator - similarity)[~self_pair].mean()
