# mypy: ignore-errors
"""The three Triton kernels of SupCR: sums by label, the walk from sums to weights, the gradient.

Rows and columns are sorted by label. Sums and weights are (U, m), by label first, so that neighbouring anchors are
neighbours in memory. Every output element has one writer: no atomics, the same bits every time.

Operands come as float16, ``high`` and, in the exact mode, what it leaves over, ``low``; the product then is
high high + high low + low high, accumulated in float32. With LOG, sums and weights are base-2 logarithms.
"""

from __future__ import annotations

import triton
import triton.language as tl

NOTHING = tl.constexpr(float("-inf"))  # the logarithm of an empty sum


@triton.jit
def add_logarithms(a, b):
    """log2(2**a + 2**b), where either may be the logarithm of nothing."""
    larger = tl.maximum(a, b)
    nothing = larger == NOTHING
    shift = tl.where(nothing, 0.0, larger)
    total = tl.where(nothing, 1.0, tl.exp2(a - shift) + tl.exp2(b - shift))
    return tl.where(nothing, NOTHING, shift + tl.log2(total))


@triton.jit
def load_rows(base, index, valid, first, width: tl.constexpr, stride: tl.constexpr):
    """(len(index), width) of a matrix with ``stride`` columns, from column ``first``; zeros where not valid."""
    columns = first + tl.arange(0, width)
    return tl.load(
        base + index[:, None] * stride + columns[None, :], mask=valid[:, None], other=0.0
    )


