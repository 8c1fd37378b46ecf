# mypy: ignore-errors
"""The three Triton kernels of SupCR for few labels: sums by label, from sums to weights, the gradient.

Rows and columns are sorted by label. Sums and weights are (U, m), by label first, so that
neighbouring anchors are neighbours in memory. Every output element has one writer: no atomics, the
same bits every time.

With LOG, sums and weights are base-2 logarithms. For operands see ``tile_products``.

The names of sizes are Triton's usual ones: a program works on BLOCK_M rows and BLOCK_N columns, and
multiplies BLOCK_D of the D features at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.supcr.tile_products import (
    LOG_OF_ZERO,
    add_logarithms,
    load_rows,
    products,
    weighted_sum,
)


@triton.jit
def sums_kernel(
    row_high,
    row_low,
    high,
    low,
    self_column,
    starts,
    tile_begin,
    tile_end,
    tile_label,
    splits,
    sums,
    scale,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT: tl.constexpr,
    LOG: tl.constexpr,
    LABELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sums of exponentials by label, (U, num_rows), for BLOCK_M rows and one split of the tiles of
    columns.

    A tile has up to BLOCK_N columns of up to LABELS labels. A label's sum is carried from tile to
    tile in registers and stored by the tile in which its columns end; a split never cuts a label.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_rows
    itself = tl.load(self_column + rows, mask=row_valid, other=-1)
    left_high = load_rows(row_high, rows, row_valid, 0, BLOCK_D, WIDTH)
    left_low = load_rows(row_low, rows, row_valid, 0, BLOCK_D, WIDTH)
    empty = LOG_OF_ZERO if LOG else 0.0
    carried = tl.zeros((BLOCK_M,), dtype=tl.float32)
    lost = tl.zeros((BLOCK_M,), dtype=tl.float32)  # what rounding left out of the carried sums
    largest = tl.full((BLOCK_M,), LOG_OF_ZERO, dtype=tl.float32)  # whose 2-power divides them
    first_tile = tl.load(splits + tl.program_id(1))
    last_tile = tl.load(splits + tl.program_id(1) + 1)
    for tile in range(first_tile, last_tile):
        begin = tl.load(tile_begin + tile)
        end = tl.load(tile_end + tile)
        label = tl.load(tile_label + tile)
        columns = begin + tl.arange(0, BLOCK_N)
        similarity = scale * products(
            left_high=left_high,
            left_low=left_low,
            row_high=row_high,
            row_low=row_low,
            rows=rows,
            row_valid=row_valid,
            high=high,
            low=low,
            columns=columns,
            valid=columns < end,
            WIDTH=WIDTH,
            BLOCK_D=BLOCK_D,
            EXACT=EXACT,
        )
        is_candidate = (columns[None, :] < end) & (columns[None, :] != itself[:, None])
        similarity = tl.where(is_candidate, similarity, LOG_OF_ZERO)
        if not LOG:
            similarity = tl.exp2(similarity)
        # One pass for each label the tile may have; passes after its last label find nothing to
        # add.
        for _ in tl.static_range(LABELS):
            label_end = tl.load(starts + label + 1)
            if LABELS == 1:
                of_label = similarity
            else:
                has_label = (columns >= begin) & (columns < label_end)
                of_label = tl.where(has_label[None, :], similarity, empty)
            if LOG:
                larger = tl.maximum(largest, tl.max(of_label, axis=1))
                shift = tl.where(larger == LOG_OF_ZERO, 0.0, larger)
                carried *= tl.exp2(largest - shift)
                carried += tl.sum(tl.exp2(of_label - shift[:, None]), axis=1)
                largest = larger
            else:
                addend = tl.sum(of_label, axis=1) - lost
                total = carried + addend
                lost = (total - carried) - addend
                carried = total
            is_complete = (begin < end) & (label_end <= end)
            if is_complete:
                places = sums + label.to(tl.int64) * num_rows + rows
                if LOG:
                    log_carried = tl.log2(tl.where(carried > 0, carried, 1.0))
                    tl.store(places, largest + log_carried, mask=row_valid)
                else:
                    tl.store(places, carried, mask=row_valid)
                carried = tl.zeros((BLOCK_M,), dtype=tl.float32)
                lost = tl.zeros((BLOCK_M,), dtype=tl.float32)
                largest = tl.full((BLOCK_M,), LOG_OF_ZERO, dtype=tl.float32)
                label += 1
                begin = label_end
            else:
                begin = end


@triton.jit
def count_candidates(counts, label, group, taken):
    """Rows of ``label`` that a row of ``group`` is compared with, so without itself; 0 where not
    taken."""
    count = tl.load(counts + label, mask=taken, other=0)
    count -= tl.where(label == group, 1, 0)
    return tl.where(taken, count, 0).to(tl.float32)


@triton.jit
def log_of_quotient(count, log_total):
    """log2(count / total), the logarithm of zero for no candidates."""
    quotient = tl.log2(tl.maximum(count, 1.0)) - log_total
    return tl.where(count > 0, quotient, LOG_OF_ZERO)


@triton.jit
def accumulate_kernel(
    sums,
    groups,
    values,
    counts,
    losses,
    num_rows,
    num_labels,
    LOG: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sums to weights in place, and each row's sum of log denominators, one row per lane.

    From the farthest label inwards, sums add up to denominators D, and c / D takes the sum's place,
    where c is the number of the row's candidates of that label. From the row's label outwards,
    those add up to weights.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    valid = rows < num_rows
    group = tl.load(groups + rows, mask=valid, other=0)
    row_value = tl.load(values + group)
    empty = LOG_OF_ZERO if LOG else 0.0

    # Inwards: left and right close in on the row's label; in one step both are taken where they are
    # equally far.
    left = tl.zeros_like(group)
    right = tl.zeros_like(group) + (num_labels - 1)
    total = tl.full((BLOCK_M,), empty, dtype=tl.float32)
    loss = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for _ in range(num_labels):
        remaining = valid & (left <= right)
        to_left = row_value - tl.load(values + left, mask=remaining, other=0)
        to_right = tl.load(values + right, mask=remaining, other=0) - row_value
        take_left = remaining & (to_left >= to_right)
        take_right = remaining & (to_right >= to_left) & (left != right)
        at_left = left.to(tl.int64) * num_rows + rows
        at_right = right.to(tl.int64) * num_rows + rows
        of_left = tl.load(sums + at_left, mask=take_left, other=empty)
        of_right = tl.load(sums + at_right, mask=take_right, other=empty)
        count_left = count_candidates(counts, left, group, take_left)
        count_right = count_candidates(counts, right, group, take_right)
        if LOG:
            total = add_logarithms(total, add_logarithms(of_left, of_right))
            log_total = tl.where(total == LOG_OF_ZERO, 0.0, total)
            of_left = log_of_quotient(count_left, log_total)
            of_right = log_of_quotient(count_right, log_total)
        else:
            total += of_left + of_right
            positive_total = tl.where(total > 0, total, 1.0)
            log_total = tl.log2(positive_total)
            of_left = count_left / positive_total
            of_right = count_right / positive_total
        loss += (count_left + count_right) * log_total
        tl.store(sums + at_left, of_left, mask=take_left)
        tl.store(sums + at_right, of_right, mask=take_right)
        left += take_left.to(left.dtype)
        right -= take_right.to(right.dtype)
    tl.store(losses + rows, loss, mask=valid)

    # Outwards: the same steps in reverse.
    at_group = group.to(tl.int64) * num_rows + rows
    total = tl.load(sums + at_group, mask=valid, other=empty)
    left = group - 1
    right = group + 1
    for _ in range(num_labels):
        has_left = valid & (left >= 0)
        has_right = valid & (right < num_labels)
        to_left = row_value - tl.load(values + left, mask=has_left, other=0)
        to_right = tl.load(values + right, mask=has_right, other=0) - row_value
        take_left = has_left & ((to_left <= to_right) | (right >= num_labels))
        take_right = has_right & ((to_right <= to_left) | (left < 0))
        at_left = left.to(tl.int64) * num_rows + rows
        at_right = right.to(tl.int64) * num_rows + rows
        of_left = tl.load(sums + at_left, mask=take_left, other=empty)
        of_right = tl.load(sums + at_right, mask=take_right, other=empty)
        if LOG:
            total = add_logarithms(total, add_logarithms(of_left, of_right))
        else:
            total = total + of_left + of_right
        tl.store(sums + at_left, total, mask=take_left)
        tl.store(sums + at_right, total, mask=take_right)
        left -= take_left.to(left.dtype)
        right += take_right.to(right.dtype)


@triton.jit(do_not_specialize=["first_column", "end_column", "columns_per_split", "num_labels"])
def gradient_kernel(
    row_high,
    row_low,
    high,
    low,
    self_column,
    row_groups,
    groups,
    row_weights,
    column_weights,
    gradient,
    scale,
    shrink,
    num_rows,
    num_columns,
    num_labels,
    first_column,
    end_column,
    columns_per_split,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    EXACT: tl.constexpr,
    LOG: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """shrink * sum over columns of [e_ij (W_i[y_j] + W_j[y_i]) - 2] r_j, for BLOCK_M rows and
    BLOCK_OUT features.

    Gradient is (splits, num_rows, WIDTH): each split of the columns adds to a part of its own. A
    launch takes the columns from ``first_column`` to ``end_column``: so many that adding them up in
    one accumulator is still exact.

    Args:
        row_weights: (num_rows, U), by row first: neighbouring columns then read the same place.
        column_weights: (U, num_columns), by label first: neighbouring columns are neighbours.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_valid = rows < num_rows
    itself = tl.load(self_column + rows, mask=row_valid, other=-1)
    row_group = tl.load(row_groups + rows, mask=row_valid, other=0)
    left_high = load_rows(row_high, rows, row_valid, 0, BLOCK_D, WIDTH)
    left_low = load_rows(row_low, rows, row_valid, 0, BLOCK_D, WIDTH)
    first_feature = tl.program_id(2) * BLOCK_OUT
    total = tl.zeros((BLOCK_M, BLOCK_OUT), dtype=tl.float32)
    split_begin = first_column + tl.program_id(1) * columns_per_split
    split_end = tl.minimum(split_begin + columns_per_split, end_column)
    for begin in range(split_begin, split_end, BLOCK_N):
        columns = begin + tl.arange(0, BLOCK_N)
        valid = columns < split_end
        similarity = scale * products(
            left_high=left_high,
            left_low=left_low,
            row_high=row_high,
            row_low=row_low,
            rows=rows,
            row_valid=row_valid,
            high=high,
            low=low,
            columns=columns,
            valid=valid,
            WIDTH=WIDTH,
            BLOCK_D=BLOCK_D,
            EXACT=EXACT,
        )
        group = tl.load(groups + columns, mask=valid, other=0)
        both_valid = row_valid[:, None] & valid[None, :]
        at_column = row_group.to(tl.int64)[:, None] * num_columns + columns[None, :]
        as_candidate = tl.load(column_weights + at_column, mask=both_valid, other=0.0)
        at_row = rows.to(tl.int64)[:, None] * num_labels + group[None, :]
        as_anchor = tl.load(row_weights + at_row, mask=both_valid, other=0.0)
        is_candidate = both_valid & (columns[None, :] != itself[:, None])
        # Masked before exp2, which it might overflow.
        similarity = tl.where(is_candidate, similarity, LOG_OF_ZERO)
        if LOG:
            weight = tl.exp2(similarity + as_anchor) + tl.exp2(similarity + as_candidate)
        else:
            weight = tl.exp2(similarity) * (as_anchor + as_candidate)
        weight = tl.where(is_candidate, (weight - 2.0) * shrink, 0.0)
        total += weighted_sum(
            weight, high, low, columns, valid, first_feature, WIDTH, EXACT, BLOCK_OUT
        )
    split_row = tl.program_id(1).to(tl.int64) * num_rows + rows
    features = first_feature + tl.arange(0, BLOCK_OUT)
    places = gradient + split_row[:, None] * WIDTH + features[None, :]
    before = tl.load(places, mask=row_valid[:, None], other=0.0)
    tl.store(places, before + total, mask=row_valid[:, None])
