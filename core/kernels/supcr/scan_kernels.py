# mypy: ignore-errors
"""SupCR on a GPU for any labels: rows put in the order of their labels, and a strip of whole rows of
the matrix from exponents to the gradient's weights.

Every kernel works on sorted rows: row p has the p-th label. No output has two writers, so the bits
are the same every time. Numbers of rows are not specialised: one compilation serves all. A row's
``length`` is not a number where the row or its label is not finite; all results are not numbers
then.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.supcr.row_scan import row_weights
from core.kernels.supcr.tile_products import (
    INFINITY,
    LOG2_E,
    exponent_tile,
    length_of,
    load_rows,
    write_operands,
)


@triton.jit
def longest_of(lengths, count, BLOCK: tl.constexpr):
    """The greatest length, infinite where one is no number."""
    longest = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, count, BLOCK):
        places = begin + tl.arange(0, BLOCK)
        length = tl.load(lengths + places, mask=places < count, other=0.0)
        longest = tl.maximum(longest, tl.where(length < INFINITY, length, INFINITY))
    return tl.max(longest)


@triton.jit(do_not_specialize=["num_rows"])
def prepare_kernel(
    features,
    labels,
    high,
    low,
    lengths,
    values,
    first,
    last,
    order,
    label_limit,
    num_rows,
    width,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Puts BLOCK_M rows to where their labels belong: the number of lower labels, and of equal ones
    before.

    Args:
        features: (num_rows, width) float32.
        labels: (num_rows,) numbers below ``label_limit``; others count as not finite.
        high, low: (num_rows, WIDTH) float16 operands, scaled by a power of two for each row.
        lengths: (num_rows,) float32.
        values, first, last: (num_rows,) label; where its rows begin, and one past where they end.
        order: (num_rows,) int32 row that each came from.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_rows
    label = tl.load(labels + rows, mask=row_valid, other=0).to(tl.float64)
    has_label = tl.abs(label) < label_limit
    key = tl.where(has_label, label, INFINITY)
    lower = tl.zeros((BLOCK_M,), dtype=tl.int32)
    equal = tl.zeros((BLOCK_M,), dtype=tl.int32)
    before = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for begin in range(0, num_rows, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        valid = columns < num_rows
        other = tl.load(labels + columns, mask=valid, other=0).to(tl.float64)
        other = tl.where(tl.abs(other) < label_limit, other, INFINITY)
        is_equal = valid[None, :] & (other[None, :] == key[:, None])
        is_lower = valid[None, :] & (other[None, :] < key[:, None])
        is_before = is_equal & (columns[None, :] < rows[:, None])
        lower += tl.sum(is_lower.to(tl.int32), axis=1)
        equal += tl.sum(is_equal.to(tl.int32), axis=1)
        before += tl.sum(is_before.to(tl.int32), axis=1)
    place = lower + before

    length = length_of(features, rows, row_valid, width, BLOCK_M, BLOCK_D)
    length = tl.where(has_label, length, float("nan"))
    write_operands(features, rows, row_valid, length, high, low, place, width, WIDTH, BLOCK_D)
    tl.store(lengths + place, length, mask=row_valid)
    tl.store(values + place, key, mask=row_valid)
    tl.store(first + place, lower, mask=row_valid)
    tl.store(last + place, lower + equal, mask=row_valid)
    tl.store(order + place, rows, mask=row_valid)


@triton.jit(do_not_specialize=["first_anchor", "num_anchors", "num_columns"])
def exponents_kernel(
    high,
    low,
    lengths,
    places,
    exponents,
    exponent_scale,
    first_anchor,
    num_anchors,
    num_columns,
    line_width,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One tile of a strip's exponents, (num_anchors, line_width) float32.

    Args:
        places: (all anchors,) int32 place of each anchor among the sorted rows; the strip's begin
            at ``first_anchor``.
    """
    anchors = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    anchor_valid = anchors < num_anchors
    rows = tl.load(places + first_anchor + anchors, mask=anchor_valid, other=0)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tile = exponent_tile(
        rows=rows,
        row_valid=anchor_valid,
        columns=columns,
        left_high=load_rows(high, rows, anchor_valid, 0, BLOCK_D, WIDTH),
        left_low=load_rows(low, rows, anchor_valid, 0, BLOCK_D, WIDTH),
        high=high,
        low=low,
        lengths=lengths,
        exponent_scale=exponent_scale,
        num_columns=num_columns,
        WIDTH=WIDTH,
        BLOCK_D=BLOCK_D,
        EXACT=EXACT,
    )
    to = exponents + anchors.to(tl.int64)[:, None] * line_width + columns[None, :]
    tl.store(to, tile, mask=anchor_valid[:, None] & (columns < num_columns)[None, :])


