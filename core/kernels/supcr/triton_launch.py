"""SupCR on a GPU: operands in float16 or split in two of them, tiles of columns, and the launches
of three kernels."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from core.kernels.supcr import triton_kernels as kernels
from core.kernels.supcr.grouping import (
    Anchors,
    LabelTable,
    SortedRows,
    in_range,
    largest_exponent,
    sort_by_label,
)
from core.kernels.supcr.scan_launch import announce

TILE_COLUMNS = 64  # with few labels
FEW_COLUMNS = 16  # of a tile with many labels: each label in a tile costs a pass over it
GRADIENT_COLUMNS = 32
RANGE_COLUMNS = 16384  # that one launch adds up, before it adds to the gradient
AUTOTUNED = 8192  # rows, below which timing the choices takes longer than it gains
ACCUMULATE_ROWS = 64  # one a lane
# that the longest row is scaled to, so that what float16 leaves over is no subnormal number
LONGEST = 128.0
LARGEST_WEIGHT = 16384.0  # of the gradient's matrix in float16; its elements reach 2 (n - 1)
MOST_SPLITS = 16
ROWS_PER_PROCESSOR = 128


def _configurations() -> list[triton.Config]:
    """Rows of a tile, warps and stages to choose from. Columns are not among them: they decide the
    order of sums."""
    if os.environ.get("TRITON_INTERPRET") == "1":  # which cannot measure time
        return [triton.Config({"BLOCK_M": 32}, num_warps=4, num_stages=1)]
    return [
        triton.Config({"BLOCK_M": 64}, num_warps=8, num_stages=2),
        triton.Config({"BLOCK_M": 64}, num_warps=8, num_stages=3),
    ]


_sums_kernel = triton.autotune(_configurations(), key=["WIDTH", "EXACT", "LOG", "LABELS"])(
    kernels.sums_kernel
)
# It adds to the gradient, which each try would do again.
_gradient_kernel = triton.autotune(
    _configurations(), key=["WIDTH", "EXACT", "LOG"], restore_value=["gradient"]
)(kernels.gradient_kernel)


@dataclass(frozen=True)
class Operand:
    """Rows times a power of two as float16: ``high``, and in the exact mode what it leaves over."""

    high: Tensor  # (n, padded D)
    low: Tensor  # the same, or high itself where it is not used
    factor: float
    exact: bool

    @staticmethod
    def of(rows: Tensor, exact: bool) -> Operand:
        width = rows.shape[1]
        factor = _scale_to_longest(rows)
        padding = _padded_width(width) - width
        scaled = torch.nn.functional.pad(rows * factor, (0, padding))
        high = scaled.half()
        low = (scaled - high).half() if exact else high
        return Operand(high, low, factor, exact)

    @property
    def width(self) -> int:
        return self.high.shape[1]

    @property
    def block_width(self) -> int:
        """Features multiplied at once: as many as leave the registers room."""
        widest = 128 if self.exact else 256
        if self.width <= widest:
            return self.width
        return 32 if self.exact else 64

    @property
    def output_width(self) -> int:
        """Features of the gradient that one program computes."""
        return max(self.block_width, min(self.width, 128))


def _scale_to_longest(rows: Tensor) -> float:
    """The power of two that brings the longest row to between half of ``LONGEST`` and that; 1 for
    rows of zeros."""
    lengths = torch.linalg.vector_norm(rows, dim=1)
    longest = float(lengths.max()) if len(rows) else 0.0
    if longest == 0:
        return 1.0
    return 2.0 ** math.floor(math.log2(LONGEST / longest))


def _padded_width(width: int) -> int:
    """The next power of two from 16 to 256, or multiple of 128: widths that tensor cores take."""
    if width <= 256:
        return max(16, next_power_of_two(width))
    return math.ceil(width / 128) * 128


def next_power_of_two(number: int) -> int:
    """The least power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


@dataclass(frozen=True)
class ColumnTiles:
    """Columns in tiles of up to ``columns`` columns and ``labels`` labels."""

    begin: Tensor  # (tiles,) int32, first column
    end: Tensor  # (tiles,) int32
    label: Tensor  # (tiles,) int32, of the first column
    splits: Tensor  # (splits + 1,) int32, tiles at which the work may be divided
    labels: int
    columns: int

    @staticmethod
    def of(columns: SortedRows, splits: int) -> ColumnTiles:
        """Cut at the labels' borders where that leaves few columns unused; otherwise tiles of a few
        columns."""
        num_labels = len(columns.starts) - 1
        # Every label leaves half a tile unused on average.
        unused = num_labels * TILE_COLUMNS / 2
        if unused <= max(len(columns) / 4, TILE_COLUMNS):
            return _tiles_of_one_label(columns, splits)
        return _tiles_of_few_columns(columns)


