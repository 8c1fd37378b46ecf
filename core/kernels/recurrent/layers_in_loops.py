"""One layer of a GRU or an LSTM as one node of the graph, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def serves(frames: Tensor) -> bool:
    """Whether the loops are for these frames; in half precision they go through float32."""
    return frames.device.type == "cpu" and not torch.compiler.is_compiling()


def run_gru(inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
    """(N, 2, H), the states of both directions at the N frames of all sequences.

    Args:
        inputs: (N, 2, 3H), what the frames add to the gates, their bias with it; axis 1 is the
            direction, and gates are in torch's order.
        weight: (2, 3H, H), of the states.
        bias: (2, 3H), of the states.
        starts: (B + 1,) int64, where each sequence begins, and where the last one ends.
    """
    states: Tensor = _GRU.apply(inputs, weight, bias, starts)
    return states


def run_lstm(inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
    """As ``run_gru``, with 4H in the place of 3H, in one or both directions."""
    states: Tensor = _LSTM.apply(inputs, weight, bias, starts)
    return states


class _GRU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
        from core.kernels.recurrent import gru_loops  # which brings numba

        return _forward(ctx, gru_loops, 4, inputs, weight, bias, starts)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from core.kernels.recurrent import gru_loops

        weight, starts, states, kept = ctx.saved_tensors
        of_inputs = states.new_empty(*states.shape[:2], weight.shape[1])
        of_states, befores = torch.empty_like(of_inputs), torch.empty_like(states)
        gru_loops.run_back(
            **_given(upstream[0], *ctx.saved_tensors),
            input_gradients=of_inputs.numpy(),
            state_gradients=of_states.numpy(),
            befores=befores.numpy(),
        )
        return of_inputs, *_of_parameters(of_states, befores), None


class _LSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
        from core.kernels.recurrent import lstm_loops

        return _forward(ctx, lstm_loops, 5, inputs, weight, bias, starts)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from core.kernels.recurrent import lstm_loops

        weight, starts, states, kept = ctx.saved_tensors
        gradients = states.new_empty(*states.shape[:2], weight.shape[1])
        befores = torch.empty_like(states)
        lstm_loops.run_back(
            **_given(upstream[0], *ctx.saved_tensors),
            gradients=gradients.numpy(),
            befores=befores.numpy(),
        )
        return gradients, *_of_parameters(gradients, befores), None


def _forward(
    ctx: Any,
    loops: Any,
    num_kept: int,
    inputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    starts: Tensor,
) -> Tensor:
    """``num_kept``: numbers that are kept of each one of a state."""
    width = weight.shape[2]
    states = inputs.new_empty(*inputs.shape[:2], width)
    kept = inputs.new_empty(*inputs.shape[:2], num_kept * width)
    loops.run(
        starts=starts.numpy(),
        inputs=inputs.detach().contiguous().numpy(),
        weight=weight.detach().transpose(1, 2).contiguous().numpy(),
        bias=bias.detach().contiguous().numpy(),
        states=states.numpy(),
        kept=kept.numpy(),
    )
    ctx.save_for_backward(weight, starts, states, kept)
    return states


def _given(
    upstream: Tensor, weight: Tensor, starts: Tensor, states: Tensor, kept: Tensor
) -> dict[str, Any]:
    return {
        "starts": starts.numpy(),
        "upstream": upstream.contiguous().numpy(),
        "weight": weight.detach().contiguous().numpy(),
        "states": states.numpy(),
        "kept": kept.numpy(),
    }


def _of_parameters(gradients: Tensor, befores: Tensor) -> tuple[Tensor, Tensor]:
    """Of the states' weight and bias, by direction, of what states added to the gates (N, W, 3H or
    4H), and what they were, (N, W, H)."""
    by_direction = gradients.transpose(0, 1)  # (W, N, ...)
    of_weight = by_direction.transpose(1, 2) @ befores.transpose(0, 1)
    return of_weight, by_direction.sum(1)
