"""Softmaxes over the rows of all ranks in linear memory, differentiable: what ICL, IAL and SupCon
are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.kernels.in_batch_softmax import Comparison, Upstream, divergences, gradient, log_sums
from core.losses.gather_rows import forbid_double_backward, local_slice


def is_itself(rows: Tensor) -> Tensor:
    """(n, n) bool: where a row meets itself."""
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


def log_softmax_of_others(rows: Tensor, temperature: Tensor | float) -> Tensor:
    """The definition of the softmaxes below, in O(n^2) memory: (n, n) log of the softmax of <r_i,
    r_k> / T over k.

    -inf for itself.
    """
    similarity = rows @ rows.T / temperature
    similarity = similarity.masked_fill(is_itself(rows), float("-inf"))
    return similarity.log_softmax(-1)


def log_sums_over_ranks(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """For each of this rank's rows, (m,): the log of the sum of exp(<r_i, r_k>) over all other rows
    k of all ranks.

    Backward gives the rows' whole gradient, as candidates of other ranks' rows too, so every rank
    must take part.
    """
    return _LogSums.apply(rows, sizes)


def divergences_over_ranks(view: Tensor, joint: Tensor, sizes: Sequence[int]) -> Tensor:
    """For each of this rank's rows, (m,): KL(joint || view) of its softmaxes over all other rows of
    all ranks.

    Only the view gets a gradient.
    """
    return _Divergences.apply(view, joint, sizes)


def sum_over_ranks(part: Tensor) -> Tensor:
    """The sum of all ranks' parts, the same on every rank; gradients are right after averaging over
    ranks."""
    return _Sum.apply(part)


def _with_all_ranks(rows: Tensor, sizes: Sequence[int]) -> Comparison:
    """This rank's rows, to be compared with those of all ranks."""
    local = local_slice(sizes)
    return Comparison(
        anchors=rows.detach(),
        self_column=torch.arange(local.start, local.stop, device=rows.device),
        columns=distributed.gather_rows(rows, sizes),
    )


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.sizes = sizes
        ctx.rows = _with_all_ranks(rows, sizes)
        ctx.log_sums = log_sums(ctx.rows)
        return ctx.log_sums.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        of_all_ranks = Upstream(
            gradient=distributed.gather_rows(upstream[0], ctx.sizes),
            log_sums=distributed.gather_rows(ctx.log_sums, ctx.sizes),
        )
        of_rows = gradient(ctx.rows, of_all_ranks)
        return forbid_double_backward(of_rows, *ctx.saved_tensors, *upstream), None


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, view: Tensor, joint: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.save_for_backward(view)
        ctx.sizes = sizes
        ctx.view = _with_all_ranks(view, sizes)
        ctx.joint = _with_all_ranks(joint, sizes)
        divergence, ctx.log_sums, ctx.joint_log_sums = divergences(ctx.view, ctx.joint)
        return divergence

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        of_all_ranks = Upstream(
            gradient=distributed.gather_rows(upstream[0], ctx.sizes),
            log_sums=distributed.gather_rows(ctx.log_sums, ctx.sizes),
            joint_log_sums=distributed.gather_rows(ctx.joint_log_sums, ctx.sizes),
        )
        of_view = gradient(ctx.view, of_all_ranks, ctx.joint)
        return forbid_double_backward(of_view, *ctx.saved_tensors, *upstream), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return distributed.all_reduce_sum(part)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0] * distributed.world_size()
