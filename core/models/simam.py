"""SimAM: attention without parameters, by how much a value stands out (Yang et al., ICML 2021)."""

from __future__ import annotations

from torch import Tensor

LAMBDA = 1e-4


def simam(x: Tensor, mask: Tensor) -> Tensor:
    """(B, T, C) scaled per sample and channel by what stands out over the existing times of ``mask`` (B, T).

    Equation 5 of the paper turned upside down: d / (4 (v + lambda)) + 1/2, d the squared distance from the mean, v the
    variance over n - 1. Padding gives zero.
    """
    kept = mask[..., None].to(x.dtype)  # (B, T, 1)
    size = kept.sum(1, keepdim=True)
    mean = (x * kept).sum(1, keepdim=True) / size.clamp(min=1)
    apart = (x - mean).square() * kept
    variance = apart.sum(1, keepdim=True) / (size - 1).clamp(min=1)
    return x * kept * (apart / (4 * (variance + LAMBDA)) + 0.5).sigmoid()