@triton.jit
def products(
    left_high, left_low, row_high, row_low, rows, row_valid, high, low, columns, valid,
    D: tl.constexpr, BD: tl.constexpr, EXACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """(BM, BN) inner products over D features, BD at a time; where that is all of them, left is the rows' tile."""
    total = tl.zeros((BM, BN), dtype=tl.float32)
    if D == BD:
        right = tl.trans(load_rows(high, columns, valid, 0, BD, D))
        total = tl.dot(left_high, right, total)
        if EXACT:
            total = tl.dot(left_high, tl.trans(load_rows(low, columns, valid, 0, BD, D)), total)
            total = tl.dot(left_low, right, total)
    else:
        for piece in range(0, D, BD):
            left = load_rows(row_high, rows, row_valid, piece, BD, D)
            right = tl.trans(load_rows(high, columns, valid, piece, BD, D))
            total = tl.dot(left, right, total)
            if EXACT:
                total = tl.dot(left, tl.trans(load_rows(low, columns, valid, piece, BD, D)), total)
                total = tl.dot(load_rows(row_low, rows, row_valid, piece, BD, D), right, total)
    return total


@triton.jit
def sums_kernel(
    row_high, row_low, high, low, own, starts, tile_begin, tile_end, tile_label, splits, sums, scale, num_rows,
    D: tl.constexpr, BD: tl.constexpr, EXACT: tl.constexpr, LOG: tl.constexpr, LABELS: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Sums of exponentials by label, (U, num_rows), for BM rows and one split of the tiles of columns.

    A tile has up to BN columns of up to LABELS labels. A label's sum is carried from tile to tile in registers and
    stored by the tile in which its columns end; a split never cuts a label.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_valid = rows < num_rows
    me = tl.load(own + rows, mask=row_valid, other=-1)
    left_high = load_rows(row_high, rows, row_valid, 0, BD, D)
    left_low = load_rows(row_low, rows, row_valid, 0, BD, D)
    empty = NOTHING if LOG else 0.0
    carried = tl.full((BM,), empty, dtype=tl.float32)
    for tile in range(tl.load(splits + tl.program_id(1)), tl.load(splits + tl.program_id(1) + 1)):
        begin, end, label = (
            tl.load(tile_begin + tile),
            tl.load(tile_end + tile),
            tl.load(tile_label + tile),
        )
        columns = begin + tl.arange(0, BN)
        similarity = scale * products(
            left_high, left_low, row_high, row_low, rows, row_valid, high, low, columns, columns < end,
            D, BD, EXACT, BM, BN,
        )  # fmt: skip
        candidate = (columns[None, :] < end) & (columns[None, :] != me[:, None])
        similarity = tl.where(candidate, similarity, NOTHING)
        if not LOG:
            similarity = tl.exp2(similarity)
        for _ in tl.static_range(LABELS):
            last = tl.load(starts + label + 1)
            if LABELS == 1:
                part = similarity
            else:
                part = tl.where(((columns >= begin) & (columns < last))[None, :], similarity, empty)
            if LOG:
                largest = tl.max(part, axis=1)
                shift = tl.where(largest == NOTHING, 0.0, largest)
                total = tl.sum(tl.exp2(part - shift[:, None]), axis=1)
                total = tl.where(
                    largest == NOTHING, NOTHING, shift + tl.log2(tl.where(total > 0, total, 1.0))
                )
                carried = add_logarithms(carried, total)
            else:
                carried += tl.sum(part, axis=1)
            done = (begin < end) & (last <= end)
            if done:
                tl.store(sums + label.to(tl.int64) * num_rows + rows, carried, mask=row_valid)
                carried = tl.full((BM,), empty, dtype=tl.float32)
                label += 1
                begin = last
            else:
                begin = end


@triton.jit
def walk_kernel(
    sums, groups, values, counts, losses, num_rows, num_labels, LOG: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Sums to weights in place, and each row's sum of log denominators, one row per lane.

    Denominators add up from the farthest label inwards; c over D takes their place; those add up outwards.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = rows < num_rows
    group = tl.load(groups + rows, mask=valid, other=0)
    here = tl.load(values + group)
    empty = NOTHING if LOG else 0.0
    left, right = tl.zeros_like(group), tl.zeros_like(group) + (num_labels - 1)
    total = tl.full((BLOCK,), empty, dtype=tl.float32)
    loss = tl.zeros((BLOCK,), dtype=tl.float32)
    for _ in range(num_labels):
        going = valid & (left <= right)
        to_left = here - tl.load(values + left, mask=going, other=0)
        to_right = tl.load(values + right, mask=going, other=0) - here
        take_left = going & (to_left >= to_right)
        take_right = going & (to_right >= to_left) & (left != right)
        at_left, at_right = (
            left.to(tl.int64) * num_rows + rows,
            right.to(tl.int64) * num_rows + rows,
        )
        one = tl.load(sums + at_left, mask=take_left, other=empty)
        two = tl.load(sums + at_right, mask=take_right, other=empty)
        number_left = tl.load(counts + left, mask=take_left, other=0) - tl.where(
            left == group, 1, 0
        )
        number_right = tl.load(counts + right, mask=take_right, other=0) - tl.where(
            right == group, 1, 0
        )
        number_left = tl.where(take_left, number_left, 0).to(tl.float32)
        number_right = tl.where(take_right, number_right, 0).to(tl.float32)
        if LOG:
            total = add_logarithms(total, add_logarithms(one, two))
            logarithm = tl.where(total == NOTHING, 0.0, total)
            one = tl.where(
                number_left > 0, tl.log2(tl.maximum(number_left, 1.0)) - logarithm, NOTHING
            )
            two = tl.where(
                number_right > 0, tl.log2(tl.maximum(number_right, 1.0)) - logarithm, NOTHING
            )
        else:
            total += one + two
            safe = tl.where(total > 0, total, 1.0)
            logarithm = tl.log2(safe)
            one, two = number_left / safe, number_right / safe
        loss += (number_left + number_right) * logarithm
        tl.store(sums + at_left, one, mask=take_left)
        tl.store(sums + at_right, two, mask=take_right)
        left += take_left.to(left.dtype)
        right -= take_right.to(right.dtype)
    tl.store(losses + rows, loss, mask=valid)
    at_group = group.to(tl.int64) * num_rows + rows
    total = tl.load(sums + at_group, mask=valid, other=empty)
    left, right = group - 1, group + 1
    for _ in range(num_labels):
        has_left, has_right = valid & (left >= 0), valid & (right < num_labels)
        to_left = here - tl.load(values + left, mask=has_left, other=0)
        to_right = tl.load(values + right, mask=has_right, other=0) - here
        take_left = has_left & ((to_left <= to_right) | (right >= num_labels))
        take_right = has_right & ((to_right <= to_left) | (left < 0))
        at_left, at_right = (
            left.to(tl.int64) * num_rows + rows,
            right.to(tl.int64) * num_rows + rows,
        )
        one = tl.load(sums + at_left, mask=take_left, other=empty)
        two = tl.load(sums + at_right, mask=take_right, other=empty)
        total = add_logarithms(total, add_logarithms(one, two)) if LOG else total + one + two
        tl.store(sums + at_left, total, mask=take_left)
        tl.store(sums + at_right, total, mask=take_right)
        left -= take_left.to(left.dtype)
        right += take_right.to(right.dtype)


@triton.jit
def gradient_kernel(
    row_high, row_low, high, low, own, row_groups, groups, row_weights, weights, gradient, scale, shrink,
    num_rows, num_columns, num_labels, columns_per_split,
    D: tl.constexpr, BD: tl.constexpr, BO: tl.constexpr, EXACT: tl.constexpr, LOG: tl.constexpr,
    BN: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """shrink * sum over columns of [e_ij (W_i[y_j] + W_j[y_i]) - 2] r_j, for BM rows and BO of the D features.

    Gradient is (splits, num_rows, D): each split of the columns writes its own.

    Args:
        row_weights: (num_rows, U), by row first: neighbouring columns then read the same place.
        weights: (U, num_columns), by label first: neighbouring columns are neighbours.
    """
    rows = tl.program_id(0) * BM + tl.arange(0, BM)
    row_valid = rows < num_rows
    me = tl.load(own + rows, mask=row_valid, other=-1)
    my_group = tl.load(row_groups + rows, mask=row_valid, other=0)
    left_high = load_rows(row_high, rows, row_valid, 0, BD, D)
    left_low = load_rows(row_low, rows, row_valid, 0, BD, D)
    first = tl.program_id(2) * BO
    total = tl.zeros((BM, BO), dtype=tl.float32)
    begin = tl.program_id(1) * columns_per_split
    for column in range(begin, tl.minimum(begin + columns_per_split, num_columns), BN):
        columns = column + tl.arange(0, BN)
        valid = columns < num_columns
        similarity = scale * products(
            left_high,
            left_low,
            row_high,
            row_low,
            rows,
            row_valid,
            high,
            low,
            columns,
            valid,
            D,
            BD,
            EXACT,
            BM,
            BN,
        )
        group = tl.load(groups + columns, mask=valid, other=0)
        both = row_valid[:, None] & valid[None, :]
        theirs = tl.load(
            weights + my_group.to(tl.int64)[:, None] * num_columns + columns[None, :],
            mask=both,
            other=0.0,
        )
        mine = tl.load(
            row_weights + rows.to(tl.int64)[:, None] * num_labels + group[None, :],
            mask=both,
            other=0.0,
        )
        candidate = both & (columns[None, :] != me[:, None])
        similarity = tl.where(
            candidate, similarity, NOTHING
        )  # before exp2, which it might overflow
        if LOG:
            share = tl.exp2(similarity + mine) + tl.exp2(similarity + theirs)
        else:
            share = tl.exp2(similarity) * (mine + theirs)
        share = tl.where(candidate, (share - 2.0) * shrink, 0.0)
        share_high = share.to(tl.float16)
        right = load_rows(high, columns, valid, first, BO, D)
        total = tl.dot(share_high, right, total)
        if EXACT:
            total = tl.dot(share_high, load_rows(low, columns, valid, first, BO, D), total)
            total = tl.dot((share - share_high.to(tl.float32)).to(tl.float16), right, total)
    out = gradient + (tl.program_id(1).to(tl.int64) * num_rows + rows)[:, None] * D
    tl.store(out + first + tl.arange(0, BO)[None, :], total, mask=row_valid[:, None])
