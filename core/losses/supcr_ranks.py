"""SupCR over the rows of all ranks, each rank working on its own rows only.

Every rank needs the others' rows and labels, and, for the gradient its rows get as candidates of other ranks' anchors,
the others' weights W, (n, U). Gathering those instead of summing gradients leaves every rank with the whole gradient of
its own rows. ``ring`` passes rows and weights from rank to rank, so that no rank ever holds all of them. With more
labels than buckets are good for, ranks compute gradients for all rows and sum them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from core import distributed
from core.kernels.supcr import dispatch, grouping
from core.kernels.supcr.grouping import Anchors, Columns, Labels, RowError, by_label, distinct
from core.losses.gather_rows import forbid_double_backward
from core.losses.in_batch import own_columns


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
        total = sum(sizes)
        loss, gradient = (
            features.new_zeros((), dtype=grouping.loss_type(features)),
            torch.zeros_like(features),
        )
        if total > 1:
            log_sum, summed = _local_parts(features, labels, sizes, temperature, ring)
            gradient.copy_(summed.mul_(1 / (temperature * total * (total - 1))))
            loss.copy_(distributed.all_reduce_sum(log_sum) / (total * (total - 1)))
        ctx.save_for_backward(features, gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *of_loss: Tensor) -> tuple[Tensor, None, None, None, None]:
        features, gradient = ctx.saved_tensors
        factor = of_loss[0] * distributed.world_size()  # the engine divides by it
        return (
            forbid_double_backward(gradient * factor.to(gradient.dtype), features, *of_loss),
            None,
            None,
            None,
            None,
        )


def supcr_across_ranks(
    features: Tensor,
    labels: Tensor,
    sizes: Sequence[int],
    temperature: float,
    *,
    ring: bool = False,
) -> Tensor:
    """The loss of all ranks' rows, the same on every rank; gradients are right after averaging over ranks.

    Args:
        features: (B, D) of this rank, taken as they are.
        labels: (sum of sizes,) of all ranks, in rank order.
        sizes: rows of each rank.
        ring: let rows travel instead of gathering them, where n * D numbers are too many for one rank.

    Raises:
        RowError: on every rank, if a row of any rank is not finite.
    """
    return _AcrossRanks.apply(features, labels, sizes, temperature, ring)


def _local_parts(
    features: Tensor, labels: Tensor, sizes: Sequence[int], temperature: float, ring: bool
) -> tuple[Tensor, Tensor]:
    """This rank's share of the loss times n (n - 1), (), and the gradient of its rows times T n (n - 1), (B, D)."""
    total, begin = sum(sizes), sum(sizes[: distributed.rank()])
    exponent = _largest_exponent(features, temperature)
    rows = features.detach().to(grouping.working_type(features, exponent, total))
    table = distinct(labels)
    mine, order = by_label(rows, table.groups[begin : begin + len(rows)], len(table))
    path = "torch"
    if table.apart:
        path = dispatch.choose_path(rows, exponent, total, len(table), alone=False)
    if ring and path == "torch":
        raise ValueError(
            f"SupCR cannot pass rows round a ring with exponents up to {exponent:g} of two, at temperature "
            f"{temperature:g} on {rows.device.type}, or with labels next to equal; use ring=False"
        )
    if path in ("buckets", "triton") or ring:
        log_sum, sorted_gradient = _by_buckets(mine, table, sizes, temperature, ring)
        gradient = torch.empty_like(sorted_gradient).index_copy_(0, order, sorted_gradient)
    else:
        everything = distributed.gather_rows(rows, sizes)
        own = own_columns(sizes, rows.device)
        log_sum, whole = dispatch.strips(rows, own, everything, table, temperature, path)
        gradient = distributed.all_reduce_sum(whole)[begin : begin + len(rows)]
    products = rows.double() @ distributed.all_reduce_sum(
        rows.double().sum(0)
    ) - rows.double().square().sum(1)
    return log_sum - products.sum() / temperature, gradient


