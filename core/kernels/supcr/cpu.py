"""SupCR on the CPU: torch's matrix products tile by tile, numba's loops between them.

With e_ij = exp(s_ij), every pair (i, j) with label v of j shares one denominator, D_iv, the sum of
e_ik over labels at least as far as v; and e_ik's weight in the gradient, W_i, depends on k through
its label only:

    L = 1 / (n (n - 1)) * sum of [log D_i,y(j) - s_ij] over i != j
    dL/dr_i = 1 / (T n (n - 1)) * sum of [e_ij (W_i[y_j] + W_j[y_i]) - 2] r_j over j != i

"Buckets" keeps sums by label, (U, n), and visits each pair of rows once, e being symmetric. "Scan"
takes whole rows of the matrix in turn and keeps nothing, for many labels. Both are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from core.kernels.supcr.grouping import Anchors, LabelTable, SortedRows, invert, sort_by_label

TILE_COLUMNS = 1024
SCAN_ELEMENTS = 2**23  # of a chunk of whole rows
KEEP_BELOW = 1024  # rows; their exponentials fit the cache, so they are always kept


def loss_and_gradient_by_buckets(
    rows: Tensor,
    labels: LabelTable,
    temperature: float,
    wants_gradient: bool,
    keep_exponentials: bool,
) -> tuple[Tensor, Tensor | None]:
    """Sum of log denominators, (), and the gradient times T n (n - 1), (n, D) or None, for all (n,
    D) rows."""
    columns, order = sort_by_label(rows, labels.groups, len(labels))
    anchors = Anchors(columns, self_column=torch.arange(len(rows)))
    tiles = Tiles(anchors, columns, symmetric=True)
    keeps = wants_gradient and (keep_exponentials or len(rows) <= KEEP_BELOW)
    kept: list[Tensor] | None = [] if keeps else None
    sums = rows.new_zeros(len(labels), len(rows))
    _add_sums(tiles, sums, temperature, kept)
    log_sum = bucket_weights(sums, columns, labels)
    if not wants_gradient:
        return log_sum, None
    gradient = torch.zeros_like(rows)
    _add_gradient(tiles, sums, sums, temperature, gradient, kept)
    return log_sum, gradient[invert(order)]


def loss_and_gradient_by_scan(
    rows: Tensor, labels: LabelTable, temperature: float, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """The same as by buckets, for many labels."""
    columns, order = sort_by_label(rows, labels.groups, len(labels))
    anchors = Anchors(columns, self_column=torch.arange(len(rows)))
    gradient = torch.zeros_like(rows) if wants_gradient else None
    log_sum = scan(anchors, columns, labels, temperature, gradient)
    return log_sum, None if gradient is None else gradient[invert(order)]


def bucket_sums(
    anchors: Anchors, columns: SortedRows, num_labels: int, temperature: float
) -> Tensor:
    """See ``dispatch.BucketSteps``."""
    sums = columns.rows.new_zeros(num_labels, len(anchors.sorted))
    _add_sums(Tiles(anchors, columns, symmetric=False), sums, temperature, kept=None)
    return sums


def bucket_weights(sums: Tensor, anchors: SortedRows, labels: LabelTable) -> Tensor:
    """See ``dispatch.BucketSteps``."""
    losses = np.zeros(sums.shape[1])
    _loops().accumulate(
        sums=sums.numpy(),
        row_starts=_indices(anchors.starts),
        values=labels.values.numpy(),
        counts=labels.counts.numpy(),
        losses=losses,
    )
    return _natural(losses)


def bucket_gradient(
    anchors: Anchors,
    columns: SortedRows,
    row_weights: Tensor,
    column_weights: Tensor,
    temperature: float,
) -> Tensor:
    """See ``dispatch.BucketSteps``."""
    gradient = torch.zeros_like(anchors.sorted.rows)
    tiles = Tiles(anchors, columns, symmetric=False)
    _add_gradient(tiles, row_weights, column_weights, temperature, gradient, kept=None)
    return gradient


@dataclass(frozen=True)
class Tile:
    """Where a tile lies in the matrix of anchors and columns."""

    rows: slice
    columns: slice
    mirrored: (
        slice  # those of its own columns that have a mirror image, whose tile is never computed
    )


class Tiles:
    """The products of anchors and columns, tile by tile; only one triangle where the anchors are
    the columns."""

    def __init__(self, anchors: Anchors, columns: SortedRows, symmetric: bool):
        self.anchors = anchors.sorted
        self.columns = columns
        self.symmetric = symmetric
        self.height = 128 if len(columns) <= 2048 else 256
        self.self_column = anchors.self_column.numpy()
        self.row_groups = _indices(anchors.sorted.groups)
        self.groups = _indices(columns.groups)
        self.starts = _indices(columns.starts)
        self.scratch = columns.rows.new_empty(self.height * min(TILE_COLUMNS, len(columns)))

    def __iter__(self) -> Iterator[Tile]:
        for row in range(0, len(self.anchors), self.height):
            row_end = row + self.height
            first_column = row if self.symmetric else 0
            for column in range(first_column, len(self.columns), TILE_COLUMNS):
                # Columns that are among the tile's rows, or before them, hold their mirror image
                # themselves.
                mirrored_from = max(0, row_end - column) if self.symmetric else TILE_COLUMNS
                yield Tile(
                    rows=slice(row, row_end),
                    columns=slice(column, column + TILE_COLUMNS),
                    mirrored=slice(mirrored_from, TILE_COLUMNS),
                )

    def exponentials(self, tile: Tile, temperature: float, *, keep: bool = False) -> Tensor:
        """(height, width) exponentials, in memory of their own if they are to be kept."""
        left = self.anchors.rows[tile.rows]
        right = self.columns.rows[tile.columns]
        size = len(left) * len(right)
        memory = left.new_empty(size) if keep else self.scratch[:size]
        products = memory.view(len(left), len(right))
        torch.mm(left, right.T, out=products)
        _loops().exponentials(
            tile=products.numpy(),
            scale=_exponent_scale(products, temperature),
            first_row=tile.rows.start,
            first_column=tile.columns.start,
            self_column=self.self_column,
        )
        return products


def _add_sums(tiles: Tiles, sums: Tensor, temperature: float, kept: list[Tensor] | None) -> None:
    """Add each anchor's sums of exponentials by label to ``sums``, (U, m); put the tiles into
    ``kept`` if given."""
    for tile in tiles:
        exponentials = tiles.exponentials(tile, temperature, keep=kept is not None)
        _loops().add_row_sums(
            tile=exponentials.numpy(),
            first_row=tile.rows.start,
            first_column=tile.columns.start,
            groups=tiles.groups,
            starts=tiles.starts,
            sums=sums.numpy(),
        )
        if tiles.symmetric:
            _loops().add_column_sums(
                tile=exponentials[:, tile.mirrored].numpy(),
                first_row=tile.rows.start,
                first_column=tile.columns.start + tile.mirrored.start,
                row_groups=tiles.row_groups,
                sums=sums.numpy(),
            )
        if kept is not None:
            kept.append(exponentials)


def _add_gradient(
    tiles: Tiles,
    row_weights: Tensor,
    column_weights: Tensor,
    temperature: float,
    gradient: Tensor,
    kept: list[Tensor] | None,
) -> None:
    """Add to ``gradient``, (m, D), the anchors' whole gradient times T n (n - 1), as anchors and as
    candidates.

    Args:
        row_weights: (U, m), of the anchors.
        column_weights: (U, number of columns); the same tensor where the anchors are the columns.
        kept: the tiles' exponentials, if ``_add_sums`` kept them.
    """
    for number, tile in enumerate(tiles):
        weights = tiles.exponentials(tile, temperature) if kept is None else kept[number]
        _loops().gradient_weights(
            tile=weights.numpy(),
            first_row=tile.rows.start,
            first_column=tile.columns.start,
            self_column=tiles.self_column,
            row_groups=tiles.row_groups,
            groups=tiles.groups,
            starts=tiles.starts,
            row_weights=row_weights.numpy(),
            column_weights=column_weights.numpy(),
        )
        gradient[tile.rows].addmm_(weights, tiles.columns.rows[tile.columns])
        mirrored_weights = weights[:, tile.mirrored]
        if mirrored_weights.shape[1] > 0:
            mirrored_rows = gradient[tile.columns][tile.mirrored]
            mirrored_rows.addmm_(mirrored_weights.T, tiles.anchors.rows[tile.rows])


def scan(
    anchors: Anchors,
    columns: SortedRows,
    labels: LabelTable,
    temperature: float,
    gradient: Tensor | None,
) -> Tensor:
    """Sum of log denominators over all pairs of an anchor, (), float64.

    Args:
        gradient: (all columns, D); the gradient times T n (n - 1) is added to it, if given.
    """
    num_anchors = len(anchors.sorted)
    height = max(64, min(256, SCAN_ELEMENTS // max(len(columns), 1)))
    scratch = columns.rows.new_empty(min(height, num_anchors), len(columns))
    row_groups = _indices(anchors.sorted.groups)
    groups, starts = _indices(columns.groups), _indices(columns.starts)
    losses = np.zeros(num_anchors)
    for begin in range(0, num_anchors, height):
        rows = anchors.sorted.rows[begin : begin + height]
        products = torch.mm(rows, columns.rows.T, out=scratch[: len(rows)])
        _loops().scan(
            tile=products.numpy(),
            scale=_exponent_scale(products, temperature),
            first_row=begin,
            self_column=anchors.self_column.numpy(),
            row_groups=row_groups,
            groups=groups,
            starts=starts,
            values=labels.values.numpy(),
            counts=labels.counts.numpy(),
            losses=losses,
        )
        if gradient is not None:
            gradient.addmm_(products.T, rows)
            gradient[anchors.self_column[begin : begin + height]] += products @ columns.rows
    return _natural(losses)


def _indices(tensor: Tensor) -> np.ndarray:
    """Indices in the type that the loops are fastest with."""
    return tensor.numpy().astype(np.uint32)


def _exponent_scale(products: Tensor, temperature: float) -> np.floating:
    """What turns products into exponents of two, in their type."""
    dtype = np.dtype(str(products.dtype).removeprefix("torch."))
    return dtype.type(math.log2(math.e) / temperature)


def _natural(losses: np.ndarray) -> Tensor:
    """The sum of losses in base 2 as a natural logarithm, (), float64."""
    total = float(losses.sum()) * math.log(2)
    return torch.tensor(total, dtype=torch.float64)


def _loops() -> ModuleType:
    """The compiled loops, with the first batch that needs them: importing numba takes seconds."""
    from core.kernels.supcr import cpu_loops

    return cpu_loops
