"""The bits of dropout as a formula in torch, which every kernel restates.

A bit is a hash of a 64-bit state and of a 32-bit position. The state stands for seed, step, sample
and layer. The position is the sum over axes of index times an odd number, so it does not depend on
how long the axes are padded.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Odd multipliers of the 64-bit mix, from the SplitMix64 generator (Steele et al., OOPSLA 2014).
_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685
_GOLDEN = -7046029254386353131
_MASK_64 = 2**64 - 1
# One odd number per axis, so that a position is the same whatever the padded lengths are.
AXES = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F)


def hash64(*numbers: int) -> int:
    """A signed 64-bit hash of integers: ``mix_states`` of the sum of the last one and the number,
    in turn."""
    state = 0
    for number in numbers:
        state = (state + number + _GOLDEN) & _MASK_64
        state = ((state ^ (state >> 30)) * _MIX_1) & _MASK_64
        state = ((state ^ (state >> 27)) * _MIX_2) & _MASK_64
        state ^= state >> 31
    return state - 2**64 if state >= 2**63 else state


def mix_states(state: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, with logical shifts."""
    state = state + _GOLDEN
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * _MIX_1
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return state ^ ((state >> 31) & 0x1FFFFFFFF)


def least_kept(p: float) -> int:
    """The least signed 32-bit number that keeps, where a part ``p`` of all numbers is dropped;
    2**31, which no number reaches, where all are."""
    return round(p * 2.0**32) - 2**31


def positions_of(shape: torch.Size, device: torch.device) -> Tensor:
    """int32 of ``shape``: what tells the positions within a sample apart."""
    position = torch.zeros((), dtype=torch.int32, device=device)
    for axis, size in enumerate(shape):
        factor = AXES[axis % len(AXES)]
        signed = factor - (1 << 32) if factor >= 1 << 31 else factor
        steps = torch.arange(size, dtype=torch.int32, device=device) * signed
        position = position.unsqueeze(-1) + steps
    return position


def keep_bits(shape: torch.Size, state: Tensor, position: Tensor, bound: int) -> Tensor:
    """Bool of ``shape`` from the rows' 64-bit ``state`` (B,) and the int32 ``position`` (...).

    32 bits are plenty for a mask and twice as fast; the position is mixed with the row's own two
    halves.
    """
    low = state.to(torch.int32).reshape(-1, *[1] * (len(shape) - 1))
    high = (state >> 32).to(torch.int32).reshape(low.shape)
    bits = (position ^ low).mul_(-2048144789)
    bits ^= (bits >> 13).bitwise_and_(0x7FFFF)
    bits += high
    bits *= -1028477387
    bits ^= (bits >> 16).bitwise_and_(0xFFFF)
    return bits >= bound
