# mypy: disable-error-code="untyped-decorator"
"""The element-wise loops between the matrix products, compiled by numba: exponentials, sums by label, weights.

A tile holds inner products of some rows with a run of columns; both are sorted by label. It is worked on in place.
``first_row`` and ``first_column`` say where it lies in the whole matrix, ``self_column`` which column each row is.
A thread does the rows, blocks or labels from ``lower`` to ``upper``.
Sums and weights are kept by label first, (U, n), so that neighbouring anchors are neighbours in memory.
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.extending import intrinsic, overload, register_jitable

from core.kernels.supcr.loop import COLUMN_BLOCK, FASTMATH, ROW_BLOCK, loop


@intrinsic
def power_of_two(typing_context: Any, whole: Any) -> Any:
    """2 to a whole number given as a float, by writing the exponent bits: numba has no bit cast of its own."""
    floats, integers, mantissa, bias = {
        numba.float32: (ir.FloatType(), ir.IntType(32), 23, 127),
        numba.float64: (ir.DoubleType(), ir.IntType(64), 52, 1023),
    }[whole]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        exponent = builder.add(builder.fptosi(arguments[0], integers), integers(bias))
        return builder.bitcast(builder.shl(exponent, integers(mantissa)), floats)

    return whole(whole), generate


def exp2(exponent: Any) -> Any:
    """2 to the exponent inside compiled loops; that and its negative must be in the type's range of exponents.

    A polynomial after taking off the whole part: vector code, four times faster than a call of exp per element.
    """
    raise NotImplementedError  # pragma: no cover - numba puts one of the two below in its place


@overload(exp2, jit_options={"fastmath": FASTMATH})
def _exp2(exponent: Any) -> Any:
    if exponent == numba.float32:

        def single(exponent: Any) -> Any:
            whole = np.floor(exponent + np.float32(0.5))
            rest = (exponent - whole) * np.float32(math.log(2.0))
            power = np.float32(1 / 5040)
            power = power * rest + np.float32(1 / 720)
            power = power * rest + np.float32(1 / 120)
            power = power * rest + np.float32(1 / 24)
            power = power * rest + np.float32(1 / 6)
            power = power * rest + np.float32(0.5)
            power = power * rest + np.float32(1.0)
            power = power * rest + np.float32(1.0)
            return power * power_of_two(whole)

        return single

    def double(exponent: Any) -> Any:
        whole = np.floor(exponent + 0.5)
        rest = (exponent - whole) * math.log(2.0)
        power = 1 / 6227020800
        power = power * rest + 1 / 479001600
        power = power * rest + 1 / 39916800
        power = power * rest + 1 / 3628800
        power = power * rest + 1 / 362880
        power = power * rest + 1 / 40320
        power = power * rest + 1 / 5040
        power = power * rest + 1 / 720
        power = power * rest + 1 / 120
        power = power * rest + 1 / 24
        power = power * rest + 1 / 6
        power = power * rest + 0.5
        power = power * rest + 1.0
        power = power * rest + 1.0
        return power * power_of_two(whole)

    return double


@intrinsic
def exponent_of(typing_context: Any, number: Any) -> Any:
    """The whole k with 2**k <= number < 2**(k + 1), as a float, for a positive normal number."""
    integers, mantissa, bias = {
        numba.float32: (ir.IntType(32), 23, 127),
        numba.float64: (ir.IntType(64), 52, 1023),
    }[number]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.lshr(builder.bitcast(arguments[0], integers), integers(mantissa))
        return builder.sitofp(builder.sub(bits, integers(bias)), arguments[0].type)

    return number(number), generate


def log2(number: Any) -> Any:
    """Logarithm of a positive normal number inside compiled loops, as vector code like ``exp2``."""
    raise NotImplementedError  # pragma: no cover - numba puts one of the two below in its place


@overload(log2, jit_options={"fastmath": FASTMATH})
def _log2(number: Any) -> Any:
    # log(m) = 2 artanh((m - 1) / (m + 1)) for m around 1, by its power series in the square of that ratio
    if number == numba.float32:

        def single(number: Any) -> Any:
            whole = exponent_of(number * np.float32(math.sqrt(2)))
            mantissa = number * power_of_two(-whole)
            ratio = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
            square = ratio * ratio
            series = np.float32(1 / 9)
            series = series * square + np.float32(1 / 7)
            series = series * square + np.float32(1 / 5)
            series = series * square + np.float32(1 / 3)
            series = series * square + np.float32(1)
            return series * ratio * np.float32(2 / math.log(2)) + whole

        return single

    def double(number: Any) -> Any:
        whole = exponent_of(number * math.sqrt(2))
        mantissa = number * power_of_two(-whole)
        ratio = (mantissa - 1) / (mantissa + 1)
        square = ratio * ratio
        series = 1 / 21
        series = series * square + 1 / 19
        series = series * square + 1 / 17
        series = series * square + 1 / 15
        series = series * square + 1 / 13
        series = series * square + 1 / 11
        series = series * square + 1 / 9
        series = series * square + 1 / 7
        series = series * square + 1 / 5
        series = series * square + 1 / 3
        series = series * square + 1.0
        return series * ratio * (2 / math.log(2)) + whole

    return double


# Overwrites a tile of products p_ij with e_ij = 2 ** (p_ij scale):
# for each row of the tile, in parallel:
#     raise two to each scaled product
#     write 0 where the row meets itself, so that no sum counts it
@loop("rows")
def exponentials(
    lower: int,
    upper: int,
    tile: Any,
    scale: Any,
    first_row: int,
    first_column: int,
    self_column: Any,
) -> None:
    rows, columns = tile.shape
    for row in range(lower, upper):
        for column in range(columns):
            tile[row, column] = exp2(tile[row, column] * scale)
        if first_column <= self_column[first_row + row] < first_column + columns:
            tile[row, self_column[first_row + row] - first_column] = 0


# Adds to sums[label, row] the row's exponentials over the columns of that label:
# for each row of the tile, in parallel:
#     go through its columns by runs of equal label, which end where the label's columns or the tile end
#     add up the run, and add that to the row's sum of the label, which earlier tiles may have begun
@loop("rows")
def add_row_sums(
    lower: int,
    upper: int,
    tile: Any,
    first_row: int,
    first_column: int,
    groups: Any,
    starts: Any,
    sums: Any,
) -> None:
    rows, columns = tile.shape
    for row in range(lower, upper):
        begin = 0
        while begin < columns:
            label = groups[first_column + begin]
            end = min(starts[label + 1] - first_column, columns)
            run, total = tile[row, begin:end], tile.dtype.type(0)
            for place in range(len(run)):
                total += run[place]
            sums[label, first_row + row] += total
            begin = end


# Adds to sums[label, column] the column's exponentials over the rows of that label: the row sums of the mirror image:
# for each block of columns, in parallel, so that no two threads add to the same sum:
#     for each row of the tile, add its exponentials to the columns' sums of the row's label
@loop("column blocks")
def add_column_sums(
    lower: int, upper: int, tile: Any, first_row: int, first_column: int, row_groups: Any, sums: Any
) -> None:
    rows, columns = tile.shape
    for block in range(lower, upper):
        begin, end = block * COLUMN_BLOCK, min(block * COLUMN_BLOCK + COLUMN_BLOCK, columns)
        for row in range(rows):
            line = tile[row, begin:end]
            total = sums[row_groups[first_row + row], first_column + begin : first_column + end]
            for place in range(len(line)):
                total[place] += line[place]


# Overwrites exponentials with the gradient's matrix, e_ij (W_i[y_j] + W_j[y_i]) - 2:
# for each row i of the tile, in parallel:
#     go through its columns j by runs of equal label; W_i[y_j] is one number there, W_j[y_i] side by side in memory
#     write 0 where the row meets itself
@loop("rows")
def gradient_weights(
    lower: int,
    upper: int,
    tile: Any,
    first_row: int,
    first_column: int,
    self_column: Any,
    row_groups: Any,
    groups: Any,
    starts: Any,
    row_weights: Any,
    column_weights: Any,
) -> None:
    rows, columns = tile.shape
    two = column_weights.dtype.type(2)
    for row in range(lower, upper):
        row_label = row_groups[first_row + row]
        as_candidate = column_weights[row_label, first_column : first_column + columns]
        begin = 0
        while begin < columns:
            label = groups[first_column + begin]
            end = min(starts[label + 1] - first_column, columns)
            as_anchor = row_weights[label, first_row + row]
            run, run_as_candidate = tile[row, begin:end], as_candidate[begin:end]
            for place in range(len(run)):
                run[place] = run[place] * (as_anchor + run_as_candidate[place]) - two
            begin = end
        if first_column <= self_column[first_row + row] < first_column + columns:
            tile[row, self_column[first_row + row] - first_column] = 0


@register_jitable
def order_by_distance(
    group: int, values: Any, counts: Any, one_label: Any, other_label: Any, num_pairs: Any
) -> int:
    """Order of the labels by falling distance from one of them, both of the same distance in one step.

    Writes each step's labels (the same twice where there is one) and its number of candidates for an anchor of this
    label, itself excluded; gives the number of steps. Not compiled with fast arithmetic: it compares distances.
    """
    left, right, steps = 0, len(values) - 1, 0
    anchor_value = values[group]
    while left < right:
        to_left, to_right = anchor_value - values[left], values[right] - anchor_value
        if to_left > to_right:
            one_label[steps] = other_label[steps] = left
            num_pairs[steps] = counts[left]
            left += 1
        elif to_left < to_right:
            one_label[steps] = other_label[steps] = right
            num_pairs[steps] = counts[right]
            right -= 1
        else:
            one_label[steps], other_label[steps] = left, right
            num_pairs[steps] = counts[left] + counts[right]
            left += 1
            right -= 1
        steps += 1
    one_label[steps] = other_label[steps] = group
    num_pairs[steps] = counts[group] - 1
    return steps + 1


# Overwrites sums by label with weights by label, and gives each row's sum of log denominators (base 2):
# for each label, in parallel, its rows side by side, as they share one order of all labels by distance:
#     from the farthest label inwards, add up sums; each total is the denominator D of that step's c pairs
#     add c log2(D) to the loss, and leave c / D in the place of the sum
#     from the nearest label outwards, add up the c / D; each total is the weight W of that step's labels
@loop("labels")
def accumulate(
    lower: int, upper: int, sums: Any, row_starts: Any, values: Any, counts: Any, losses: Any
) -> None:
    for group in range(lower, upper):
        begin, end = row_starts[group], row_starts[group + 1]
        if begin == end:
            continue
        one_label = np.empty(len(values), np.uint32)
        other_label = np.empty(len(values), np.uint32)
        num_pairs = np.empty(len(values), sums.dtype)
        steps = order_by_distance(group, values, counts, one_label, other_label, num_pairs)
        total = np.zeros(end - begin, sums.dtype)
        for step in range(steps):
            one, other = sums[one_label[step], begin:end], sums[other_label[step], begin:end]
            pairs = num_pairs[step]
            # 0 for one label, as a factor: a branch would keep the loop from becoming vector code
            two_labels = sums.dtype.type(one_label[step] != other_label[step])
            for row in range(end - begin):
                total[row] += one[row] + two_labels * other[row]
            if pairs == 0:
                one[:] = 0
                continue
            for row in range(end - begin):
                one[row] = pairs / total[row]
                losses[begin + row] += pairs * log2(total[row])
        total[:] = 0
        for step in range(steps - 1, -1, -1):
            one, other = sums[one_label[step], begin:end], sums[other_label[step], begin:end]
            for row in range(end - begin):
                total[row] += one[row]
                one[row] = total[row]
                other[row] = total[row]


@register_jitable(fastmath=FASTMATH)
def log_sum(totals: Any, num_pairs: Any) -> float:
    """Sum of num_pairs * log2(total) over the steps of one anchor."""
    loss = 0.0
    for step in range(len(totals)):
        loss += num_pairs[step] * log2(totals[step])
    return loss


# Does at once what the loops above do, a row at a time, for so many labels that (U, n) sums would not fit; overwrites
# products with e_ij W_i[y_j] - 1:
# for each block of 16 rows, in parallel, and each of its rows:
#     take exponentials, 0 where the row meets itself, and add them up by label
#     reuse the order of labels while the row's label stays the same: rows are sorted by label
#     from the farthest step inwards to denominators D, then from the nearest outwards to weights W, one per label
#     write e_ij W_i[y_j] - 1; where all labels are distinct, labels are columns and need no look-up
@loop("row blocks")
def scan(
    lower: int,
    upper: int,
    tile: Any,
    scale: Any,
    first_row: int,
    self_column: Any,
    row_groups: Any,
    groups: Any,
    starts: Any,
    values: Any,
    counts: Any,
    losses: Any,
) -> None:
    rows, columns = tile.shape
    labels = len(values)
    one = tile.dtype.type(1)
    for block in range(lower, upper):
        one_label, other_label = np.empty(labels, np.uint32), np.empty(labels, np.uint32)
        num_pairs = np.empty(labels, tile.dtype)
        totals, by_label = np.empty(labels, tile.dtype), np.empty(labels, tile.dtype)
        steps, group = 0, -1
        for row in range(block * ROW_BLOCK, min(block * ROW_BLOCK + ROW_BLOCK, rows)):
            line = tile[row]
            for column in range(columns):
                line[column] = exp2(line[column] * scale)
            line[self_column[first_row + row]] = 0
            if row_groups[first_row + row] != group:
                group = row_groups[first_row + row]
                steps = order_by_distance(group, values, counts, one_label, other_label, num_pairs)
            if labels == columns:
                by_label[:] = line
            else:
                for label in range(labels):
                    total = line[starts[label]]
                    for column in range(starts[label] + np.uint32(1), starts[label + 1]):
                        total += line[column]
                    by_label[label] = total
            running = tile.dtype.type(0)
            for step in range(steps):
                running += by_label[one_label[step]]
                if one_label[step] != other_label[step]:
                    running += by_label[other_label[step]]
                totals[step] = running
            if num_pairs[steps - 1] == 0:
                totals[steps - 1] = 1
            losses[first_row + row] = log_sum(totals[:steps], num_pairs[:steps])
            for step in range(steps):
                totals[step] = num_pairs[step] / totals[step]
            running = tile.dtype.type(0)
            for step in range(steps - 1, -1, -1):
                running += totals[step]
                by_label[one_label[step]] = running
                by_label[other_label[step]] = running
            if labels == columns:
                for column in range(columns):
                    line[column] = line[column] * by_label[column] - one
            else:
                for column in range(columns):
                    line[column] = line[column] * by_label[groups[column]] - one
            line[self_column[first_row + row]] = 0
