"""Rows sorted by label, and the table of distinct labels: what every fast form of SupCR starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class RowError(ValueError):
    """A row of features that cannot be multiplied with others; ``row`` is its place, None where only its rank knows."""

    def __init__(self, row: int | None, what: str):
        super().__init__(what if row is None else f"features of row {row} {what}")
        self.row, self.what = row, what


@dataclass(frozen=True)
class Labels:
    """The U distinct labels of all n rows."""

    values: Tensor  # (U,) float64, rising
    counts: Tensor  # (U,) int64, rows of each label
    groups: Tensor  # (n,) int64, each row's place in values

    def __len__(self) -> int:
        return len(self.values)

    @property
    def apart(self) -> bool:
        """Whether two labels on the same side of a third have different distances from it, rounding included."""
        if len(self) < 2:
            return True
        smallest = 4 * torch.finfo(self.values.dtype).eps * (self.values[-1] - self.values[0])
        return bool(self.values.diff().min() > smallest)


@dataclass(frozen=True)
class Columns:
    """Some rows of the batch in the order of their labels."""

    rows: Tensor  # (m, D)
    groups: Tensor  # (m,) int64, rising places in Labels.values
    starts: Tensor  # (U + 1,) int64, first row of each label; the last is m

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Anchors:
    """The rows whose losses are wanted, against any columns."""

    columns: Columns  # the anchors themselves, in the order of their labels
    own: Tensor  # (m,) int64, the column that each anchor is; -1 where it is none of them


def distinct(labels: Tensor) -> Labels:
    """The table of (n,) labels, as float64, in which differences of float32 numbers or integers are all but exact.

    Raises:
        ValueError: for a label that is not finite, naming its row, or an integer that float64 cannot hold.
    """
    numbers = labels.double()
    if labels.is_floating_point():
        if not bool(labels.isfinite().all()):
            row = int((~labels.isfinite()).nonzero()[0])
            raise ValueError(
                f"label of row {row} is {float(labels[row])}; leave out rows without a label"
            )
    elif labels.numel() > 0 and float(numbers.abs().max()) >= 2**53:
        raise ValueError(f"integer labels must be below 2**53, got {int(labels.abs().max())}")
    values, groups, counts = numbers.unique(return_inverse=True, return_counts=True)
    return Labels(values, counts, groups)


def by_label(rows: Tensor, groups: Tensor, num_labels: int) -> tuple[Columns, Tensor]:
    """Rows in the order of their labels, and that order, (m,): the place each came from."""
    groups, order = groups.sort(stable=True)
    starts = torch.searchsorted(groups, torch.arange(num_labels + 1, device=groups.device))
    return Columns(rows[order], groups, starts), order


def largest_exponent(rows: Tensor, temperature: float) -> float:
    """A bound of all |log2 e_ij|, from the longest row; 0 for no rows.

    Raises:
        RowError: naming the first row that is not finite.
    """
    wide = torch.float64 if rows.dtype == torch.float64 else torch.float32
    lengths = torch.linalg.vector_norm(rows.detach(), dim=1, dtype=wide)
    longest = float(lengths.max()) if len(rows) else 0.0
    if not math.isfinite(longest):
        bad = ~rows.isfinite().all(1)
        if bool(bad.any()):
            row = int(bad.nonzero()[0])
            raise RowError(row, f"are not finite ({int(bad.sum())} such rows of {len(rows)})")
        raise RowError(int(lengths.argmax()), f"are too long to be multiplied in {wide}")
    return longest * longest / temperature * math.log2(math.e)


def working_type(rows: Tensor, exponent: float, n: int) -> torch.dtype:
    """float32 where its exponents suffice, float64 where only its do or where it came in."""
    if rows.dtype == torch.float64 or (
        rows.device.type == "cpu" and not in_range(torch.float32, exponent, n)
    ):
        return torch.float64
    return torch.float32


def in_range(dtype: torch.dtype, exponent: float, n: int) -> bool:
    """Whether sums of n exponentials, and n over the smallest of them, are normal numbers of the type."""
    return exponent + math.log2(n) < (1020 if dtype == torch.float64 else 124)


def loss_type(features: Tensor) -> torch.dtype:
    """float32 losses, float64 for features in float64."""
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def sum_of_products(rows: Tensor) -> Tensor:
    """Sum of <r_i, r_j> over i != j, (), float64."""
    parts = rows.split(4096)  # so that few rows at a time are held in float64
    total = torch.stack([part.sum(0, dtype=torch.float64) for part in parts]).sum(0)
    return (
        total.square().sum() - torch.stack([part.double().square().sum() for part in parts]).sum()
    )
