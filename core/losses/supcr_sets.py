"""SupCR of several sets of rows over all ranks, with one exchange for all of them.

A step of HSCL has three contrasts. Each by itself asks the other ranks nine times, for sizes,
labels, rows, weights and sums; together they ask four times: how many rows, the rows with their
labels, what rows weigh as candidates of other ranks' anchors, and the sums of the losses. Each rank
works on its own rows only, as in ``supcr_ranks``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.kernels.supcr import dispatch
from core.kernels.supcr.grouping import (
    Anchors,
    LabelTable,
    invert,
    largest_exponent,
    loss_type,
    sort_by_label,
    tabulate_labels,
    working_type,
)
from core.losses.gather_rows import forbid_double_backward, local_slice
from core.losses.labels import on_grid


def supcr_of_sets(
    features: Sequence[Tensor],
    labels: Sequence[Tensor],
    sizes: Sequence[Sequence[int]],
    temperature: float,
    resolution: float | None,
) -> tuple[Tensor, ...]:
    """The loss of each set, the same on every rank; gradients are right after averaging over
    ranks.

    Args:
        features: of each set (B, D) rows of this rank, taken as they are, all finite.
        labels: of each set (B,) labels of this rank.
        sizes: of each set the rows of each rank.
    """
    return _Sets.apply(labels, sizes, temperature, resolution, *features)


class _Sets(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        labels: Sequence[Tensor],
        sizes: Sequence[Sequence[int]],
        temperature: float,
        resolution: float | None,
        *features: Tensor,
    ) -> tuple[Tensor, ...]:
        local = [(rows.detach(), label) for rows, label in zip(features, labels, strict=True)]
        rows_of_all = gather_pieces([rows for rows, _ in local], sizes, [y for _, y in local])
        contrasts = []
        for number, (rows, _) in enumerate(local):
            all_rows, all_labels = rows_of_all[number]
            all_labels = on_grid(all_labels, resolution)
            contrasts.append(_Contrast(rows, all_rows, all_labels, sizes[number], temperature))
        gradients = _gradients(contrasts)
        parts = torch.stack([contrast.part() for contrast in contrasts])
        values = distributed.all_reduce_sum(parts).unbind()
        losses = []
        for contrast, value, rows in zip(contrasts, values, features, strict=True):
            losses.append((value / contrast.num_pairs).to(loss_type(rows)))
        kept = []
        for contrast, gradient, rows in zip(contrasts, gradients, features, strict=True):
            scale = 1 / (temperature * contrast.num_pairs)
            kept.append((gradient * scale).to(rows.dtype))
        ctx.num_sets = len(features)
        ctx.save_for_backward(*features, *kept)
        return tuple(losses)

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        features, gradients = saved[: ctx.num_sets], saved[ctx.num_sets :]
        of_features = []
        for rows, gradient, of_loss in zip(features, gradients, of_losses, strict=True):
            factor = of_loss * distributed.world_size()  # the engine divides by it
            scaled = gradient * factor.to(gradient.dtype)
            of_features.append(forbid_double_backward(scaled, rows, of_loss))
        return None, None, None, None, *of_features


class _Contrast:
    """One set: this rank's rows as anchors, all ranks' rows as candidates.

    Args:
        rows: (B, D) of this rank.
        all_rows, all_labels: (n, D) and (n,), in rank order.
    """

    def __init__(
        self,
        rows: Tensor,
        all_rows: Tensor,
        all_labels: Tensor,
        sizes: Sequence[int],
        temperature: float,
    ):
        n = len(all_rows)
        self.temperature = temperature
        self.is_empty = n < 2
        self.num_pairs = max(n * (n - 1), 1)
        self.sizes = sizes
        self.local = local_slice(sizes)
        self.rows, self.all_rows = rows, all_rows
        self.log_sum = rows.new_zeros((), dtype=torch.float64)
        self.has_weights = False
        if self.is_empty:
            return
        exponent = largest_exponent(all_rows, temperature)
        dtype = working_type(all_rows, exponent, n)
        self.rows, self.all_rows = rows.to(dtype), all_rows.to(dtype)
        self.table: LabelTable = tabulate_labels(all_labels)
        self.path = dispatch.choose_path(
            self.rows,
            exponent,
            n,
            len(self.table),
            alone=False,
            well_separated=self.table.well_separated,
        )
        self.has_weights = self.path in ("buckets", "triton")

    def weights(self) -> Tensor:
        """(B, U): what this rank's rows, in their order, weigh as anchors of each label."""
        self.steps = dispatch.bucket_steps(self.rows)
        groups, labels = self.table.groups, len(self.table)
        sorted_rows, order = sort_by_label(self.rows, groups[self.local], labels)
        self.columns, self.column_order = sort_by_label(self.all_rows, groups, labels)
        self_column = invert(self.column_order)[self.local][order]
        self.anchors, self.order = Anchors(sorted_rows, self_column), order
        sums = self.steps.bucket_sums(self.anchors, self.columns, labels, self.temperature)
        self.log_sum = self.steps.bucket_weights(sums, sorted_rows, self.table)
        self.row_weights = sums  # (U, B), in the order of the labels
        weights = torch.empty_like(sums.T, memory_format=torch.contiguous_format)
        weights[order] = sums.T
        return weights

    def gradient(self, weights_of_all: Tensor) -> Tensor:
        """(B, D), the gradient of this rank's rows times T n (n - 1), given all ranks' weights,
        (n, U)."""
        column_weights = weights_of_all[self.column_order].T.contiguous()
        of_sorted = self.steps.bucket_gradient(
            self.anchors, self.columns, self.row_weights, column_weights, self.temperature
        )
        return torch.empty_like(of_sorted).index_copy_(0, self.order, of_sorted)

    def gradient_of_all(self) -> Tensor:
        """(n, D), what this rank's anchors add to the gradient of all rows, times T n (n - 1)."""
        if self.is_empty:
            return torch.zeros_like(self.all_rows)
        places = torch.arange(self.local.start, self.local.stop, device=self.rows.device)
        self.log_sum, gradient = dispatch.whole_rows(
            self.rows, places, self.all_rows, self.table, self.temperature, self.path
        )
        return gradient

    def part(self) -> Tensor:
        """This rank's part of the loss times n (n - 1), (), float64."""
        if self.is_empty:
            return self.log_sum
        # As in ``grouping.sum_of_products``, but only this rank's rows, each with the sum of all.
        wide, total = self.rows.double(), self.all_rows.double().sum(0)
        products = wide @ total - wide.square().sum(1)
        return (self.log_sum - products.sum() / self.temperature).double()


