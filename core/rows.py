"""Rows of length one, and the type they are computed in: the one way for losses, encoders and
metrics alike."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def at_least_float32(rows: Tensor) -> Tensor:
    """Rows in float32, or as they are in float64: half precision is too coarse for norms,
    exponentials and ranks."""
    return rows if rows.dtype == torch.float64 else rows.float()


def unit_rows(rows: Tensor) -> Tensor:
    """Rows of length one along the last axis, in float32 at least; rows of zeros stay zeros."""
    return F.normalize(at_least_float32(rows), dim=-1)
