"""Attention of narrow heads on a CPU as one node of the graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.kernels.dropout.formula import least_kept

WIDEST = 32  # channels of a head, above which matrix products of all pairs are faster
TYPES = (torch.float32, torch.float64)


def serves(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, p: float) -> bool:
    """Whether the loops compute this."""
    return (
        query.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and query.dtype in TYPES
        and query.dtype == key.dtype == value.dtype
        and max(query.shape[3], value.shape[3]) <= WIDEST
        and _is_mask(allowed)
        and least_kept(p) < 2**31  # everything is dropped otherwise
    )


def _is_mask(allowed: Tensor | None) -> bool:
    """Whether it says which pairs exist, for all heads alike."""
    if allowed is None:
        return True
    return allowed.dtype == torch.bool and allowed.ndim == 4 and allowed.shape[1] == 1


def narrow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    scale: float,
    states: Tensor | None,
    layer: int,
    p: float,
) -> Tensor:
    """softmax(query key^T * scale) value, (B, h, T, d), with dropout on the softmax, whose axes are
    head, query and key. A query that may look at nothing gives zeros.

    Args:
        allowed: (B or 1, 1, T or 1, S) bool, or None.
        states: (B,) int64, what tells the samples of this step apart; None where p is 0.
    """
    if allowed is None:
        allowed = torch.ones(1, 1, 1, key.shape[2], dtype=torch.bool)
    if states is None:
        states = torch.zeros(len(query), dtype=torch.int64)
    mixed: Tensor = _NarrowAttention.apply(query, key, value, allowed, states, scale, layer, p)
    return mixed


class _NarrowAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor,
        states: Tensor,
        scale: float,
        layer: int,
        p: float,
    ) -> Tensor:
        from core.kernels.attention import narrow_loops  # which brings numba

        query = query.detach().contiguous()
        key = key.detach().transpose(2, 3).contiguous()
        value = value.detach().transpose(2, 3).contiguous()
        mixed = query.new_empty(*query.shape[:3], value.shape[2])
        norms = query.new_empty(query.shape[:3])
        ctx.save_for_backward(query, key, value, allowed, states, mixed, norms)
        ctx.scale, ctx.layer, ctx.p = scale, layer, p
        given = _given(query, key, value, allowed, states, scale, layer, p)
        narrow_loops.attend(**given, mixed=mixed.numpy(), norms=norms.numpy())
        return mixed

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        from core.kernels.attention import narrow_loops

        query, key, value, allowed, states, mixed, norms = ctx.saved_tensors
        given = _given(query, key, value, allowed, states, ctx.scale, ctx.layer, ctx.p)
        of_query = torch.empty_like(query)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        narrow_loops.attend_back(
            **given,
            mixed=mixed.numpy(),
            norms=norms.numpy(),
            upstream=upstream[0].contiguous().numpy(),
            of_query=of_query.numpy(),
            of_key=of_key.numpy(),
            of_value=of_value.numpy(),
        )
        gradients = (of_query, of_key.transpose(2, 3), of_value.transpose(2, 3))
        return *gradients, None, None, None, None, None


def _given(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor,
    states: Tensor,
    scale: float,
    layer: int,
    p: float,
) -> dict[str, Any]:
    """What both loops are given."""
    arrays = {"query": query.numpy(), "key": key.numpy(), "value": value.numpy()}
    number = arrays["query"].dtype.type
    return arrays | {
        "allowed": allowed[:, 0].contiguous().numpy(),
        "states": states.contiguous().numpy().view(np.uint64),
        "layer": np.uint64(layer),
        "bound": np.int32(least_kept(p)),
        "kept": number(1 / (1 - p)),
        "scale": number(scale),
    }
