# mypy: ignore-errors
"""From a row's exponents to its weights: sums from both ends inwards, and back outwards.

A row's columns are sorted by label. Those of labels up to the row's own are its left side, the
others its right side. From either end inwards the sums of exponentials of one side add up. The
denominator of column j then is the sum of two of them: of its own side up to j, and of the other
side up to the last column that is at least as far, which a binary search finds. Weights are sums of
1 / D outwards in the same way. Only positive numbers are added, never a difference taken.

With LOG, all are base-2 logarithms.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.supcr.label_search import facing_column, last_tie
from core.kernels.supcr.tile_products import LOG_OF_ZERO, add_logarithms, sum_logarithms


@triton.jit
def _add_pairs(left_largest, left_total, right_largest, right_total):
    """Sums kept as total * 2**largest; an empty one has the largest -inf and the total 0."""
    largest = tl.maximum(left_largest, right_largest)
    shift = tl.where(largest == LOG_OF_ZERO, 0.0, largest)
    left = left_total * tl.exp2(left_largest - shift)
    right = right_total * tl.exp2(right_largest - shift)
    return largest, left + right


@triton.jit
def running_sums(numbers, carried, REVERSE: tl.constexpr, LOG: tl.constexpr):
    """Sums along a tile's columns, beginning with ``carried``, and what to carry on."""
    if LOG:
        totals = tl.where(numbers == LOG_OF_ZERO, 0.0, 1.0)
        largest, totals = tl.associative_scan((numbers, totals), 1, _add_pairs, reverse=REVERSE)
        logarithms = largest + tl.log2(tl.where(totals > 0, totals, 1.0))
        return (
            add_logarithms(logarithms, carried[:, None]),
            add_logarithms(carried, sum_logarithms(numbers)),
        )
    else:
        sums = tl.cumsum(numbers, axis=1, reverse=REVERSE)
        return sums + carried[:, None], carried + tl.sum(numbers, axis=1)


@triton.jit
def load_terms(exponents, rows, columns, taken, LOG: tl.constexpr):
    """What a tile adds to sums: exponentials or their logarithms, nothing where a row meets
    itself."""
    counts = taken & (columns != rows[:, None])
    exponent = tl.load(exponents[:, None] + columns, mask=counts, other=LOG_OF_ZERO)
    return exponent if LOG else tl.exp2(exponent)


