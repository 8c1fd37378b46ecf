# mypy: disable-error-code="untyped-decorator"
"""The element-wise loops between the matrix products, compiled by numba: exponentials, sums by label, walks, weights.

A tile holds inner products of some rows with a run of columns; both are sorted by label. It is worked on in place.
Sums and weights are kept by label first, (U, n), so that neighbouring anchors are neighbours in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, prange
from numba.extending import intrinsic, overload, register_jitable

FASTMATH = {"reassoc", "nsz", "contract", "arcp"}  # but not: numbers are finite
LOOP = {"error_model": "numpy", "fastmath": FASTMATH, "cache": True, "nogil": True}


class Loop:
    """A loop compiled on first use, for one thread or several as torch is set; the results do not depend on it."""

    def __init__(self, function: Callable[..., Any]):
        self.serial = njit(**LOOP)(function)
        self.parallel = njit(parallel=True, **LOOP)(function)

    def __call__(self, *arguments: Any) -> Any:
        threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
        if threads == 1:
            return self.serial(*arguments)
        numba.set_num_threads(threads)
        return self.parallel(*arguments)


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


def exp2(x: Any) -> Any:
    """2 to the x inside compiled loops; x and its negative must be in the range of exponents of their type.

    A polynomial after taking off the whole part. A loop over it becomes vector code, four times faster than a call
    of exp per element.
    """
    raise NotImplementedError  # pragma: no cover - numba puts one of the two below in its place


@overload(exp2, jit_options={"fastmath": FASTMATH})
def _exp2(x: Any) -> Any:
    if x == numba.float32:

        def single(x: Any) -> Any:
            whole = np.floor(x + np.float32(0.5))
            t = (x - whole) * np.float32(math.log(2.0))
            power = np.float32(1 / 5040)
            power = power * t + np.float32(1 / 720)
            power = power * t + np.float32(1 / 120)
            power = power * t + np.float32(1 / 24)
            power = power * t + np.float32(1 / 6)
            power = power * t + np.float32(0.5)
            power = power * t + np.float32(1.0)
            power = power * t + np.float32(1.0)
            return power * power_of_two(whole)

        return single

    def double(x: Any) -> Any:
        whole = np.floor(x + 0.5)
        t = (x - whole) * math.log(2.0)
        power = 1 / 6227020800
        power = power * t + 1 / 479001600
        power = power * t + 1 / 39916800
        power = power * t + 1 / 3628800
        power = power * t + 1 / 362880
        power = power * t + 1 / 40320
        power = power * t + 1 / 5040
        power = power * t + 1 / 720
        power = power * t + 1 / 120
        power = power * t + 1 / 24
        power = power * t + 1 / 6
        power = power * t + 0.5
        power = power * t + 1.0
        power = power * t + 1.0
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


def log2(x: Any) -> Any:
    """Logarithm of a positive normal number inside compiled loops, as vector code like ``exp2``."""
    raise NotImplementedError  # pragma: no cover - numba puts one of the two below in its place


@overload(log2, jit_options={"fastmath": FASTMATH})
def _log2(x: Any) -> Any:
    # log(m) = 2 artanh((m - 1) / (m + 1)) for m around 1, by its power series in the square of that fraction
    if x == numba.float32:

        def single(x: Any) -> Any:
            whole = exponent_of(x * np.float32(math.sqrt(2)))
            m = x * power_of_two(-whole)
            s = (m - np.float32(1)) / (m + np.float32(1))
            t = s * s
            series = np.float32(1 / 9)
            series = series * t + np.float32(1 / 7)
            series = series * t + np.float32(1 / 5)
            series = series * t + np.float32(1 / 3)
            series = series * t + np.float32(1)
            return series * s * np.float32(2 / math.log(2)) + whole

        return single

    def double(x: Any) -> Any:
        whole = exponent_of(x * math.sqrt(2))
        m = x * power_of_two(-whole)
        s = (m - 1) / (m + 1)
        t = s * s
        series = 1 / 21
        series = series * t + 1 / 19
        series = series * t + 1 / 17
        series = series * t + 1 / 15
        series = series * t + 1 / 13
        series = series * t + 1 / 11
        series = series * t + 1 / 9
        series = series * t + 1 / 7
        series = series * t + 1 / 5
        series = series * t + 1 / 3
        series = series * t + 1.0
        return series * s * (2 / math.log(2)) + whole

    return double


def _exponentials(tile: Any, scale: Any, row: int, column: int, own: Any) -> None:
    """Products to exponentials, 0 where a row meets itself, which is in column own[row] of the whole matrix."""
    rows, columns = tile.shape
    for i in prange(rows):
        for j in range(columns):
            tile[i, j] = exp2(tile[i, j] * scale)
        if column <= own[row + i] < column + columns:
            tile[i, own[row + i] - column] = 0


def _add_row_sums(tile: Any, row: int, column: int, groups: Any, starts: Any, sums: Any) -> None:
    """Each row's sums over the columns of one label."""
    rows, columns = tile.shape
    for i in prange(rows):
        j = 0
        while j < columns:
            label = groups[column + j]
            end = min(starts[label + 1] - column, columns)
            run, total = tile[i, j:end], tile.dtype.type(0)
            for k in range(len(run)):
                total += run[k]
            sums[label, row + i] += total
            j = end


