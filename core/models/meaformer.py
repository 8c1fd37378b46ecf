"""MEAformer: meta-modality weights per entity by a small transformer (Chen et al., ACM MM 2023,
arXiv:2212.14454).

Differences from the printed formulas and the released code:
the weight of a view is the attention it *receives*. As printed it is the attention it gives, which
sums to one, so that all weights are equal (``meta="printed"`` shows it). Tokens and losses keep one
order of views; the released code stacks one order and reads another, and so pairs late losses with
the wrong names and weights. Absent views add nothing, and tokens of an entity's absent views are
masked. ``weighting="equal"`` is the paper's plain sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import EntityGraph
from core.dropout import Probability, SampleDropout
from core.encoders.entity_encoder import Aligned, EntityEncoder, GraphKind, chosen_views
from core.losses.info_nce import ICL, Form
from core.losses.uncertainty import Regulariser, Uncertainty
from core.model import DataSpec, GlobalBatchRows, Model, TaskName
from core.rows import unit_rows

Meta = Literal["received", "printed"]


@dataclass(frozen=True)
class Output(Aligned):
    # view -> (N, D) or (B, 2, D), the token of that view after attention
    late: dict[str, Tensor]
    # (N, M) or (B, 2, M) meta-modality weights; of the views an entity has, they sum to 1
    weights: Tensor


class MEAformer(Model[EntityGraph, Output]):
    """One token per view; attention between them gives each entity its own mixture of views."""

    task: ClassVar[TaskName] = "alignment"

    @validated_dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = ()  # of those the data have; empty: all
        graph: GraphKind = "gat"
        hidden: PositiveInt = 300
        graph_layers: PositiveInt = 2
        graph_heads: PositiveInt = 2
        # deviation of the random entity table at the start, times sqrt(N)
        entity_scale: NonNegativeFloat = 1.0
        layers: PositiveInt = 1
        heads: PositiveInt = 1
        feedforward: NonNegativeInt = 400  # 0: none (FB15K in the released settings)
        dropout: Probability = 0.1
        meta: Meta = "received"
        temperature: PositiveFloat = 0.1
        contrast_form: Form = "half_sum"
        weighting: Literal["learnt", "equal"] = "learnt"
        regulariser: Regulariser = "released"  # the paper prints no weights at all

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.views = chosen_views(config.views, data)
        self.encoder = EntityEncoder(
            data,
            self.views,
            graph_hidden=config.hidden,
            hidden=config.hidden,
            layers=config.graph_layers,
            heads=config.graph_heads,
            graph=config.graph,
            entity_scale=config.entity_scale,
        )
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
        self.view_weights: Uncertainty | None = None
        if config.weighting == "learnt":
            self.view_weights = Uncertainty(self.views, config.regulariser)

    def forward(self, batch: EntityGraph) -> Output:
        # in training nobody asks for the entities without a link
        links_only = self.training or batch.links_only
        views, present = self.encoder(batch, batch.links if links_only else None)
        tokens = torch.stack([views[view] for view in self.views], dim=-2)  # (..., M, D)
        has = torch.stack([present[view] for view in self.views], dim=-1)  # (..., M)
        late = tokens
        for layer in self.layers:
            late, attention = layer(late, has)
        weights = meta_weights(attention, has, self.config.meta)  # (..., M)
        joint = unit_rows((weights.unsqueeze(-1) * unit_rows(tokens)).flatten(-2))  # early fusion
        return Output(
            joint=joint,
            views=views,
            present=present,
            links=None if links_only else batch.links,
            late=dict(zip(self.views, late.unbind(-2), strict=True)),
            weights=weights,
        )

    def losses(self, output: Output, batch: EntityGraph) -> dict[str, Tensor]:
        return {}  # every loss needs the whole global batch

    def global_batch_rows(self, output: Output) -> GlobalBatchRows:
        embeddings = output.sides("joint", output.joint)
        for view in self.views:
            embeddings |= output.sides(f"early_{view}", output.views[view])
            embeddings |= output.sides(f"late_{view}", output.late[view])
        return GlobalBatchRows(embeddings, output.both_present())

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """ICL of the fused embedding, of every view, and of every view's token after attention."""
        losses = {"joint": self._contrast("joint", rows, weight)}
        for stage in ("early", "late"):
            by_view = {}
            for view in self.views:
                view_weight = weight * rows.present[view]
                by_view[view] = self._contrast(f"{stage}_{view}", rows, view_weight)
            weighted = self.view_weights(by_view) if self.view_weights else by_view
            for view, loss in weighted.items():
                losses[f"{stage}_{view}"] = loss
        return losses

    def _contrast(self, name: str, rows: GlobalBatchRows, weight: Tensor) -> Tensor:
        left, right = rows.embeddings[f"{name}/left"], rows.embeddings[f"{name}/right"]
        return self.icl(left, right, weight)

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
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.attention_dropout = SampleDropout(dropout, first_dropout + 1)
        self.out_dropout = SampleDropout(dropout, first_dropout + 2)
        self.feedforward_dropout = SampleDropout(dropout, first_dropout + 3)
        self.feedforward: nn.Module | None = None
        self.feedforward_norm: nn.Module | None = None
        if feedforward:
            self.feedforward = nn.Sequential(
                nn.Linear(width, feedforward),
                nn.GELU(),
                nn.Linear(feedforward, width),
            )
            self.feedforward_norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, tokens: Tensor, has: Tensor) -> tuple[Tensor, Tensor]:
        """Of (..., M, D) tokens and (..., M) bool: tokens after the layer, and attention.

        Attention is (..., heads, M, M) as applied, that is after dropout; row q is what view q
        gives to each view.
        """
        query = self._split_heads(self.query(tokens))  # (..., heads, M, D / heads)
        key = self._split_heads(self.key(tokens))
        value = self._split_heads(self.value(tokens))
        scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        absent = ~has[..., None, None, :]
        attention = self.attention_dropout(scores.masked_fill(absent, -1e9).softmax(-1))
        mixed = (attention @ value).transpose(-3, -2).flatten(-2)  # (..., M, D)
        tokens = self.norm(self.out_dropout(self.out(mixed)) + tokens)
        if self.feedforward is not None and self.feedforward_norm is not None:
            moved = self.feedforward_dropout(self.feedforward(tokens))
            tokens = self.feedforward_norm(moved + tokens)
        return tokens, attention

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)


def meta_weights(attention: Tensor, has: Tensor, meta: Meta = "received") -> Tensor:
    """(..., M) softmax of the attention each view receives over all heads, divided by sqrt(M *
    heads).

    Args:
        attention: (..., heads, M, M), rows are queries.
        has: (..., M) bool; a view that the entity lacks neither gives nor gets weight.
        meta: "printed" sums what a view gives, as the paper's formula says; its weights are all
            equal.
    """
    heads, num_views = attention.shape[-3], attention.shape[-1]
    if attention.dtype != torch.float64:
        attention = attention.float()
    if meta == "received":
        from_present = attention * has[..., None, :, None]  # queries that exist
        total = from_present.sum((-3, -2))
    else:
        total = attention.sum((-3, -1))
    scores = total / math.sqrt(num_views * heads)
    return F.softmax(scores.masked_fill(~has, -1e9), dim=-1) * has