@triton.jit
def _sum_inwards(
    rows,
    row_valid,
    begin,
    end,
    exponents,
    denominators,
    num_tiles,
    steps,
    LEFT: tl.constexpr,
    LOG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each column's sum of one side from its end up to that column."""
    carried = tl.full((BLOCK_M,), LOG_OF_ZERO if LOG else 0.0, dtype=tl.float32)
    for step in range(steps):
        tile = step if LEFT else num_tiles - 1 - step
        columns = (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
        taken = row_valid[:, None] & (columns >= begin) & (columns < end)
        terms = load_terms(exponents, rows, columns, taken, LOG)
        sums, carried = running_sums(terms, carried, REVERSE=not LEFT, LOG=LOG)
        tl.store(denominators[:, None] + columns, sums, mask=taken)


@triton.jit
def _sum_outwards(
    rows,
    row_valid,
    value,
    side_border,
    begin,
    end,
    exponents,
    denominators,
    weights,
    values,
    first,
    last,
    similarity_share,
    num_columns,
    search_steps,
    first_tile,
    steps,
    LEFT: tl.constexpr,
    LOG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Each column's sum of 1 / D of one side from the row outwards to that column; gives the row's
    losses of that side."""
    empty = LOG_OF_ZERO if LOG else 0.0
    carried = tl.full((BLOCK_M,), empty, dtype=tl.float32)
    loss = tl.zeros((BLOCK_M,), dtype=tl.float64)
    for step in range(steps):
        tile = first_tile - step if LEFT else first_tile + step
        columns = (tile * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
        taken = row_valid[:, None] & (columns >= begin) & (columns < end)
        other = tl.load(values + columns, mask=taken, other=0.0)
        distance = value - other if LEFT else other - value
        own = last_tie(
            values,
            first,
            last,
            value,
            distance,
            columns,
            begin,
            end,
            taken,
            LEFT=LEFT,
            UPWARDS=LEFT,
        )
        facing = facing_column(
            values, value, distance, side_border, taken, num_columns, search_steps, LEFT, True
        )
        if LEFT:
            has_facing = taken & (facing < num_columns)
        else:
            facing -= 1
            has_facing = taken & (facing >= 0)
        denominator = tl.load(denominators[:, None] + own, mask=taken, other=1.0)
        of_facing = tl.load(denominators[:, None] + facing, mask=has_facing, other=empty)
        counts = taken & (columns != rows[:, None])
        if LOG:
            log_denominator = add_logarithms(denominator, of_facing)
            terms = tl.where(counts, -log_denominator, LOG_OF_ZERO)
        else:
            denominator = tl.where(counts, denominator + of_facing, 1.0)
            log_denominator = tl.log2(denominator)
            terms = tl.where(counts, 1.0 / denominator, 0.0)
        exponent = tl.load(exponents[:, None] + columns, mask=counts, other=0.0)
        losses = tl.where(counts, log_denominator - similarity_share * exponent, 0.0)
        loss += tl.sum(losses, axis=1).to(tl.float64)
        sums, carried = running_sums(terms, carried, REVERSE=LEFT, LOG=LOG)
        tl.store(weights[:, None] + columns, sums, mask=taken)
    return loss


@triton.jit
def _write_weights(
    rows,
    row_valid,
    value,
    side_border,
    begin,
    end,
    exponents,
    weights,
    values,
    first,
    last,
    num_columns,
    search_steps,
    first_tile,
    steps,
    LEFT: tl.constexpr,
    LOG: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """e W - 1 in the place of the exponents of one side."""
    empty = LOG_OF_ZERO if LOG else 0.0
    for step in range(steps):
        columns = ((first_tile + step) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
        taken = row_valid[:, None] & (columns >= begin) & (columns < end)
        other = tl.load(values + columns, mask=taken, other=0.0)
        distance = value - other if LEFT else other - value
        own = last_tie(
            values,
            first,
            last,
            value,
            distance,
            columns,
            begin,
            end,
            taken,
            LEFT=LEFT,
            UPWARDS=not LEFT,
        )
        facing = facing_column(
            values, value, distance, side_border, taken, num_columns, search_steps, LEFT, False
        )
        if LEFT:
            facing -= 1
            has_facing = taken & (facing >= side_border)
        else:
            has_facing = taken & (facing < side_border)
        weight = tl.load(weights[:, None] + own, mask=taken, other=empty)
        of_facing = tl.load(weights[:, None] + facing, mask=has_facing, other=empty)
        counts = taken & (columns != rows[:, None])
        exponent = tl.load(exponents[:, None] + columns, mask=counts, other=0.0)
        if LOG:
            weight = tl.exp2(exponent + add_logarithms(weight, of_facing))
        else:
            weight = tl.exp2(exponent) * (weight + of_facing)
        tl.store(exponents[:, None] + columns, tl.where(counts, weight - 1.0, 0.0), mask=taken)


@triton.jit
def row_weights(
    rows,
    row_valid,
    exponents,
    denominators,
    weights,
    losses,
    values,
    first,
    last,
    similarity_share,
    num_columns,
    search_steps,
    LOG: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """See ``scan_kernels.scan_kernel``.

    Args:
        rows: (BLOCK_M,) places among the columns.
        exponents, denominators, weights: (BLOCK_M,) pointers to the first column of each row.
        losses: (BLOCK_M,) pointers.
    """
    value = tl.load(values + rows, mask=row_valid, other=0.0)[:, None]
    # One past the row's left side; neighbouring rows differ little in it.
    border = tl.load(last + rows, mask=row_valid, other=0)
    greatest_border = tl.max(border, axis=0)
    least_border = tl.min(tl.where(row_valid, border, num_columns), axis=0)
    border = border[:, None]
    num_tiles = tl.cdiv(num_columns, BLOCK_N)
    left_tiles = tl.cdiv(greatest_border, BLOCK_N)
    first_right_tile = least_border // BLOCK_N
    right_tiles = num_tiles - first_right_tile
    start = tl.zeros_like(border)
    stop = start + num_columns
    _sum_inwards(
        rows,
        row_valid,
        start,
        border,
        exponents,
        denominators,
        num_tiles,
        left_tiles,
        True,
        LOG,
        BLOCK_M,
        BLOCK_N,
    )
    _sum_inwards(
        rows,
        row_valid,
        border,
        stop,
        exponents,
        denominators,
        num_tiles,
        right_tiles,
        False,
        LOG,
        BLOCK_M,
        BLOCK_N,
    )
    tl.debug_barrier()  # what other threads have written is read below
    loss = _sum_outwards(
        rows,
        row_valid,
        value,
        border,
        start,
        border,
        exponents,
        denominators,
        weights,
        values,
        first,
        last,
        similarity_share,
        num_columns,
        search_steps,
        left_tiles - 1,
        left_tiles,
        True,
        LOG,
        BLOCK_M,
        BLOCK_N,
    )
    loss += _sum_outwards(
        rows,
        row_valid,
        value,
        border,
        border,
        stop,
        exponents,
        denominators,
        weights,
        values,
        first,
        last,
        similarity_share,
        num_columns,
        search_steps,
        first_right_tile,
        right_tiles,
        False,
        LOG,
        BLOCK_M,
        BLOCK_N,
    )
    tl.store(losses, loss, mask=row_valid)
    tl.debug_barrier()
    _write_weights(
        rows,
        row_valid,
        value,
        border,
        start,
        border,
        exponents,
        weights,
        values,
        first,
        last,
        num_columns,
        search_steps,
        0,
        left_tiles,
        True,
        LOG,
        BLOCK_N,
    )
    _write_weights(
        rows,
        row_valid,
        value,
        border,
        border,
        stop,
        exponents,
        weights,
        values,
        first,
        last,
        num_columns,
        search_steps,
        first_right_tile,
        right_tiles,
        False,
        LOG,
        BLOCK_N,
    )
