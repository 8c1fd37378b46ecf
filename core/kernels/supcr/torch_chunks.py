"""SupCR in plain torch, a strip of whole rows at a time: on any device, for any labels, at any temperature.

Works on logarithms throughout, so it also serves where exponentials would leave the range of their type.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP_ELEMENTS = 2**22


def strips(
    rows: Tensor, own: Tensor, columns: Tensor, labels: Tensor, temperature: float,
    gradient: Tensor | None,
) -> Tensor:  # fmt: skip
    """Sum of log denominators over all pairs of an anchor, ().

    Args:
        rows: (m, D) anchors. own: (m,) int64, the column that each anchor is.
        columns: (n, D) rows that the anchors are compared with, and their labels: (n,) float64.
        gradient: (n, D); the gradient times T n (n - 1) is added to it, for anchors and candidates, if given.
    """
    total = rows.new_zeros((), dtype=torch.float64)
    height = max(1, STRIP_ELEMENTS // max(len(columns), 1))
    for begin in range(0, len(rows), height):
        strip, here = rows[begin : begin + height], own[begin : begin + height]
        similarity = strip @ columns.T / temperature  # (h, n)
        order, last, nearest = _order(labels[here], labels)  # (h, n) each
        similarity.scatter_(1, here[:, None], float("-inf"))
        denominator = (
            similarity.gather(1, order).logcumsumexp(1).gather(1, last)
        )  # log D by falling distance
        itself = order == here[:, None]
        denominator.masked_fill_(itself, float("inf"))  # weighs nothing below
        total += denominator.masked_fill(itself, 0.0).sum(dtype=torch.float64)
        if gradient is not None:
            weight = (
                (-denominator).flip(1).logcumsumexp(1).flip(1).gather(1, nearest)
            )  # log W by falling distance
            similarity += torch.empty_like(weight).scatter_(1, order, weight)
            shares = similarity.exp_().sub_(1.0).scatter_(1, here[:, None], 0.0)  # (h, n)
            gradient.addmm_(shares.T, strip)
            gradient.index_add_(0, here, shares @ columns)
    return total


def _order(row_labels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each row: columns by falling distance of labels, and each one's last and first place of equal distance."""
    distinct, row_groups = row_labels.unique(return_inverse=True)
    distance, order = (
        (distinct[:, None] - labels[None]).abs().sort(dim=1, descending=True)
    )  # (distinct, n)
    places = torch.arange(len(labels), device=labels.device).expand_as(order)
    new = torch.ones_like(distance, dtype=torch.bool)
    new[:, 1:] = distance[:, 1:] != distance[:, :-1]
    first = places.where(new, 0).cummax(1).values
    ends = torch.ones_like(new)
    ends[:, :-1] = new[:, 1:]
    last = places.where(ends, len(labels)).flip(1).cummin(1).values.flip(1)
    return order[row_groups], last[row_groups], first[row_groups]