@triton.jit(do_not_specialize=["first_anchor", "num_anchors", "num_columns", "search_steps"])
def scan_kernel(
    high,
    low,
    lengths,
    values,
    first,
    last,
    places,
    exponents,
    denominators,
    weights,
    losses,
    longest,
    exponent_scale,
    similarity_share,
    largest_exponent,
    first_anchor,
    num_anchors,
    num_columns,
    line_width,
    WIDTH: tl.constexpr,
    search_steps,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Exponents of BLOCK_M rows to the gradient's weights e W - 1, in place, and their losses.

    Args:
        denominators, weights: scratch of the shape of ``exponents``.
        losses: (all anchors,) float64 sum over columns of log2 D, less ``similarity_share`` times
            log2 e.
        longest: () float32 greatest length; read, or written if WHOLE.
        largest_exponent: of two that sums of exponentials may reach; logarithms are summed beyond.
        search_steps: that halve num_columns to nothing.
        WHOLE: whether all rows are anchors and the exponents are to be computed here first;
            otherwise they are there already.
    """
    anchors = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    anchor_valid = anchors < num_anchors
    if WHOLE:
        rows = anchors
        greatest = longest_of(lengths, num_columns, 128)
        tl.store(longest, greatest)  # the same from every program
        left_high = load_rows(high, rows, anchor_valid, 0, BLOCK_D, WIDTH)
        left_low = load_rows(low, rows, anchor_valid, 0, BLOCK_D, WIDTH)
        for begin in range(0, num_columns, BLOCK_N):
            columns = begin + tl.arange(0, BLOCK_N)
            tile = exponent_tile(
                rows=rows,
                row_valid=anchor_valid,
                columns=columns,
                left_high=left_high,
                left_low=left_low,
                high=high,
                low=low,
                lengths=lengths,
                exponent_scale=exponent_scale,
                num_columns=num_columns,
                WIDTH=WIDTH,
                BLOCK_D=BLOCK_D,
                EXACT=EXACT,
            )
            to = exponents + anchors.to(tl.int64)[:, None] * line_width + columns[None, :]
            tl.store(to, tile, mask=anchor_valid[:, None] & (columns < num_columns)[None, :])
        tl.debug_barrier()
    else:
        rows = tl.load(places + first_anchor + anchors, mask=anchor_valid, other=0)
        greatest = tl.load(longest)
    lines = anchors.to(tl.int64) * line_width
    # A row or label that is not finite shows in every loss.
    similarity_share = tl.where(greatest < INFINITY, similarity_share, float("nan"))
    in_range = greatest * greatest * exponent_scale * LOG2_E < largest_exponent
    if in_range:
        row_weights(
            rows,
            anchor_valid,
            exponents + lines,
            denominators + lines,
            weights + lines,
            losses + first_anchor + anchors,
            values,
            first,
            last,
            similarity_share,
            num_columns,
            search_steps,
            LOG=False,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
        )
    else:
        row_weights(
            rows,
            anchor_valid,
            exponents + lines,
            denominators + lines,
            weights + lines,
            losses + first_anchor + anchors,
            values,
            first,
            last,
            similarity_share,
            num_columns,
            search_steps,
            LOG=True,
            BLOCK_M=BLOCK_M,
            BLOCK_N=BLOCK_N,
        )
