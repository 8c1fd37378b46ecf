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
        line = allowed[row]
        count = columns
        while count > 0 and not line[count - 1]:
            count -= 1
        counts[row] = count


@register_jitable
def score_row(scores: Any, query: Any, keys: Any, scale: Any, count: int) -> None:
    """Of one query with ``count`` keys (d, S)."""
    for j in range(count):
        scores[j] = 0
    for channel in range(len(query)):
        value = query[channel] * scale
        line = keys[channel]
        for j in range(count):
            scores[j] += value * line[j]


@register_jitable(fastmath=NUMBERS_ALONE)
def highest_of(scores: Any, line: Any, count: int) -> Any:
    """Of the scores with keys that are allowed; the last one is."""
    last = scores[count - 1]
    highest = last
    for j in range(count):
        highest = max(highest, scores[j] if line[j] else last)
    return highest


@register_jitable
def draw_row(factors: Any, start: Any, low: Any, high: Any, bound: Any, kept: Any) -> None:
    """What dropout multiplies each share with: zero or ``kept``."""
    zero = kept - kept
    for j in range(len(factors)):
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
    channels = value.shape[2]
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
            keys, values = key[sample, head], value[sample, head]
            for row in range(rows):
                out, count = mixed[sample, head, row], counts[row]
                out[:] = 0
                norms[sample, head, row] = 0
                if count == 0:
                    continue
                line = may_look[min(row, len(may_look) - 1)]
                score_row(scores, query[sample, head, row], keys, scale, count)
                highest = highest_of(scores, line, count)
                total = zero
                for j in range(count):
                    share = exponential(scores[j] - highest) if line[j] else zero
                    scores[j] = share
                    total += share
                norms[sample, head, row] = highest + np.log(total)
                start = np.uint32(np.uint32(head) * HEAD + np.uint32(row) * QUERY)
                draw_row(factors[:count], start, low, high, bound, kept)
                for j in range(count):
                    scores[j] *= factors[j]
                for channel in range(channels):
                    found = zero
                    seen = values[channel]
                    for j in range(count):
                        found += scores[j] * seen[j]
                    out[channel] = found / total


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
    width, channels = query.shape[3], value.shape[2]
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
            keys, values = key[sample, head], value[sample, head]
            to_keys, to_values = of_key[sample, head], of_value[sample, head]
            for row in range(rows):
                asked, to_query = query[sample, head, row], of_query[sample, head, row]
                above, count = upstream[sample, head, row], counts[row]
                to_query[:] = 0
                if count == 0:
                    continue
                line = may_look[min(row, len(may_look) - 1)]
                norm = norms[sample, head, row]
                score_row(shares, asked, keys, scale, count)
                for j in range(count):
                    shares[j] = exponential(shares[j] - norm) if line[j] else zero
                start = np.uint32(np.uint32(head) * HEAD + np.uint32(row) * QUERY)
                draw_row(factors[:count], start, low, high, bound, kept)
                for j in range(count):
                    wanted[j] = 0
                    dropped[j] = shares[j] * factors[j]
                common = zero
                for channel in range(channels):
                    gradient = above[channel]
                    common += gradient * mixed[sample, head, row, channel]
                    seen, to_seen = values[channel], to_values[channel]
                    for j in range(count):
                        wanted[j] += gradient * seen[j]
                        to_seen[j] += gradient * dropped[j]
                for j in range(count):
                    shares[j] *= (wanted[j] * factors[j] - common) * scale
                for channel in range(width):
                    found = zero
                    number = asked[channel]
                    seen, to_seen = keys[channel], to_keys[channel]
                    for j in range(count):
                        found += shares[j] * seen[j]
                        to_seen[j] += number * shares[j]
                    to_query[channel] = found
