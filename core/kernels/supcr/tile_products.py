# mypy: ignore-errors
"""What all kernels of contrast compute alike: products of float16 operands, and sums of logarithms.

Operands come as float16, ``high`` and, in the exact mode, what it leaves over, ``low``; the product
then is high high + high low + low high.

Tensor cores add in float32 but cut off what does not fit instead of rounding it, so the error of a
long sum in one accumulator grows with its length, always towards zero. Here an accumulator is taken
for one tile only, the small products go into it first, and whole tiles are added outside, where
additions round.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))
LENGTH_EXPONENT = tl.constexpr(6)  # operands are rows of length 2**6 to 2**7
LOG2_E = tl.constexpr(1.4426950408889634)
LOG_OF_ZERO = tl.constexpr(float("-inf"))  # of an empty sum


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
def add_logarithms(left, right):
    """log2(2**left + 2**right), where either may be the logarithm of zero."""
    larger = tl.maximum(left, right)
    is_zero = larger == LOG_OF_ZERO
    shift = tl.where(is_zero, 0.0, larger)
    total = tl.exp2(left - shift) + tl.exp2(right - shift)
    total = tl.where(is_zero, 1.0, total)
    return tl.where(is_zero, LOG_OF_ZERO, shift + tl.log2(total))


@triton.jit
def sum_logarithms(logarithms):
    """log2 of the sum of 2**logarithms over the columns, where all may be logarithms of zero."""
    largest = tl.max(logarithms, axis=1)
    is_zero = largest == LOG_OF_ZERO
    shift = tl.where(is_zero, 0.0, largest)
    total = tl.sum(tl.exp2(logarithms - shift[:, None]), axis=1)
    total = tl.where(total > 0, total, 1.0)
    return tl.where(is_zero, LOG_OF_ZERO, shift + tl.log2(total))


@triton.jit
def load_rows(base, index, valid, first, width: tl.constexpr, stride: tl.constexpr):
    """(len(index), width) of a matrix with ``stride`` columns, from column ``first``; zeros where
    not valid."""
    columns = first + tl.arange(0, width)
    places = base + index.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(places, mask=valid[:, None], other=0.0)


@triton.jit
def split(numbers):
    """Float32 numbers as float16, and what that leaves over."""
    high = numbers.to(tl.float16)
    return high, (numbers - high.to(tl.float32)).to(tl.float16)


@triton.jit
def multiply(left_high, left_low, right_high, right_low, EXACT: tl.constexpr):
    """A product in an accumulator of its own; the small parts first, as their digits get lost
    beside large ones."""
    if EXACT:
        rest = tl.dot(left_low, right_high)
        rest = tl.dot(left_high, right_low, rest)
        return tl.dot(left_high, right_high, rest)
    else:
        return tl.dot(left_high, right_high)


@triton.jit
def products(
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
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Inner products of rows and columns over WIDTH features, BLOCK_D at a time.

    Args:
        left_high, left_low: the rows' first BLOCK_D features, loaded once; all that is needed where
            there are no more.
        row_high, row_low, rows, row_valid: where to load the rows from otherwise.
    """
    if BLOCK_D == WIDTH:
        right = tl.trans(load_rows(high, columns, valid, 0, BLOCK_D, WIDTH))
        right_low = right
        if EXACT:
            right_low = tl.trans(load_rows(low, columns, valid, 0, BLOCK_D, WIDTH))
        return multiply(left_high, left_low, right, right_low, EXACT)
    else:
        total = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
        for first in range(0, WIDTH, BLOCK_D):
            left = load_rows(row_high, rows, row_valid, first, BLOCK_D, WIDTH)
            right = tl.trans(load_rows(high, columns, valid, first, BLOCK_D, WIDTH))
            rest, right_low = left, right
            if EXACT:
                rest = load_rows(row_low, rows, row_valid, first, BLOCK_D, WIDTH)
                right_low = tl.trans(load_rows(low, columns, valid, first, BLOCK_D, WIDTH))
            total += multiply(left, rest, right, right_low, EXACT)
        return total


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
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
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
        WIDTH=WIDTH,
        BLOCK_D=BLOCK_D,
        EXACT=EXACT,
    )
    of_rows = power_of_two(operand_exponent(tl.load(lengths + rows, mask=row_valid, other=0.0)))
    of_columns = power_of_two(operand_exponent(tl.load(lengths + columns, mask=valid, other=0.0)))
    return tile * (of_rows * (exponent_scale * LOG2_E))[:, None] * of_columns[None, :]


@triton.jit
def weighted_sum(
    weights,
    high,
    low,
    columns,
    valid,
    first,
    WIDTH: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """(rows, BLOCK_OUT) sum over a tile's columns of weights times their features, from feature
    ``first``.

    Args:
        weights: (rows, columns) float32, small enough for float16.
    """
    weight_high, weight_low = split(weights)
    right = load_rows(high, columns, valid, first, BLOCK_OUT, WIDTH)
    right_low = right
    if EXACT:
        right_low = load_rows(low, columns, valid, first, BLOCK_OUT, WIDTH)
    return multiply(weight_high, weight_low, right, right_low, EXACT)


@triton.jit
def relative_scale(lengths, columns, valid, longest):
    """What operands of the columns are to be multiplied with so that all have the scale of the
    longest row's."""
    of_columns = operand_exponent(tl.load(lengths + columns, mask=valid, other=0.0))
    difference = of_columns - operand_exponent(longest)
    return power_of_two(tl.minimum(tl.maximum(difference, -126), 0))


@triton.jit
def length_of(features, rows, row_valid, width, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Lengths of (n, width) float32 rows, no number for those that are not finite; of rows so short
    that their squares vanish the greatest element."""
    squares = tl.zeros((BLOCK_M,), dtype=tl.float32)
    greatest = tl.zeros((BLOCK_M,), dtype=tl.float32)
    for begin in range(0, width, BLOCK_D):
        feature = begin + tl.arange(0, BLOCK_D)
        within = row_valid[:, None] & (feature < width)[None, :]
        at = features + rows.to(tl.int64)[:, None] * width + feature[None, :]
        part = tl.load(at, mask=within, other=0.0)
        squares += tl.sum(part * part, axis=1)
        greatest = tl.maximum(greatest, tl.max(tl.abs(part), axis=1))
    length = tl.sqrt(squares)
    length = tl.where(length == 0, greatest, length)
    return tl.where(length < INFINITY, length, float("nan"))


@triton.jit
def write_operands(
    features,
    rows,
    row_valid,
    length,
    high,
    low,
    places,
    width,
    WIDTH: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Rows as float16 operands, ``high`` and ``low``, at ``places``; a power of two for each row
    gives it a length from 2**6 to 2**7, where what is left over is no subnormal number."""
    scale = power_of_two(tl.minimum(-operand_exponent(length), 126))
    for begin in range(0, WIDTH, BLOCK_D):
        feature = begin + tl.arange(0, BLOCK_D)
        within = row_valid[:, None] & (feature < width)[None, :]
        at = features + rows.to(tl.int64)[:, None] * width + feature[None, :]
        part = tl.load(at, mask=within, other=0.0) * scale[:, None]
        part_high, part_low = split(part)
        to = places.to(tl.int64)[:, None] * WIDTH + feature[None, :]
        to_valid = row_valid[:, None] & (feature < WIDTH)[None, :]
        tl.store(high + to, part_high, mask=to_valid)
        tl.store(low + to, part_low, mask=to_valid)
