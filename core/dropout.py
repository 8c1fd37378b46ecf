"""Dropout whose mask belongs to the sample, not to the process.

Ordinary dropout draws from a generator of its process, so the same sample meets another mask when
the batch is split over more ranks or micro-batches. Here every mask bit is a hash of (seed, step,
layer, sample, position): the same for any number of ranks, any micro-batch, any padding, and again
when a forward pass is repeated (activation checkpointing, two-pass contrastive losses). That is
what makes one process and many give one result with dropout on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

Probability = Annotated[float, Field(ge=0, le=1)]

# Odd multipliers of the 64-bit mix, from the SplitMix64 generator (Steele et al., OOPSLA 2014).
_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685
_GOLDEN = -7046029254386353131
# One odd number per axis, so that a position is the same whatever the padded lengths are; as signed
# 32-bit numbers.
_AXES = (0x9E3779B1 - (1 << 32), 0x85EBCA77 - (1 << 32), 0xC2B2AE3D - (1 << 32), 0x27D4EB2F)

_KEPT_POSITIONS = 2**16  # positions of one shape that are kept: a quarter of a megabyte

_context: tuple[int, Tensor] | None = None


@contextmanager
def sample_masks(seed: int, step: int, index: Tensor) -> Iterator[None]:
    """Within this block ``SampleDropout`` draws for ``step`` and the samples ``index`` (B,)."""
    with _masks_of((hash64(seed, step), index)):
        yield


def same_masks() -> AbstractContextManager[None]:
    """A block in which masks are drawn as they are now, for a forward that is computed again
    later."""
    return _masks_of(_context)


@contextmanager
def _masks_of(context: tuple[int, Tensor] | None) -> Iterator[None]:
    global _context
    previous, _context = _context, context
    try:
        yield
    finally:
        _context = previous


def hash64(*numbers: int) -> int:
    """A signed 64-bit hash of integers."""
    state = torch.zeros((), dtype=torch.int64)
    for number in numbers:
        state = _mix(state + number)
    return int(state)


def _mix(state: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64, with logical shifts."""
    state = state + _GOLDEN
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * _MIX_1
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * _MIX_2
    return state ^ ((state >> 31) & 0x1FFFFFFFF)


def keep_mask(shape: torch.Size, p: float, layer: int, device: torch.device) -> Tensor:
    """Bool mask of ``shape`` (B, ...), True with probability 1 - p. Outside ``sample_masks`` it is
    torch's own draw.

    Rows are the samples of the surrounding block; a tensor with another number of rows (all
    entities of a graph) is keyed by row number.
    """
    if _context is None:
        return torch.rand(shape, device=device) >= p
    if p >= 1:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    key, index = _context
    rows = index.to(device) if len(index) == shape[0] else torch.arange(shape[0], device=device)
    bound = round(p * 2.0**32) - 2**31
    if device.type == "cpu" and not torch.compiler.is_compiling():
        from core.kernels import dropout_bits  # which brings numba

        few = shape[1:].numel() <= _KEPT_POSITIONS
        positions = _kept_positions(shape[1:]) if few else _positions(shape[1:], device)
        return dropout_bits.keep_mask(shape, rows, positions, key, layer, bound)
    state = _mix(_mix(rows + key) + layer)  # (B,)
    return _keep_bits(shape, state, _positions(shape[1:], device), bound)


@lru_cache(maxsize=32)
def _kept_positions(shape: torch.Size) -> Tensor:
    """``_positions`` on a CPU, which the layers of a model and its steps ask for again and
    again."""
    return _positions(shape, torch.device("cpu"))


def _positions(shape: torch.Size, device: torch.device) -> Tensor:
    """int32 of ``shape``: what tells the positions within a sample apart."""
    position = torch.zeros((), dtype=torch.int32, device=device)
    for axis, size in enumerate(shape):
        steps = torch.arange(size, dtype=torch.int32, device=device) * _AXES[axis % len(_AXES)]
        position = position.unsqueeze(-1) + steps
    return position


def _keep_bits(shape: torch.Size, state: Tensor, position: Tensor, bound: int) -> Tensor:
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


class SampleDropout(nn.Module):
    """``nn.Dropout`` with the masks of this module. ``layer`` tells the dropouts of a model
    apart."""

    def __init__(self, p: float, layer: int = 0):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"a dropout probability lies in [0, 1], got {p}")
        self.p, self.layer = p, layer

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) of any shape, sample first."""
        if not self.training or self.p == 0:
            return x
        if _context is None:
            return functional.dropout(x, self.p)
        kept = x * keep_mask(x.shape, self.p, self.layer, x.device)
        return kept.mul_(1 / (1 - self.p)) if self.p < 1 else kept

    def extra_repr(self) -> str:
        return f"p={self.p}, layer={self.layer}"


def number_dropouts(model: nn.Module) -> nn.Module:
    """Replace every ``nn.Dropout`` below ``model`` by a ``SampleDropout`` of its own number, in
    place."""
    layer = 0
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout | SampleDropout):
                layer += 1
                setattr(module, name, SampleDropout(child.p, layer))
    return model