def _largest_exponent(features: Tensor, temperature: float) -> float:
    """``grouping.largest_exponent`` over all ranks; an error of one rank becomes one of all, so that none waits."""
    own: RowError | None = None
    try:
        exponent = grouping.largest_exponent(features, temperature)
    except RowError as error:
        exponent, own = float("inf"), error
    exponents = distributed.gather_rows(features.new_tensor([exponent], dtype=torch.float64))
    if own is not None:
        raise RowError(own.row, f"of rank {distributed.rank()} {own.what}")
    for rank, found in enumerate(exponents.tolist()):
        if found == float("inf"):
            raise RowError(
                None, f"SupCR on rank {rank}: features are not finite; see the error there"
            )
    return float(exponents.max())


def _by_buckets(
    mine: Columns, table: Labels, sizes: Sequence[int], temperature: float, ring: bool
) -> tuple[Tensor, Tensor]:
    """Sum of log denominators of this rank's anchors, and their gradients in the order of ``mine``."""
    passed = _ring if ring else _gathered
    sums = mine.rows.new_zeros(len(table), len(mine))
    for columns, own, _ in passed(mine, table, sizes, None):
        sums += dispatch.bucket_sums(Anchors(mine, own), columns, len(table), temperature)
    log_sum = dispatch.bucket_weights(sums, mine, table)
    gradient = torch.zeros_like(mine.rows)
    for columns, own, weights in passed(mine, table, sizes, sums.T.contiguous()):
        assert weights is not None
        gradient += dispatch.bucket_gradient(
            Anchors(mine, own), columns, sums, weights, temperature
        )
    return log_sum, gradient


Shard = tuple[Columns, Tensor, Tensor | None]


def _gathered(
    mine: Columns, table: Labels, sizes: Sequence[int], weights: Tensor | None
) -> Iterator[Shard]:
    """All ranks' rows at once: sorted by label, the place of this rank's rows among them, all weights, (U, n)."""
    rows = distributed.gather_rows(mine.rows, sizes)
    groups = torch.cat([part.sort().values for part in table.groups.split(list(sizes))])
    columns, order = by_label(rows, groups, len(table))
    back = torch.empty_like(order).index_copy_(
        0, order, torch.arange(len(order), device=order.device)
    )
    begin = sum(sizes[: distributed.rank()])
    if weights is not None:
        weights = distributed.gather_rows(weights, sizes)[order].T.contiguous()
    yield columns, back[begin : begin + len(mine)], weights


def _ring(
    mine: Columns, table: Labels, sizes: Sequence[int], weights: Tensor | None
) -> Iterator[Shard]:
    """One rank's rows after another, this rank's first; each step passes what it holds on to the next rank."""
    here, ranks = distributed.rank(), distributed.world_size()
    payload = mine.rows if weights is None else torch.cat([mine.rows, weights], dim=1)
    padded = payload.new_zeros(max(sizes), payload.shape[1])
    padded[: len(payload)] = payload
    parts = table.groups.split(list(sizes))
    for step in range(ranks):
        source = (here - step) % ranks
        groups = parts[source].sort().values
        starts = torch.searchsorted(groups, torch.arange(len(table) + 1, device=groups.device))
        width = mine.rows.shape[1]
        held = padded[: sizes[source]]
        own = (
            torch.arange(len(mine), device=groups.device)
            if step == 0
            else groups.new_full((len(mine),), -1)
        )
        yield (
            Columns(held[:, :width].contiguous(), groups, starts),
            own,
            None if weights is None else held[:, width:].T.contiguous(),
        )
        if step < ranks - 1:
            padded = _pass_on(padded, to=(here + 1) % ranks, source=(here - 1) % ranks)


def _pass_on(block: Tensor, *, to: int, source: int) -> Tensor:
    received = torch.empty_like(block)
    work = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, block, to), dist.P2POp(dist.irecv, received, source)]
    )
    for request in work:
        request.wait()
    return received
