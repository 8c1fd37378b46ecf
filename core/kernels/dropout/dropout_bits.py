# mypy: disable-error-code="untyped-decorator"
"""Dropout on a CPU: one compiled loop in place of a dozen operators, for the mask alone or for the
product with it too.

The arithmetic is the one that ``formula`` writes in torch, on 32-bit numbers that wrap around, so
the masks are the same. It takes less time than the operators' calls alone, which small models
are made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba.extending import register_jitable
from torch import Tensor

from core.kernels.compiled_loop import loop
from core.kernels.dropout.formula import AXES


@register_jitable
def mix(state: Any) -> Any:
    """SplitMix64's finaliser, as ``formula`` has it."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@register_jitable
def keeps(position: Any, low: Any, high: Any, bound: Any) -> Any:
    """Whether a position is kept by a state with these halves."""
    bits = np.uint32(np.uint32(position ^ low) * np.uint32(2246822507))
    bits = np.uint32(bits ^ (bits >> np.uint32(13)))
    bits = np.uint32(np.uint32(bits + high) * np.uint32(3266489909))
    bits = np.uint32(bits ^ (bits >> np.uint32(16)))
    return np.int32(bits) >= bound


@loop("mask rows")
def fill(
    lower: int,
    upper: int,
    mask: Any,
    states: Any,
    positions: Any,
    layer: Any,
    bound: Any,
) -> None:
    for row in range(lower, upper):
        state = mix(states[row] + layer)
        low, high = np.uint32(state), np.uint32(state >> np.uint64(32))
        line = mask[row]
        for place in range(len(positions)):
            line[place] = keeps(positions[place], low, high, bound)


@loop("out rows")
def drop_rows(
    lower: int,
    upper: int,
    out: Any,
    x: Any,
    states: Any,
    positions: Any,
    layer: Any,
    bound: Any,
    scale: Any,
    zero: Any,
) -> None:
    for row in range(lower, upper):
        state = mix(states[row] + layer)
        low, high = np.uint32(state), np.uint32(state >> np.uint64(32))
        line = out[row]
        values = x[row]
        for place in range(len(positions)):
            factor = scale if keeps(positions[place], low, high, bound) else zero
            # a product, so that what is not finite stays seen
            line[place] = values[place] * factor


@loop("out rows")
def drop_token_rows(
    lower: int,
    upper: int,
    out: Any,
    x: Any,
    states: Any,
    starts: Any,
    positions: Any,
    layer: Any,
    bound: Any,
    scale: Any,
    zero: Any,
) -> None:
    """``drop_rows`` where each row has its own state, and the position of its first number."""
    for row in range(lower, upper):
        state = mix(states[row] + layer)
        low, high = np.uint32(state), np.uint32(state >> np.uint64(32))
        start = starts[row]
        line = out[row]
        values = x[row]
        for place in range(len(positions)):
            position = np.uint32(start + positions[place])
            factor = scale if keeps(position, low, high, bound) else zero
            line[place] = values[place] * factor


def keep_mask(
    shape: Sequence[int], states: Tensor, positions: Tensor, layer: int, bound: int
) -> Tensor:
    """Bool of ``shape`` (B, ...).

    Args:
        states: (B,) int64, what tells the samples of this step apart.
        positions: (...) int32, what tells the positions within a sample apart.
        bound: the least 32-bit number that keeps.
    """
    mask = np.empty((shape[0], positions.numel()), np.bool_)
    fill(mask=mask, **_drawn(states, positions, layer, bound))
    return torch.from_numpy(mask).view(tuple(shape))


def drop(
    x: Tensor, states: Tensor, positions: Tensor, layer: int, bound: int, scale: float
) -> Tensor:
    """Contiguous ``x`` (B, ...) in float32 or float64, zero where it is not kept and times
    ``scale`` where it is."""
    values = x.numpy().reshape(len(x), positions.numel())
    out = np.empty_like(values)
    number = values.dtype.type
    drawn = _drawn(states, positions, layer, bound)
    drop_rows(out=out, x=values, scale=number(scale), zero=number(0), **drawn)
    return torch.from_numpy(out).view(x.shape)


def drop_tokens(
    x: Tensor,
    states: Tensor,
    places: Tensor,
    positions: Tensor,
    layer: int,
    bound: int,
    scale: float,
) -> Tensor:
    """Contiguous ``x`` (N, width): rows of samples (B, T, width) with ``states`` and ``places``
    (N,); ``positions`` (width,) are those of place 0."""
    values = x.detach().numpy()
    out = np.empty_like(values)
    number = values.dtype.type
    starts = places.numpy().astype(np.uint32) * np.uint32(AXES[0])
    drawn = _drawn(states, positions, layer, bound)
    drop_token_rows(out=out, x=values, starts=starts, scale=number(scale), zero=number(0), **drawn)
    return torch.from_numpy(out)


def _drawn(states: Tensor, positions: Tensor, layer: int, bound: int) -> dict[str, Any]:
    """What both loops draw from."""
    return {
        "states": states.contiguous().numpy().view(np.uint64),
        "positions": positions.reshape(-1).contiguous().numpy().view(np.uint32),
        "layer": np.uint64(layer),
        "bound": np.int32(bound),
    }
