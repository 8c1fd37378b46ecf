"""Launches of the softmax kernels, with the interface of ``in_batch_softmax``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from core.kernels.in_batch import softmax_kernels as kernels
from core.kernels.supcr.scan_launch import (
    BLOCK_WIDTH,
    Tiles,
    announce,
    block_width,
    output_width,
    padded_width,
)

RANGE_COLUMNS = 16384  # that one launch adds up, before it adds to the gradient

# They fit the registers of capabilities 8.0 and 9.0; no timing chose them.
OPERANDS = Tiles(rows=32, columns=0, warps=4)
SUMS = Tiles(rows=64, columns=32, warps=8, stages=2)
GRADIENT = Tiles(rows=64, columns=32, warps=8, stages=2)
# Two pairs of operands leave less room.
JOINT_BLOCK_WIDTH = 64
JOINT_SUMS = Tiles(rows=32, columns=32, warps=8)
JOINT_GRADIENT = Tiles(rows=32, columns=32, warps=8)


@dataclass(frozen=True)
class Operands:
    """Rows as float16 operands, see ``tile_products.write_operands``."""

    high: Tensor  # (n, padded width) float16
    low: Tensor  # the same
    lengths: Tensor  # (n,) float32

    @staticmethod
    def of(rows: Tensor) -> Operands:
        """Of (n, D) float32 rows."""
        n, width = rows.shape
        padded = padded_width(width)
        shape = (n, padded)
        operands = Operands(
            high=rows.new_empty(shape, dtype=torch.float16),
            low=rows.new_empty(shape, dtype=torch.float16),
            lengths=rows.new_empty(n),
        )
        kernels.operands_kernel[(triton.cdiv(n, OPERANDS.rows),)](
            features=rows.contiguous(),
            num_rows=n,
            width=width,
            WIDTH=padded,
            BLOCK_M=OPERANDS.rows,
            BLOCK_D=block_width(padded),
            num_warps=OPERANDS.warps,
            **vars(operands),
        )
        return operands


def softmax_sums(
    columns: Tensor, self_column: Tensor, joint_columns: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """``log_sums`` of the anchors, (m,), those of the joint embedding, and KL(joint || view); the
    latter two are empty memory without one."""
    found = columns.new_empty(3, len(self_column))
    if len(self_column) > 0:
        announce("Softmaxes of a batch", padded_width(columns.shape[1]))
        tiles = SUMS if joint_columns is None else JOINT_SUMS
        kernels.softmax_sums_kernel[(triton.cdiv(len(self_column), tiles.rows),)](
            self_column=self_column.int(),
            log_sums=found[0],
            joint_log_sums=found[1],
            divergences=found[2],
            num_anchors=len(self_column),
            **_pair(columns, joint_columns),
            **tiles.options,
        )
    return found[0], found[1], found[2]


def softmax_gradient(
    columns: Tensor,
    self_column: Tensor,
    upstream: Tensor,
    log_sums: Tensor,
    joint_columns: Tensor | None = None,
    joint_log_sums: Tensor | None = None,
) -> Tensor:
    """Gradient of the anchors, (m, D), see ``in_batch_softmax.gradient``.

    Args:
        upstream, log_sums, joint_log_sums: (n,) of all columns.
    """
    n, width = columns.shape
    gradient = columns.new_zeros(len(self_column), width)
    if len(self_column) == 0:
        return gradient
    pair = _pair(columns, joint_columns)
    tiles = GRADIENT if joint_columns is None else JOINT_GRADIENT
    block = output_width(pair["WIDTH"])
    grid = (triton.cdiv(len(self_column), tiles.rows), pair["WIDTH"] // block)
    shared = pair | {
        "self_column": self_column.int(),
        "upstream": upstream.contiguous(),
        "log_sums": log_sums.contiguous(),
        "joint_log_sums": log_sums if joint_log_sums is None else joint_log_sums.contiguous(),
        "longest": pair["lengths"].max(),
        "greatest_upstream": upstream.abs().max(),
        "gradient": gradient,
        "num_anchors": len(self_column),
        "features_width": width,
        "BLOCK_OUT": block,
    }
    for first_column in range(0, n, RANGE_COLUMNS):
        kernels.softmax_gradient_kernel[grid](
            first_column=first_column,
            end_column=min(first_column + RANGE_COLUMNS, n),
            **shared,
            **tiles.options,
        )
    return gradient


def _pair(columns: Tensor, joint_columns: Tensor | None) -> dict[str, Any]:
    """The arguments that both kernels take of the rows, and of those of the joint embedding."""
    view = Operands.of(columns)
    joint = view if joint_columns is None else Operands.of(joint_columns)
    width, joint_width = view.high.shape[1], joint.high.shape[1]
    widest = BLOCK_WIDTH if joint_columns is None else JOINT_BLOCK_WIDTH
    return {
        "high": view.high,
        "low": view.low,
        "lengths": view.lengths,
        "joint_high": joint.high,
        "joint_low": joint.low,
        "joint_lengths": joint.lengths,
        "num_columns": len(columns),
        "WIDTH": width,
        "JOINT_WIDTH": joint_width,
        "BLOCK_D": min(block_width(width), widest),
        "JOINT_BLOCK_D": min(block_width(joint_width), widest),
        "JOINT": joint_columns is not None,
    }
