# mypy: ignore-errors
"""Softmaxes of each row over all others, the divergence between two of them, and their gradients.

Nothing of the (m, n) matrix is kept: products are computed again by the gradient. Operands and
tiles are SupCR's. Anchors are rows of the batch, which ``self_column`` numbers. A matrix of the
batch comes as ``high``, ``low`` and ``lengths``, see ``tile_products.write_operands``; the joint
embedding's, where there is one, has the same rows and a width of its own. Everything is in base 2
but what goes in and out.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.supcr.tile_products import (
    LOG2_E,
    LOG_OF_ZERO,
    exponent_tile,
    length_of,
    load_rows,
    operand_exponent,
    power_of_two,
    relative_scale,
    weighted_sum,
    write_operands,
)

LN_2 = tl.constexpr(0.6931471805599453)
# Probabilities may be as small as 1 / n: this power of two keeps their digits in float16.
WEIGHT_SCALE = tl.constexpr(8192.0)


@triton.jit(do_not_specialize=["num_rows"])
def operands_kernel(
    features,
    high,
    low,
    lengths,
    num_rows,
    width,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """(num_rows, width) float32 rows as operands, (num_rows, WIDTH)."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_rows
    length = length_of(features, rows, row_valid, width, BLOCK_M, BLOCK_D)
    write_operands(features, rows, row_valid, length, high, low, rows, width, WIDTH, BLOCK_D)
    tl.store(lengths + rows, length, mask=row_valid)


@triton.jit
def grow(largest, total, exponents):
    """Adds the columns of a tile to sums that are kept as total * 2**largest.

    Returns:
        The new largest and total, the power of two that the old total was multiplied with, and what
        the exponents are relative to.
    """
    larger = tl.maximum(largest, tl.max(exponents, axis=1))
    shift = tl.where(larger == LOG_OF_ZERO, 0.0, larger)
    shrunk = tl.exp2(largest - shift)
    added = tl.sum(tl.exp2(exponents - shift[:, None]), axis=1)
    return larger, total * shrunk + added, shrunk, shift


@triton.jit
def log_of(largest, total):
    """log2 of such a sum."""
    return tl.where(total == 0, LOG_OF_ZERO, largest + tl.log2(tl.where(total == 0, 1.0, total)))


