"""Launches of the attention kernels: layouts, tile sizes, and what both directions have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from core.kernels.attention import attention_kernels, gradient_kernels
from core.kernels.dropout.formula import least_kept

LOG2_E = math.log2(math.e)
NARROWEST = 16  # features and rows that tensor cores take at least
NO_MASK, BOOLEAN, BIAS = 0, 1, 2


@dataclass(frozen=True)
class Tiles:
    """Queries and keys of a program, and how it is compiled."""

    rows: int
    columns: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Drawing:
    """What is dropped of the probabilities; nothing without ``states``."""

    states: Tensor | None  # (B,) int64
    layer: int
    p: float


def forward_tiles(dtype: torch.dtype, num_rows: int, width: int, per_pair: bool) -> Tiles:
    """Tiles of the forward kernel, for as many queries and features as there are at least.

    Args:
        per_pair: whether a mask tells queries apart, so that a tile of it is held as well.
    """
    few = max(NARROWEST, triton.next_power_of_2(num_rows))
    if dtype == torch.float32:  # products without tensor cores live in registers
        return Tiles(min(32, few), 32 if width <= 64 else 16, _warps(width), stages=1)
    is_heavy = width > 64 or (per_pair and width > 32)
    return Tiles(min(32 if is_heavy else 64, few), 32, _warps(width), stages=2)


def gradient_tiles(dtype: torch.dtype, width: int) -> Tiles:
    """Tiles of the kernels that compute gradients of queries, keys and values."""
    if dtype == torch.float32:
        return Tiles(16, 16, _warps(width), stages=1)
    return Tiles(32, 32 if width <= 64 else 16, _warps(width), stages=1)


def bias_tiles(dtype: torch.dtype, width: int) -> Tiles:
    """Tiles of the kernel that computes the gradient of a bias, which has four operands at once."""
    size = 16 if dtype == torch.float32 or width > 32 else 32
    return Tiles(size, size, warps=8, stages=1)


def _warps(width: int) -> int:
    """So many that what a thread holds of a tile fits its registers."""
    return 4 if width <= 32 else 8


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    drawing: Drawing,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """What queries take, (B, h, T, d), and what their gradients need, (B, h, T, 2) float32.

    Args:
        allowed: boolean or added to the scores, of four dimensions that broadcast to (B, h, T, S).
    """
    launch = _Launch.of(query, key, value, allowed, drawing, scale)
    out = like(query)
    sums = query.new_empty((*query.shape[:3], 2), dtype=torch.float32)
    tiles = forward_tiles(
        query.dtype, launch.num_rows, launch.padded_width, launch.has_mask_of_pairs
    )
    if out.numel() > 0:
        attention_kernels.forward_kernel[launch.grid(launch.num_rows, tiles.rows)](
            out=rows_first(out), sums=sums, **launch.arguments, **_constants(tiles)
        )
    return out, sums


def backward(
    upstream: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    out: Tensor,
    sums: Tensor,
    drawing: Drawing,
    scale: float,
    wants_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of query, key and value, and that of ``allowed`` where it is a bias that wants
    one."""
    launch = _Launch.of(query, key, value, allowed, drawing, scale)
    tiles = gradient_tiles(query.dtype, launch.padded_width)
    shared = launch.arguments | {
        "upstream": rows_first(upstream.to(query.dtype)),
        "sums": sums,
        "products": sums.new_empty(sums.shape[:3]),
    }
    of_query, of_key, of_value = like(query), like(key), like(value)
    of_bias = None
    if wants_bias and allowed is not None:
        of_bias = query.new_zeros(
            (*allowed.shape[:2], launch.num_rows, launch.num_columns), dtype=torch.float32
        )
    if query.numel() > 0:
        gradient_kernels.query_gradient_kernel[launch.grid(launch.num_rows, tiles.rows)](
            out=rows_first(out),
            gradient=rows_first(of_query),
            out_scale=scale,
            **shared,
            **_constants(tiles),
        )
        gradient_kernels.key_gradient_kernel[launch.grid(launch.num_columns, tiles.columns)](
            of_key=rows_first(of_key),
            of_value=rows_first(of_value),
            out_scale=scale,
            **shared,
            **_constants(tiles),
        )
    else:
        of_key.zero_()
        of_value.zero_()
    if of_bias is not None and allowed is not None:
        _launch_bias(launch, shared, of_bias)
        of_bias = of_bias.sum_to_size(allowed.shape).to(allowed.dtype)
    return of_query, of_key, of_value, of_bias


