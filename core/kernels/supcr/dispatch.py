"""The steps of SupCR on whichever device the rows are, for one process and for ranks that each own some rows."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

from core.kernels.supcr import cpu, torch_chunks
from core.kernels.supcr.grouping import Anchors, Columns, Labels, by_label, in_range

MOST_BUCKETS = 256  # labels; with more, (U, n) sums get large
SHORTEST_RUN = (
    4  # rows per label; with fewer, loops over the runs of equal labels do too little each
)
MOST_SUMS = 2**30  # of (U, n) on a GPU, where many labels do no harm until then
WIDEST = 1024  # columns of features that the GPU kernels take


def bucket_sums(anchors: Anchors, columns: Columns, num_labels: int, temperature: float) -> Tensor:
    """Sums of exponentials by label of the column, (U, m)."""
    if columns.rows.is_cuda:
        from core.kernels.supcr import triton_launch

        return triton_launch.bucket_sums(anchors, columns, num_labels, temperature)
    sums = columns.rows.new_zeros(num_labels, len(anchors.columns))
    cpu.bucket_sums(cpu.Tiles(anchors, columns, symmetric=False), sums, temperature)
    return sums


def bucket_weights(sums: Tensor, anchors: Columns, labels: Labels) -> Tensor:
    """Sums to weights in place; gives the sum of log denominators over all pairs, (), float64."""
    if sums.is_cuda:
        from core.kernels.supcr import triton_launch

        return triton_launch.bucket_weights(sums, anchors, labels)
    return sums.new_tensor(cpu.bucket_weights(sums, anchors.starts, labels), dtype=torch.float64)


def bucket_gradient(
    anchors: Anchors, columns: Columns, row_weights: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """Gradient of the anchors times T n (n - 1), (m, D), as far as it comes from these columns."""
    if columns.rows.is_cuda:
        from core.kernels.supcr import triton_launch

        return triton_launch.bucket_gradient(anchors, columns, row_weights, weights, temperature)
    gradient = torch.zeros_like(anchors.columns.rows)
    tiles = cpu.Tiles(anchors, columns, symmetric=False)
    cpu.bucket_gradient(tiles, row_weights, weights, temperature, gradient)
    return gradient


def strips(
    rows: Tensor, own: Tensor, columns: Tensor, table: Labels, temperature: float, path: str
) -> tuple[Tensor, Tensor]:
    """Sum of log denominators, (), and gradient of all columns times T n (n - 1), (n, D): anchors' whole rows in turn.

    Args:
        rows: (m, D) anchors, each column own[i] of the (n, D) columns.
    """
    gradient = torch.zeros_like(columns)
    if path == "torch":
        labels = table.values[table.groups]
        return torch_chunks.strips(rows, own, columns, labels, temperature, gradient), gradient
    by_columns, order = by_label(columns, table.groups, len(table))
    back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
    mine, my_order = by_label(rows, table.groups[own], len(table))
    anchors = Anchors(mine, back[own[my_order]])
    log_sum = cpu.scan(anchors, by_columns, table, temperature, gradient)
    return columns.new_tensor(log_sum, dtype=torch.float64), gradient[back]


def choose_path(
    rows: Tensor, exponent: float, n: int, num_labels: int, *, alone: bool = True
) -> str:
    """The way to go for working rows on their device: "buckets", "scan", "triton", or "torch" where no other can run.

    Args:
        exponent: a bound of |log2 e_ij|, see ``largest_exponent``.
        alone: whether one process does it all; only then does the GPU work on logarithms where it must.
    """
    fits = rows.dtype == torch.float32 and rows.shape[1] <= WIDEST and num_labels * n <= MOST_SUMS
    if (
        rows.is_cuda
        and fits
        and (alone or in_range(rows.dtype, exponent, n))
        and triton_available()
    ):
        return "triton"
    if rows.device.type != "cpu" or not in_range(rows.dtype, exponent, n):
        return "torch"
    return "buckets" if num_labels <= min(MOST_BUCKETS, n // SHORTEST_RUN) else "scan"


@cache
def triton_available() -> bool:
    """Whether Triton can be imported; says so once if not."""
    try:
        import triton  # noqa: F401
    except ImportError:
        warnings.warn(
            "Triton is missing, so SupCR runs in plain torch on the GPU, many times slower; pip install triton",
            stacklevel=2,
        )
        return False
    return True
