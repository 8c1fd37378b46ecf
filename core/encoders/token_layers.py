"""Layers on a few learnt tokens in the place of a sequence: what ALMT and LNLN are built of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.encoders.attention import Attention, attend

NO_DROPOUT = nn.Identity()


@dataclass(frozen=True)
class TokenShape:
    """Sizes that all layers of a model share."""

    width: int
    heads: int
    head_width: int  # heads times it need not be the width
    hidden: int  # of the layers between attentions


class TokenLayer(nn.Module):
    """Pre-norm Transformer layer with GELU, on itself or on a source; queries, keys and values have
    a norm each."""

    def __init__(self, shape: TokenShape):
        super().__init__()
        self.norm_query = nn.LayerNorm(shape.width)
        self.norm_key = nn.LayerNorm(shape.width)
        self.norm_value = nn.LayerNorm(shape.width)
        self.attention = Attention(
            shape.width,
            shape.heads,
            head_width=shape.head_width,
            bias=False,
            out_bias=True,
        )
        self.feed = nn.Sequential(
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, shape.hidden),
            nn.GELU(),
            nn.Linear(shape.hidden, shape.width),
        )

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, width) of (B, T, width) on a (B, S, width) source, ``mask`` (B, S) True where it
        exists."""
        keys, values = self.norm_key(source), self.norm_value(source)
        x = x + self.attention(self.norm_query(x), keys, mask, values=values)
        return x + self.feed(x)


class TokenTransformer(nn.Module):
    """Layers over a few learnt tokens and a sequence behind them, which the tokens sum up.

    Args:
        longest: frames that have a position; those behind them have none.
    """

    def __init__(self, shape: TokenShape, longest: int, layers: int, tokens: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(tokens + longest, shape.width))
        self.tokens = nn.Parameter(torch.zeros(tokens, shape.width))
        self.layers = nn.ModuleList(TokenLayer(shape) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, tokens, width) of (B, T, width).

        Args:
            mask: (B, T), True where a frame exists; None: everywhere. Tokens always exist.
        """
        tokens = self.tokens.expand(len(x), -1, -1)
        x = _placed(torch.cat([tokens, x], dim=1), self.positions)
        if mask is not None:
            mask = F.pad(mask, (len(self.tokens), 0), value=True)
        *earlier, last = self.layers
        for layer in earlier:
            x = layer(x, x, mask)
        # nobody reads the other places of the last layer
        read: Tensor = last(x[:, : len(self.tokens)], x, mask)
        return read


class Levels(nn.Module):
    """Layers over tokens with learnt positions, of which every level is given."""

    def __init__(self, shape: TokenShape, tokens: int, layers: int):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(tokens, shape.width))
        self.layers = nn.ModuleList(TokenLayer(shape) for _ in range(layers))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, tokens, width) with positions, and what each layer makes of it."""
        found = [_placed(x, self.positions)]
        for layer in self.layers:
            found.append(layer(found[-1], found[-1]))
        return found


def _placed(x: Tensor, positions: Tensor) -> Tensor:
    """(B, T, width) with the first T of the positions; the padding of a batch may reach beyond
    them."""
    behind = max(0, x.shape[1] - len(positions))
    return x + F.pad(positions, (0, 0, 0, behind))[: x.shape[1]]


class HyperModality(nn.Module):
    """ALMT's layer: what the text's tokens find in those of sound and video, added to the
    hyper-modality (Zhang et al., EMNLP 2023, arXiv:2310.05804).

    Args:
        others: modalities that the text looks at.
        plain: whether it is added to the hyper-modality itself, and not to its norm.
    """

    def __init__(self, width: int, heads: int, others: list[str], plain: bool):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        self.heads = heads
        self.norm_text = nn.LayerNorm(width)
        self.norm_hyper = nn.Identity() if plain else nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.norms, self.keys, self.values = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        for m in others:
            self.norms[m] = nn.LayerNorm(width)
            self.keys[m] = nn.Linear(width, width, bias=False)
            self.values[m] = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(
        self,
        hyper: Tensor,
        text: Tensor,
        others: dict[str, Tensor],
        has_modality: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, tokens, width).

        Args:
            hyper: (B, tokens, width).
            text: (B, tokens, width), a level of the language.
            others: modality -> (B, tokens, width).
            has_modality: modality -> (B,) bool; nothing is found in one that a sample lacks.
        """
        query = self._split_heads(self.query(self.norm_text(text)))
        found = torch.zeros_like(text)
        for m, norm in self.norms.items():
            seen = norm(others[m])
            key = self._split_heads(self.keys[m](seen))
            value = self._split_heads(self.values[m](seen))
            mixed = attend(query, key, value, None, NO_DROPOUT).transpose(1, 2).flatten(2)
            if has_modality is not None:
                mixed = mixed * has_modality[m][:, None, None]
            found = found + mixed
        return self.norm_hyper(hyper) + self.out(found)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, d)


class TokenFusion(nn.Module):
    """Target tokens that look at source tokens, a learnt token in front of both."""

    def __init__(self, shape: TokenShape, tokens: int, layers: int):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, shape.width))
        self.source_positions = nn.Parameter(torch.randn(1 + tokens, shape.width))
        self.target_positions = nn.Parameter(torch.randn(1 + tokens, shape.width))
        self.layers = nn.ModuleList(TokenLayer(shape) for _ in range(layers))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, 1 + tokens, width) of two (B, tokens, width)."""
        token = self.token.expand(len(source), -1, -1)
        source = torch.cat([token, source], dim=1) + self.source_positions
        x = torch.cat([token, target], dim=1) + self.target_positions
        for layer in self.layers:
            x = layer(x, source)
        return x


class LanguageGuided(nn.Module):
    """ALMT behind its embeddings: levels of the language, of which each adds to the hyper-modality
    what it finds in sound and video; then the last level looks at what became of it.

    Args:
        ones: start from a hyper-modality of ones, as the released codes do. The first norm turns it
            into zeros, so its gain gets no gradient in the first step.
    """

    def __init__(
        self,
        shape: TokenShape,
        others: list[str],
        *,
        tokens: int,
        levels: int,
        hyper_heads: int,
        fusion_layers: int,
        plain: bool,
        ones: bool,
    ):
        super().__init__()
        self.language = Levels(shape, tokens, levels - 1)
        size = (tokens, shape.width)
        self.hyper = nn.Parameter(torch.ones(size) if ones else torch.randn(size))
        self.layers = nn.ModuleList(
            HyperModality(shape.width, hyper_heads, others, plain) for _ in range(levels)
        )
        self.fusion = TokenFusion(shape, tokens, fusion_layers)

    def forward(
        self,
        text: Tensor,
        others: dict[str, Tensor],
        has_modality: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """(B, 1 + tokens, width) of (B, tokens, width) text and others; arguments as
        ``HyperModality``'s."""
        levels = self.language(text)
        hyper = self.hyper.expand(len(text), -1, -1)
        for layer, level in zip(self.layers, levels, strict=True):
            hyper = layer(hyper, level, others, has_modality)
        fused: Tensor = self.fusion(hyper, levels[-1])
        return fused
