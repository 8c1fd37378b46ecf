# mypy: ignore-errors
"""The Triton kernel of attention with dropout by sample, and what its gradients share with it.

What is kept for the gradients is the highest score of each query, and the logarithm of its sum of
exponentials less that: two numbers, for the highest may be too low to hold the other. Dropout acts
on normalised probabilities: the sum is over all keys, and what is dropped is left out of the product
with the values. Each output element has one writer, so results are the same bits every time.

A program works on one head of one sample, ROWS queries and COLUMNS keys at a time, and WIDTH
features, the head's width padded to a power of two. Queries and what comes out lie in memory as
(B, T, heads, width), keys and values as (B, S, heads, width). Scores are base-2 logarithms. MASK says what
restricts a query: 0 nothing, 1 a boolean, 2 a bias that is added; PER_KEY that it is the same for all
queries. ``allowed`` has any strides, also 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.dropout.triton_bits import AXIS_0, AXIS_1, AXIS_2, keeps, layer_state

LOG2_E = tl.constexpr(1.4426950408889634)
NEVER = tl.constexpr(float("-inf"))
# A bias below this counts as this: the lowest finite number of float32, which some masks are made
# of, times LOG2_E would be -inf, which is another thing.
LOWEST = tl.constexpr(-1e30)


@triton.jit
def head_of(base, batch, head, heads, length, width):
    """Pointer to the first row of a head in (B, length, heads, width)."""
    return base + (batch.to(tl.int64) * length * heads + head) * width


@triton.jit
def load_tile(base, rows, num_rows, heads, width, WIDTH: tl.constexpr):
    """(len(rows), WIDTH) rows of a head; zeros outside."""
    features = tl.arange(0, WIDTH)
    inside = (rows[:, None] < num_rows) & (features[None, :] < width)
    places = base + rows[:, None] * (heads * width) + features[None, :]
    return tl.load(places, mask=inside, other=0.0)


@triton.jit
def store_tile(base, values, rows, num_rows, heads, width, WIDTH: tl.constexpr):
    features = tl.arange(0, WIDTH)
    inside = (rows[:, None] < num_rows) & (features[None, :] < width)
    places = base + rows[:, None] * (heads * width) + features[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=inside)


@triton.jit
def restrict(
    scores,
    allowed,
    row_stride,
    column_stride,
    rows,
    columns,
    num_rows,
    num_columns,
    MASK: tl.constexpr,
    PER_KEY: tl.constexpr,
):
    """Base-2 scores of a tile, -inf where a query may not look or there is no key."""
    exists = columns[None, :] < num_columns
    if MASK == 0:
        return tl.where(exists, scores, NEVER)
    if PER_KEY:
        inside = exists
        places = allowed + (columns * column_stride)[None, :]
    else:
        inside = (rows[:, None] < num_rows) & exists
        places = allowed + rows[:, None] * row_stride + columns[None, :] * column_stride
    if MASK == 1:
        may_look = tl.load(places, mask=inside, other=0) != 0
        return tl.where(may_look & exists, scores, NEVER)
    bias = tl.load(places, mask=inside, other=NEVER).to(tl.float32)
    lowered = tl.where(bias == NEVER, NEVER, tl.maximum(bias, LOWEST) * LOG2_E)
    return scores + lowered


@triton.jit
def load_sums(sums, pair, rows, num_rows):
    """The highest score of each query and the logarithm of its sum."""
    places = sums + (pair.to(tl.int64) * num_rows + rows) * 2
    exists = rows < num_rows
    return tl.load(places, mask=exists, other=0.0), tl.load(places + 1, mask=exists, other=0.0)


@triton.jit
def keep_tile(low, high, head, rows, columns, bound):
    """Which pairs of a tile are kept, by the bits of ``core.dropout`` over (head, query, key)."""
    position = head.to(tl.uint32) * AXIS_0 + rows.to(tl.uint32) * AXIS_1
    return keeps(low, high, position[:, None] + (columns.to(tl.uint32) * AXIS_2)[None, :], bound)


@triton.jit(do_not_specialize=["layer", "bound"])
def forward_kernel(
    query,
    key,
    value,
    allowed,
    states,
    out,
    sums,
    allowed_batch,
    allowed_head,
    allowed_row,
    allowed_column,
    heads,
    num_rows,
    num_columns,
    width,
    scale,
    layer,
    bound,
    keep_scale,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    MASK: tl.constexpr,
    PER_KEY: tl.constexpr,
    DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """ROWS queries: softmax by running maximum and sum (Dao, 2023, arXiv:2307.08691). A query
    without keys gives zeros."""
    tiles = tl.cdiv(num_rows, ROWS)
    program = tl.program_id(0)
    pair = program // tiles
    batch, head = pair // heads, pair % heads
    rows = (program % tiles) * ROWS + tl.arange(0, ROWS)
    query = head_of(query, batch, head, heads, num_rows, width)
    key = head_of(key, batch, head, heads, num_columns, width)
    value = head_of(value, batch, head, heads, num_columns, width)
    allowed += batch.to(tl.int64) * allowed_batch + head * allowed_head
    out = head_of(out, batch, head, heads, num_rows, width)
    left = load_tile(query, rows, num_rows, heads, width, WIDTH)
    if DROPS:
        low, high = layer_state(states, batch + tl.zeros((1, 1), tl.int32), layer)
    highest = tl.full((ROWS,), NEVER, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, num_columns, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        right = load_tile(key, columns, num_columns, heads, width, WIDTH)
        scores = tl.dot(left, tl.trans(right), input_precision=PRECISION) * scale
        scores = restrict(
            scores,
            allowed,
            allowed_row,
            allowed_column,
            rows,
            columns,
            num_rows,
            num_columns,
            MASK,
            PER_KEY,
        )
        higher = tl.maximum(highest, tl.max(scores, axis=1))
        shift = tl.where(higher == NEVER, 0.0, higher)
        weights = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(highest - shift)
        total = total * shrink + tl.sum(weights, axis=1)
        if DROPS:
            kept = keep_tile(low, high, head, rows, columns, bound)
            weights = tl.where(kept, weights, 0.0)
        values = load_tile(value, columns, num_columns, heads, width, WIDTH)
        mixed = mixed * shrink[:, None]
        mixed += tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        highest = higher
    sees_any = total > 0
    safe_total = tl.where(sees_any, total, 1.0)
    mixed = mixed * (keep_scale / safe_total)[:, None]
    store_tile(out, mixed, rows, num_rows, heads, width, WIDTH)
    places = sums + (pair.to(tl.int64) * num_rows + rows) * 2
    tl.store(places, tl.where(sees_any, highest, 0.0), mask=rows < num_rows)
    tl.store(places + 1, tl.log2(safe_total), mask=rows < num_rows)