def _tiles_of_one_label(columns: SortedRows, splits: int) -> ColumnTiles:
    device = columns.rows.device
    tiles_of_label = (columns.starts.diff() + TILE_COLUMNS - 1) // TILE_COLUMNS  # (U,)
    label = torch.arange(len(tiles_of_label), device=device).repeat_interleave(tiles_of_label)
    first_tile = tiles_of_label.cumsum(0) - tiles_of_label
    number_in_label = torch.arange(len(label), device=device) - first_tile[label]
    begin = columns.starts[label] + number_in_label * TILE_COLUMNS
    end = torch.minimum(begin + TILE_COLUMNS, columns.starts[label + 1])
    # Even splits of the tiles, each moved on to the next label's first tile.
    even = torch.linspace(0, len(label), splits + 1, device=device).long()
    borders = torch.cat([tiles_of_label.new_zeros(1), tiles_of_label.cumsum(0)])
    cuts = borders[torch.searchsorted(borders, even)]
    return ColumnTiles(
        begin=begin.int(),
        end=end.int(),
        label=label.int(),
        splits=cuts.int(),
        labels=1,
        columns=TILE_COLUMNS,
    )


def _tiles_of_few_columns(columns: SortedRows) -> ColumnTiles:
    device = columns.rows.device
    begin = torch.arange(0, len(columns), FEW_COLUMNS, device=device)
    end = (begin + FEW_COLUMNS).clamp(max=len(columns))
    label = columns.groups[begin]
    most_labels = int((columns.groups[end - 1] - label).max()) + 1
    cuts = torch.tensor([0, len(begin)], device=device)
    return ColumnTiles(
        begin=begin.int(),
        end=end.int(),
        label=label.int(),
        splits=cuts.int(),
        labels=next_power_of_two(most_labels),
        columns=FEW_COLUMNS,
    )


