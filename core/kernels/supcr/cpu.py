"""SupCR on the CPU: torch's matrix products tile by tile, numba's loops between them.

With e_ij = exp(s_ij), every pair (i, j) with label v of j shares one denominator, D_iv, the sum of e_ik over labels at
least as far as v; and e_ik's weight in the gradient, W_i, depends on k through its label only:

    L = 1 / (n (n - 1)) * sum of [log D_i,y(j) - s_ij] over i != j
    dL/dr_i = 1 / (T n (n - 1)) * sum of [e_ij (W_i[y_j] + W_j[y_i]) - 2] r_j over j != i

"Buckets" keeps sums by label, (U, n), and visits each pair of rows once, e being symmetric. "Scan" takes whole rows of
the matrix in turn and keeps nothing, for many labels. Both are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from core.kernels.supcr import cpu_loops
from core.kernels.supcr.grouping import Anchors, Columns, Labels

TILE_COLUMNS = 1024
SCAN_ELEMENTS = 2**23  # of a strip of whole rows


class Tiles:
    """The products of anchors and columns, tile by tile; only one triangle where the anchors are the columns."""

    def __init__(self, anchors: Anchors, columns: Columns, symmetric: bool):
        self.anchors, self.columns, self.symmetric = anchors, columns, symmetric
        self.height = 128 if len(columns) <= 2048 else 256
        self.own = anchors.own.numpy()
        self.row_groups = _indices(anchors.columns.groups)
        self.groups, self.starts = _indices(columns.groups), _indices(columns.starts)
        self.scratch = columns.rows.new_empty(self.height * min(TILE_COLUMNS, len(columns)))

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(row, column, mirrored): a tile's first row and column, and how many of its columns have no mirror image,
        because the tile holds it itself or the matrix is not symmetric."""
        for row in range(0, len(self.anchors.columns), self.height):
            for column in range(row if self.symmetric else 0, len(self.columns), TILE_COLUMNS):
                yield row, column, max(0, row + self.height - column) if self.symmetric else 0

    def products(self, row: int, column: int, keep: bool = False) -> Tensor:
        left = self.anchors.columns.rows[row : row + self.height]
        right = self.columns.rows[column : column + TILE_COLUMNS]
        tile = (
            left.new_empty(len(left), len(right))
            if keep
            else self.scratch[: len(left) * len(right)]
        )
        return torch.mm(left, right.T, out=tile.view(len(left), len(right)))

    def exponentials(self, row: int, column: int, temperature: float, keep: bool = False) -> Tensor:
        tile = self.products(row, column, keep)
        cpu_loops.exponentials(tile.numpy(), base2(tile, temperature), row, column, self.own)
        return tile


def _indices(tensor: Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.uint32)


def base2(rows: Tensor, temperature: float) -> np.floating:
    """What turns products into exponents of two."""
    return np.dtype(str(rows.dtype).removeprefix("torch.")).type(math.log2(math.e) / temperature)


def bucket_sums(
    tiles: Tiles, sums: Tensor, temperature: float, kept: list[Tensor] | None = None
) -> None:
    """Add each anchor's sums of exponentials by label to ``sums``, (U, m); put the tiles into ``kept`` if given."""
    for row, column, whole in tiles:
        tile = tiles.exponentials(row, column, temperature, kept is not None)
        cpu_loops.add_row_sums(tile.numpy(), row, column, tiles.groups, tiles.starts, sums.numpy())
        if tiles.symmetric:
            rest = tile[:, whole:]
            cpu_loops.add_column_sums(
                rest.numpy(), row, column + whole, tiles.row_groups, sums.numpy()
            )
        if kept is not None:
            kept.append(tile)


def bucket_weights(sums: Tensor, starts: Tensor, labels: Labels) -> float:
    """Turn the sums, (U, m), into weights W in place; gives the sum of log denominators over all pairs."""
    losses = np.zeros(sums.shape[1])
    cpu_loops.walk(
        sums.numpy(), _indices(starts), labels.values.numpy(), labels.counts.numpy(), losses
    )
    return float(losses.sum()) * math.log(2)


def bucket_gradient(
    tiles: Tiles,
    row_weights: Tensor,
    weights: Tensor,
    temperature: float,
    gradient: Tensor,
    kept: list[Tensor] | None = None,
) -> None:
    """Add to ``gradient``, (m, D), the anchors' whole gradient times T n (n - 1), as anchors and as candidates.

    Args:
        row_weights: (U, m), of the anchors.
        weights: (U, number of columns), of the columns; both the same tensor where the anchors are the columns.
    """
    rows, others = tiles.anchors.columns.rows, tiles.columns.rows
    for number, (row, column, whole) in enumerate(tiles):
        tile = tiles.exponentials(row, column, temperature) if kept is None else kept[number]
        cpu_loops.gradient_weights(
            tile.numpy(),
            row,
            column,
            tiles.own,
            tiles.row_groups,
            tiles.groups,
            tiles.starts,
            row_weights.numpy(),
            weights.numpy(),
        )
        height, width = tile.shape
        gradient[row : row + height].addmm_(tile, others[column : column + width])
        if tiles.symmetric and width > whole:
            gradient[column + whole : column + width].addmm_(
                tile[:, whole:].T, rows[row : row + height]
            )


def scan(
    anchors: Anchors, columns: Columns, labels: Labels, temperature: float, gradient: Tensor | None
) -> float:
    """Sum of log denominators over all pairs of an anchor; adds to ``gradient``, (all columns, D), if given."""
    total = len(anchors.columns)
    height = max(64, min(256, SCAN_ELEMENTS // max(len(columns), 1)))
    losses, own = np.zeros(total), anchors.own.numpy()
    row_groups, groups, starts = (
        _indices(x) for x in (anchors.columns.groups, columns.groups, columns.starts)
    )
    scratch = columns.rows.new_empty(min(height, total), len(columns))
    for row in range(0, total, height):
        rows = anchors.columns.rows[row : row + height]
        tile = torch.mm(rows, columns.rows.T, out=scratch[: len(rows)])
        cpu_loops.scan(
            tile.numpy(),
            base2(tile, temperature),
            row,
            own,
            row_groups,
            groups,
            starts,
            labels.values.numpy(),
            labels.counts.numpy(),
            losses,
        )
        if gradient is not None:
            gradient.addmm_(tile.T, rows)
            place = anchors.own[row : row + height]
            gradient[place] += tile @ columns.rows
    return float(losses.sum()) * math.log(2)
