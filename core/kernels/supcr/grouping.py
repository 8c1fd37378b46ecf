"""Rows sorted by label, and the table of distinct labels: what every fast form of SupCR starts
from.

The rows of one label are a *group*; groups are numbered by rising label.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_EXACT_INTEGER = 2**53  # up to which float64 holds every integer
# What an exponent of two may reach in each type, with room for a few factors before infinity.
LARGEST_EXPONENT = {torch.float32: 124, torch.float64: 1020}
ROWS_IN_FLOAT64 = 4096  # rows copied to float64 at a time


class RowError(ValueError):
    """A row of features that cannot be multiplied with others.

    Attributes:
        row: its index, None where only the rank that holds it knows.
        problem: what is wrong with it, to follow "features of row N".
    """

    def __init__(self, row: int | None, problem: str):
        super().__init__(problem if row is None else f"features of row {row} {problem}")
        self.row = row
        self.problem = problem


@dataclass(frozen=True)
class LabelTable:
    """The U distinct labels of all n rows."""

    values: Tensor  # (U,) float64, rising
    counts: Tensor  # (U,) int64, rows of each label
    groups: Tensor  # (n,) int64, each row's index into values

    def __len__(self) -> int:
        return len(self.values)

    @property
    def well_separated(self) -> bool:
        """Whether two labels on the same side of a third have different distances from it, rounding
        included."""
        if len(self) < 2:
            return True
        spread = self.values[-1] - self.values[0]
        rounding = 4 * torch.finfo(self.values.dtype).eps * spread
        return bool(self.values.diff().min() > rounding)


@dataclass(frozen=True)
class SortedRows:
    """Some rows of the batch in the order of their labels."""

    rows: Tensor  # (m, D)
    groups: Tensor  # (m,) int64, rising indices into LabelTable.values
    starts: Tensor  # (U + 1,) int64, first row of each group; the last is m

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Anchors:
    """The rows whose losses are wanted, to be compared with any columns."""

    sorted: SortedRows  # the m anchors themselves
    self_column: Tensor  # (m,) int64, the column that each anchor is; -1 where it is none of them


def tabulate_labels(labels: Tensor) -> LabelTable:
    """The table of (n,) labels, as float64, in which differences of float32 numbers or integers are
    all but exact.

    Raises:
        ValueError: for a label that is not finite, naming its row, or an integer that float64
            cannot hold.
    """
    numbers = labels.double()
    if labels.is_floating_point():
        finite = labels.isfinite()
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            raise ValueError(
                f"label of row {row} is {float(labels[row])}; leave out rows without a label"
            )
    elif bool((numbers.abs() >= LARGEST_EXACT_INTEGER).any()):
        raise ValueError(f"integer labels must be below 2**53, got {int(labels.abs().max())}")
    values, groups, counts = numbers.unique(return_inverse=True, return_counts=True)
    return LabelTable(values, counts, groups)


def sort_by_label(rows: Tensor, groups: Tensor, num_labels: int) -> tuple[SortedRows, Tensor]:
    """Rows in the order of their labels, and that order, (m,): the index each came from."""
    groups, order = groups.sort(stable=True)
    return SortedRows(rows[order], groups, group_starts(groups, num_labels)), order


def group_starts(groups: Tensor, num_labels: int) -> Tensor:
    """(U + 1,) int64: where each group starts among the (m,) sorted ``groups``, and m."""
    numbers = torch.arange(num_labels + 1, device=groups.device)
    return torch.searchsorted(groups, numbers)


def invert(order: Tensor) -> Tensor:
    """The permutation that undoes ``order``, (n,) int64."""
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).index_copy_(0, order, places)


def largest_exponent(rows: Tensor, temperature: float) -> float:
    """A bound of all |log2 e_ij|, from the longest row; 0 for no rows.

    Raises:
        RowError: naming the first row that is not finite.
    """
    dtype = loss_type(rows)
    lengths = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=dtype)
    longest = float(lengths.max()) if len(rows) else 0.0
    if not math.isfinite(longest):
        bad = ~rows.isfinite().all(1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise RowError(row, f"are not finite ({int(bad.sum())} such rows of {len(rows)})")
        raise RowError(int(lengths.argmax()), f"are too long to be multiplied in {dtype}")
    return longest * longest / temperature * math.log2(math.e)


def in_range(dtype: torch.dtype, exponent: float, n: int) -> bool:
    """Whether sums of n exponentials, and n over the smallest of them, are normal numbers of the
    type."""
    return exponent + math.log2(n) < LARGEST_EXPONENT[dtype]


def working_type(rows: Tensor, exponent: float, n: int) -> torch.dtype:
    """float32 where its exponents suffice, float64 for rows in float64 or, on a CPU, where only its
    do."""
    if rows.dtype == torch.float64:
        return torch.float64
    if rows.device.type == "cpu" and not in_range(torch.float32, exponent, n):
        return torch.float64
    return torch.float32


def loss_type(features: Tensor) -> torch.dtype:
    """float32 losses, float64 for features in float64."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def sum_of_products(rows: Tensor) -> Tensor:
    """Sum of <r_i, r_j> over i != j, (), float64: the square of the rows' sum less the sum of their
    squares."""
    chunks = rows.split(ROWS_IN_FLOAT64)
    sums = [chunk.sum(0, dtype=torch.float64) for chunk in chunks]
    squares = [chunk.double().square().sum() for chunk in chunks]
    total = torch.stack(sums).sum(0)
    return total.square().sum() - torch.stack(squares).sum()
