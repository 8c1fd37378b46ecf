# mypy: disable-error-code="untyped-decorator"
"""The bits of ``core.dropout`` on a CPU: one compiled loop in place of a dozen operators for every
mask.

The arithmetic is the one that ``core.dropout`` writes in torch, on 32-bit numbers that wrap around,
so the masks are the same. It takes less time than the operators' calls alone, which small models
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


@register_jitable
def mix(state: Any) -> Any:
    """SplitMix64's finaliser, as ``core.dropout`` has it."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


@loop("mask rows")
def fill(
    lower: int,
    upper: int,
    mask: Any,
    rows: Any,
    positions: Any,
    key: Any,
    layer: Any,
    bound: Any,
) -> None:
    for row in range(lower, upper):
        state = mix(mix(rows[row] + key) + layer)
        low, high = np.uint32(state), np.uint32(state >> np.uint64(32))
        line = mask[row]
        for place in range(len(positions)):
            bits = np.uint32(np.uint32(positions[place] ^ low) * np.uint32(2246822507))
            bits = np.uint32(bits ^ (bits >> np.uint32(13)))
            bits = np.uint32(np.uint32(bits + high) * np.uint32(3266489909))
            bits = np.uint32(bits ^ (bits >> np.uint32(16)))
            line[place] = np.int32(bits) >= bound


def keep_mask(
    shape: Sequence[int], rows: Tensor, positions: Tensor, key: int, layer: int, bound: int
) -> Tensor:
    """Bool of ``shape`` (B, ...).

    Args:
        rows: (B,) int64, what tells the samples apart.
        positions: (...) int32, what tells the positions within a sample apart.
        key: 64 bits of the seed and the step. bound: the least 32-bit number that keeps.
    """
    mask = np.empty((shape[0], positions.numel()), np.bool_)
    fill(
        mask=mask,
        rows=rows.contiguous().numpy().view(np.uint64),
        positions=positions.reshape(-1).contiguous().numpy().view(np.uint32),
        key=np.uint64(key % 2**64),
        layer=np.uint64(layer),
        bound=np.int32(bound),
    )
    return torch.from_numpy(mask).view(tuple(shape))
