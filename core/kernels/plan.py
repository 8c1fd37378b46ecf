"""Rows sorted by label, and the table of distinct labels: what every fast form of SupCR starts from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
            raise ValueError(f"label of row {row} is {float(labels[row])}; leave out rows without a label")
    elif labels.numel() > 0 and float(numbers.abs().max()) >= 2**53:
        raise ValueError(f"integer labels must be below 2**53, got {int(labels.abs().max())}")
    values, groups, counts = numbers.unique(return_inverse=True, return_counts=True)
    return Labels(values, counts, groups)


def by_label(rows: Tensor, groups: Tensor, num_labels: int) -> tuple[Columns, Tensor]:
    """Rows in the order of their labels, and that order, (m,): the place each came from."""
    groups, order = groups.sort(stable=True)
    starts = torch.searchsorted(groups, torch.arange(num_labels + 1, device=groups.device))
    return Columns(rows[order], groups, starts), order
