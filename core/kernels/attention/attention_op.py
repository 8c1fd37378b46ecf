"""Attention with dropout by sample as one operator, ``concord::attention``: a graph sees one node.

Memory is that of what comes out and two numbers per query, for scores are computed again by the
gradients; bits of dropout too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from core.kernels.dropout.dropout_op import runs_kernel
from core.kernels.dropout.formula import least_kept

WIDEST = 128  # a head that the kernels take
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def serves(query: Tensor, key: Tensor, value: Tensor, p: float) -> bool:
    """Whether the kernels compute this: on a GPU, in a type and width that they take."""
    pairs_of_a_head = query.shape[2] * key.shape[2]
    return (
        runs_kernel(query.device)
        and least_kept(p) < 2**31  # everything is dropped otherwise
        and query.shape[-1] == value.shape[-1] <= WIDEST
        and all(tensor.dtype in TYPES for tensor in (query, key, value))
        and all(tensor.shape[1:].numel() < 2**31 for tensor in (query, key))
        and pairs_of_a_head < 2**31
    )


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    scale: float,
    states: Tensor | None = None,
    layer: int = 0,
    p: float = 0.0,
) -> Tensor:
    """softmax(query key^T * scale) value, (B, h, T, d), with dropout on the softmax, whose axes are
    head, query and key. A query that may look at nothing gives zeros.

    Args:
        key, value: (B, h, S, d), d up to 128.
        allowed: boolean, or added to the scores; broadcasts to (B, h, T, S).
        states: (B,) int64, what tells the samples of this step apart; None: nothing is dropped.
    """
    device = query.device.type
    dtype = query.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if allowed is not None:
        allowed = allowed[(None,) * (4 - allowed.ndim)]
    out, _ = attention(
        query.to(dtype), key.to(dtype), value.to(dtype), allowed, states, layer, p, scale
    )
    return out


@torch.library.custom_op("concord::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    states: Tensor | None,
    layer: int,
    p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """``fused_attention``, and of each query the highest score and the logarithm of the sum of
    exponentials less that, both base 2: (B, h, T, 2) float32."""
    from core.kernels.attention import attention_launch as launch  # which brings Triton

    drawing = launch.Drawing(states, layer, p)
    return launch.forward(query, key, value, allowed, drawing, scale)


@attention.register_fake
def _(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    states: Tensor | None,
    layer: int,
    p: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return _rows_first_like(query), query.new_empty((*query.shape[:3], 2), dtype=torch.float32)


@torch.library.custom_op("concord::attention_backward", mutates_args=())
def attention_backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    states: Tensor | None,
    out: Tensor,
    sums: Tensor,
    layer: int,
    p: float,
    scale: float,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key, value and of a bias; the last is empty where it is not wanted."""
    from core.kernels.attention import attention_launch as launch

    drawing = launch.Drawing(states, layer, p)
    of_query, of_key, of_value, of_bias = launch.backward(
        upstream, query, key, value, allowed, out, sums, drawing, scale, wants_bias
    )
    return of_query, of_key, of_value, query.new_empty(0) if of_bias is None else of_bias


@attention_backward.register_fake
def _(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    states: Tensor | None,
    out: Tensor,
    sums: Tensor,
    layer: int,
    p: float,
    scale: float,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_bias = query.new_empty(0)
    if wants_bias and allowed is not None:
        of_bias = allowed.new_empty(allowed.shape)
    return _rows_first_like(query), _rows_first_like(key), _rows_first_like(value), of_bias


def _rows_first_like(heads_first: Tensor) -> Tensor:
    """As ``attention_launch.like``, which cannot be imported without Triton."""
    samples, heads, length, width = heads_first.shape
    return heads_first.new_empty((samples, length, heads, width)).transpose(1, 2)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, allowed, states, ctx.layer, ctx.p, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # or its gradient would be made of zeros each time
    ctx.save_for_backward(query, key, value, allowed, states, *output)


def _backward(ctx: Any, upstream: Tensor, _: None) -> tuple[Tensor | None, ...]:
    query, key, value, allowed, states, out, sums = ctx.saved_tensors
    wants_bias = ctx.needs_input_grad[3]
    of_query, of_key, of_value, of_bias = attention_backward(
        upstream,
        query,
        key,
        value,
        allowed,
        states,
        out,
        sums,
        ctx.layer,
        ctx.p,
        ctx.scale,
        wants_bias,
    )
    return of_query, of_key, of_value, of_bias if wants_bias else None, None, None, None, None


attention.register_autograd(_backward, setup_context=_save)
