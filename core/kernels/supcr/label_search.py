# mypy: ignore-errors
"""Where the columns of one side of a row, sorted by label, change from nearer to farther.

Distances are differences of labels in float64, computed where they are compared: rounding is
monotonic, so a binary search finds the same columns as a comparison of all.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def search(
    values, value, distance, low, high, wanted, steps, LEFT: tl.constexpr, FARTHER: tl.constexpr
):
    """Where the columns from ``low`` to ``high``, all of one side, change from one kind to another.

    FARTHER: on the left the first that is nearer than ``distance``, on the right the first that is
    at least as far. Otherwise: on the left the first that is at most as far, on the right the first
    that is farther.
    """
    for _ in range(steps):
        searching = wanted & (low < high)
        middle = (low + high) // 2
        other = tl.load(values + middle, mask=searching, other=0.0)
        if LEFT:
            of_middle = value - other
            is_beyond = of_middle < distance if FARTHER else of_middle <= distance
        else:
            of_middle = other - value
            is_beyond = of_middle >= distance if FARTHER else of_middle > distance
        high = tl.where(searching & is_beyond, middle, high)
        low = tl.where(searching & (is_beyond == 0), middle + 1, low)
    return low


@triton.jit
def last_tie(
    values,
    first,
    last,
    value,
    distance,
    columns,
    begin,
    end,
    wanted,
    LEFT: tl.constexpr,
    UPWARDS: tl.constexpr,
):
    """The last column of the same distance on the same side, going up or down.

    These are those of equal label, and those whose distance is rounded to the same number.
    """
    if UPWARDS:
        found = tl.load(last + columns, mask=wanted, other=1) - 1
        following = found + 1
        within = wanted & (following < end)
    else:
        found = tl.load(first + columns, mask=wanted, other=0)
        following = found - 1
        within = wanted & (following >= begin)
    other = tl.load(values + following, mask=within, other=0.0)
    of_following = value - other if LEFT else other - value
    is_tie = within & (of_following == distance)
    while tl.max(tl.max(is_tie.to(tl.int32), axis=1), axis=0) > 0:
        if UPWARDS:
            end_of_tie = tl.load(last + following, mask=is_tie, other=1)
            found = tl.where(is_tie, end_of_tie - 1, found)
            following = found + 1
            within = is_tie & (following < end)
        else:
            start_of_tie = tl.load(first + following, mask=is_tie, other=0)
            found = tl.where(is_tie, start_of_tie, found)
            following = found - 1
            within = is_tie & (following >= begin)
        other = tl.load(values + following, mask=within, other=0.0)
        of_following = value - other if LEFT else other - value
        is_tie = within & (of_following == distance)
    return found


@triton.jit
def facing_column(
    values,
    value,
    distance,
    border,
    wanted,
    num_columns,
    steps,
    LEFT: tl.constexpr,
    FARTHER: tl.constexpr,
):
    """``search`` on the side that columns do not lie on themselves.

    Args:
        border: one past the left side.
        LEFT: whether the columns lie on the left, and so the search is on the right.
    """
    if LEFT:
        low, high = border, tl.zeros_like(border) + num_columns
    else:
        low, high = tl.zeros_like(border), border
    low = tl.where(wanted, low, 0)
    high = tl.where(wanted, high, 0)
    return search(values, value, distance, low, high, wanted, steps, not LEFT, FARTHER)