def _gradients(contrasts: Sequence[_Contrast]) -> list[Tensor]:
    """The gradient of this rank's rows in each set, times T n (n - 1)."""
    found: dict[int, Tensor] = {}
    by_weights = [number for number, one in enumerate(contrasts) if one.has_weights]
    if by_weights:
        weights = [contrasts[number].weights() for number in by_weights]
        sizes = [contrasts[number].sizes for number in by_weights]
        for number, (of_all, _) in zip(by_weights, gather_pieces(weights, sizes), strict=True):
            found[number] = contrasts[number].gradient(of_all)
    others = [number for number in range(len(contrasts)) if number not in found]
    if others:
        parts = [contrasts[number].gradient_of_all() for number in others]
        dtype = parts[0].dtype if len({part.dtype for part in parts}) == 1 else torch.float64
        flat = torch.cat([part.to(dtype).ravel() for part in parts])
        summed = distributed.all_reduce_sum(flat).split([part.numel() for part in parts])
        for number, part, whole in zip(others, parts, summed, strict=True):
            found[number] = whole.view_as(part)[contrasts[number].local].to(part.dtype)
    return [found[number] for number in range(len(contrasts))]


@dataclass(frozen=True)
class _Column:
    """How a tensor's rows lie in a message of bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]  # of one row

    def pack(self, rows: Tensor) -> Tensor:
        """(B, bytes of a row) uint8."""
        flat = rows.contiguous().reshape(len(rows), prod(self.shape))
        return flat.view(torch.uint8)

    def unpack(self, packed: Tensor) -> Tensor:
        rows = packed.contiguous().view(self.dtype)
        return rows.reshape(len(packed), *self.shape)


def gather_pieces(
    rows: Sequence[Tensor], sizes: Sequence[Sequence[int]], facts: Sequence[Tensor] | None = None
) -> list[tuple[Tensor, Tensor]]:
    """All ranks' rows of several sets, bit for bit, in one message.

    Args:
        rows: of each set (B, ...), of any type and shape, the same on all ranks but for B.
        sizes: of each set the rows of each rank.
        facts: of each set (B, ...) about the same rows.

    Returns:
        Of each set the rows of all ranks in rank order, and their facts; empty without any.
    """
    described, packed = [], []
    for number, part in enumerate(rows):
        fact = part.new_empty(len(part), 0) if facts is None else facts[number]
        columns = [_Column(tensor.dtype, tuple(tensor.shape[1:])) for tensor in (part, fact)]
        pieces = [column.pack(tensor) for column, tensor in zip(columns, (part, fact), strict=True)]
        described.append((columns, [piece.shape[1] for piece in pieces]))
        packed.append(torch.cat(pieces, dim=1).ravel())
    widths = [sum(wide) for _, wide in described]
    of_ranks = []  # bytes that each rank sends
    for counts in zip(*sizes, strict=True):
        of_ranks.append(sum(count * width for count, width in zip(counts, widths, strict=True)))
    message = distributed.gather_rows(torch.cat(packed), of_ranks)
    by_set: list[list[Tensor]] = [[] for _ in rows]
    for rank, block in enumerate(message.split(of_ranks)):
        lengths = [counts[rank] * width for counts, width in zip(sizes, widths, strict=True)]
        for number, piece in enumerate(block.split(lengths)):
            by_set[number].append(piece.reshape(sizes[number][rank], widths[number]))
    gathered = []
    for (columns, wide), parts in zip(described, by_set, strict=True):
        first, second = torch.cat(parts).split(wide, dim=1)
        gathered.append((columns[0].unpack(first), columns[1].unpack(second)))
    return gathered