def _launch_bias(launch: _Launch, shared: dict[str, Any], of_bias: Tensor) -> None:
    if of_bias.numel() == 0 or launch.samples == 0:
        return
    tiles = bias_tiles(shared["query"].dtype, launch.padded_width)
    tile_count = math.ceil(launch.num_rows / tiles.rows)
    tile_count *= math.ceil(launch.num_columns / tiles.columns)
    gradient_kernels.bias_gradient_kernel[(len(of_bias) * of_bias.shape[1] * tile_count,)](
        gradient=of_bias,
        bias_samples=len(of_bias),
        bias_heads=of_bias.shape[1],
        sample_rounds=launch.samples // len(of_bias),
        head_rounds=launch.heads // of_bias.shape[1],
        **shared,
        **_constants(tiles),
    )


@dataclass(frozen=True)
class _Launch:
    """Sizes, and the arguments that all kernels take."""

    samples: int
    heads: int
    num_rows: int
    num_columns: int
    padded_width: int
    arguments: dict[str, Any]

    @staticmethod
    def of(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        allowed: Tensor | None,
        drawing: Drawing,
        scale: float,
    ) -> _Launch:
        samples, heads, num_rows, width = query.shape
        num_columns = key.shape[2]
        mask = NO_MASK
        strides: tuple[int, ...] = (0, 0, 0, 0)
        placeholder = query  # for a pointer that the kernel does not read
        if allowed is not None:
            strides = allowed.expand(samples, heads, num_rows, num_columns).stride()
            mask = BOOLEAN if allowed.dtype == torch.bool else BIAS
            allowed = allowed.view(torch.uint8) if mask == BOOLEAN else allowed
        padded_width = max(NARROWEST, triton.next_power_of_2(width))
        drops = drawing.states is not None
        arguments = {
            "query": rows_first(query),
            "key": rows_first(key),
            "value": rows_first(value),
            "allowed": placeholder if allowed is None else allowed,
            "allowed_batch": strides[0],
            "allowed_head": strides[1],
            "allowed_row": strides[2],
            "allowed_column": strides[3],
            "states": placeholder if drawing.states is None else drawing.states,
            "heads": heads,
            "num_rows": num_rows,
            "num_columns": num_columns,
            "width": width,
            "scale": scale * LOG2_E,
            "layer": drawing.layer,
            "bound": least_kept(drawing.p) if drops else 0,
            "keep_scale": 1 / (1 - drawing.p) if drops else 1.0,
            "WIDTH": padded_width,
            "MASK": mask,
            "PER_KEY": mask != NO_MASK and strides[2] == 0,
            "DROPS": drops,
            "PRECISION": product_precision(query.dtype),
        }
        return _Launch(samples, heads, num_rows, num_columns, padded_width, arguments)

    @property
    def has_mask_of_pairs(self) -> bool:
        return self.arguments["MASK"] != NO_MASK and not self.arguments["PER_KEY"]

    def grid(self, length: int, tile: int) -> tuple[int]:
        return (self.samples * self.heads * math.ceil(length / tile),)


def like(heads_first: Tensor) -> Tensor:
    """An empty tensor of this shape (B, h, T, d) that lies in memory as (B, T, h, d), which is how
    heads come out of a linear layer and go into the next."""
    samples, heads, length, width = heads_first.shape
    return heads_first.new_empty((samples, length, heads, width)).transpose(1, 2)


def rows_first(heads_first: Tensor) -> Tensor:
    """(B, T, h, d), contiguous: a view of what lies in memory so, otherwise a copy."""
    return heads_first.transpose(1, 2).contiguous()


def product_precision(dtype: torch.dtype) -> str:
    """How products of float32 are computed: as torch's own are, with all digits unless the user has
    allowed fewer."""
    reduced = dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if reduced else "ieee"


def _constants(tiles: Tiles) -> dict[str, int]:
    return {
        "ROWS": tiles.rows,
        "COLUMNS": tiles.columns,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }
