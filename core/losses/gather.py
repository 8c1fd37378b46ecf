"""Rows of all ranks for the losses that look at a whole batch, with gradients that are right after averaging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core import distributed


class _Gather(torch.autograd.Function):
    """All ranks' rows; backward hands each rank its own rows' gradient, times the number of ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:
        start = sum(sizes[: distributed.rank()])
        ctx.own = slice(start, start + len(rows))
        return distributed.gather_rows(rows, sizes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][ctx.own] * distributed.world_size(), None


def gather_for_global_loss(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """Rows of all ranks, (sum of sizes, ...), for a loss that every rank then computes whole.

    Such a loss has the same gradient by the gathered rows on every rank. Keeping the own rows' part, times the
    number of ranks, makes the mean over ranks (DDP, DeepSpeed) the gradient of one process; a learnt temperature
    needs no factor, because it gets the whole gradient on every rank.
    """
    if distributed.world_size() == 1:
        return rows
    return _Gather.apply(rows, sizes)


def taking_part(weight: Tensor | None, *rows: Tensor) -> tuple[Tensor, ...]:
    """The rows whose weight is not zero; every other row only fills an otherwise empty batch."""
    if weight is None:
        return rows
    keep = weight > 0
    return tuple(part[keep] for part in rows)


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
