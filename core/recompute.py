"""Activation checkpointing: keep a layer's input and compute the layer again in the backward
pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from core.dropout import same_masks


def recompute_layers(model: nn.Module) -> list[str]:
    """Make every layer of ``model`` forget its activations while it trains; their names.

    A layer is an entry of a ``ModuleList`` made of two or more modules with parameters. One with
    batch norm stays as it is, because a second forward would count the batch twice. Results do not
    change: dropout masks belong to the sample, and other random draws are repeated.
    """
    changed: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or _is_within(name, changed):
            continue
        for number, layer in enumerate(module):
            if _is_worth_it(layer):
                layer.forward = _recomputed(layer, layer.forward)  # type: ignore[method-assign]
                changed.append(f"{name}.{number}")
    return changed


def _is_within(name: str, layers: list[str]) -> bool:
    return any(f"{name}.".startswith(f"{layer}.") for layer in layers)


def _is_worth_it(layer: nn.Module) -> bool:
    modules = list(layer.modules())
    with_parameters = [m for m in modules if next(m.parameters(recurse=False), None) is not None]
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in modules)
    return len(with_parameters) > 1 and not has_batch_norm


def _recomputed(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*inputs: Any, **options: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        return checkpoint(
            forward, *inputs, use_reentrant=False, context_fn=_mask_contexts, **options
        )

    return recomputed


def _mask_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What surrounds the first forward, and the one that is computed again: the same dropout
    masks."""
    return nullcontext(), same_masks()
