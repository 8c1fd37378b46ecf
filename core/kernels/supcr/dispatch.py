"""Which way SupCR goes, and the functions of each way.

| path         | where       | labels                       | exponents               | memory |
|--------------|-------------|------------------------------|-------------------------|--------|
| buckets      | CPU, numba  | few: a sum for each label    | in range of the type    | n U    |
| scan         | CPU, numba  | many: whole rows in turn     | in range of the type    | n      |
| triton       | CUDA        | few: a sum for each label    | any, several ranks: few | n U    |
| triton_scan  | CUDA        | any, also ones next to equal | any                     | n      |
| triton_whole | CUDA        | the same, for few rows       | any                     | n n    |
| torch        | any device  | any, also ones next to equal | any                     | n      |

``choose_path`` reads the table for one process or for one of several ranks. ``loss_and_gradient``
serves the former, and for few rows on a GPU ``whole_loss_and_gradient``. Ranks that each hold some
rows take "buckets" and "triton" step by step, with ``bucket_steps``, or ``whole_rows``.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Literal, Protocol, cast, get_args

import torch
from torch import Tensor

from core.kernels.supcr import cpu, torch_chunks
from core.kernels.supcr.grouping import (
    Anchors,
    LabelTable,
    SortedRows,
    in_range,
    invert,
    sort_by_label,
)

Path = Literal["buckets", "scan", "torch", "triton", "triton_scan", "triton_whole"]
PATHS = ("auto", *get_args(Path))
MOST_BUCKETS = 256  # labels; with more, (U, n) sums get large
FEWEST_ROWS_PER_LABEL = 4  # with fewer, loops over the rows of each label do too little each
# On a GPU each label has tiles of its own, of 64 columns, half of one empty on average.
FEWEST_ROWS_PER_LABEL_ON_GPU = 64
FEW_ROWS = 2896  # on a GPU: the whole matrix is one strip of 2**23 elements


class BucketSteps(Protocol):
    """The three steps of "buckets" and "triton" for anchors that are only some of the rows."""

    def bucket_sums(
        self, anchors: Anchors, columns: SortedRows, num_labels: int, temperature: float
    ) -> Tensor:
        """Sums of exponentials by label of the column, (U, m)."""

    def bucket_weights(self, sums: Tensor, anchors: SortedRows, labels: LabelTable) -> Tensor:
        """Turns sums into weights in place; gives the sum of log denominators over all pairs, (),
        float64."""

    def bucket_gradient(
        self,
        anchors: Anchors,
        columns: SortedRows,
        row_weights: Tensor,
        column_weights: Tensor,
        temperature: float,
    ) -> Tensor:
        """Gradient of the anchors times T n (n - 1), (m, D), as far as it comes from these columns.

        Args:
            row_weights: (U, m), of the anchors.
            column_weights: (U, n), of the columns.
        """


def choose_path(
    rows: Tensor,
    exponent: float,
    n: int,
    num_labels: int,
    *,
    alone: bool = True,
    well_separated: bool = True,
) -> Path:
    """The fastest path for working rows on their device.

    Args:
        rows: in the type that ``grouping.working_type`` gives.
        exponent: a bound of |log2 e_ij|, see ``grouping.largest_exponent``.
        n: rows of all ranks.
        alone: whether one process does it all; only then do sums by label work on logarithms where
            they must.
        well_separated: see ``LabelTable``.
    """
    exponentials_fit = in_range(rows.dtype, exponent, n)
    if rows.is_cuda and rows.dtype == torch.float32 and triton_available():
        most_labels = min(MOST_BUCKETS, n // FEWEST_ROWS_PER_LABEL_ON_GPU)
        sums_are_right = well_separated and (alone or exponentials_fit)
        return "triton" if sums_are_right and num_labels <= most_labels else "triton_scan"
    if rows.device.type != "cpu" or not exponentials_fit or not well_separated:
        return "torch"
    few_labels = num_labels <= min(MOST_BUCKETS, n // FEWEST_ROWS_PER_LABEL)
    return "buckets" if few_labels else "scan"


def resolve_path(requested: str, rows: Tensor, exponent: float, labels: LabelTable) -> Path:
    """The path for one process: the requested one, "auto" resolved, but "torch" where only that is
    right."""
    if requested == "auto":
        return choose_path(
            rows, exponent, len(rows), len(labels), well_separated=labels.well_separated
        )
    if requested == "triton_scan":
        return "triton_scan"
    if not labels.well_separated:
        return "torch"  # expects equal distances on the same side
    on_exponentials = requested in ("buckets", "scan")
    if on_exponentials and not in_range(rows.dtype, exponent, len(rows)):
        return "torch"
    return cast(Path, requested)


def takes_whole(requested: str, features: Tensor) -> bool:
    """Whether rows go through ``whole_loss_and_gradient``: few of them on a GPU."""
    if requested == "triton_whole":
        return True
    is_few = requested == "auto" and len(features) <= FEW_ROWS
    is_narrow_type = features.dtype in (torch.float32, torch.float16, torch.bfloat16)
    return is_few and is_narrow_type and features.is_cuda and triton_available()


def whole_loss_and_gradient(
    features: Tensor, labels: Tensor, temperature: float, *, wants_gradient: bool, fast: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, () float32, and its gradient, (n, D) float32 or None, of (n, D) features; nothing
    waits for the device."""
    # Imported only here and below: Triton is there on machines with a GPU only.
    from core.kernels.supcr import scan_launch

    return scan_launch.whole_loss_and_gradient(
        features.float(), labels, temperature, wants_gradient, exact=not fast
    )