def loss_and_gradient(
    rows: Tensor, labels: LabelTable, temperature: float, wants_gradient: bool, fast: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of log denominators, (), and the gradient times T n (n - 1), (n, D) or None, for (n, D)
    float32 rows."""
    log = not in_range(torch.float32, largest_exponent(rows, temperature), len(rows))
    columns, order = sort_by_label(rows, labels.groups, len(labels))
    anchors = Anchors(columns, self_column=torch.arange(len(rows), device=rows.device))
    operand = Operand.of(columns.rows, exact=not fast)
    launch = _Launch(operand, anchors, operand, columns, temperature, log)
    sums = launch.sums(len(labels))
    log_sum = _accumulate(sums, columns, labels, log)
    if not wants_gradient:
        return log_sum, None
    gradient = launch.gradient(row_weights=sums, column_weights=sums)
    return log_sum, torch.empty_like(rows).index_copy_(0, order, gradient)


def bucket_sums(
    anchors: Anchors, columns: SortedRows, num_labels: int, temperature: float
) -> Tensor:
    """See ``dispatch.BucketSteps``."""
    return _exact_launch(anchors, columns, temperature).sums(num_labels)


def bucket_weights(sums: Tensor, anchors: SortedRows, labels: LabelTable) -> Tensor:
    """See ``dispatch.BucketSteps``."""
    return _accumulate(sums, anchors, labels, log=False)


def bucket_gradient(
    anchors: Anchors,
    columns: SortedRows,
    row_weights: Tensor,
    column_weights: Tensor,
    temperature: float,
) -> Tensor:
    """See ``dispatch.BucketSteps``."""
    return _exact_launch(anchors, columns, temperature).gradient(row_weights, column_weights)


def _exact_launch(anchors: Anchors, columns: SortedRows, temperature: float) -> _Launch:
    left = Operand.of(anchors.sorted.rows, exact=True)
    right = Operand.of(columns.rows, exact=True)
    return _Launch(left, anchors, right, columns, temperature, log=False)


@dataclass(frozen=True)
class _Launch:
    """What the two kernels that multiply rows with columns have in common."""

    left: Operand
    anchors: Anchors
    right: Operand
    columns: SortedRows
    temperature: float
    log: bool  # work on base-2 logarithms of sums and weights

    @property
    def scale(self) -> float:
        """What turns products of the operands into exponents of two."""
        return math.log2(math.e) / (self.temperature * self.left.factor * self.right.factor)

    @property
    def splits(self) -> int:
        """How often to divide the work over columns, so that few rows keep the whole GPU busy
        too."""
        blocks = max(1, math.ceil(len(self.anchors.sorted) / ROWS_PER_PROCESSOR))
        return max(1, min(MOST_SPLITS, processors(self.columns.rows.device) // blocks))

    def sums(self, num_labels: int) -> Tensor:
        """(U, m) float32 sums of exponentials by label."""
        m, n = len(self.anchors.sorted), len(self.columns)
        empty = float("-inf") if self.log else 0.0
        sums = self.columns.rows.new_full((num_labels, m), empty, dtype=torch.float32)
        if m == 0 or n == 0:
            return sums
        announce("SupCR of few labels", self.left.width, self.left.exact)
        tiles = ColumnTiles.of(self.columns, self.splits)

        def grid(meta: dict[str, int]) -> tuple[int, int]:
            return triton.cdiv(m, meta["BLOCK_M"]), len(tiles.splits) - 1

        kernel, choice = _kernel(kernels.sums_kernel, _sums_kernel, n)
        kernel[grid](
            row_high=self.left.high,
            row_low=self.left.low,
            high=self.right.high,
            low=self.right.low,
            self_column=self.anchors.self_column.int(),
            starts=self.columns.starts.int(),
            tile_begin=tiles.begin,
            tile_end=tiles.end,
            tile_label=tiles.label,
            splits=tiles.splits,
            sums=sums,
            scale=self.scale,
            num_rows=m,
            WIDTH=self.left.width,
            BLOCK_D=self.left.block_width,
            EXACT=self.left.exact,
            LOG=self.log,
            LABELS=tiles.labels,
            BLOCK_N=tiles.columns,
            **choice,
        )
        return sums

    def gradient(self, row_weights: Tensor, column_weights: Tensor) -> Tensor:
        """(m, D) float32 gradient of the anchors times T n (n - 1)."""
        m, n = len(self.anchors.sorted), len(self.columns)
        parts = row_weights.new_zeros(self.splits, m, self.left.width)
        if m > 0 and n > 0:
            # So that the matrix fits float16, by a power of two, which costs no digits.
            shrink = 2.0 ** -max(0, math.ceil(math.log2(n / LARGEST_WEIGHT)))
            by_row = row_weights.T.contiguous()
            for first_column in range(0, n, RANGE_COLUMNS):
                self._add_gradient(parts, by_row, column_weights, first_column, shrink)
            parts *= 1 / (shrink * self.right.factor)
        return parts.sum(0)[:, : self.columns.rows.shape[1]]

    def _add_gradient(
        self,
        parts: Tensor,
        weights_by_row: Tensor,
        column_weights: Tensor,
        first_column: int,
        shrink: float,
    ) -> None:
        splits, m, width = parts.shape
        n = len(self.columns)
        end_column = min(first_column + RANGE_COLUMNS, n)
        columns_per_split = math.ceil((end_column - first_column) / splits / GRADIENT_COLUMNS)

        def grid(meta: dict[str, int]) -> tuple[int, int, int]:
            return triton.cdiv(m, meta["BLOCK_M"]), splits, width // self.left.output_width

        kernel, choice = _kernel(kernels.gradient_kernel, _gradient_kernel, n)
        kernel[grid](
            row_high=self.left.high,
            row_low=self.left.low,
            high=self.right.high,
            low=self.right.low,
            self_column=self.anchors.self_column.int(),
            row_groups=self.anchors.sorted.groups.int(),
            groups=self.columns.groups.int(),
            row_weights=weights_by_row,
            column_weights=column_weights,
            gradient=parts,
            scale=self.scale,
            shrink=shrink,
            num_rows=m,
            num_columns=n,
            num_labels=len(column_weights),
            first_column=first_column,
            end_column=end_column,
            columns_per_split=columns_per_split * GRADIENT_COLUMNS,
            WIDTH=width,
            BLOCK_D=self.left.block_width,
            BLOCK_OUT=self.left.output_width,
            EXACT=self.left.exact,
            LOG=self.log,
            BLOCK_N=GRADIENT_COLUMNS,
            **choice,
        )


def _kernel(plain: Any, autotuned: Any, num_columns: int) -> tuple[Any, dict[str, int]]:
    """What to launch, and with which tiles where it does not choose them itself."""
    if num_columns >= AUTOTUNED:
        return autotuned, {}
    first = _configurations()[0]
    return plain, first.kwargs | {"num_warps": first.num_warps, "num_stages": first.num_stages}


def _accumulate(sums: Tensor, anchors: SortedRows, labels: LabelTable, log: bool) -> Tensor:
    """Turns sums into weights in place; gives the sum of log denominators, (), float64."""
    m = len(anchors)
    losses = sums.new_empty(m)
    if m > 0:
        kernels.accumulate_kernel[(triton.cdiv(m, ACCUMULATE_ROWS),)](
            sums=sums,
            groups=anchors.groups.int(),
            values=labels.values,
            counts=labels.counts.int(),
            losses=losses,
            num_rows=m,
            num_labels=len(labels),
            LOG=log,
            BLOCK_M=ACCUMULATE_ROWS,
            num_warps=2,
        )
    return losses.sum(dtype=torch.float64) * math.log(2)


def processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 1 where there is none."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
