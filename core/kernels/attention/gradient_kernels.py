# mypy: ignore-errors
"""The Triton kernels of attention's gradients: by queries, by keys and values, by an additive bias.

Scores and dropout's bits are computed again in each, so that none of them is ever stored. Names and
layouts are those of ``attention_kernels``; gradients lie in memory as what they are gradients of.
"""

from __future__ import annotations

import triton
import triton.language as tl

from core.kernels.attention.attention_kernels import (
    head_of,
    keep_tile,
    load_sums,
    load_tile,
    restrict,
    store_tile,
)
from core.kernels.dropout.triton_bits import layer_state


@triton.jit
def pair_gradient(
    left,
    right,
    upstream,
    values,
    highest,
    log_sum,
    product,
    allowed,
    allowed_row,
    allowed_column,
    rows,
    columns,
    num_rows,
    num_columns,
    scale,
    low,
    high,
    head,
    bound,
    keep_scale,
    MASK: tl.constexpr,
    PER_KEY: tl.constexpr,
    DROPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of a tile of pairs: the probabilities as they met the values, and the gradient of the scores.

    Args:
        upstream: (ROWS, WIDTH), the gradient of what came out. product: (ROWS,), its inner product
            with what came out, which stays that of probabilities with their gradients under dropout.
    """
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
    weights = tl.exp2((scores - highest[:, None]) - log_sum[:, None])
    gradient = tl.dot(upstream, tl.trans(values), input_precision=PRECISION)
    applied = weights
    if DROPS:
        kept = keep_tile(low, high, head, rows, columns, bound)
        gradient = tl.where(kept, gradient * keep_scale, 0.0)
        applied = tl.where(kept, weights * keep_scale, 0.0)
    return applied, weights * (gradient - product[:, None])


@triton.jit(do_not_specialize=["layer", "bound"])
def query_gradient_kernel(
    query,
    key,
    value,
    allowed,
    states,
    out,
    upstream,
    sums,
    products,
    gradient,
    allowed_batch,
    allowed_head,
    allowed_row,
    allowed_column,
    heads,
    num_rows,
    num_columns,
    width,
    scale,
    out_scale,
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
    """Gradient of ROWS queries; stores also their ``products``, which the other kernels read."""
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
    upstream = head_of(upstream, batch, head, heads, num_rows, width)
    gradient = head_of(gradient, batch, head, heads, num_rows, width)
    left = load_tile(query, rows, num_rows, heads, width, WIDTH)
    above = load_tile(upstream, rows, num_rows, heads, width, WIDTH)
    result = load_tile(out, rows, num_rows, heads, width, WIDTH)
    product = tl.sum(above.to(tl.float32) * result.to(tl.float32), axis=1)
    highest, log_sum = load_sums(sums, pair, rows, num_rows)
    tl.store(products + pair.to(tl.int64) * num_rows + rows, product, mask=rows < num_rows)
    low, high = 0, 0
    if DROPS:
        low, high = layer_state(states, batch + tl.zeros((1, 1), tl.int32), layer)
    of_queries = tl.zeros((ROWS, WIDTH), tl.float32)
    for first in range(0, num_columns, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        right = load_tile(key, columns, num_columns, heads, width, WIDTH)
        values = load_tile(value, columns, num_columns, heads, width, WIDTH)
        _, of_scores = pair_gradient(
            left,
            right,
            above,
            values,
            highest,
            log_sum,
            product,
            allowed,
            allowed_row,
            allowed_column,
            rows,
            columns,
            num_rows,
            num_columns,
            scale,
            low,
            high,
            head,
            bound,
            keep_scale,
            MASK,
            PER_KEY,
            DROPS,
            PRECISION,
        )
        of_queries += tl.dot(of_scores.to(right.dtype), right, input_precision=PRECISION)
    store_tile(gradient, of_queries * out_scale, rows, num_rows, heads, width, WIDTH)


@triton.jit(do_not_specialize=["layer", "bound"])
def key_gradient_kernel(
    query,
    key,
    value,
    allowed,
    states,
    upstream,
    sums,
    products,
    of_key,
    of_value,
    allowed_batch,
    allowed_head,
    allowed_row,
    allowed_column,
    heads,
    num_rows,
    num_columns,
    width,
    scale,
    out_scale,
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
    """Gradients of COLUMNS keys and their values."""
    tiles = tl.cdiv(num_columns, COLUMNS)
    program = tl.program_id(0)
    pair = program // tiles
    batch, head = pair // heads, pair % heads
    columns = (program % tiles) * COLUMNS + tl.arange(0, COLUMNS)
    query = head_of(query, batch, head, heads, num_rows, width)
    key = head_of(key, batch, head, heads, num_columns, width)
    value = head_of(value, batch, head, heads, num_columns, width)
    allowed += batch.to(tl.int64) * allowed_batch + head * allowed_head
    upstream = head_of(upstream, batch, head, heads, num_rows, width)
    right = load_tile(key, columns, num_columns, heads, width, WIDTH)
    values = load_tile(value, columns, num_columns, heads, width, WIDTH)
    low, high = 0, 0
    if DROPS:
        low, high = layer_state(states, batch + tl.zeros((1, 1), tl.int32), layer)
    of_keys = tl.zeros((COLUMNS, WIDTH), tl.float32)
    of_values = tl.zeros((COLUMNS, WIDTH), tl.float32)
    for first in range(0, num_rows, ROWS):
        rows = first + tl.arange(0, ROWS)
        left = load_tile(query, rows, num_rows, heads, width, WIDTH)
        above = load_tile(upstream, rows, num_rows, heads, width, WIDTH)
        exists = rows < num_rows
        highest, log_sum = load_sums(sums, pair, rows, num_rows)
        product = tl.load(products + pair.to(tl.int64) * num_rows + rows, mask=exists, other=0.0)
        applied, of_scores = pair_gradient(
            left,
            right,
            above,
            values,
            highest,
            log_sum,
            product,
            allowed,
            allowed_row,
            allowed_column,
            rows,
            columns,
            num_rows,
            num_columns,
            scale,
            low,
            high,
            head,
            bound,
            keep_scale,
            MASK,
            PER_KEY,
            DROPS,
            PRECISION,
        )
        of_values += tl.dot(tl.trans(applied.to(above.dtype)), above, input_precision=PRECISION)
        of_keys += tl.dot(tl.trans(of_scores.to(left.dtype)), left, input_precision=PRECISION)
    of_key = head_of(of_key, batch, head, heads, num_columns, width)
    of_value = head_of(of_value, batch, head, heads, num_columns, width)
    store_tile(of_key, of_keys * out_scale, columns, num_columns, heads, width, WIDTH)
    store_tile(of_value, of_values, columns, num_columns, heads, width, WIDTH)


@triton.jit(do_not_specialize=["layer", "bound"])
def bias_gradient_kernel(
    query,
    key,
    value,
    allowed,
    states,
    upstream,
    sums,
    products,
    gradient,
    allowed_batch,
    allowed_head,
    allowed_row,
    allowed_column,
    heads,
    bias_samples,
    bias_heads,
    sample_rounds,
    head_rounds,
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
    """A tile of (bias_samples, bias_heads, num_rows, num_columns), each summed over the samples and
    heads that share it: every ``bias_samples``-th sample, every ``bias_heads``-th head."""
    column_tiles = tl.cdiv(num_columns, COLUMNS)
    row_tiles = tl.cdiv(num_rows, ROWS)
    program = tl.program_id(0)
    columns = (program % column_tiles) * COLUMNS + tl.arange(0, COLUMNS)
    program = program // column_tiles
    rows = (program % row_tiles) * ROWS + tl.arange(0, ROWS)
    shared = program // row_tiles
    exists = rows < num_rows
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for sample_round in range(sample_rounds):
        for head_round in range(head_rounds):
            batch = shared // bias_heads + sample_round * bias_samples
            head = shared % bias_heads + head_round * bias_heads
            pair = (batch * heads + head).to(tl.int64)
            left = load_tile(
                head_of(query, batch, head, heads, num_rows, width),
                rows,
                num_rows,
                heads,
                width,
                WIDTH,
            )
            right = load_tile(
                head_of(key, batch, head, heads, num_columns, width),
                columns,
                num_columns,
                heads,
                width,
                WIDTH,
            )
            values = load_tile(
                head_of(value, batch, head, heads, num_columns, width),
                columns,
                num_columns,
                heads,
                width,
                WIDTH,
            )
            above = load_tile(
                head_of(upstream, batch, head, heads, num_rows, width),
                rows,
                num_rows,
                heads,
                width,
                WIDTH,
            )
            low, high = 0, 0
            if DROPS:
                low, high = layer_state(states, batch + tl.zeros((1, 1), tl.int32), layer)
            highest, log_sum = load_sums(sums, pair, rows, num_rows)
            product = tl.load(
                products + pair.to(tl.int64) * num_rows + rows, mask=exists, other=0.0
            )
            _, of_scores = pair_gradient(
                left,
                right,
                above,
                values,
                highest,
                log_sum,
                product,
                allowed + batch.to(tl.int64) * allowed_batch + head * allowed_head,
                allowed_row,
                allowed_column,
                rows,
                columns,
                num_rows,
                num_columns,
                scale,
                low,
                high,
                head,
                bound,
                keep_scale,
                MASK,
                PER_KEY,
                DROPS,
                PRECISION,
            )
            total += of_scores
    places = gradient + shared.to(tl.int64) * num_rows * num_columns
    places += rows[:, None] * num_columns + columns[None, :]
    inside = exists[:, None] & (columns[None, :] < num_columns)
    tl.store(places, total, mask=inside)
