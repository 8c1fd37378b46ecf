# mypy: ignore-errors
"""From the weights of a strip to gradients, SupCR on a GPU for any labels; see ``scan_kernels``."""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.supcr.tile_products import (
    INFINITY,
    operand_exponent,
    power_of_two,
    relative_scale,
    weighted_sum,
)

LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=["num_rows"])
def whole_gradient_kernel(
    weights,
    high,
    low,
    lengths,
    order,
    losses,
    longest,
    gradient,
    loss,
    gradient_scale,
    loss_scale,
    num_rows,
    line_width,
    width,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """(weights + their transpose) times the rows, for BLOCK_M of them and BLOCK_OUT features, in
    the order the rows came in; and the sum of all losses, by the first program."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_rows
    first_feature = tl.program_id(1) * BLOCK_OUT
    greatest = tl.load(longest)
    total = tl.zeros((BLOCK_M, BLOCK_OUT), dtype=tl.float32)
    for begin in range(0, num_rows, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        valid = columns < num_rows
        both_valid = row_valid[:, None] & valid[None, :]
        as_anchor = weights + rows[:, None] * line_width + columns[None, :]
        as_candidate = weights + columns[None, :] * line_width + rows[:, None]
        weight = tl.load(as_anchor, mask=both_valid, other=0.0)
        weight += tl.load(as_candidate, mask=both_valid, other=0.0)
        weight *= relative_scale(lengths, columns, valid, greatest)[None, :]
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, WIDTH, EXACT, BLOCK_OUT
        )
    gradient_scale = tl.where(greatest < INFINITY, gradient_scale, float("nan"))
    total *= gradient_scale * power_of_two(operand_exponent(greatest))
    features = first_feature + tl.arange(0, BLOCK_OUT)
    row = tl.load(order + rows, mask=row_valid, other=0)
    to = gradient + row.to(tl.int64)[:, None] * width + features[None, :]
    tl.store(to, total, mask=row_valid[:, None] & (features < width)[None, :])
    is_first = (tl.program_id(0) == 0) & (tl.program_id(1) == 0)
    if is_first:
        sums = tl.zeros((BLOCK_N,), dtype=tl.float64)
        for begin in range(0, num_rows, BLOCK_N):
            columns = begin + tl.arange(0, BLOCK_N)
            sums += tl.load(losses + columns, mask=columns < num_rows, other=0.0)
        tl.store(loss, (tl.sum(sums) * LN_2 * loss_scale).to(tl.float32))


@triton.jit(do_not_specialize=["num_anchors", "num_columns", "columns_per_split"])
def anchor_gradient_kernel(
    weights,
    high,
    low,
    lengths,
    longest,
    parts,
    shrink,
    num_anchors,
    num_columns,
    line_width,
    columns_per_split,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A strip's weights times the rows, over one split of the columns: parts (splits, num_anchors,
    WIDTH)."""
    anchors = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    anchor_valid = anchors < num_anchors
    first_feature = tl.program_id(2) * BLOCK_OUT
    greatest = tl.load(longest)
    total = tl.zeros((BLOCK_M, BLOCK_OUT), dtype=tl.float32)
    split_begin = tl.program_id(1) * columns_per_split
    split_end = tl.minimum(split_begin + columns_per_split, num_columns)
    for begin in range(split_begin, split_end, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        valid = columns < split_end
        at = weights + anchors.to(tl.int64)[:, None] * line_width + columns[None, :]
        weight = tl.load(at, mask=anchor_valid[:, None] & valid[None, :], other=0.0)
        weight *= relative_scale(lengths, columns, valid, greatest)[None, :] * shrink
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, WIDTH, EXACT, BLOCK_OUT
        )
    features = first_feature + tl.arange(0, BLOCK_OUT)
    line = tl.program_id(1).to(tl.int64) * num_anchors + anchors
    tl.store(parts + line[:, None] * WIDTH + features[None, :], total, mask=anchor_valid[:, None])


@triton.jit(do_not_specialize=["first_anchor", "num_anchors", "num_columns", "num_splits"])
def candidate_gradient_kernel(
    weights,
    high,
    low,
    lengths,
    places,
    anchor_of,
    order,
    longest,
    parts,
    gradient,
    shrink,
    first_anchor,
    num_anchors,
    num_columns,
    line_width,
    num_splits,
    width,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Adds to the gradient, (rows, width) in the order the rows came in, what rows get as candidates
    of a strip's anchors, and to those of the anchors their parts.

    Args:
        anchor_of: (num_columns,) int32 number of the anchor that a row is, -1 where it is none.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_columns
    first_feature = tl.program_id(1) * BLOCK_OUT
    features = first_feature + tl.arange(0, BLOCK_OUT)
    greatest = tl.load(longest)
    total = tl.zeros((BLOCK_M, BLOCK_OUT), dtype=tl.float32)
    for begin in range(0, num_anchors, BLOCK_N):
        anchors = begin + tl.arange(0, BLOCK_N)
        valid = anchors < num_anchors
        columns = tl.load(places + first_anchor + anchors, mask=valid, other=0)
        at = weights + anchors.to(tl.int64)[None, :] * line_width + rows[:, None]
        weight = tl.load(at, mask=row_valid[:, None] & valid[None, :], other=0.0)
        weight *= relative_scale(lengths, columns, valid, greatest)[None, :] * shrink
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, WIDTH, EXACT, BLOCK_OUT
        )
    anchor = tl.load(anchor_of + rows, mask=row_valid, other=-1) - first_anchor
    is_anchor = (anchor >= 0) & (anchor < num_anchors)
    has_anchor = tl.max(is_anchor.to(tl.int32)) > 0
    if has_anchor:
        for split_number in range(0, num_splits):
            line = split_number * num_anchors + tl.where(is_anchor, anchor, 0)
            at = parts + line.to(tl.int64)[:, None] * WIDTH + features[None, :]
            total += tl.load(at, mask=is_anchor[:, None], other=0.0)
    row = tl.load(order + rows, mask=row_valid, other=0)
    to = gradient + row.to(tl.int64)[:, None] * width + features[None, :]
    to_valid = row_valid[:, None] & (features < width)[None, :]
    total *= power_of_two(operand_exponent(greatest)) / shrink
    tl.store(to, tl.load(to, mask=to_valid, other=0.0) + total, mask=to_valid)
