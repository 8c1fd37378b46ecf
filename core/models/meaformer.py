"""MEAformer: meta-modality weights per entity by a small transformer (Chen et al., ACM MM 2023, arXiv:2212.14454).

Differences from the printed formulas and the released code:
the weight of a view is the attention it *receives*. As printed it is the attention it gives, which sums to one, so
that all weights are equal (``meta="printed"`` shows it). Tokens and losses keep one order of views; the released code
stacks one order and reads another, and so pairs late losses with the wrong names and weights. Absent views add
nothing, and tokens of an entity's absent views are masked. ``weighting="equal"`` is the paper's plain sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.batch import EntityGraph
from core.dropout import SampleDropout
from core.encoders.entity_encoder import (
    Aligned,
    EntityEncoder,
    GraphKind,
    chosen_views,
    side_rows,
    unit_rows,
)
from core.losses.info_nce import ICL, Form
from core.losses.uncertainty import Regulariser, Uncertainty
from core.model import DataSpec, Model

Meta = Literal["received", "printed"]


@dataclass(frozen=True)
class Output(Aligned):
    late: dict[str, Tensor]  # view -> (N, D) or (B, 2, D), the token of that view after attention
    weights: Tensor  # (N, M) or (B, 2, M) meta-modality weights; of the views an entity has, they sum to 1


class MEAformer(Model[EntityGraph, Output]):
    """One token per view; attention between them gives each entity its own mixture of views."""

    task: ClassVar[str] = "alignment"

    @dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = ()  # of those the data have; empty: all
        graph: GraphKind = "gat"
        hidden: int = 300
        graph_layers: int = 2
        graph_heads: int = 2
        entity_scale: float = (
            1.0  # deviation of the random entity table at the start, times sqrt(N)
        )
        layers: int = 1
        heads: int = 1
        feedforward: int = 400  # 0: none (FB15K in the released settings)
        dropout: float = 0.1
        meta: Meta = "received"
        temperature: float = 0.1
        contrast_form: Form = "half_sum"
        weighting: Literal["learnt", "equal"] = "learnt"
        regulariser: Regulariser = "released"  # the paper prints no weights at all

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.views = chosen_views(config.views, data)
        self.encoder = EntityEncoder(
            data, self.views, graph_hidden=config.hidden, hidden=config.hidden, layers=config.graph_layers,
            heads=config.graph_heads, graph=config.graph, entity_scale=config.entity_scale,
        )  # fmt: skip
        self.layers = nn.ModuleList(
            TokenLayer(
                config.hidden,
                config.heads,
                config.feedforward,
                config.dropout,
                first_dropout=4 * depth,
            )
            for depth in range(config.layers)
        )
        self.icl = ICL(config.temperature, form=config.contrast_form)
        # early and late losses of a view share one weight, as in the released code
        self.view_weights = (
            Uncertainty(self.views, config.regulariser) if config.weighting == "learnt" else None
        )

    def forward(self, batch: EntityGraph) -> Output:
        only = (
            self.training or batch.links_only
        )  # while training nobody asks for the other entities
        views, present = self.encoder(batch, batch.links if only else None)
        tokens = torch.stack([views[view] for view in self.views], dim=-2)  # (..., M, D)
        has = torch.stack([present[view] for view in self.views], dim=-1)  # (..., M)
        late = tokens
        for layer in self.layers:
            late, attention = layer(late, has)
        weights = meta_weights(attention, has, self.config.meta)  # (..., M)
        joint = unit_rows((weights.unsqueeze(-1) * unit_rows(tokens)).flatten(-2))  # early fusion
        return Output(
            joint, views, present, links=None if only else batch.links,
            late=dict(zip(self.views, late.unbind(-2), strict=True)), weights=weights,
        )  # fmt: skip

    def losses(self, output: Output, batch: EntityGraph) -> dict[str, Tensor]:
        return {}  # every loss needs the whole global batch

    def global_batch_rows(self, output: Output) -> dict[str, Tensor]:
        rows = side_rows("joint", output.pairs(output.joint))
        for view in self.views:
            rows |= side_rows(f"early_{view}", output.pairs(output.views[view]))
            rows |= side_rows(f"late_{view}", output.pairs(output.late[view]))
            both = output.pairs(output.present[view]).all(1, keepdim=True)  # (B, 1)
            rows[f"{view}/present"] = both.to(rows["joint/left"].dtype)
        return rows

    def global_batch_losses(
        self, embeddings: Mapping[str, Tensor], label: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """ICL of the fused embedding, of every view, and of every view's token after attention."""
        losses = {"joint": self.icl(embeddings["joint/left"], embeddings["joint/right"], weight)}
        for when in ("early", "late"):
            parts = {
                view: self.icl(
                    embeddings[f"{when}_{view}/left"],
                    embeddings[f"{when}_{view}/right"],
                    weight * embeddings[f"{view}/present"].squeeze(1),
                )
                for view in self.views
            }
            weighted = self.view_weights(parts) if self.view_weights else parts
            losses |= {f"{when}_{view}": loss for view, loss in weighted.items()}
        return losses

    def report(self) -> dict[str, float]:
        weights = self.view_weights.weights() if self.view_weights else {}
        return {f"loss_weight_{view}": value for view, value in weights.items()}


class TokenLayer(nn.Module):
    """A BERT layer over the M view tokens of each entity that also gives its attention."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, *, first_dropout: int
    ):
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}; change options.heads")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.attention_dropout, self.out_dropout, self.feedforward_dropout = (
            SampleDropout(dropout, first_dropout + place) for place in (1, 2, 3)
        )
        self.feedforward = (
            nn.Sequential(nn.Linear(width, feedforward), nn.GELU(), nn.Linear(feedforward, width))
            if feedforward
            else None
        )
        self.feedforward_norm = nn.LayerNorm(width, eps=1e-12) if feedforward else None

    def forward(self, tokens: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """(..., M, D) tokens, (..., M) bool: the tokens after the layer, and (..., heads, M, M) attention as applied,
        that is after dropout; row q is what view q gives to each other view."""
        query, key, value = (
            part(tokens)
            .unflatten(-1, (self.heads, -1))
            .transpose(-3, -2)  # (..., heads, M, D / heads)
            for part in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        hidden = ~has[..., None, None, :]
        attention = self.attention_dropout(scores.masked_fill(hidden, -1e9).softmax(-1))
        mixed = (attention @ value).transpose(-3, -2).flatten(-2)  # (..., M, D)
        tokens = self.norm(self.out_dropout(self.out(mixed)) + tokens)
        if self.feedforward is not None and self.feedforward_norm is not None:
            tokens = self.feedforward_norm(
                self.feedforward_dropout(self.feedforward(tokens)) + tokens
            )
        return tokens, attention


def meta_weights(attention: Tensor, has: Tensor, meta: Meta = "received") -> Tensor:
    """(..., M) softmax of the attention each view receives over all heads, divided by sqrt(M * heads).

    Args:
        attention: (..., heads, M, M), rows are queries.
        has: (..., M) bool; a view that the entity lacks neither gives nor gets weight.
        meta: "printed" sums what a view gives, as the paper's formula says; its weights are all equal.
    """
    heads, num_views = attention.shape[-3], attention.shape[-1]
    attention = attention.float() if attention.dtype != torch.float64 else attention
    given = attention * has[..., None, :, None]  # queries that exist
    total = given.sum((-3, -2)) if meta == "received" else attention.sum((-3, -1))
    scores = total / math.sqrt(num_views * heads)
    return F.softmax(scores.masked_fill(~has, -1e9), dim=-1) * has
