"""One bidirectional layer of a GRU as one node of the graph, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def serves(frames: Tensor) -> bool:
    """Whether the loops are for these frames; in half precision they go through float32."""
    return frames.device.type == "cpu" and not torch.compiler.is_compiling()


def run_bidirectional(inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
    """(N, 2 H), the states of both directions at the N frames of all sequences.

    Args:
        inputs: (N, 2, 3H), what the frames add to the gates, their bias with it; axis 1 is the
            direction, and gates are in torch's order.
        weight: (2, 3H, H), of the states.
        bias: (2, 3H), of the states.
        starts: (B + 1,) int64, where each sequence begins, and where the last one ends.
    """
    states: Tensor = _Bidirectional.apply(inputs, weight, bias, starts)
    return states.flatten(1)


class _Bidirectional(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, starts: Tensor) -> Tensor:
        from core.kernels.gru import gru_loops  # which brings numba

        count, width = len(inputs), weight.shape[2]
        states = inputs.new_empty(count, 2, width)
        kept = inputs.new_empty(count, 2, 4 * width)
        gru_loops.run(
            starts=starts.numpy(),
            inputs=inputs.detach().contiguous().numpy(),
            weight=weight.detach().transpose(1, 2).contiguous().numpy(),
            bias=bias.detach().contiguous().numpy(),
            states=states.numpy(),
            kept=kept.numpy(),
        )
        ctx.save_for_backward(weight, starts, states, kept)
        return states

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        from core.kernels.gru import gru_loops

        weight, starts, states, kept = ctx.saved_tensors
        input_gradients = states.new_empty(len(states), 2, weight.shape[1])
        state_gradients = torch.empty_like(input_gradients)
        befores = torch.empty_like(states)
        gru_loops.run_back(
            starts=starts.numpy(),
            upstream=upstream[0].contiguous().numpy(),
            weight=weight.detach().contiguous().numpy(),
            states=states.numpy(),
            kept=kept.numpy(),
            input_gradients=input_gradients.numpy(),
            state_gradients=state_gradients.numpy(),
            befores=befores.numpy(),
        )
        by_direction = state_gradients.transpose(0, 1)  # (2, N, 3H)
        of_weight = by_direction.transpose(1, 2) @ befores.transpose(0, 1)
        return input_gradients, of_weight, by_direction.sum(1), None
