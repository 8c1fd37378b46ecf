"""Attention from one sequence to another, with masks, and the Transformer layer built of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention of (B, T, width) queries on (B, S, source) keys and values.

    Args:
        out: whether heads go through an output projection.
        scale: of the scores before the softmax; None: one over the root of a head's width.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        source: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        out: bool = True,
        scale: float | None = None,
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        source = width if source is None else source
        self.heads = heads
        self.scale = scale
        self.dropout = nn.Dropout(
            dropout
        )  # a module of its own, so that its masks can be tied to the samples
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(source, width, bias=bias)
        self.value = nn.Linear(source, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias) if out else nn.Identity()

    def forward(
        self, x: Tensor, source: Tensor, mask: Tensor | None = None, pairs: Tensor | None = None
    ) -> Tensor:
        """(B, T, width). A query that may look at nothing gives zeros.

        Args:
            mask: (B, S), True at keys that exist.
            pairs: (T, S), True where a query may look at a key.
        """
        query, key, value = (
            self._split(f(y))
            for f, y in ((self.query, x), (self.key, source), (self.value, source))
        )
        some = allowed = None
        if mask is not None:
            allowed = mask[:, None] if pairs is None else mask[:, None] & pairs  # (B, 1 or T, S)
            some = allowed.any(2, keepdim=True)
            allowed = (allowed | ~some)[
                :, None
            ]  # (B, 1, 1 or T, S); softmax over nothing would be NaN
        mixed = attend(query, key, value, allowed, self.dropout, self.scale)  # (B, h, T, d)
        mixed = self.out(mixed.transpose(1, 2).flatten(2))
        return mixed if some is None else mixed * some

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, h, T, d)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    dropout: nn.Module,
    scale: float | None = None,
) -> Tensor:
    """softmax(query key^T * scale) value, over (B, h, T, d), with the module ``dropout`` on the softmax.

    ``allowed`` is boolean or added to the scores. The fused kernels draw dropout from their process's generator, so
    they serve only where nothing is dropped; masks of ``dropout`` may belong to the sample (``core.dropout``).
    """
    if not dropout.training or not getattr(dropout, "p", 0.0):
        return F.scaled_dot_product_attention(query, key, value, allowed, scale=scale)
    # in place where the backward pass does not ask for what was there: these are the largest tensors of a model
    score = (query @ key.transpose(-1, -2)).mul_(
        query.shape[-1] ** -0.5 if scale is None else scale
    )  # (B, h, T, S)
    if allowed is not None:
        score = (
            score.masked_fill_(~allowed, -math.inf)
            if allowed.dtype == torch.bool
            else score + allowed
        )
    return dropout(score.softmax(-1)).to(value.dtype) @ value


class TransformerLayer(nn.Module):
    """The post-norm Transformer encoder layer with ReLU (Vaswani et al., 2017, arXiv:1706.03762)."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads, dropout=dropout)
        self.feed = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.norm_attention, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm_attention(x + self.dropout(self.attention(x, x, mask)))  # (B, T, width)
        return self.norm_feed(x + self.dropout(self.feed(x)))


def largest_heads(width: int, at_most: int, narrowest: int = 1) -> int:
    """The largest number of heads up to ``at_most`` that divides ``width`` into heads of ``narrowest`` or more."""
    return max(
        (h for h in range(1, at_most + 1) if width % h == 0 and width // h >= narrowest), default=1
    )
