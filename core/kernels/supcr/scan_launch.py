"""SupCR on a GPU for any labels, in linear memory: the launches of ``scan_kernels``.

Few rows are one strip: three launches, and nothing that waits for the device. More rows go strip by
strip, four launches each, in memory that does not grow with their labels.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from core.kernels.supcr import scan_gradients, scan_kernels
from core.kernels.supcr.grouping import LARGEST_EXACT_INTEGER, LARGEST_EXPONENT

STRIP_ELEMENTS = 2**23  # of the strip, and of each of two scratch tensors: 100 MB together
NARROWEST = 16  # features that tensor cores take at least
BLOCK_WIDTH, WIDE_BLOCK = 128, 32  # features multiplied at once: all, or of wider rows so many
LINE_ELEMENTS = 32
MOST_SPLITS = 64
COLUMNS_PER_SPLIT = 1024
LABEL_TYPES = (torch.int32, torch.int64, torch.float32, torch.float64)
LARGEST_WEIGHT = 16384.0  # of the gradient's matrix in float16; its elements reach n - 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiles:
    """Rows and columns of a program, and how it is compiled."""

    rows: int
    columns: int
    warps: int
    stages: int = 1

    @property
    def options(self) -> dict[str, int]:
        return {
            "BLOCK_M": self.rows,
            "BLOCK_N": self.columns,
            "num_warps": self.warps,
            "num_stages": self.stages,
        }


# No timing chose these: they fit the registers of capabilities 8.0 and 9.0, and whoever calls first
# waits for one compilation each.
PREPARE = Tiles(rows=16, columns=128, warps=4)
WHOLE_SCAN = Tiles(rows=16, columns=64, warps=8)
WHOLE_GRADIENT = Tiles(rows=32, columns=32, warps=8)
EXPONENTS = Tiles(rows=64, columns=32, warps=8)
STRIP_SCAN = Tiles(rows=1, columns=1024, warps=8)
ANCHOR_GRADIENT = Tiles(rows=64, columns=32, warps=8, stages=2)
CANDIDATE_GRADIENT = Tiles(rows=64, columns=32, warps=8, stages=2)


@dataclass(frozen=True)
class Prepared:
    """Rows in the order of their labels, as ``scan_kernels.prepare_kernel`` leaves them."""

    high: Tensor  # (n, padded width) float16
    low: Tensor  # the same
    lengths: Tensor  # (n,) float32
    values: Tensor  # (n,) float64 labels
    first: Tensor  # (n,) int32, first row of the same label
    last: Tensor  # (n,) int32, one past the last row of the same label
    order: Tensor  # (n,) int32, which row it was

    @staticmethod
    def of(rows: Tensor, labels: Tensor) -> Prepared:
        """Sorted and split (n, D) float32 rows with (n,) labels."""
        if labels.dtype not in LABEL_TYPES:
            labels = labels.double()
        n, width = rows.shape
        padded = padded_width(width)
        indices = rows.new_empty(3, n, dtype=torch.int32)
        prepared = Prepared(
            high=rows.new_empty(n, padded, dtype=torch.float16),
            low=rows.new_empty(n, padded, dtype=torch.float16),
            lengths=rows.new_empty(n),
            values=rows.new_empty(n, dtype=torch.float64),
            first=indices[0],
            last=indices[1],
            order=indices[2],
        )
        scan_kernels.prepare_kernel[(triton.cdiv(n, PREPARE.rows),)](
            features=rows.contiguous(),
            labels=labels.contiguous(),
            label_limit=math.inf if labels.is_floating_point() else float(LARGEST_EXACT_INTEGER),
            num_rows=n,
            width=width,
            WIDTH=padded,
            BLOCK_D=block_width(padded),
            **vars(prepared),
            **PREPARE.options,
        )
        return prepared

    @property
    def padded_width(self) -> int:
        return self.high.shape[1]

    @property
    def operands(self) -> dict[str, Tensor]:
        return {"high": self.high, "low": self.low, "lengths": self.lengths}

    @property
    def order_of_labels(self) -> dict[str, Tensor]:
        return {"values": self.values, "first": self.first, "last": self.last}


def padded_width(width: int) -> int:
    """The next power of two from 16 to 128, or multiple of 128."""
    if width <= BLOCK_WIDTH:
        return max(NARROWEST, 1 << (width - 1).bit_length())
    return math.ceil(width / BLOCK_WIDTH) * BLOCK_WIDTH


def block_width(padded: int) -> int:
    """Features of rows that one step multiplies with those of columns."""
    return padded if padded <= BLOCK_WIDTH else WIDE_BLOCK


def output_width(padded: int) -> int:
    """Features of the gradient that one program computes."""
    return min(padded, BLOCK_WIDTH)


def fits_one_strip(n: int) -> bool:
    """Whether so many rows are few enough for ``whole_loss_and_gradient``."""
    return n * n <= STRIP_ELEMENTS


def whole_loss_and_gradient(
    rows: Tensor, labels: Tensor, temperature: float, wants_gradient: bool, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss, () float32, and its gradient, (n, D) float32 or None, of at least two rows.

    Nothing waits for the device. Where a row or a label is not finite, neither is any result.

    Args:
        rows: (n, D) float32.
        labels: (n,) numbers.
    """
    n, width = rows.shape
    announce("SupCR of few rows", padded_width(width), exact)
    prepared = Prepared.of(rows, labels)
    scratch = rows.new_empty(3, n, line_width(n))
    losses = rows.new_empty(n, dtype=torch.float64)
    longest = rows.new_empty(())
    _scan(prepared, None, 0, n, scratch, losses, longest, temperature, exact, similarity_share=1.0)
    if not wants_gradient:
        return (losses.sum() * (math.log(2) / (n * (n - 1)))).float(), None
    gradient, loss = torch.empty_like(rows), rows.new_empty(())
    block = output_width(prepared.padded_width)
    grid = (triton.cdiv(n, WHOLE_GRADIENT.rows), prepared.padded_width // block)
    scan_gradients.whole_gradient_kernel[grid](
        weights=scratch[0],
        order=prepared.order,
        losses=losses,
        longest=longest,
        gradient=gradient,
        loss=loss,
        gradient_scale=1 / (temperature * n * (n - 1)),
        loss_scale=1 / (n * (n - 1)),
        num_rows=n,
        line_width=scratch.shape[2],
        width=width,
        WIDTH=prepared.padded_width,
        BLOCK_OUT=block,
        EXACT=exact,
        **prepared.operands,
        **WHOLE_GRADIENT.options,
    )
    return loss, gradient


def loss_and_gradient(
    rows: Tensor, labels: Tensor, temperature: float, wants_gradient: bool, exact: bool
) -> tuple[Tensor, Tensor | None]:
    """Sum of log denominators, () float64, and the gradient times T n (n - 1), (n, D) float32 or
    None, for (n, D) float32 rows and (n,) float64 labels."""
    everything = torch.arange(len(rows), device=rows.device)
    gradient = torch.zeros_like(rows) if wants_gradient else None
    log_sum = accumulate(everything, rows, labels, temperature, gradient, exact=exact)
    return log_sum, gradient


def accumulate(
    self_column: Tensor,
    columns: Tensor,
    labels: Tensor,
    temperature: float,
    gradient: Tensor | None,
    *,
    exact: bool = True,
) -> Tensor:
    """Sum of log denominators over all pairs of an anchor, () float64.

    Args:
        self_column: (m,) int64, the column that each anchor is.
        columns: (n, D) float32, all finite.
        labels: (n,) float64, of the columns.
        gradient: (n, D) float32; the gradient times T n (n - 1) is added to it, for anchors and
            candidates, if given.
    """
    n, m = len(columns), len(self_column)
    if m == 0:
        return columns.new_zeros((), dtype=torch.float64)
    announce("SupCR of many labels", padded_width(columns.shape[1]), exact)
    prepared = Prepared.of(columns, labels)
    place_of_row = torch.empty_like(prepared.order)
    place_of_row[prepared.order.long()] = torch.arange(n, dtype=torch.int32, device=columns.device)
    places = place_of_row[self_column].sort().values  # neighbours then share an order of distance
    anchor_of = torch.full_like(prepared.order, -1)
    anchor_of[places.long()] = torch.arange(m, dtype=torch.int32, device=columns.device)
    losses = columns.new_empty(m, dtype=torch.float64)
    longest = prepared.lengths.max()
    height = min(m, strip_height(n))
    scratch = columns.new_empty(3, height, line_width(n))
    strip = _Strip(prepared, places, anchor_of, longest, exact)
    for begin in range(0, m, height):
        size = min(height, m - begin)
        strip.exponents(scratch[0], begin, size, temperature)
        _scan(
            prepared,
            places,
            begin,
            size,
            scratch,
            losses,
            longest,
            temperature,
            exact,
            similarity_share=0.0,
        )
        if gradient is not None:
            strip.add_gradient(scratch[0], begin, size, gradient)
    return losses.sum() * math.log(2)


def line_width(n: int) -> int:
    """Elements from one row of a strip to the next, so that all rows are aligned alike."""
    return math.ceil(n / LINE_ELEMENTS) * LINE_ELEMENTS


def strip_height(n: int) -> int:
    """Rows of a strip, a multiple of 16."""
    return max(16, STRIP_ELEMENTS // n // 16 * 16)


@dataclass(frozen=True)
class _Strip:
    """The launches for the anchors of one strip."""

    prepared: Prepared
    places: Tensor  # (m,) int32, rising, of the anchors among the sorted rows
    anchor_of: Tensor  # (n,) int32, number of the anchor that a sorted row is; -1 for none
    longest: Tensor  # () float32
    exact: bool

    def exponents(self, out: Tensor, begin: int, size: int, temperature: float) -> None:
        """(size, line width) log2 e of the strip's anchors, into ``out``."""
        n = len(self.prepared.order)
        grid = (triton.cdiv(n, EXPONENTS.columns), triton.cdiv(size, EXPONENTS.rows))
        scan_kernels.exponents_kernel[grid](
            places=self.places,
            exponents=out,
            exponent_scale=1 / temperature,
            first_anchor=begin,
            num_anchors=size,
            num_columns=n,
            line_width=out.shape[1],
            **_features(self.prepared, self.exact),
            **self.prepared.operands,
            **EXPONENTS.options,
        )

    def add_gradient(self, weights: Tensor, begin: int, size: int, gradient: Tensor) -> None:
        """Adds to ``gradient`` what comes of the strip's weights."""
        n, padded = len(self.prepared.order), self.prepared.padded_width
        block = output_width(padded)
        splits = max(1, min(MOST_SPLITS, n // COLUMNS_PER_SPLIT))
        columns_per_split = math.ceil(n / splits / ANCHOR_GRADIENT.columns)
        columns_per_split *= ANCHOR_GRADIENT.columns
        parts = gradient.new_empty(splits, size, padded)
        # So that weights fit float16, by a power of two, which costs no digits.
        shrink = 2.0 ** -max(0, math.ceil(math.log2(n / LARGEST_WEIGHT)))
        shared = self.prepared.operands | {
            "weights": weights,
            "longest": self.longest,
            "parts": parts,
            "shrink": shrink,
            "num_anchors": size,
            "num_columns": n,
            "line_width": weights.shape[1],
            "WIDTH": padded,
            "BLOCK_OUT": block,
            "EXACT": self.exact,
        }
        grid = (triton.cdiv(size, ANCHOR_GRADIENT.rows), splits, padded // block)
        scan_gradients.anchor_gradient_kernel[grid](
            columns_per_split=columns_per_split, **shared, **ANCHOR_GRADIENT.options
        )
        candidates = (triton.cdiv(n, CANDIDATE_GRADIENT.rows), padded // block)
        scan_gradients.candidate_gradient_kernel[candidates](
            places=self.places,
            anchor_of=self.anchor_of,
            order=self.prepared.order,
            gradient=gradient,
            first_anchor=begin,
            num_splits=splits,
            width=gradient.shape[1],
            **shared,
            **CANDIDATE_GRADIENT.options,
        )


def _scan(
    prepared: Prepared,
    places: Tensor | None,
    begin: int,
    size: int,
    scratch: Tensor,
    losses: Tensor,
    longest: Tensor,
    temperature: float,
    exact: bool,
    *,
    similarity_share: float,
) -> None:
    """Exponents to weights, and losses, of a strip; of all rows, exponents first, without
    ``places``."""
    n = len(prepared.order)
    tiles = WHOLE_SCAN if places is None else STRIP_SCAN
    scan_kernels.scan_kernel[(triton.cdiv(size, tiles.rows),)](
        places=prepared.order if places is None else places,
        exponents=scratch[0],
        denominators=scratch[1],
        weights=scratch[2],
        losses=losses,
        longest=longest,
        exponent_scale=1 / temperature,
        similarity_share=similarity_share,
        largest_exponent=LARGEST_EXPONENT[torch.float32] - math.log2(n),
        first_anchor=begin,
        num_anchors=size,
        num_columns=n,
        line_width=scratch.shape[2],
        search_steps=n.bit_length(),
        WHOLE=places is None,
        **_features(prepared, exact),
        **prepared.operands,
        **prepared.order_of_labels,
        **tiles.options,
    )


def _features(prepared: Prepared, exact: bool) -> dict[str, Any]:
    """The constants that say how rows are multiplied."""
    padded = prepared.padded_width
    return {"WIDTH": padded, "BLOCK_D": block_width(padded), "EXACT": exact}


@cache
def announce(kernels: str, width: int, exact: bool = True) -> None:
    """One line in the log before the first launch of kernels that are compiled for rows of this
    width."""
    mode = "exact" if exact else "fast"
    log.info("%s for %d features, %s: the first call compiles its kernels", kernels, width, mode)
