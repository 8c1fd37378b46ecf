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
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from core.kernels.dropout import dropout_op
from core.kernels.dropout.formula import hash64, mix_states

Probability = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class _Masks:
    """What the masks of one forward are drawn from."""

    key: int  # of seed and step
    states: Tensor  # (B,) int64, of seed, step and sample

    def states_of(self, rows: int, device: torch.device) -> Tensor:
        """(rows,) int64. Rows are the samples of the surrounding block; a tensor with another number
        of rows (all entities of a graph) is keyed by row number."""
        if rows == len(self.states):
            return self.states.to(device)
        return mix_states(torch.arange(rows, device=device) + self.key)


@dataclass(frozen=True)
class _Tokens:
    """Whose the rows of a tensor without padding are."""

    sample: Tensor  # (N,) int64
    place: Tensor  # (N,) int64, in the padded sequence


_masks: _Masks | None = None
_tokens: _Tokens | None = None


@contextmanager
def sample_masks(seed: int, step: int, index: Tensor) -> Iterator[None]:
    """Within this block ``SampleDropout`` draws for ``step`` and the samples ``index`` (B,)."""
    key = hash64(seed, step)
    with _drawing(_Masks(key, mix_states(index + key))):
        yield


def same_masks() -> AbstractContextManager[None]:
    """A block in which masks are drawn as they are now, for a forward that is computed again
    later."""
    return _drawing(_masks)


@contextmanager
def masks_of_parts(sample: Tensor, place: Tensor) -> Iterator[None]:
    """Within this block rows are not samples but parts of them, such as single pictures: ``sample``
    (N,) is the row of the surrounding block that each belongs to, ``place`` (N,) which part of it
    it is."""
    if _masks is None:
        yield
        return
    states = _masks.states.to(sample.device)[sample]
    with _drawing(_Masks(_masks.key, mix_states(states + place + 1))):
        yield


@contextmanager
def _drawing(masks: _Masks | None) -> Iterator[None]:
    global _masks
    previous, _masks = _masks, masks
    try:
        yield
    finally:
        _masks = previous


@contextmanager
def token_rows(sample: Tensor, place: Tensor) -> Iterator[None]:
    """Within this block the rows of matrices (N, width), or (1, N, width), are tokens of these
    samples at these places of padded sequences (B, T, width), whose masks are theirs; on a CPU
    alone."""
    global _tokens
    previous, _tokens = _tokens, _Tokens(sample, place)
    try:
        yield
    finally:
        _tokens = previous


def keep_mask(shape: torch.Size, p: float, layer: int, device: torch.device) -> Tensor:
    """Bool mask of ``shape`` (B, ...), True with probability 1 - p. Outside ``sample_masks`` it is
    torch's own draw."""
    if _masks is None:
        return torch.rand(shape, device=device) >= p
    return dropout_op.keep_mask(shape, _masks.states_of(shape[0], device), layer, p)


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
        if _tokens is not None and _masks is not None:
            of_rows = _masks.states[_tokens.sample]
            rows = x.flatten(0, -2)  # (N, width)
            dropped = dropout_op.drop_tokens(rows, of_rows, _tokens.place, self.layer, self.p)
            return dropped.view(x.shape)
        states = self.states_of(x)
        if states is None:
            return functional.dropout(x, self.p)
        return dropout_op.drop(x, states, self.layer, self.p)

    def states_of(self, x: Tensor) -> Tensor | None:
        """(B,) int64, what the masks of the rows of ``x`` are drawn from; None outside
        ``sample_masks``, where they are torch's own draw."""
        return None if _masks is None else _masks.states_of(len(x), x.device)

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
