# mypy: ignore-errors
"""SupCR on a GPU for any labels: rows put in the order of their labels, a strip of whole rows of the
matrix, and its gradient.

Every kernel works on sorted rows: row p has the p-th label. No output has two writers, so the bits
are the same every time. A row's ``length`` is not a number where the row or its label is not
finite; all results are not numbers then.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.supcr.row_scan import row_weights
from core.kernels.supcr.tile_products import load_rows, products, weighted_sum

INFINITY = tl.constexpr(float("inf"))
LENGTH_EXPONENT = tl.constexpr(6)  # operands are rows of length 2**6 to 2**7
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def power_of_two(exponent):
    """2**exponent as float32, for whole numbers from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def operand_exponent(length):
    """The whole number k for which a row of this length is 2**k times its operand."""
    bits = length.to(tl.int32, bitcast=True) >> 23
    return tl.maximum(bits - 127 - LENGTH_EXPONENT, -126)


@triton.jit
def longest_of(lengths, count, BLOCK: tl.constexpr):
    """The greatest length, infinite where one is no number."""
    longest = tl.zeros((BLOCK,), dtype=tl.float32)
    for begin in range(0, count, BLOCK):
        places = begin + tl.arange(0, BLOCK)
        length = tl.load(lengths + places, mask=places < count, other=0.0)
        longest = tl.maximum(longest, tl.where(length < INFINITY, length, INFINITY))
    return tl.max(longest)


@triton.jit
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
    num_rows,
    width,
    padded_width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Puts BLOCK_M rows to where their labels belong: the number of lower labels, and of equal ones
    before.

    Args:
        features: (num_rows, width) float32.
        labels: (num_rows,) float64.
        high, low: (num_rows, padded_width) float16 operands, scaled by a power of two for each row.
        lengths: (num_rows,) float32.
        values, first, last: (num_rows,) label; where its rows begin, and one past where they end.
        order: (num_rows,) int32 row that each came from.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_rows
    label = tl.load(labels + rows, mask=row_valid, other=0.0)
    has_label = tl.abs(label) < INFINITY
    key = tl.where(has_label, label, INFINITY)
    lower = tl.zeros((BLOCK_M,), dtype=tl.int32)
    equal = tl.zeros((BLOCK_M,), dtype=tl.int32)
    before = tl.zeros((BLOCK_M,), dtype=tl.int32)
    for begin in range(0, num_rows, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        valid = columns < num_rows
        other = tl.load(labels + columns, mask=valid, other=0.0)
        other = tl.where(tl.abs(other) < INFINITY, other, INFINITY)
        is_equal = valid[None, :] & (other[None, :] == key[:, None])
        is_lower = valid[None, :] & (other[None, :] < key[:, None])
        is_before = is_equal & (columns[None, :] < rows[:, None])
        lower += tl.sum(is_lower.to(tl.int32), axis=1)
        equal += tl.sum(is_equal.to(tl.int32), axis=1)
        before += tl.sum(is_before.to(tl.int32), axis=1)
    place = lower + before

    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for begin in range(0, width, BLOCK_D):
        feature = begin + tl.arange(0, BLOCK_D)
        within = row_valid[:, None] & (feature < width)[None, :]
        at = rows.to(tl.int64)[:, None] * width + feature[None, :]
        part = tl.load(features + at, mask=within, other=0.0)
        squares += tl.sum(part * part, axis=1)
    length = tl.sqrt(squares)
    is_finite = has_label & (length < INFINITY)
    length = tl.where(is_finite, length, float("nan"))
    scale = power_of_two(tl.minimum(-operand_exponent(length), 126))
    for begin in range(0, padded_width, BLOCK_D):
        feature = begin + tl.arange(0, BLOCK_D)
        within = row_valid[:, None] & (feature < width)[None, :]
        at = rows.to(tl.int64)[:, None] * width + feature[None, :]
        part = tl.load(features + at, mask=within, other=0.0) * scale[:, None]
        part_high = part.to(tl.float16)
        part_low = (part - part_high.to(tl.float32)).to(tl.float16)
        to = place.to(tl.int64)[:, None] * padded_width + feature[None, :]
        to_valid = row_valid[:, None] & (feature < padded_width)[None, :]
        tl.store(high + to, part_high, mask=to_valid)
        tl.store(low + to, part_low, mask=to_valid)
    tl.store(lengths + place, length, mask=row_valid)
    tl.store(values + place, key, mask=row_valid)
    tl.store(first + place, lower, mask=row_valid)
    tl.store(last + place, lower + equal, mask=row_valid)
    tl.store(order + place, rows, mask=row_valid)


@triton.jit
def exponent_tile(
    rows,
    row_valid,
    columns,
    left_high,
    left_low,
    high,
    low,
    lengths,
    exponent_scale,
    num_columns,
    width,
    BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr,
    EXACT: tl.constexpr,
):
    """log2 e of sorted rows and columns; ``exponent_scale`` is 1 / T."""
    valid = columns < num_columns
    tile = products(
        left_high=left_high,
        left_low=left_low,
        row_high=high,
        row_low=low,
        rows=rows,
        row_valid=row_valid,
        high=high,
        low=low,
        columns=columns,
        valid=valid,
        width=width,
        BLOCK_D=BLOCK_D,
        NARROW=NARROW,
        EXACT=EXACT,
    )
    of_rows = power_of_two(operand_exponent(tl.load(lengths + rows, mask=row_valid, other=0.0)))
    of_columns = power_of_two(operand_exponent(tl.load(lengths + columns, mask=valid, other=0.0)))
    return tile * (of_rows * (exponent_scale * LOG2_E))[:, None] * of_columns[None, :]


@triton.jit
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
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr,
    EXACT: tl.constexpr,
):
    """One tile of a strip's exponents, (num_anchors, num_columns) float32.

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
        left_high=load_rows(high, rows, anchor_valid, 0, BLOCK_D, width),
        left_low=load_rows(low, rows, anchor_valid, 0, BLOCK_D, width),
        high=high,
        low=low,
        lengths=lengths,
        exponent_scale=exponent_scale,
        num_columns=num_columns,
        width=width,
        BLOCK_D=BLOCK_D,
        NARROW=NARROW,
        EXACT=EXACT,
    )
    to = exponents + anchors.to(tl.int64)[:, None] * num_columns + columns[None, :]
    tl.store(to, tile, mask=anchor_valid[:, None] & (columns < num_columns)[None, :])


@triton.jit
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
    width,
    search_steps,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr,
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
        left_high = load_rows(high, rows, anchor_valid, 0, BLOCK_D, width)
        left_low = load_rows(low, rows, anchor_valid, 0, BLOCK_D, width)
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
                width=width,
                BLOCK_D=BLOCK_D,
                NARROW=NARROW,
                EXACT=EXACT,
            )
            to = exponents + anchors.to(tl.int64)[:, None] * num_columns + columns[None, :]
            tl.store(to, tile, mask=anchor_valid[:, None] & (columns < num_columns)[None, :])
        tl.debug_barrier()
    else:
        rows = tl.load(places + first_anchor + anchors, mask=anchor_valid, other=0)
        greatest = tl.load(longest)
    lines = anchors.to(tl.int64) * num_columns
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


@triton.jit
def relative_scale(lengths, columns, valid, longest):
    """What operands of the columns are to be multiplied with so that all have the scale of the
    longest row's."""
    of_columns = operand_exponent(tl.load(lengths + columns, mask=valid, other=0.0))
    difference = of_columns - operand_exponent(longest)
    return power_of_two(tl.minimum(tl.maximum(difference, -126), 0))


