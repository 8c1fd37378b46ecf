"""Softmaxes over the rows of all ranks in linear memory, differentiable: what ICL, IAL and SupCon are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.kernels.in_batch_softmax import Rows, Upstream, divergences, gradient, log_sums
from core.losses.gather_rows import forbid_double_backward


def own_columns(sizes: Sequence[int], device: torch.device) -> Tensor:
    """The places of this rank's rows among those of all ranks."""
    begin = sum(sizes[: distributed.rank()])
    return begin + torch.arange(sizes[distributed.rank()], device=device)


def _rows(rows: Tensor, sizes: Sequence[int]) -> Rows:
    return Rows(
        rows.detach(), own_columns(sizes, rows.device), distributed.gather_rows(rows, sizes)
    )


class _LogSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.rows, ctx.sizes = _rows(rows, sizes), sizes
        ctx.of_view = log_sums(ctx.rows)
        return ctx.of_view.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        gathered = Upstream(
            *(distributed.gather_rows(part, ctx.sizes) for part in (upstream[0], ctx.of_view))
        )
        return forbid_double_backward(
            gradient(ctx.rows, gathered), *ctx.saved_tensors, *upstream
        ), None


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, view: Tensor, joint: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.save_for_backward(view)
        ctx.view, ctx.joint, ctx.sizes = _rows(view, sizes), _rows(joint, sizes), sizes
        kl, ctx.of_view, ctx.of_joint = divergences(ctx.view, ctx.joint)
        return kl

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        parts = (upstream[0], ctx.of_view, ctx.of_joint)
        gathered = Upstream(*(distributed.gather_rows(part, ctx.sizes) for part in parts))
        return (
            forbid_double_backward(
                gradient(ctx.view, gathered, ctx.joint), *ctx.saved_tensors, *upstream
            ),
            None,
            None,
        )


def log_sums_over_ranks(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """For each of this rank's rows, (m,): the log of the sum of exp(<r_i, r_k>) over all other rows k of all ranks.

    Backward gives the rows' whole gradient, as candidates of other ranks' rows too, so every rank must take part.
    """
    return _LogSums.apply(rows, sizes)


def divergences_over_ranks(view: Tensor, joint: Tensor, sizes: Sequence[int]) -> Tensor:
    """For each of this rank's rows, (m,): KL(joint || view) of its softmaxes over all other rows of all ranks.

    Only the view gets a gradient.
    """
    return _Divergences.apply(view, joint, sizes)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return distributed.all_reduce_sum(part)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0] * distributed.world_size()


def sum_over_ranks(part: Tensor) -> Tensor:
    """The sum of all ranks' parts, the same on every rank; gradients are right after averaging over ranks."""
    return _Sum.apply(part)
