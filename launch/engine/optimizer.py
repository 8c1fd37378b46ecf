"""The optimiser of a model's parameter groups, and the learning rate of each step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from core.encoders.backbones.adaptation import layer_heights
from core.model import Model
from launch.config import ConfigError, Run

ALGORITHMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def optimizer_for(model: Model, run: Run) -> torch.optim.Optimizer:
    """Torch's own; on a GPU its fused form, one kernel for all parameters of a group."""
    algorithm = ALGORITHMS[run.optim.algorithm]
    fused = run.optim.fused
    if fused == "auto":  # on a CPU results stay what they were
        fused = torch.cuda.is_available() and not run.offload
    groups = parameter_groups(model, run)
    return algorithm(groups, betas=run.optim.betas, eps=run.optim.eps, fused=fused or None)


def is_fused(optimizer: Any) -> bool:
    """Whether the optimiser's step is one kernel, which keeps its own number of steps on the
    device."""
    return any(group.get("fused") for group in optimizer.param_groups)


def parameter_groups(model: Model, run: Run) -> list[dict[str, Any]]:
    """The optimiser's groups: the model names them, the recipe gives each its rate.

    Raises:
        ConfigError: a group has no rate, or a parameter no group, or DeepSpeed cannot train a
            parameter.
    """
    groups: list[dict[str, Any]] = []
    heights = layer_heights(model)
    grouped: set[int] = set()  # ids of the parameters that have a group
    for name, parameters in model.param_groups().items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if not trained:
            continue
        if name not in run.optim.groups:
            raise ConfigError(
                f"model {run.model!r} has a parameter group {name!r}, but optim.groups of recipe "
                f"{run.recipe!r} only names {', '.join(run.optim.groups)}; give it a rate with "
                f"optim.groups.{name}.lr=1e-5"
            )
        grouped.update(map(id, trained))
        setting = run.optim.groups[name]
        settings = {"lr": setting.lr, "weight_decay": setting.weight_decay, "name": name}
        if setting.layer_decay == 1.0:
            groups.append({"params": trained, **settings})
            continue
        for height, part in _by_height(trained, heights):
            scale = setting.layer_decay**height
            groups.append({"params": part, **settings, "layer_scale": scale})
    _refuse_untrainable(model, run, grouped)
    return groups


def _by_height(
    parameters: list[nn.Parameter], heights: dict[int, int]
) -> list[tuple[int, list[nn.Parameter]]]:
    """Parameters by how many layers of their encoder stand above them; 0 for others."""
    parts: dict[int, list[nn.Parameter]] = {}
    for parameter in parameters:
        parts.setdefault(heights.get(id(parameter), 0), []).append(parameter)
    return sorted(parts.items())


def _refuse_untrainable(model: Model, run: Run, grouped: set[int]) -> None:
    """Raise for parameters that no group holds, and for those that DeepSpeed cannot train."""
    forgotten = []
    scalars = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in grouped:
            forgotten.append(name)
        if parameter.ndim == 0:
            scalars.append(name)
    if forgotten:
        raise ConfigError(
            f"model {run.model!r} puts these parameters into no group: {', '.join(forgotten[:5])}"
        )
    if scalars:
        raise ConfigError(
            "DeepSpeed needs parameters of at least one dimension; shape (1,) for: "
            + ", ".join(scalars)
        )


def learning_rate_factor(run: Run, step: int, steps: int, epoch: int) -> float:
    """What every group's rate is multiplied by at ``step`` of ``steps``: a function, so that
    nothing needs saving."""
    optim = run.optim
    warmup_steps = math.ceil(optim.warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    if optim.schedule == "linear":
        return max(0.0, 1.0 - done)
    if optim.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if optim.schedule == "step":
        return float(optim.gamma ** (epoch // optim.step_epochs))
    return 1.0


def set_learning_rates(optimizer: Any, run: Run, factor: float) -> dict[str, float]:
    """Give every group of the optimiser its rate for the coming step; the rates by group name, of
    a group with layer decay that of its uppermost layer.

    Args:
        optimizer: torch's, or DeepSpeed's around it; anything with torch's ``param_groups``.
    """
    rates = {}
    for group in optimizer.param_groups:
        name = group["name"]
        rates[name] = run.optim.groups[name].lr * factor
        group["lr"] = rates[name] * group.get("layer_scale", 1.0)
    return rates
