"""Activation checkpointing: keep a layer's input and compute the layer again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from core.dropout import same_masks


def recompute_layers(model: nn.Module) -> list[str]:
    """Make every layer of ``model`` forget its activations while it trains; their names.

    A layer is an entry of a ``ModuleList`` made of two or more modules with parameters. One with batch norm stays as
    it is, because a second forward would count the batch twice. Results do not change: dropout masks belong to the
    sample, and other random draws are repeated.
    """
    found: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(
            f"{name}.".startswith(f"{outer}.") for outer in found
        ):
            continue
        for place, layer in enumerate(module):
            if _is_worth_it(layer):
                layer.forward = _again(layer, layer.forward)  # type: ignore[method-assign]
                found.append(f"{name}.{place}")
    return found


def _is_worth_it(layer: nn.Module) -> bool:
    modules = list(layer.modules())
    holders = [
        module for module in modules if next(module.parameters(recurse=False), None) is not None
    ]
    return len(holders) > 1 and not any(isinstance(module, _BatchNorm) for module in modules)


def _again(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def recomputed(*inputs: Any, **options: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*inputs, **options)
        return checkpoint(
            forward,
            *inputs,
            use_reentrant=False,
            context_fn=lambda: (nullcontext(), same_masks()),
            **options,
        )

    return recomputed
