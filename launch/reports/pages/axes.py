"""Axes of a chart: which numbers stand at them, and where a value lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """A scale from values to places, in units of the drawing."""

    low: float
    high: float
    start: float  # place of ``low``
    end: float  # place of ``high``
    ticks: tuple[float, ...]
    logarithmic: bool = False
    labels: tuple[str, ...] = ()  # at the ticks, where they are no numbers

    def place(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, low))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def tick_labels(self) -> tuple[str, ...]:
        return self.labels or tuple(number_text(tick) for tick in self.ticks)


def linear_axis(
    values: Sequence[float], start: float, end: float, *, most: int = 5, room: float = 0.04
) -> Axis:
    """An axis over all values, with at most so many round ticks within it.

    Args:
        room: part of the range that is left free at both ends.
    """
    low, high = _range(values)
    margin = room * (high - low)
    low, high = low - margin, high + margin
    step = _round_step((high - low) / max(1, most - 1))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    ticks = tuple(round(number * step, 12) for number in range(first, last + 1))
    return Axis(low, high, start, end, ticks)


def whole_axis(low: int, high: int, start: float, end: float, *, most: int = 6) -> Axis:
    """An axis of whole numbers, such as epochs."""
    step = max(1, math.ceil((high - low) / max(1, most - 1)))
    ticks = tuple(float(number) for number in range(low, high + 1, step))
    room = 0.03 * (high - low) or 0.5
    return Axis(low - room, high + room, start, end, ticks)


def logarithmic_axis(
    values: Sequence[float], start: float, end: float, ticks: Sequence[float] = ()
) -> Axis:
    """An axis of positive values; without ``ticks`` the powers of ten within it stand there."""
    positive = [value for value in values if value > 0 and math.isfinite(value)]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    if low == high:
        low, high = low / 2, high * 2
    low, high = low / (high / low) ** 0.04, high * (high / low) ** 0.04
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    stand = list(ticks) or [10.0**power for power in powers]
    if len(stand) < 2 and not ticks:
        stand = [low * 1.05, math.sqrt(low * high), high / 1.05]
    every = math.ceil(len(stand) / 6)
    return Axis(low, high, start, end, tuple(stand[::every]), logarithmic=True)


def named_axis(names: Sequence[str], start: float, end: float) -> Axis:
    """One place for each name, evenly spaced."""
    ticks = tuple(float(number) for number in range(len(names)))
    return Axis(-0.5, len(names) - 0.5, start, end, ticks, labels=tuple(names))


def number_text(value: float) -> str:
    """A number as short as it can be told apart from its neighbours."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.3g}".replace("-", "−")


def _range(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    # what differs by rounding alone is the same, and a zoom into it would look like a difference
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = abs(low) / 10 or 0.5
        return low - half, high + half
    return low, high


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    for factor in (1, 2, 5, 10):
        if factor * power >= step * (1 - 1e-9):
            return factor * power
    return 10 * power