def loss_and_gradient(
    path: Path,
    rows: Tensor,
    labels: LabelTable,
    temperature: float,
    *,
    wants_gradient: bool,
    keep_exponentials: bool,
    fast: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sum of log denominators over all pairs of (n, D) rows, (), and their gradient times T n (n -
    1), (n, D)."""
    if path == "torch":
        return torch_chunks.loss_and_gradient(rows, labels, temperature, wants_gradient)
    if path == "scan":
        return cpu.loss_and_gradient_by_scan(rows, labels, temperature, wants_gradient)
    if path == "buckets":
        return cpu.loss_and_gradient_by_buckets(
            rows, labels, temperature, wants_gradient, keep_exponentials
        )
    if path == "triton_scan":
        from core.kernels.supcr import scan_launch

        return scan_launch.loss_and_gradient(
            rows, labels.values[labels.groups], temperature, wants_gradient, exact=not fast
        )
    from core.kernels.supcr import triton_launch

    return triton_launch.loss_and_gradient(rows, labels, temperature, wants_gradient, fast)


def bucket_steps(rows: Tensor) -> BucketSteps:
    """The module whose steps serve rows on this device."""
    if not rows.is_cuda:
        return cpu
    from core.kernels.supcr import triton_launch

    return triton_launch


def whole_rows(
    rows: Tensor,
    self_column: Tensor,
    columns: Tensor,
    labels: LabelTable,
    temperature: float,
    path: Path,
) -> tuple[Tensor, Tensor]:
    """Sum of log denominators, (), and gradient of all columns times T n (n - 1), (n, D), by
    "torch", "scan" or "triton_scan".

    Args:
        rows: (m, D) anchors.
        self_column: (m,) int64, the column that each anchor is.
        columns: (n, D) rows in the order of ``labels.groups``.
    """
    gradient = torch.zeros_like(columns)
    if path == "torch":
        log_sum = torch_chunks.accumulate(
            rows, self_column, columns, labels.values[labels.groups], temperature, gradient
        )
        return log_sum, gradient
    if path == "triton_scan":
        from core.kernels.supcr import scan_launch

        row_labels = labels.values[labels.groups]
        log_sum = scan_launch.accumulate(self_column, columns, row_labels, temperature, gradient)
        return log_sum, gradient
    sorted_columns, order = sort_by_label(columns, labels.groups, len(labels))
    sorted_place = invert(order)
    anchor_rows, anchor_order = sort_by_label(rows, labels.groups[self_column], len(labels))
    anchors = Anchors(anchor_rows, sorted_place[self_column[anchor_order]])
    log_sum = cpu.scan(anchors, sorted_columns, labels, temperature, gradient)
    return log_sum, gradient[sorted_place]


@cache
def triton_available() -> bool:
    """Whether Triton can be imported; warns once if not."""
    try:
        import triton  # noqa: F401
    except ImportError:
        warnings.warn(
            "Triton is missing, so contrastive losses run in plain torch on the GPU, many times slower; "
            "pip install triton",
            stacklevel=2,
        )
        return False
    return True
