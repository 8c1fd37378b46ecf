"""Weights in autocast's precision, all of them by one operator.

Autocast casts every weight and every bias by an operator of its own, and each gradient back by
another: on a GPU these are launches, hundreds in a step of an encoder of BERT's size. Here all are
cast by one operator before the forward, and their gradients by one at the end of the backward. The
numbers are the same.

The weights of layers that read the same tensor, as queries, keys and values do, are cast into one
piece of memory. So these layers are one product, and their gradients are added up inside of it,
not by operators between products of lower precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SAME_INPUT = ("query", "key", "value")  # children of a module of transformers' encoders


class WeightCasts:
    """Of the linear layers below ``model`` that learn, which look here for their weights from now
    on.

    They must be whole while the forward runs (no ZeRO stage 3), and used in it once or several
    times but not in a forward that the backward repeats. All gradients come at the end, which is
    where they are exchanged at ZeRO stage 0 alone.
    """

    def __init__(self, model: nn.Module):
        self._units: list[_Unit] = []
        joined: set[nn.Module] = set()
        for module in model.modules():
            layers = _layers_of_same_input(module)
            if layers:
                joined.update(layers)
                self._units.append(_Unit(layers))
        for module in model.modules():
            if type(module) is nn.Linear and module not in joined and _learns(module):
                self._units.append(_Unit([module]))

    @contextmanager
    def made(self, device: torch.device) -> Iterator[None]:
        """Within this block the weights are cast as autocast has it now; nothing changes without
        autocast."""
        if not (self._units and torch.is_autocast_enabled(device.type)):
            yield
            return
        sizes: list[int] = []
        parameters: list[Tensor] = []
        for unit in self._units:
            for group in unit.parameters():
                sizes.append(len(group))
                parameters += group
        dtype = torch.get_autocast_dtype(device.type)
        cast = iter(_CastTogether.apply(dtype, sizes, *parameters))
        try:
            for unit in self._units:
                unit.cast = list(itertools.islice(cast, len(unit.parameters())))
            yield
        finally:
            for unit in self._units:
                unit.forget()


class _Unit:
    """Linear layers that read the same tensor one after another; mostly a single one."""

    def __init__(self, layers: Sequence[nn.Linear]):
        self.layers = layers
        self.cast: list[Tensor] = []  # the weights one below the other, and the biases
        self._read: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()  # what the layers make of it
        for number, layer in enumerate(layers):
            layer.forward = partial(self._forward, number)  # type: ignore[method-assign]

    def parameters(self) -> list[list[Tensor]]:
        """Weights, and biases where there are some."""
        found = [[layer.weight for layer in self.layers]]
        if self.layers[0].bias is not None:
            found.append([layer.bias for layer in self.layers])
        return found

    def forget(self) -> None:
        self.cast, self._read, self._parts = [], None, ()

    def _forward(self, number: int, x: Tensor) -> Tensor:
        """That of layer ``number``, with cast weights where there are some and autocast would
        cast."""
        layer = self.layers[number]
        if not (self.cast and torch.is_autocast_enabled(x.device.type)):
            return F.linear(x, layer.weight, layer.bias)
        if len(self.layers) == 1:
            return F.linear(x, *self.cast)
        if x is not self._read:
            widths = [layer.out_features for layer in self.layers]
            self._read, self._parts = x, F.linear(x, *self.cast).split(widths, dim=-1)
        part = self._parts[number]
        if number + 1 == len(self.layers):
            self._read, self._parts = None, ()
        return part


def _layers_of_same_input(module: nn.Module) -> list[nn.Linear]:
    """The three layers of a self-attention of transformers, if it is one and they can be joined."""
    if not type(module).__module__.startswith("transformers."):
        return []
    found = []
    for name in SAME_INPUT:
        layer = getattr(module, name, None)
        if type(layer) is nn.Linear and _learns(layer):
            found.append(layer)
    inputs = {(layer.in_features, layer.bias is None) for layer in found}
    can_be_joined = len(found) == len(SAME_INPUT) and len(inputs) == 1
    return found if can_be_joined else []


def _learns(layer: nn.Linear) -> bool:
    return all(parameter.requires_grad for parameter in layer.parameters())


class _CastTogether(torch.autograd.Function):
    """Groups of tensors in another type, each group one below the other; and all their gradients
    back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, sizes: list[int], *tensors: Tensor) -> Any:
        """
        Args:
            sizes: of the groups.
        """
        ctx.set_materialize_grads(False)  # what is not used has no gradient
        ctx.dtype = tensors[0].dtype
        ctx.rows = []  # of each group
        joint, parts = [], []
        remaining = iter(tensors)
        for size in sizes:
            group = list(itertools.islice(remaining, size))
            rows = [len(tensor) for tensor in group]
            whole = group[0].new_empty((sum(rows), *group[0].shape[1:]), dtype=dtype)
            joint.append(whole)
            parts += whole.split(rows)
            ctx.rows.append(rows)
        torch._foreach_copy_(parts, tensors)
        return tuple(joint)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Any, ...]:
        gradients: list[Tensor | None] = []
        narrow: list[Tensor] = []
        wide: list[Tensor] = []
        for whole, rows in zip(upstream, ctx.rows, strict=True):
            if whole is None:
                gradients += [None] * len(rows)
                continue
            for part in whole.split(rows):
                narrow.append(part)
                wide.append(torch.empty_like(part, dtype=ctx.dtype))
                gradients.append(wide[-1])
        if narrow:
            torch._foreach_copy_(wide, narrow)
        return None, None, *gradients
