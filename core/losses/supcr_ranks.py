"""SupCR over the rows of all ranks, each rank working on its own rows only.

Every rank needs the others' rows and labels, and, for the gradient its rows get as candidates of
other ranks' anchors, the others' weights W, (n, U). Gathering those instead of summing gradients
leaves every rank with the whole gradient of its own rows. ``ring`` passes rows and weights from
rank to rank, so that no rank ever holds all of them. With more labels than buckets are good for,
ranks compute gradients for all rows and sum them; on a GPU at any temperature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core import distributed
from core.kernels.supcr import dispatch
from core.kernels.supcr.grouping import (
    Anchors,
    LabelTable,
    RowError,
    SortedRows,
    group_starts,
    in_range,
    invert,
    largest_exponent,
    loss_type,
    sort_by_label,
    tabulate_labels,
    working_type,
)
from core.losses.gather_rows import forbid_double_backward, local_slice


def supcr_across_ranks(
    features: Tensor,
    labels: Tensor,
    sizes: Sequence[int],
    temperature: float,
    *,
    ring: bool = False,
) -> Tensor:
    """The loss of all ranks' rows, the same on every rank; gradients are right after averaging over
    ranks.

    Args:
        features: (B, D) of this rank, taken as they are.
        labels: (sum of sizes,) of all ranks, in rank order.
        sizes: rows of each rank.
        ring: let rows travel instead of gathering them, where n * D numbers are too many for one
            rank.

    Raises:
        RowError: on every rank, if a row of any rank is not finite.
    """
    return _AcrossRanks.apply(features, labels, sizes, temperature, ring)


class _AcrossRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        labels: Tensor,
        sizes: Sequence[int],
        temperature: float,
        ring: bool,
    ) -> Tensor:
        n = sum(sizes)
        num_pairs = n * (n - 1)
        loss = features.new_zeros((), dtype=loss_type(features))
        gradient = torch.zeros_like(features)
        if num_pairs > 0:
            part, scaled_gradient = _rank_loss_and_gradient(
                features, labels, sizes, temperature, ring
            )
            gradient.copy_(scaled_gradient.mul_(1 / (temperature * n * (n - 1))))
            loss.copy_(distributed.all_reduce_sum(part) / num_pairs)
        ctx.save_for_backward(features, gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *of_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        features, gradient = ctx.saved_tensors
        factor = of_loss[0] * distributed.world_size()  # the engine divides by it
        of_features = forbid_double_backward(
            gradient * factor.to(gradient.dtype), features, *of_loss
        )
        return of_features, None, None, None, None


def _rank_loss_and_gradient(
    features: Tensor, labels: Tensor, sizes: Sequence[int], temperature: float, ring: bool
) -> tuple[Tensor, Tensor]:
    """This rank's part of the loss times n (n - 1), (), and the gradient of its rows times T n (n -
    1), (B, D)."""
    n = sum(sizes)
    local = local_slice(sizes)
    exponent = _largest_exponent_of_ranks(features, temperature)
    rows = features.detach().to(working_type(features, exponent, n))
    table = tabulate_labels(labels)
    separated = table.well_separated
    path = dispatch.choose_path(
        rows, exponent, n, len(table), alone=False, well_separated=separated
    )
    sums_are_right = separated and in_range(rows.dtype, exponent, n)
    if ring and (path == "torch" or not sums_are_right):
        raise ValueError(
            f"SupCR cannot pass rows round a ring with exponents up to {exponent:g} of two, at temperature "
            f"{temperature:g} on {rows.device.type}, or with labels next to equal; use ring=False"
        )
    if path in ("buckets", "triton") or ring:
        anchors, order = sort_by_label(rows, table.groups[local], len(table))
        log_sum, sorted_gradient = _by_buckets(anchors, table, sizes, temperature, ring)
        gradient = torch.empty_like(sorted_gradient).index_copy_(0, order, sorted_gradient)
    else:
        columns = distributed.gather_rows(rows, sizes)
        self_column = torch.arange(local.start, local.stop, device=rows.device)
        log_sum, gradient_of_all = dispatch.whole_rows(
            rows, self_column, columns, table, temperature, path
        )
        gradient = distributed.all_reduce_sum(gradient_of_all)[local]
    # As in ``grouping.sum_of_products``, but only this rank's rows, each with the sum of all.
    wide = rows.double()
    total = distributed.all_reduce_sum(wide.sum(0))
    products = wide @ total - wide.square().sum(1)
    return log_sum - products.sum() / temperature, gradient


def _largest_exponent_of_ranks(features: Tensor, temperature: float) -> float:
    """``largest_exponent`` over all ranks; an error of one rank becomes one of all, so that none
    waits."""
    local_error: RowError | None = None
    try:
        exponent = largest_exponent(features, temperature)
    except RowError as error:
        local_error = error
        exponent = float("inf")
    exponents = distributed.gather_rows(features.new_tensor([exponent], dtype=torch.float64))
    if local_error is not None:
        problem = f"of rank {distributed.rank()} {local_error.problem}"
        raise RowError(local_error.row, problem)
    for rank, exponent_of_rank in enumerate(exponents.tolist()):
        if exponent_of_rank == float("inf"):
            raise RowError(
                None, f"SupCR on rank {rank}: features are not finite; see the error there"
            )
    return float(exponents.max())


def _by_buckets(
    anchors: SortedRows, table: LabelTable, sizes: Sequence[int], temperature: float, ring: bool
) -> tuple[Tensor, Tensor]:
    """Sum of log denominators of this rank's anchors, and their gradients in the order of
    ``anchors``."""
    steps = dispatch.bucket_steps(anchors.rows)
    shards_of = _ring_shards if ring else _gathered_shard
    sums = anchors.rows.new_zeros(len(table), len(anchors))
    for shard in shards_of(anchors, table, sizes, None):
        on_shard = Anchors(anchors, shard.self_column)
        sums += steps.bucket_sums(on_shard, shard.columns, len(table), temperature)
    log_sum = steps.bucket_weights(sums, anchors, table)
    gradient = torch.zeros_like(anchors.rows)
    for shard in shards_of(anchors, table, sizes, sums.T.contiguous()):
        assert shard.weights is not None
        on_shard = Anchors(anchors, shard.self_column)
        gradient += steps.bucket_gradient(on_shard, shard.columns, sums, shard.weights, temperature)
    return log_sum, gradient


@dataclass(frozen=True)
class _Shard:
    """Some ranks' rows, as columns for this rank's anchors."""

    columns: SortedRows
    self_column: Tensor  # (B,) int64, see ``Anchors``
    weights: Tensor | None  # (U, columns), once they are known


def _gathered_shard(
    anchors: SortedRows, table: LabelTable, sizes: Sequence[int], weights: Tensor | None
) -> Iterator[_Shard]:
    """All ranks' rows, at once.

    Args:
        weights: (B, U), of this rank's anchors.
    """
    rows = distributed.gather_rows(anchors.rows, sizes)
    groups_of_ranks = table.groups.split(list(sizes))
    groups = torch.cat([groups.sort().values for groups in groups_of_ranks])
    columns, order = sort_by_label(rows, groups, len(table))
    self_column = invert(order)[local_slice(sizes)]
    if weights is not None:
        weights = distributed.gather_rows(weights, sizes)[order].T.contiguous()
    yield _Shard(columns, self_column, weights)


def _ring_shards(
    anchors: SortedRows, table: LabelTable, sizes: Sequence[int], weights: Tensor | None
) -> Iterator[_Shard]:
    """One rank's rows after another, this rank's first; each step passes the block at hand on to
    the next rank while this rank works on it.

    Args:
        weights: (B, U), of this rank's anchors; they travel beside the rows.
    """
    rank, num_ranks = distributed.rank(), distributed.world_size()
    next_rank, previous_rank = (rank + 1) % num_ranks, (rank - 1) % num_ranks
    width = anchors.rows.shape[1]
    payload = anchors.rows
    if weights is not None:
        payload = torch.cat([payload, weights], dim=1)
    block = payload.new_zeros(max(sizes), payload.shape[1])  # padded to the longest rank
    block[: len(payload)] = payload
    groups_of_ranks = table.groups.split(list(sizes))
    for step in range(num_ranks):
        # On its way while this rank works on the same block.
        transfer = None
        if step < num_ranks - 1:
            transfer = _Transfer.start(block, to=next_rank, sender=previous_rank)
        origin = (rank - step) % num_ranks
        groups = groups_of_ranks[origin].sort().values
        received = block[: sizes[origin]]
        columns = SortedRows(
            received[:, :width].contiguous(), groups, group_starts(groups, len(table))
        )
        if step == 0:
            self_column = torch.arange(len(anchors), device=groups.device)
        else:
            self_column = groups.new_full((len(anchors),), -1)
        column_weights = None if weights is None else received[:, width:].T.contiguous()
        yield _Shard(columns, self_column, column_weights)
        if transfer is not None:
            block = transfer.finish()


@dataclass(frozen=True)
class _Transfer:
    """A block that goes to one rank while another comes."""

    sent: Tensor  # held until it has gone
    received: Tensor
    parts: list[dist.Work]

    @staticmethod
    def start(block: Tensor, *, to: int, sender: int) -> _Transfer:
        received = torch.empty_like(block)
        send = dist.P2POp(dist.isend, block, to)
        receive = dist.P2POp(dist.irecv, received, sender)
        return _Transfer(block, received, dist.batch_isend_irecv([send, receive]))

    def finish(self) -> Tensor:
        """The block that came."""
        for part in self.parts:
            part.wait()
        return self.received