@triton.jit(do_not_specialize=["num_anchors", "num_columns"])
def softmax_sums_kernel(
    high,
    low,
    lengths,
    joint_high,
    joint_low,
    joint_lengths,
    self_column,
    log_sums,
    joint_log_sums,
    divergences,
    num_anchors,
    num_columns,
    WIDTH: tl.constexpr,
    JOINT_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    JOINT_BLOCK_D: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Each anchor's log of the sum of exp(<r_i, r_k>) over all columns but itself; with JOINT those
    of the joint embedding too, and KL(joint || view)."""
    anchors = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    anchor_valid = anchors < num_anchors
    rows = tl.load(self_column + anchors, mask=anchor_valid, other=0)
    left_high = load_rows(high, rows, anchor_valid, 0, BLOCK_D, WIDTH)
    left_low = load_rows(low, rows, anchor_valid, 0, BLOCK_D, WIDTH)
    largest = tl.full((BLOCK_M,), LOG_OF_ZERO, dtype=tl.float32)
    total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    if JOINT:
        joint_left_high = load_rows(joint_high, rows, anchor_valid, 0, JOINT_BLOCK_D, JOINT_WIDTH)
        joint_left_low = load_rows(joint_low, rows, anchor_valid, 0, JOINT_BLOCK_D, JOINT_WIDTH)
    joint_largest = tl.full((BLOCK_M,), LOG_OF_ZERO, dtype=tl.float32)
    joint_total = tl.zeros((BLOCK_M,), dtype=tl.float32)
    difference = tl.zeros((BLOCK_M,), dtype=tl.float32)  # sum of 2**joint (joint - view)
    for begin in range(0, num_columns, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        counts = (columns < num_columns)[None, :] & (columns[None, :] != rows[:, None])
        view = exponent_tile(
            rows,
            anchor_valid,
            columns,
            left_high,
            left_low,
            high,
            low,
            lengths,
            1.0,
            num_columns,
            WIDTH,
            BLOCK_D,
            True,
        )
        exponents = tl.where(counts, view, LOG_OF_ZERO)
        largest, total, _, _ = grow(largest, total, exponents)
        if JOINT:
            joint = exponent_tile(
                rows,
                anchor_valid,
                columns,
                joint_left_high,
                joint_left_low,
                joint_high,
                joint_low,
                joint_lengths,
                1.0,
                num_columns,
                JOINT_WIDTH,
                JOINT_BLOCK_D,
                True,
            )
            exponents = tl.where(counts, joint, LOG_OF_ZERO)
            joint_largest, joint_total, shrunk, shift = grow(joint_largest, joint_total, exponents)
            terms = tl.exp2(exponents - shift[:, None]) * (joint - view)
            terms = tl.where(counts, terms, 0.0)
            difference = difference * shrunk + tl.sum(terms, axis=1)
    log_sum = log_of(largest, total)
    tl.store(log_sums + anchors, log_sum * LN_2, mask=anchor_valid)
    if JOINT:
        joint_log_sum = log_of(joint_largest, joint_total)
        mean = difference / tl.where(joint_total == 0, 1.0, joint_total)
        divergence = tl.where(joint_total == 0, 0.0, mean + (log_sum - joint_log_sum))
        tl.store(joint_log_sums + anchors, joint_log_sum * LN_2, mask=anchor_valid)
        tl.store(divergences + anchors, divergence * LN_2, mask=anchor_valid)


@triton.jit
def pair_weights(exponents, counts, of_anchor, of_column, anchor_sum, column_sum):
    """g_i p_ik + g_k p_ki, 0 where an anchor meets itself or nothing."""
    as_anchor = tl.exp2(tl.where(counts, exponents - anchor_sum[:, None], LOG_OF_ZERO))
    as_candidate = tl.exp2(tl.where(counts, exponents - column_sum[None, :], LOG_OF_ZERO))
    return as_anchor * of_anchor[:, None] + as_candidate * of_column[None, :]


@triton.jit(do_not_specialize=["num_anchors", "num_columns", "first_column", "end_column"])
def softmax_gradient_kernel(
    high,
    low,
    lengths,
    joint_high,
    joint_low,
    joint_lengths,
    self_column,
    upstream,
    log_sums,
    joint_log_sums,
    longest,
    greatest_upstream,
    gradient,
    num_anchors,
    num_columns,
    first_column,
    end_column,
    features_width,
    WIDTH: tl.constexpr,
    JOINT_WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    JOINT_BLOCK_D: tl.constexpr,
    JOINT: tl.constexpr,
):
    """Adds the sum over columns of [g_i p_ik + g_k p_ki] r_k to the gradient of the anchors,
    (num_anchors, features_width); with JOINT, p less the joint embedding's in the place of p.

    A launch takes the columns from ``first_column`` to ``end_column``, and BLOCK_OUT features.

    Args:
        upstream, log_sums, joint_log_sums: (num_columns,) g, and what makes the softmaxes.
        longest, greatest_upstream: () the greatest length, and the greatest |g|.
    """
    anchors = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    anchor_valid = anchors < num_anchors
    first_feature = tl.program_id(1) * BLOCK_OUT
    rows = tl.load(self_column + anchors, mask=anchor_valid, other=0)
    left_high = load_rows(high, rows, anchor_valid, 0, BLOCK_D, WIDTH)
    left_low = load_rows(low, rows, anchor_valid, 0, BLOCK_D, WIDTH)
    if JOINT:
        joint_left_high = load_rows(joint_high, rows, anchor_valid, 0, JOINT_BLOCK_D, JOINT_WIDTH)
        joint_left_low = load_rows(joint_low, rows, anchor_valid, 0, JOINT_BLOCK_D, JOINT_WIDTH)
    greatest_length = tl.load(longest)
    upstream_exponent = (tl.load(greatest_upstream).to(tl.int32, bitcast=True) >> 23) - 127
    boost = power_of_two(tl.minimum(tl.maximum(-upstream_exponent, -126), 100))
    boost *= WEIGHT_SCALE
    of_anchor = tl.load(upstream + rows, mask=anchor_valid, other=0.0)
    anchor_sum = tl.load(log_sums + rows, mask=anchor_valid, other=0.0) * LOG2_E
    total = tl.zeros((BLOCK_M, BLOCK_OUT), dtype=tl.float32)
    for begin in range(first_column, end_column, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        valid = columns < end_column
        counts = valid[None, :] & (columns[None, :] != rows[:, None])
        exponents = exponent_tile(
            rows,
            anchor_valid,
            columns,
            left_high,
            left_low,
            high,
            low,
            lengths,
            1.0,
            num_columns,
            WIDTH,
            BLOCK_D,
            True,
        )
        of_column = tl.load(upstream + columns, mask=valid, other=0.0)
        column_sum = tl.load(log_sums + columns, mask=valid, other=0.0) * LOG2_E
        weight = pair_weights(exponents, counts, of_anchor, of_column, anchor_sum, column_sum)
        if JOINT:
            exponents = exponent_tile(
                rows,
                anchor_valid,
                columns,
                joint_left_high,
                joint_left_low,
                joint_high,
                joint_low,
                joint_lengths,
                1.0,
                num_columns,
                JOINT_WIDTH,
                JOINT_BLOCK_D,
                True,
            )
            joint_sum = tl.load(joint_log_sums + rows, mask=anchor_valid, other=0.0) * LOG2_E
            column_sum = tl.load(joint_log_sums + columns, mask=valid, other=0.0) * LOG2_E
            weight -= pair_weights(exponents, counts, of_anchor, of_column, joint_sum, column_sum)
        weight *= relative_scale(lengths, columns, valid, greatest_length)[None, :] * boost
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, WIDTH, True, BLOCK_OUT
        )
    total *= power_of_two(operand_exponent(greatest_length))
    total = total / boost
    features = first_feature + tl.arange(0, BLOCK_OUT)
    to = gradient + anchors.to(tl.int64)[:, None] * features_width + features[None, :]
    to_valid = anchor_valid[:, None] & (features < features_width)[None, :]
    tl.store(to, tl.load(to, mask=to_valid, other=0.0) + total, mask=to_valid)
