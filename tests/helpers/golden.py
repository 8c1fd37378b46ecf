"""Weights and inputs that are filled by rule, so that a few printed numbers pin a whole network
down."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

TO_1E_7 = {"rtol": 0.0, "atol": 1e-7}


@contextmanager
def float64() -> Iterator[None]:
    """Everything made inside is float64, positions too."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def filled(k: int, shape: Sequence[int], scale: float = 0.5) -> Tensor:
    """Weight number ``k``: scale sin(1 + k + 0.37 i + 0.011 i^2) over its flat index i."""
    i = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return (scale * torch.sin(1 + k + 0.37 * i + 0.011 * i**2)).reshape(tuple(shape))


def wave(k: int, *shape: int) -> Tensor:
    """Input number ``k``: cos(0.5 + k + 0.29 i + 0.007 i^2)."""
    i = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.float64)
    return torch.cos(0.5 + k + 0.29 * i + 0.007 * i**2).reshape(shape)


@torch.no_grad()
def fill(parameters: Iterable[nn.Parameter], k: int, scale: float = 0.5) -> int:
    """Give parameters the weights number ``k`` and on; the number behind the last one.

    Weights of layer norms are 1 more: hand those modules to ``fill_norm``.
    """
    for parameter in parameters:
        parameter.copy_(filled(k, parameter.shape, scale))
        k += 1
    return k


def fill_linear(layer: nn.Module, k: int, scale: float = 0.5) -> int:
    """A linear layer's weight, then its bias where it has one."""
    return fill(layer.parameters(), k, scale)


@torch.no_grad()
def fill_norm(norm: nn.Module, k: int) -> int:
    """A norm's gain, one more than its number says, and its shift."""
    gain, shift = norm.parameters()
    gain.copy_(1 + filled(k, gain.shape))
    shift.copy_(filled(k + 1, shift.shape))
    return k + 2


@torch.no_grad()
def fill_attention(attention: nn.Module, k: int) -> int:
    """Query, key and value as one matrix and one bias, as torch's own module has them, then out."""
    layers = [attention.query, attention.key, attention.value]
    rows, columns = layers[0].weight.shape
    weights = filled(k, (3 * rows, columns)).chunk(3)
    biases = filled(k + 1, (3 * rows,)).chunk(3)
    for layer, weight, bias in zip(layers, weights, biases, strict=True):
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return fill_linear(attention.out, k + 2)


def fill_encoder(encoder: nn.Module, k: int) -> None:
    """An encoder of ``core.encoders.cross_attention``, 12 numbers a layer and then the last
    norm."""
    layers = zip(encoder.attention, encoder.feed, encoder.before, encoder.between, strict=True)
    for attention, feed, before, between in layers:
        k = fill_attention(attention, k)
        k = fill(feed.parameters(), k)
        k = fill_norm(before, k)
        k = fill_norm(between, k)
    fill_norm(encoder.last, k)
