"""Rows of all ranks for the losses that look at a whole batch, with gradients that are right after averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core import distributed
from core.kernels.supcr.grouping import RowError


class _Once(torch.autograd.Function):
    """A gradient as it is; its own derivative is refused.

    torch's ``once_differentiable`` would not do: where the upstream gradient is a constant, the gradient it gives
    counts as constant too, and a second derivative leaves it out without a word.
    """

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *inputs: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError(
            "contrastive losses have no second derivative in linear memory or over several ranks; "
            "use their definition in one process (fused=False) to differentiate twice"
        )


def forbid_double_backward(gradient: Tensor, *inputs: Tensor) -> Tensor:
    """What a backward returns that cannot be differentiated again by ``inputs``, those of forward and upstream."""
    return _Once.apply(gradient.detach(), *inputs)


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward hands each rank its own rows' gradient, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        ctx.save_for_backward(rows)
        start = sum(sizes[: distributed.rank()])
        ctx.own = slice(start, start + len(rows))
        return distributed.gather_rows(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return forbid_double_backward(
            gradients[0][ctx.own] * distributed.world_size(), *ctx.saved_tensors, *gradients
        ), None


def gather_for_global_loss(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all ranks, (sum of sizes, ...), for a loss that every rank then computes whole.

    Such a loss has the same gradient by the gathered rows on every rank. Keeping the own rows' part, times the
    number of ranks, makes the mean over ranks (DDP, DeepSpeed) the gradient of one process; a learnt temperature
    needs no factor, because it gets the whole gradient on every rank.
    """
    if distributed.world_size() == 1:
        return rows
    return _Gather.apply(rows, sizes)


def drop_padding_rows(weight: Tensor | None, *rows: Tensor) -> tuple[Tensor, ...]:
    """The rows whose weight is not zero; every other row only fills an otherwise empty batch."""
    if weight is None:
        return rows
    keep = weight > 0
    return tuple(part[keep] for part in rows)


def sizes_if_finite(weight: Tensor | None, *rows: Tensor) -> list[int]:
    """How many rows each rank has of those that take part, given what ``drop_padding_rows`` left of this rank's.

    Raises:
        RowError: on every rank, if a row of any rank is not finite; it is counted as it was given, with the others.
    """
    bad = torch.stack([~part.detach().isfinite().all(1) for part in rows]).any(0)  # (B,)
    own = len(bad)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        own = -1 - (
            row if weight is None else int((weight > 0).nonzero()[row])
        )  # says so in the same message
    sizes = distributed.gather_sizes(own, bad.device)
    for rank, size in enumerate(sizes):
        if size < 0:
            raise RowError(
                -1 - size, f"of rank {rank} are not finite" if len(sizes) > 1 else "are not finite"
            )
    return sizes


def check_rows(name: str, features: Tensor, labels: Tensor | None = None) -> None:
    """Refuse anything but (B, D) rows, with one label each where labels are given.

    Raises:
        ValueError: naming the shape found.
    """
    if features.ndim != 2:
        raise ValueError(f"{name} needs features of shape (B, D), got {tuple(features.shape)}")
    if labels is not None and labels.shape != features.shape[:1]:
        raise ValueError(
            f"{name} needs one label per row, got labels {tuple(labels.shape)} for features {tuple(features.shape)}; "
            "flatten them with labels.reshape(-1)"
        )


def check_temperature(name: str, temperature: float) -> None:
    """Raises ValueError unless the temperature is a positive number."""
    if not temperature > 0:
        raise ValueError(f"{name} needs a positive temperature, got {temperature}")
