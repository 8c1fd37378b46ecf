"""SupCR on a GPU: operands in float16 or split in two of them, tiles of columns, and the launches of three kernels."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from core.kernels.supcr import grouping
from core.kernels.supcr import triton_kernels as kernels
from core.kernels.supcr.grouping import Anchors, Columns, Labels, by_label

COLUMNS = 64  # of a tile with few labels
FEW_COLUMNS = 16  # of a tile with many labels: each label in a tile costs a pass over it
GRADIENT_COLUMNS = 32
LONGEST = 128.0  # that the longest row is scaled to, so that what float16 leaves over is no subnormal number
LARGEST_SHARE = 16384.0  # of the gradient's matrix in float16; its elements reach 2 (n - 1)


def _configurations() -> list[triton.Config]:
    """Rows of a tile, warps and stages to choose from. Columns are not among them: they decide the order of sums."""
    if os.environ.get("TRITON_INTERPRET") == "1":  # which cannot measure time
        return [triton.Config({"BM": 32}, num_warps=4, num_stages=1)]
    return [
        triton.Config({"BM": 64}, num_warps=8, num_stages=2),
        triton.Config({"BM": 64}, num_warps=8, num_stages=3),
    ]


_sums = triton.autotune(_configurations(), key=["D", "EXACT", "LOG", "LABELS"])(kernels.sums_kernel)
_gradient = triton.autotune(_configurations(), key=["D", "EXACT", "LOG"])(kernels.gradient_kernel)


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
        padded = (
            max(16, 1 << (width - 1).bit_length()) if width <= 256 else math.ceil(width / 128) * 128
        )
        longest = float(torch.linalg.vector_norm(rows, dim=1).max()) if len(rows) else 0.0
        factor = 2.0 ** math.floor(math.log2(LONGEST / longest)) if longest > 0 else 1.0
        scaled = torch.nn.functional.pad(rows * factor, (0, padded - width))
        high = scaled.half()
        return Operand(high, (scaled - high).half() if exact else high, factor, exact)

    @property
    def width(self) -> int:
        return self.high.shape[1]

    @property
    def piece(self) -> int:
        """Features multiplied at once: as many as leave the registers room."""
        return self.width if self.width <= (128 if self.exact else 256) else 64

    @property
    def output(self) -> int:
        """Features of the gradient that one program computes."""
        return max(self.piece, min(self.width, 128))


@dataclass(frozen=True)
class Tiles:
    """Columns in tiles of up to ``columns`` columns and ``labels`` labels."""

    begin: Tensor  # (tiles,) int32
    end: Tensor
    label: Tensor  # of the first column
    splits: Tensor  # (splits + 1,) int32, tiles at which the work may be divided
    labels: int
    columns: int

    @staticmethod
    def of(columns: Columns, splits: int) -> Tiles:
        """Cut at the labels' borders where that leaves few columns unused; otherwise tiles of a few columns."""
        n, num_labels, device = len(columns), len(columns.starts) - 1, columns.rows.device
        if num_labels * COLUMNS / 2 <= max(n / 4, COLUMNS):
            counts = (columns.starts.diff() + COLUMNS - 1) // COLUMNS  # tiles of each label
            label = torch.arange(num_labels, device=device).repeat_interleave(counts)
            number = torch.arange(len(label), device=device) - (counts.cumsum(0) - counts)[label]
            begin = columns.starts[label] + number * COLUMNS
            end = torch.minimum(begin + COLUMNS, columns.starts[label + 1])
            wanted = torch.linspace(0, len(label), splits + 1, device=device)
            borders = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            cuts = borders[torch.searchsorted(borders, wanted.long())]
            return Tiles(begin.int(), end.int(), label.int(), cuts.int(), 1, COLUMNS)
        begin = torch.arange(0, n, FEW_COLUMNS, device=device)
        end = (begin + FEW_COLUMNS).clamp(max=n)
        label = columns.groups[begin]
        most = int((columns.groups[end - 1] - label).max()) + 1
        cuts = torch.tensor([0, len(begin)], device=device)
        return Tiles(
            begin.int(),
            end.int(),
            label.int(),
            cuts.int(),
            1 << (most - 1).bit_length(),
            FEW_COLUMNS,
        )