def _add_column_sums(tile: Any, row: int, column: int, groups: Any, sums: Any) -> None:
    """Each column's sums over the rows of one label: what the mirrored tile would add to its rows."""
    rows, columns = tile.shape
    for chunk in prange((columns + 255) // 256):
        begin, end = chunk * 256, min(chunk * 256 + 256, columns)
        for i in range(rows):
            line, total = tile[i, begin:end], sums[groups[row + i], column + begin : column + end]
            for j in range(len(line)):
                total[j] += line[j]


def _gradient_weights(
    tile: Any,
    row: int,
    column: int,
    own: Any,
    row_groups: Any,
    groups: Any,
    starts: Any,
    row_weights: Any,
    weights: Any,
) -> None:
    """Exponentials to the gradient's matrix, e_ij (W_i[y_j] + W_j[y_i]) - 2, 0 where a row meets itself."""
    rows, columns = tile.shape
    two = weights.dtype.type(2)
    for i in prange(rows):
        mine = weights[row_groups[row + i], column : column + columns]
        j = 0
        while j < columns:
            label = groups[column + j]
            end = min(starts[label + 1] - column, columns)
            weight, run, theirs = row_weights[label, row + i], tile[i, j:end], mine[j:end]
            for k in range(len(run)):
                run[k] = run[k] * (weight + theirs[k]) - two
            j = end
        if column <= own[row + i] < column + columns:
            tile[i, own[row + i] - column] = 0


@register_jitable
def outside_in(group: int, values: Any, counts: Any, first: Any, second: Any, pairs: Any) -> int:
    """Order of the labels by falling distance from one of them, both of the same distance in one step.

    Writes each step's labels (the same twice where there is one) and its number of candidates for an anchor of this
    label, itself excluded; gives the number of steps. Not compiled with fast arithmetic: it compares distances.
    """
    left, right, steps = 0, len(values) - 1, 0
    here = values[group]
    while left < right:
        to_left, to_right = here - values[left], values[right] - here
        if to_left > to_right:
            first[steps] = second[steps] = left
            pairs[steps] = counts[left]
            left += 1
        elif to_left < to_right:
            first[steps] = second[steps] = right
            pairs[steps] = counts[right]
            right -= 1
        else:
            first[steps], second[steps] = left, right
            pairs[steps] = counts[left] + counts[right]
            left += 1
            right -= 1
        steps += 1
    first[steps] = second[steps] = group
    pairs[steps] = counts[group] - 1
    return steps + 1


def _walk(sums: Any, row_starts: Any, values: Any, counts: Any, losses: Any) -> None:
    """Sums by label to weights by label, in place, and each row's sum of log denominators (base 2).

    Denominators add up from the farthest label inwards, weights from the nearest outwards; nothing is subtracted, so
    no digits are lost. Rows of one label share the order, and go through it side by side.
    """
    for group in prange(len(values)):
        begin, end = row_starts[group], row_starts[group + 1]
        if begin == end:
            continue
        first, second = np.empty(len(values), np.uint32), np.empty(len(values), np.uint32)
        pairs = np.empty(len(values), sums.dtype)
        steps = outside_in(group, values, counts, first, second, pairs)
        total = np.zeros(end - begin, sums.dtype)
        for step in range(steps):
            one, other, number = (
                sums[first[step], begin:end],
                sums[second[step], begin:end],
                pairs[step],
            )
            tie = sums.dtype.type(first[step] != second[step])
            for x in range(end - begin):
                total[x] += one[x] + tie * other[x]
            if number == 0:
                one[:] = 0
                continue
            for x in range(end - begin):
                one[x] = number / total[x]
                losses[begin + x] += number * log2(total[x])
        total[:] = 0
        for step in range(steps - 1, -1, -1):
            one, other = sums[first[step], begin:end], sums[second[step], begin:end]
            for x in range(end - begin):
                total[x] += one[x]
                one[x] = total[x]
                other[x] = total[x]


@register_jitable(fastmath=FASTMATH)
def log_sum(totals: Any, pairs: Any) -> float:
    """Sum of pairs * log2(total) over the steps of one anchor."""
    loss = 0.0
    for step in range(len(totals)):
        loss += pairs[step] * log2(totals[step])
    return loss


def _scan(
    tile: Any,
    scale: Any,
    row: int,
    own: Any,
    row_groups: Any,
    groups: Any,
    starts: Any,
    values: Any,
    counts: Any,
    losses: Any,
) -> None:
    """Whole rows of products to the gradient by the products, e_ij W_i[y_j] - 1, and sums of log denominators.

    The walk of ``_walk`` one row at a time, for so many labels that (U, n) sums would not fit.
    """
    rows, columns = tile.shape
    labels = len(values)
    one = tile.dtype.type(1)
    for chunk in prange((rows + 15) // 16):
        first, second = np.empty(labels, np.uint32), np.empty(labels, np.uint32)
        pairs = np.empty(labels, tile.dtype)
        totals, by_label = np.empty(labels, tile.dtype), np.empty(labels, tile.dtype)
        steps, group = 0, -1
        for i in range(chunk * 16, min(chunk * 16 + 16, rows)):
            line = tile[i]
            for j in range(columns):
                line[j] = exp2(line[j] * scale)
            line[own[row + i]] = 0
            if row_groups[row + i] != group:
                group = row_groups[row + i]
                steps = outside_in(group, values, counts, first, second, pairs)
            if labels == columns:
                by_label[:] = line
            else:
                for label in range(labels):
                    total = line[starts[label]]
                    for k in range(starts[label] + np.uint32(1), starts[label + 1]):
                        total += line[k]
                    by_label[label] = total
            running = tile.dtype.type(0)
            for step in range(steps):
                running += by_label[first[step]]
                if first[step] != second[step]:
                    running += by_label[second[step]]
                totals[step] = running
            if pairs[steps - 1] == 0:
                totals[steps - 1] = 1
            losses[row + i] = log_sum(totals[:steps], pairs[:steps])
            for step in range(steps):
                totals[step] = pairs[step] / totals[step]
            running = tile.dtype.type(0)
            for step in range(steps - 1, -1, -1):
                running += totals[step]
                by_label[first[step]] = running
                by_label[second[step]] = running
            if labels == columns:
                for j in range(columns):
                    line[j] = line[j] * by_label[j] - one
            else:
                for j in range(columns):
                    line[j] = line[j] * by_label[groups[j]] - one
            line[own[row + i]] = 0


exponentials, add_row_sums, add_column_sums = (
    Loop(_exponentials),
    Loop(_add_row_sums),
    Loop(_add_column_sums),
)
gradient_weights, walk, scan = Loop(_gradient_weights), Loop(_walk), Loop(_scan)
