# mypy: disable-error-code="untyped-decorator"
"""Exponentials in compiled loops. Of float32 they are arithmetic alone, so that a loop around them
runs on whole vectors; a call of the C library's function would make it go number by number.

What is not a number stays that. float64 takes the C library's functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

Implementation = Callable[[Any], Any]
# sums keep their order: the rest of a division by log(2) would lose its last digits otherwise
IN_ORDER = {"fastmath": {"contract"}}

LOWEST, HIGHEST = np.float32(-87), np.float32(88)  # beyond is no normal float32
PER_OCTAVE = np.float32(1 / math.log(2))
# log(2) in two parts, of which the first times any exponent is exact (Cody and Waite, 1980)
OCTAVE_HIGH = np.float32(0.693359375)
OCTAVE_LOW = np.float32(math.log(2) - 0.693359375)
# of the Taylor series: within log(2) / 2 of zero, what is left out is less than a rounding
C2, C3, C4, C5, C6, C7 = (np.float32(1 / math.factorial(order)) for order in range(2, 8))
ONE = np.float32(1)
# a float32 is bits of an exponent, 127 for one, before 23 bits behind the point
EXPONENT_OF_ONE, BITS_BEHIND = np.int32(127), np.int32(23)
ROUNDED = np.float32(127.5)


def exponential(x: Any) -> Any:
    """e to the power of a float32, between -87 and 88, or float64; for compiled code alone."""
    raise NotImplementedError("only compiled code can call this")


def sigmoid(x: Any) -> Any:
    """Of a float32 or float64; for compiled code alone."""
    raise NotImplementedError("only compiled code can call this")


def tanh(x: Any) -> Any:
    """Of a float32 or float64; for compiled code alone."""
    raise NotImplementedError("only compiled code can call this")


@overload(exponential, jit_options=IN_ORDER, strict=False)
def _exponential(x: Any) -> Implementation:
    if x == types.float64:
        return lambda x: math.exp(x)
    return _exponential_of_float32


def _exponential_of_float32(x: Any) -> Any:
    x = LOWEST if x < LOWEST else x
    x = HIGHEST if x > HIGHEST else x
    exponent = np.int32(x * PER_OCTAVE + ROUNDED)  # of the nearest power of two; it is positive
    octaves = np.float32(np.int32(exponent - EXPONENT_OF_ONE))
    rest = x - octaves * OCTAVE_HIGH
    rest = rest - octaves * OCTAVE_LOW
    series = C6 + rest * C7
    series = C5 + rest * series
    series = C4 + rest * series
    series = C3 + rest * series
    series = C2 + rest * series
    series = ONE + rest * (ONE + rest * series)
    return series * np.int32(exponent << BITS_BEHIND).view(np.float32)


@overload(sigmoid, jit_options=IN_ORDER, strict=False)
def _sigmoid(x: Any) -> Implementation:
    one = 1.0 if x == types.float64 else ONE
    return lambda x: one / (one + exponential(-x))


@overload(tanh, jit_options=IN_ORDER, strict=False)
def _tanh(x: Any) -> Implementation:
    if x == types.float64:
        return lambda x: math.tanh(x)
    return lambda x: ONE - (ONE + ONE) / (ONE + exponential(x + x))
