# mypy: disable-error-code="untyped-decorator"
"""Attention of narrow heads on a CPU, forwards and back, in one pass over the pairs that are
allowed.

Where a head has few channels, its products are less work than the softmax and the dropout over all
pairs, and these are bound by memory: a dozen operators each read and write a (B, h, T, S) tensor.
Here a row of scores stays in the first cache. Keys behind the last one that a query may look at,
which are half of them under a causal mask, and padding, are never touched. Nothing of that size is
kept: the backward pass computes scores and bits again.

Keys, values and their gradients are (B, h, d, S), so that a loop over keys runs on whole vectors.
One unit of work is one sample.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from core.kernels.compiled_loop import loop
from core.kernels.dropout.dropout_bits import keeps, mix
from core.kernels.dropout.formula import AXES
from core.kernels.vector_math import exponential

HEAD, QUERY, KEY = (np.uint32(axis) for axis in AXES[:3])
# a maximum of whole vectors takes no notice of what is no number; the sum behind it does
NUMBERS_ALONE = {"nnan", "nsz", "reassoc"}


@register_jitable
def count_keys(allowed: Any, counts: Any) -> None:
    """The number of keys up to the last that each query may look at, of (T or 1, S)."""
    rows, columns = allowed.shape
    for row in range(len(counts)):
        if row >= rows:
            counts[row] = counts[0]
            continue
        count = columns
        while count > 0 and not allowed[row, count - 1]:
            count -= 1
        counts[row] = count


@register_jitable
def score_row(scores: Any, query: Any, row: int, keys: Any, scale: Any, count: int) -> None:
    """Of the query (T, d) of that row with ``count`` keys (d, S)."""
    value = query[row, 0] * scale
    for j in range(count):
        scores[j] = value * keys[0, j]
    for channel in range(1, query.shape[1]):
        value = query[row, channel] * scale
        for j in range(count):
            scores[j] += value * keys[channel, j]


@register_jitable(fastmath=NUMBERS_ALONE)
def highest_of(scores: Any, allowed: Any, row: int, count: int) -> Any:
    """Of the scores with keys that are allowed; the last one is."""
    last = scores[count - 1]
    highest = last
    for j in range(count):
        score = scores[j] if allowed[row, j] else last
        highest = score if score > highest else highest
    return highest


@register_jitable
def share_row(scores: Any, allowed: Any, row: int, shift: Any, count: int, zero: Any) -> None:
    """The exponentials of scores less ``shift``, in their place; zero where nothing is allowed."""
    for j in range(count):
        scores[j] = exponential(scores[j] - shift)
    for j in range(count):
        scores[j] = scores[j] if allowed[row, j] else zero


@register_jitable
def draw_row(
    factors: Any, start: Any, low: Any, high: Any, bound: Any, kept: Any, zero: Any, count: int
) -> None:
    """What dropout multiplies each share with: zero or ``kept``."""
    for j in range(count):
        position = np.uint32(start + np.uint32(np.uint32(j) * KEY))
        factors[j] = kept if keeps(position, low, high, bound) else zero


@loop("samples")
def attend(
    lower: int,
    upper: int,
    query: Any,
    key: Any,
    value: Any,
    allowed: Any,
    states: Any,
    layer: Any,
    bound: Any,
    kept: Any,
    scale: Any,
    mixed: Any,
    norms: Any,
) -> None:
    """
    Args:
        query: (B, h, T, d); ``key``: (B, h, d, S); ``value``: (B, h, e, S).
        allowed: (B or 1, T or 1, S) bool.
        states: (B,), what tells the samples of this step apart.
        bound: the least 32-bit number that keeps; ``kept``: what a kept share is multiplied with.
        mixed: (B, h, T, e), filled in; zeros where a query may look at nothing.
        norms: (B, h, T), filled in: the logarithm of the sum of exponentials.
    """
    heads, rows, columns = query.shape[1], query.shape[2], key.shape[3]
    scores = np.empty(columns, query.dtype)
    factors = np.empty(columns, query.dtype)
    counts = np.empty(rows, np.int64)
    zero = kept - kept
    for sample in range(lower, upper):
        state = mix(states[sample] + layer)
        low, high = np.uint32(state), np.uint32(state >> np.uint64(32))
        may_look = allowed[min(sample, len(allowed) - 1)]
        count_keys(may_look, counts)
        for head in range(heads):
            asked, keys, values = query[sample, head], key[sample, head], value[sample, head]
            out, norm = mixed[sample, head], norms[sample, head]
            for row in range(rows):
                count = counts[row]
                if count == 0:
                    norm[row] = zero
                    for channel in range(out.shape[1]):
                        out[row, channel] = zero
                    continue
                place = min(row, len(may_look) - 1)
                score_row(scores, asked, row, keys, scale, count)
                highest = highest_of(scores, may_look, place, count)
                share_row(scores, may_look, place, highest, count, zero)
                start = np.uint32(np.uint32(head) * HEAD + np.uint32(row) * QUERY)
                draw_row(factors, start, low, high, bound, kept, zero, count)
                total = zero
                for j in range(count):
                    total += scores[j]
                    scores[j] *= factors[j]
                norm[row] = highest + np.log(total)
                for channel in range(out.shape[1]):
                    found = zero
                    for j in range(count):
                        found += scores[j] * values[channel, j]
                    out[row, channel] = found / total


@loop("samples")
def attend_back(
    lower: int,
    upper: int,
    query: Any,
    key: Any,
    value: Any,
    allowed: Any,
    states: Any,
    layer: Any,
    bound: Any,
    kept: Any,
    scale: Any,
    mixed: Any,
    norms: Any,
    upstream: Any,
    of_query: Any,
    of_key: Any,
    of_value: Any,
) -> None:
    """As ``attend``, whose results are given.

    Args:
        upstream: (B, h, T, e), gradients of ``mixed``.
        of_query, of_key, of_value: gradients, filled in; the latter two are given as zeros.
    """
    heads, rows, columns = query.shape[1], query.shape[2], key.shape[3]
    shares = np.empty(columns, query.dtype)
    dropped = np.empty(columns, query.dtype)
    wanted = np.empty(columns, query.dtype)
    factors = np.empty(columns, query.dtype)
    counts = np.empty(rows, np.int64)
    zero = kept - kept
    for sample in range(lower, upper):
        state = mix(states[sample] + layer)
        low, high = np.uint32(state), np.uint32(state >> np.uint64(32))
        may_look = allowed[min(sample, len(allowed) - 1)]
        count_keys(may_look, counts)
        for head in range(heads):
            asked, keys, values = query[sample, head], key[sample, head], value[sample, head]
            to_query, to_keys = of_query[sample, head], of_key[sample, head]
            to_values, above = of_value[sample, head], upstream[sample, head]
            out, norm = mixed[sample, head], norms[sample, head]
            for row in range(rows):
                count = counts[row]
                if count == 0:
                    for channel in range(asked.shape[1]):
                        to_query[row, channel] = zero
                    continue
                place = min(row, len(may_look) - 1)
                score_row(shares, asked, row, keys, scale, count)
                share_row(shares, may_look, place, norm[row], count, zero)
                start = np.uint32(np.uint32(head) * HEAD + np.uint32(row) * QUERY)
                draw_row(factors, start, low, high, bound, kept, zero, count)
                for j in range(count):
                    dropped[j] = shares[j] * factors[j]
                    wanted[j] = zero
                common = zero
                for channel in range(out.shape[1]):
                    gradient = above[row, channel]
                    common += gradient * out[row, channel]
                    for j in range(count):
                        wanted[j] += gradient * values[channel, j]
                    for j in range(count):
                        to_values[channel, j] += gradient * dropped[j]
                for j in range(count):
                    shares[j] *= (wanted[j] * factors[j] - common) * scale
                for channel in range(asked.shape[1]):
                    found = zero
                    number = asked[row, channel]
                    for j in range(count):
                        found += shares[j] * keys[channel, j]
                    for j in range(count):
                        to_keys[channel, j] += number * shares[j]
                    to_query[row, channel] = found
