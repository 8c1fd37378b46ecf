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

LOG_OF_ZERO = tl.constexpr(float("-inf"))  # of an empty sum


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
def load_rows(base, index, valid, first, width: tl.constexpr, stride):
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
    width,
    BLOCK_D: tl.constexpr,
    NARROW: tl.constexpr,
    EXACT: tl.constexpr,
):
    """Inner products of rows and columns over ``width`` features, BLOCK_D at a time.

    Args:
        left_high, left_low: the rows' first BLOCK_D features, loaded once; all that is needed where
            NARROW says that there are no more.
        row_high, row_low, rows, row_valid: where to load the rows from otherwise.
    """
    right = tl.trans(load_rows(high, columns, valid, 0, BLOCK_D, width))
    right_low = right
    if EXACT:
        right_low = tl.trans(load_rows(low, columns, valid, 0, BLOCK_D, width))
    total = multiply(left_high, left_low, right, right_low, EXACT)
    if not NARROW:
        for first in range(BLOCK_D, width, BLOCK_D):
            left = load_rows(row_high, rows, row_valid, first, BLOCK_D, width)
            right = tl.trans(load_rows(high, columns, valid, first, BLOCK_D, width))
            rest, right_low = left, right
            if EXACT:
                rest = load_rows(row_low, rows, row_valid, first, BLOCK_D, width)
                right_low = tl.trans(load_rows(low, columns, valid, first, BLOCK_D, width))
            total += multiply(left, rest, right, right_low, EXACT)
    return total


@triton.jit
def weighted_sum(
    weights, high, low, columns, valid, first, width, EXACT: tl.constexpr, BLOCK_OUT: tl.constexpr
):
    """(rows, BLOCK_OUT) sum over a tile's columns of weights times their features, from feature
    ``first``.

    Args:
        weights: (rows, columns) float32, small enough for float16.
    """
    weight_high, weight_low = split(weights)
    right = load_rows(high, columns, valid, first, BLOCK_OUT, width)
    right_low = right
    if EXACT:
        right_low = load_rows(low, columns, valid, first, BLOCK_OUT, width)
    return multiply(weight_high, weight_low, right, right_low, EXACT)
