"""SupCR in plain torch, a chunk of whole rows at a time: on any device, for any labels, at any
temperature.

Works on logarithms throughout, so it also serves where exponentials would leave the range of their
type.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from core.kernels.supcr.grouping import LabelTable

CHUNK_ELEMENTS = 2**22  # of the (h, n) matrices of one chunk of h rows


def loss_and_gradient(
    rows: Tensor, labels: LabelTable, temperature: float, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of log denominators, (), and the gradient times T n (n - 1), (n, D) or None, for all (n,
    D) rows."""
    gradient = torch.zeros_like(rows) if wants_gradient else None
    self_column = torch.arange(len(rows), device=rows.device)
    row_labels = labels.values[labels.groups]
    log_sum = accumulate(rows, self_column, rows, row_labels, temperature, gradient)
    return log_sum, gradient


def accumulate(
    rows: Tensor,
    self_column: Tensor,
    columns: Tensor,
    labels: Tensor,
    temperature: float,
    gradient: Tensor | None,
) -> Tensor:
    """Sum of log denominators over all pairs of an anchor, ().

    Args:
        rows: (m, D) anchors.
        self_column: (m,) int64, the column that each anchor is.
        columns: (n, D) rows that the anchors are compared with.
        labels: (n,) float64, of the columns.
        gradient: (n, D); the gradient times T n (n - 1) is added to it, for anchors and candidates,
            if given.
    """
    total = rows.new_zeros((), dtype=torch.float64)
    height = max(1, CHUNK_ELEMENTS // max(len(columns), 1))
    for begin in range(0, len(rows), height):
        chunk = rows[begin : begin + height]
        itself = self_column[begin : begin + height]
        order = _order(labels[itself], labels)
        similarity = chunk @ columns.T / temperature  # (h, n)
        similarity.scatter_(1, itself[:, None], float("-inf"))

        # log D: sums from the farthest column on, each read at the last column of its distance.
        by_distance = similarity.gather(1, order.columns)
        log_denominator = by_distance.logcumsumexp(1).gather(1, order.last)
        is_itself = order.columns == itself[:, None]
        log_denominator.masked_fill_(is_itself, float("inf"))  # weighs nothing below
        total += log_denominator.masked_fill(is_itself, 0.0).sum(dtype=torch.float64)
        if gradient is None:
            continue

        # log W: sums of 1 / D from the nearest column on, each read at the first column of its
        # distance.
        from_nearest = (-log_denominator).flip(1).logcumsumexp(1).flip(1)
        log_weight = from_nearest.gather(1, order.first)
        similarity += torch.empty_like(log_weight).scatter_(1, order.columns, log_weight)
        gradient_weights = similarity.exp_().sub_(1.0)  # (h, n)
        gradient_weights.scatter_(1, itself[:, None], 0.0)
        gradient.addmm_(gradient_weights.T, chunk)
        gradient.index_add_(0, itself, gradient_weights @ columns)
    return total


@dataclass(frozen=True)
class _Order:
    """The columns of each row by falling distance of their labels from the row's."""

    columns: Tensor  # (h, n) int64, column at each position
    first: Tensor  # (h, n) int64, first position of the same distance
    last: Tensor  # (h, n) int64, last position of the same distance


def _order(row_labels: Tensor, labels: Tensor) -> _Order:
    # Rows of equal label share their order, so only the distinct ones are sorted.
    distinct_labels, row_groups = row_labels.unique(return_inverse=True)
    distance = (distinct_labels[:, None] - labels[None]).abs()  # (distinct, n)
    distance, columns = distance.sort(dim=1, descending=True)
    changes = distance[:, 1:] != distance[:, :-1]
    starts = torch.ones_like(distance, dtype=torch.bool)
    starts[:, 1:] = changes
    ends = torch.ones_like(starts)
    ends[:, :-1] = changes
    positions = torch.arange(len(labels), device=labels.device)
    positions = positions.expand_as(columns)
    first = positions.where(starts, 0).cummax(1).values
    next_end = positions.where(ends, len(labels)).flip(1).cummin(1).values
    last = next_end.flip(1)
    return _Order(columns[row_groups], first[row_groups], last[row_groups])