@triton.jit
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
    width,
    padded_width,
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
        as_anchor = weights + rows[:, None] * num_rows + columns[None, :]
        as_candidate = weights + columns[None, :] * num_rows + rows[:, None]
        weight = tl.load(as_anchor, mask=both_valid, other=0.0)
        weight += tl.load(as_candidate, mask=both_valid, other=0.0)
        weight *= relative_scale(lengths, columns, valid, greatest)[None, :]
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, padded_width, EXACT, BLOCK_OUT
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


@triton.jit
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
    columns_per_split,
    padded_width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    EXACT: tl.constexpr,
):
    """A strip's weights times the rows, over one split of the columns: parts (splits, num_anchors,
    padded_width)."""
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
        at = weights + anchors.to(tl.int64)[:, None] * num_columns + columns[None, :]
        weight = tl.load(at, mask=anchor_valid[:, None] & valid[None, :], other=0.0)
        weight *= relative_scale(lengths, columns, valid, greatest)[None, :] * shrink
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, padded_width, EXACT, BLOCK_OUT
        )
    features = first_feature + tl.arange(0, BLOCK_OUT)
    line = tl.program_id(1).to(tl.int64) * num_anchors + anchors
    tl.store(
        parts + line[:, None] * padded_width + features[None, :], total, mask=anchor_valid[:, None]
    )


@triton.jit
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
    num_splits,
    width,
    padded_width,
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
        at = weights + anchors.to(tl.int64)[None, :] * num_columns + rows[:, None]
        weight = tl.load(at, mask=row_valid[:, None] & valid[None, :], other=0.0)
        weight *= relative_scale(lengths, columns, valid, greatest)[None, :] * shrink
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, padded_width, EXACT, BLOCK_OUT
        )
    anchor = tl.load(anchor_of + rows, mask=row_valid, other=-1) - first_anchor
    is_anchor = (anchor >= 0) & (anchor < num_anchors)
    has_anchor = tl.max(is_anchor.to(tl.int32)) > 0
    if has_anchor:
        for split_number in range(0, num_splits):
            line = split_number * num_anchors + tl.where(is_anchor, anchor, 0)
            at = parts + line.to(tl.int64)[:, None] * padded_width + features[None, :]
            total += tl.load(at, mask=is_anchor[:, None], other=0.0)
    row = tl.load(order + rows, mask=row_valid, other=0)
    to = gradient + row.to(tl.int64)[:, None] * width + features[None, :]
    to_valid = row_valid[:, None] & (features < width)[None, :]
    total *= power_of_two(operand_exponent(greatest)) / shrink
    tl.store(to, tl.load(to, mask=to_valid, other=0.0) + total, mask=to_valid)
