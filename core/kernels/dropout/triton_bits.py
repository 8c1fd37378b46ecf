# mypy: ignore-errors
"""The bits of dropout in Triton: ``formula`` on unsigned numbers, whose shifts are logical."""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.dropout.formula import AXES

GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MIX_2 = tl.constexpr(0x94D049BB133111EB)
AXIS_0, AXIS_1, AXIS_2, AXIS_3 = map(tl.constexpr, AXES)


@triton.jit
def layer_state(states, sample, layer):
    """The two halves, uint32, of the state of a sample in a layer.

    Args:
        states: pointer to int64. sample: of any shape, which the halves have too.
    """
    state = tl.load(states + sample).to(tl.uint64, bitcast=True)
    state += layer.to(tl.uint64)
    state += GOLDEN
    state = (state ^ (state >> 30)) * MIX_1
    state = (state ^ (state >> 27)) * MIX_2
    state = state ^ (state >> 31)
    return state.to(tl.uint32), (state >> 32).to(tl.uint32)


@triton.jit
def keeps(low, high, position, bound):
    """Whether a position, uint32, is kept by a state with these halves."""
    bits = (position ^ low) * 2246822507
    bits = bits ^ (bits >> 13)
    bits = (bits + high) * 3266489909
    bits = bits ^ (bits >> 16)
    return bits.to(tl.int32, bitcast=True) >= bound
