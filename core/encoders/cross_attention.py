"""The Transformer encoder of one sequence on another, which MulT began, and what goes with it."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.encoders.attention import Attention
from core.encoders.sequence import last_frame


class EncoderOptions(Protocol):
    """What all encoders of a model share."""

    @property
    def embed_dropout(self) -> float: ...
    @property
    def relu_dropout(self) -> float: ...
    @property
    def residual_dropout(self) -> float: ...
    @property
    def place_dropped(self) -> bool: ...  # whether a frame of zeros has a position


class Encoder(nn.Module):
    """Pre-norm Transformer encoder on itself or on another sequence (MulT, Tsai et al., ACL 2019,
    arXiv:1906.00295).

    Queries and keys pass the same norm, and every layer looks at the other sequence as it came in.

    Args:
        ordered: whether frames have positions.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        attention_dropout: float,
        options: EncoderOptions,
        ordered: bool = True,
    ):
        super().__init__()
        self.width = width
        self.ordered = ordered
        self.attention = nn.ModuleList(
            Attention(width, heads, dropout=attention_dropout) for _ in range(layers)
        )
        self.feed = nn.ModuleList(
            nn.Sequential(
                nn.Linear(width, 4 * width),
                nn.ReLU(),
                nn.Dropout(options.relu_dropout),
                nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.before = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.between = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.embed = nn.Dropout(options.embed_dropout)
        self.residual = nn.Dropout(options.residual_dropout)
        self.place_dropped = options.place_dropped
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        other: Tensor | None = None,
        other_mask: Tensor | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """(B, T, width), or (B, 1, width) with ``last_only``.

        Args:
            mask: (B, T); None means that positions have no order and all exist (the feature axis).
            attn_mask: (T, S), True where a query may look at a key.
            other: (B, S, width), what is looked at instead of ``x`` itself.
            other_mask: (B, S).
            last_only: give the last existing frame alone. It may look at every frame of ``x``, and
                the last layer computes nothing else.
        """
        embedded_other = None if other is None else self._embed(other, other_mask)
        key_mask = mask if other is None else other_mask
        x = self._embed(x, mask)
        layers = zip(self.attention, self.feed, self.before, self.between, strict=True)
        for number, (attention, feed, before, between) in enumerate(layers, 1):
            queries = before(x)
            keys = queries if embedded_other is None else before(embedded_other)
            if last_only and mask is not None and number == len(self.attention):
                x, queries = last_frame(x, mask)[:, None], last_frame(queries, mask)[:, None]
                attn_mask = None
            x = x + self.residual(attention(queries, keys, key_mask, attn_mask))
            x = x + self.residual(feed(between(x)))
        return self.last(x)

    def _embed(self, x: Tensor, mask: Tensor | None) -> Tensor:
        embedded = math.sqrt(self.width) * x
        if mask is not None and self.ordered:
            # the released code takes a first channel of exactly zero for padding
            placed = mask if self.place_dropped else mask & (x[..., 0] != 0)
            embedded = embedded + positions(x.shape[1], self.width, x.device) * placed[..., None]
        return self.embed(embedded)


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width) positions counted from 1: a half of sines, a half of cosines (fairseq's and
    MulT's way)."""
    half = width // 2
    rate = torch.exp(torch.arange(half, device=device) * -(math.log(10000.0) / max(half - 1, 1)))
    angle = torch.arange(1, length + 1, device=device)[:, None] * rate
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, width % 2))


class ResidualHead(nn.Module):
    """(B, width) to (B, outputs): a layer that the input passes by, then a linear one (MulT)."""

    def __init__(self, width: int, dropout: float, outputs: int):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.out = nn.Linear(width, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.first(x).relu())
        return self.out(x + self.second(hidden))


def keys_up_to_now(queries: int, keys: int, ahead: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: a query sees the keys up to its own place and ``ahead`` more.

    Args:
        ahead: the difference of the greatest lengths of the data, so that nothing depends on how
            far a batch is padded.
    """
    query_place = torch.arange(queries, device=device)
    key_place = torch.arange(keys, device=device)
    return key_place[None] <= query_place[:, None] + ahead
