"""Dropout by sample as one operator, ``concord::dropout``: a graph sees one node, and nothing is
stored for its gradient, which is the same operator on the upstream gradient.

| device | who computes it                                                           |
|--------|---------------------------------------------------------------------------|
| CUDA   | one Triton kernel that draws the bits, multiplies and scales              |
| CPU    | one compiled loop for float32 and float64; the operator's own cost, which |
|        | is that of a small tensor, is paid only where something is compiled       |
| other  | the formula in torch: half precision on a CPU, a GPU without Triton       |
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

from core.kernels.dropout.formula import keep_bits, least_kept, mix_states, positions_of

_KEPT_POSITIONS = 2**16  # positions of one shape that are kept: a quarter of a megabyte
_ALL = 2**31  # a bound that no 32-bit number reaches
_LOOP_TYPES = (torch.float32, torch.float64)


def drop(x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
    """``x`` of any shape, sample first, with a part ``p`` of it set to zero and the rest scaled by
    1 / (1 - p).

    Args:
        states: (B,) int64, what tells the samples of this step apart, on the device of ``x``.
        layer: tells the dropouts of a model apart.
        p: in [0, 1].
    """
    if least_kept(p) >= _ALL:
        return x * 0
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return dropout(x, states, layer, p)
    if x.is_contiguous() and x.dtype in _LOOP_TYPES:
        return _Loop.apply(x, states, layer, p)
    return _in_pieces(x, states, layer, p)


@torch.library.custom_op("concord::dropout", mutates_args=())
def dropout(x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
    """``drop`` for p that keeps anything; contiguous."""
    x = x.contiguous()
    if runs_kernel(x.device):
        # imported only here: Triton is there on machines with a GPU only
        from core.kernels.dropout import triton_dropout

        return triton_dropout.drop(x, states, layer, p)
    if x.device.type == "cpu" and x.dtype in _LOOP_TYPES:
        return _in_a_loop(x, states, layer, p)
    return _in_pieces(x, states, layer, p)


@dropout.register_fake
def _(x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_states(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, states, ctx.layer, ctx.p = inputs
    ctx.save_for_backward(states)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
    (states,) = ctx.saved_tensors
    return dropout(upstream, states, ctx.layer, ctx.p), None, None, None


dropout.register_autograd(_backward, setup_context=_save_states)


class _Loop(torch.autograd.Function):
    """``concord::dropout`` on a CPU, for a third of the operator's cost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
        ctx.save_for_backward(states)
        ctx.layer, ctx.p = layer, p
        return _in_a_loop(x, states, layer, p)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (states,) = ctx.saved_tensors
        return drop(upstream[0].contiguous(), states, ctx.layer, ctx.p), None, None, None


def drop_tokens(x: Tensor, states: Tensor, places: Tensor, layer: int, p: float) -> Tensor:
    """``drop`` of (B, T, width) at the rows (N, width) of those of its places that are there, on a
    CPU.

    Args:
        states: (N,) int64, those of each row's sample.
        places: (N,) int64, of each row in its sample.
    """
    if least_kept(p) >= _ALL:
        return x * 0
    dropped: Tensor = _TokenLoop.apply(x.contiguous(), states, places, layer, p)
    return dropped


class _TokenLoop(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, states: Tensor, places: Tensor, layer: int, p: float
    ) -> Tensor:
        from core.kernels.dropout import dropout_bits

        ctx.save_for_backward(states, places)
        ctx.layer, ctx.p = layer, p
        looped = x if x.dtype in _LOOP_TYPES else x.float()
        positions = _positions_on_cpu(torch.Size((1, x.shape[1])))[0]
        dropped = dropout_bits.drop_tokens(
            looped, states, places, positions, layer, least_kept(p), 1 / (1 - p)
        )
        return dropped.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        states, places = ctx.saved_tensors
        gradient = drop_tokens(upstream[0], states, places, ctx.layer, ctx.p)
        return gradient, None, None, None, None


def _in_a_loop(x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
    from core.kernels.dropout import dropout_bits  # which brings numba

    positions = _positions_on_cpu(x.shape[1:])
    return dropout_bits.drop(x, states, positions, layer, least_kept(p), 1 / (1 - p))


def _in_pieces(x: Tensor, states: Tensor, layer: int, p: float) -> Tensor:
    return (x * keep_mask(x.shape, states, layer, p)).mul_(1 / (1 - p))


def keep_mask(shape: torch.Size, states: Tensor, layer: int, p: float) -> Tensor:
    """Bool of ``shape`` (B, ...), True with probability 1 - p, on the device of ``states`` (B,)."""
    bound = least_kept(p)
    if bound >= _ALL:
        return torch.zeros(shape, dtype=torch.bool, device=states.device)
    if states.device.type == "cpu" and not torch.compiler.is_compiling():
        from core.kernels.dropout import dropout_bits

        positions = _positions_on_cpu(shape[1:])
        return dropout_bits.keep_mask(shape, states, positions, layer, bound)
    positions = positions_of(shape[1:], states.device)
    return keep_bits(shape, mix_states(states + layer), positions, bound)


def _positions_on_cpu(shape: torch.Size) -> Tensor:
    if shape.numel() <= _KEPT_POSITIONS:
        return _kept_positions(shape)
    return positions_of(shape, torch.device("cpu"))


@lru_cache(maxsize=32)
def _kept_positions(shape: torch.Size) -> Tensor:
    """Positions which the layers of a model and its steps ask for again and again."""
    return positions_of(shape, torch.device("cpu"))


def runs_kernel(device: torch.device) -> bool:
    """Whether Triton's kernels serve tensors on this device."""
    return device.type == "cuda" and _triton_available()


@cache
def _triton_available() -> bool:
    """Whether Triton can be imported; warns once if not."""
    try:
        import triton  # noqa: F401
    except ImportError:
        warnings.warn(
            "Triton is missing, so dropout and attention take dozens of operators on the GPU in "
            "place of one; pip install triton",
            stacklevel=2,
        )
        return False
    return True