def loss_and_gradient(
    rows: Tensor, labels: Labels, temperature: float, gradient: bool, fast: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of log denominators, (), and the gradient times T n (n - 1), (n, D) or None, for (n, D) float32 rows."""
    log = not grouping.in_range(
        torch.float32, grouping.largest_exponent(rows, temperature), len(rows)
    )
    columns, order = by_label(rows, labels.groups, len(labels))
    anchors = Anchors(columns, torch.arange(len(rows), device=rows.device))
    operand = Operand.of(columns.rows, not fast)
    sums = _launch_sums(operand, anchors, operand, columns, len(labels), temperature, log)
    log_sum = _launch_walk(sums, columns, labels, log)
    if not gradient:
        return log_sum, None
    total = _launch_gradient(operand, anchors, operand, columns, sums, sums, temperature, log)
    return log_sum, torch.empty_like(rows).index_copy_(0, order, total[:, : rows.shape[1]])


def bucket_sums(anchors: Anchors, columns: Columns, num_labels: int, temperature: float) -> Tensor:
    """See ``dispatch.bucket_sums``."""
    left, right = Operand.of(anchors.columns.rows, True), Operand.of(columns.rows, True)
    return _launch_sums(left, anchors, right, columns, num_labels, temperature, log=False)


def bucket_weights(sums: Tensor, anchors: Columns, labels: Labels) -> Tensor:
    """See ``dispatch.bucket_weights``."""
    return _launch_walk(sums, anchors, labels, log=False)


def bucket_gradient(
    anchors: Anchors, columns: Columns, row_weights: Tensor, weights: Tensor, temperature: float
) -> Tensor:
    """See ``dispatch.bucket_gradient``."""
    left, right = Operand.of(anchors.columns.rows, True), Operand.of(columns.rows, True)
    total = _launch_gradient(
        left, anchors, right, columns, row_weights, weights, temperature, log=False
    )
    return total[:, : columns.rows.shape[1]]


def _scale(left: Operand, right: Operand, temperature: float) -> float:
    return math.log2(math.e) / (temperature * left.factor * right.factor)


def _splits(num_rows: int, device: torch.device) -> int:
    """How often to divide the work over columns, so that few rows keep the whole GPU busy too."""
    return max(1, min(16, processors(device) // max(1, math.ceil(num_rows / 128))))


def processors(device: torch.device) -> int:
    return (
        torch.cuda.get_device_properties(device).multi_processor_count
        if device.type == "cuda"
        else 1
    )


def _launch_sums(
    left: Operand,
    anchors: Anchors,
    right: Operand,
    columns: Columns,
    num_labels: int,
    temperature: float,
    log: bool,
) -> Tensor:
    m = len(anchors.columns)
    sums = columns.rows.new_full(
        (num_labels, m), float("-inf") if log else 0.0, dtype=torch.float32
    )
    if m == 0 or len(columns) == 0:
        return sums
    tiles = Tiles.of(columns, _splits(m, columns.rows.device))
    _sums[lambda meta: (triton.cdiv(m, meta["BM"]), len(tiles.splits) - 1)](
        left.high, left.low, right.high, right.low, anchors.own.int(), columns.starts.int(),
        tiles.begin, tiles.end, tiles.label, tiles.splits, sums, _scale(left, right, temperature), m,
        D=left.width, BD=left.piece, EXACT=left.exact, LOG=log, LABELS=tiles.labels, BN=tiles.columns,
    )  # fmt: skip
    return sums


def _launch_walk(sums: Tensor, anchors: Columns, labels: Labels, log: bool) -> Tensor:
    """Turns sums into weights; gives the sum of log denominators, (), float64."""
    m = len(anchors)
    losses = sums.new_empty(m)
    if m > 0:
        kernels.walk_kernel[(triton.cdiv(m, 64),)](
            sums, anchors.groups.int(), labels.values, labels.counts.int(), losses, m, len(labels),
            LOG=log, BLOCK=64, num_warps=2,
        )  # fmt: skip
    return losses.sum(dtype=torch.float64) * math.log(2)


def _launch_gradient(
    left: Operand, anchors: Anchors, right: Operand, columns: Columns, row_weights: Tensor, weights: Tensor,
    temperature: float, log: bool,
) -> Tensor:  # fmt: skip
    """(m, padded D) float32."""
    m, n = len(anchors.columns), len(columns)
    splits = _splits(m, columns.rows.device)
    share = math.ceil(n / splits / GRADIENT_COLUMNS) * GRADIENT_COLUMNS
    parts = row_weights.new_zeros(splits, m, left.width)
    if m > 0 and n > 0:
        shrink = 2.0 ** -max(0, math.ceil(math.log2(n / LARGEST_SHARE)))
        _gradient[lambda meta: (triton.cdiv(m, meta["BM"]), splits, left.width // left.output)](
            left.high, left.low, right.high, right.low, anchors.own.int(), anchors.columns.groups.int(),
            columns.groups.int(), row_weights.T.contiguous(), weights, parts,
            _scale(left, right, temperature), shrink, m, n, len(weights), share,
            D=left.width, BD=left.piece, BO=left.output, EXACT=left.exact, LOG=log, BN=GRADIENT_COLUMNS,
        )  # fmt: skip
        parts *= 1 / (shrink * right.factor)
    return parts.sum(0)
