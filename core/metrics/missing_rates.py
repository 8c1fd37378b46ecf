"""Scores over rates of missing data, summed up in one number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def auilc(rates: Sequence[float], values: Sequence[float]) -> float:
    """Area under the indicator's line chart (Yuan et al., ACM MM 2021): the trapezoid rule over the rates.

    Over rates from 0 to 1 (MOSI, MOSEI) it is about the mean; over 0 to 0.5 (SIMS) about half of it, so tables of
    different grids cannot be compared. The order of the rates must be rising.
    """
    if len(rates) != len(values) or len(rates) < 2:
        raise ValueError(
            f"an area needs two or more rates with a value each, got {len(rates)} and {len(values)}"
        )
    if (np.diff(rates) <= 0).any():
        raise ValueError(f"rates must rise, got {list(rates)}")
    return float(np.trapezoid(values, rates))
