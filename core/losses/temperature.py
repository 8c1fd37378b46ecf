"""A temperature that is a number or learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Temperature(nn.Module):
    """A learnt temperature, kept positive through its logarithm; shape [1], as ZeRO refuses 0-dim
    parameters."""

    def __init__(self, start: float):
        super().__init__()
        self.log = nn.Parameter(torch.tensor([math.log(start)]))

    def forward(self) -> Tensor:
        return self.log.exp()


class FixedTemperature(nn.Module):
    """A temperature that stays as it is."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def __call__(self) -> float:  # past the hooks of ZeRO 3, which cannot look at a number
        return self.value

    def extra_repr(self) -> str:
        return str(self.value)


def temperature_of(loss: str, start: float, learnable: bool) -> nn.Module:
    """The temperature of the loss named ``loss``.

    Raises:
        ValueError: unless ``start`` is positive.
    """
    check_temperature(loss, start)
    return Temperature(start) if learnable else FixedTemperature(start)


def check_temperature(loss: str, temperature: float) -> None:
    """Raises ValueError unless the temperature of the loss named ``loss`` is a positive number."""
    if not temperature > 0:
        raise ValueError(f"{loss} needs a positive temperature, got {temperature}")


def at_temperature(rows: Tensor, temperature: Tensor | float) -> Tensor:
    """Rows whose products are those of ``rows`` over the temperature, which gets its gradient
    through them."""
    return rows * temperature**-0.5
