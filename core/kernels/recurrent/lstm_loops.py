# mypy: disable-error-code="untyped-decorator"
"""The steps of an LSTM, in one or both directions of each sequence, and their gradients.

As in ``gru_loops``: sequences lie one behind the other, and one unit of work is one direction of
one of them. Gates are in torch's order, input, forget, cell and output, each H wide; W is the
number of directions.
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
        inputs: (N, W, 4H), what the frames add to the gates.
        weight: (W, H, 4H), from a state to what it adds to the gates; ``bias``: (W, 4H).
        states: (N, W, H), filled in.
        kept: (N, W, 5H), filled in: the four gates, and the cell.
    """
    ways, width = states.shape[1], states.shape[2]
    sums = np.empty(4 * width, states.dtype)
    for unit in range(lower, upper):
        sample, way = unit // ways, unit % ways
        begin, end = starts[sample], starts[sample + 1]
        for step in range(end - begin):
            row = begin + step if way == 0 else end - 1 - step
            before = row - 1 if way == 0 else row + 1
            for j in range(4 * width):
                sums[j] = bias[way, j] + inputs[row, way, j]
            if step > 0:
                for k in range(width):
                    value = states[before, way, k]
                    for j in range(4 * width):
                        sums[j] += value * weight[way, k, j]
            gates, out = kept[row, way], states[row, way]
            for j in range(2 * width):
                gates[j] = sigmoid(sums[j])
            for j in range(width):
                gates[2 * width + j] = tanh(sums[2 * width + j])
                gates[3 * width + j] = sigmoid(sums[3 * width + j])
            for j in range(width):
                gates[4 * width + j] = gates[j] * gates[2 * width + j]
            if step > 0:
                for j in range(width):
                    gates[4 * width + j] += gates[width + j] * kept[before, way, 4 * width + j]
            for j in range(width):
                out[j] = gates[3 * width + j] * tanh(gates[4 * width + j])


@loop("sequences")
def run_back(
    lower: int,
    upper: int,
    starts: Any,
    upstream: Any,
    weight: Any,
    states: Any,
    kept: Any,
    gradients: Any,
    befores: Any,
) -> None:
    """
    Args:
        upstream: (N, W, H), gradients of the states.
        weight: (W, 4H, H), the same as above, the other way round.
        gradients: (N, W, 4H), filled in: of what frames and states added to the gates.
        befores: (N, W, H), filled in: the state before each frame.
    """
    ways, width = states.shape[1], states.shape[2]
    carried = np.empty(width, states.dtype)
    of_cell = np.empty(width, states.dtype)
    for unit in range(lower, upper):
        sample, way = unit // ways, unit % ways
        begin, end = starts[sample], starts[sample + 1]
        carried[:] = 0
        of_cell[:] = 0
        for step in range(end - begin):
            row = end - 1 - step if way == 0 else begin + step
            before = row - 1 if way == 0 else row + 1
            is_first = step == end - begin - 1
            gates, above, out = kept[row, way], upstream[row, way], gradients[row, way]
            for j in range(width):
                into, forget = gates[j], gates[width + j]
                new, shown = gates[2 * width + j], gates[3 * width + j]
                seen = tanh(gates[4 * width + j])
                gradient = above[j] + carried[j]
                of_shown = gradient * seen
                cell = of_cell[j] + gradient * shown * (1 - seen * seen)
                out[j] = cell * new * (into - into * into)
                out[2 * width + j] = cell * into * (1 - new * new)
                out[3 * width + j] = of_shown * (shown - shown * shown)
                out[width + j] = cell * (forget - forget * forget)
                of_cell[j] = cell * forget
            if is_first:
                befores[row, way, :] = 0
                out[width : 2 * width] = 0
                continue
            for j in range(width):
                befores[row, way, j] = states[before, way, j]
                out[width + j] *= kept[before, way, 4 * width + j]
                carried[j] = 0
            for j in range(4 * width):
                value = out[j]
                for k in range(width):
                    carried[k] += value * weight[way, j, k]
