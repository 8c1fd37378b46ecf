# mypy: disable-error-code="untyped-decorator"
"""The steps of a GRU, both directions of each sequence, and their gradients.

Sequences lie one behind the other, without padding: that of sample b is rows ``starts[b]`` to
``starts[b + 1]`` - 1. One unit of work is one direction of one sequence: its weights stay in the
first cache from frame to frame. Gates are in torch's order, reset, update and new, each H wide, and
axis 1 is the direction.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.kernels.compiled_loop import loop
from core.kernels.vector_math import sigmoid, tanh


@loop("sequences")
def run(
    lower: int,
    upper: int,
    starts: Any,
    inputs: Any,
    weight: Any,
    bias: Any,
    states: Any,
    kept: Any,
) -> None:
    """
    Args:
        inputs: (N, 2, 3H), what the frames add to the gates.
        weight: (2, H, 3H), from a state to what it adds to the gates; ``bias``: (2, 3H).
        states: (N, 2, H), filled in.
        kept: (N, 2, 4H), filled in: the three gates, and what the state added to the new one.
    """
    width = states.shape[2]
    sums = np.empty(3 * width, states.dtype)
    for unit in range(lower, upper):
        sample, way = unit // 2, unit % 2
        begin, end = starts[sample], starts[sample + 1]
        for step in range(end - begin):
            row = begin + step if way == 0 else end - 1 - step
            before = row - 1 if way == 0 else row + 1
            sums[:] = bias[way]
            if step > 0:
                state = states[before, way]
                for k in range(width):
                    line = weight[way, k]
                    value = state[k]
                    for j in range(3 * width):
                        sums[j] += value * line[j]
            given, gates, out = inputs[row, way], kept[row, way], states[row, way]
            for j in range(width):
                reset = sigmoid(given[j] + sums[j])
                update = sigmoid(given[width + j] + sums[width + j])
                of_state = sums[2 * width + j]
                new = tanh(given[2 * width + j] + reset * of_state)
                gates[j], gates[width + j] = reset, update
                gates[2 * width + j], gates[3 * width + j] = new, of_state
                out[j] = new - update * new
            if step > 0:
                for j in range(width):
                    out[j] += gates[width + j] * states[before, way, j]


@loop("sequences")
def run_back(
    lower: int,
    upper: int,
    starts: Any,
    upstream: Any,
    weight: Any,
    states: Any,
    kept: Any,
    input_gradients: Any,
    state_gradients: Any,
    befores: Any,
) -> None:
    """
    Args:
        upstream: (N, 2, H), gradients of the states.
        weight: (2, 3H, H), the same as above, the other way round.
        input_gradients: (N, 2, 3H), filled in: of what the frames added to the gates.
        state_gradients: (N, 2, 3H), filled in: of what the states added.
        befores: (N, 2, H), filled in: the state before each frame.
    """
    width = states.shape[2]
    carried = np.empty(width, states.dtype)
    for unit in range(lower, upper):
        sample, way = unit // 2, unit % 2
        begin, end = starts[sample], starts[sample + 1]
        carried[:] = 0
        for step in range(end - begin):
            row = end - 1 - step if way == 0 else begin + step
            before = befores[row, way]
            if step == end - begin - 1:
                before[:] = 0
            else:
                before[:] = states[row - 1 if way == 0 else row + 1, way]
            gates, above = kept[row, way], upstream[row, way]
            to_input, to_state = input_gradients[row, way], state_gradients[row, way]
            for j in range(width):
                reset, update = gates[j], gates[width + j]
                new, of_state = gates[2 * width + j], gates[3 * width + j]
                gradient = above[j] + carried[j]
                kept_part = gradient * update
                of_new = gradient - kept_part
                of_new = of_new - of_new * new * new
                of_reset = of_new * of_state * (reset - reset * reset)
                of_update = gradient * (before[j] - new) * (update - update * update)
                to_input[j] = to_state[j] = of_reset
                to_input[width + j] = to_state[width + j] = of_update
                to_input[2 * width + j] = of_new
                to_state[2 * width + j] = of_new * reset
                carried[j] = kept_part
            for j in range(3 * width):
                line = weight[way, j]
                value = to_state[j]
                for k in range(width):
                    carried[k] += value * line[k]
