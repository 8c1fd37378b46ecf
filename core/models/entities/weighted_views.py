"""What models of entities share that put their views side by side, each scaled by a learnt share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.batch import EntityGraph
from core.encoders.entity_encoder import Aligned, EntityEncoder, GraphKind, chosen_views
from core.model import DataSpec, GlobalBatchRows, Model
from core.rows import unit_rows


class WeightedViews(Model[EntityGraph, Aligned]):
    """Views embedded apart, and their concatenation by learnt shares as the joint embedding.

    Args:
        views: those to read; empty: all that the data have.
        graph_hidden, hidden, layers, heads, graph, entity_scale: see ``EntityEncoder``.
    """

    detaches_views = False  # whether the loss of the joint embedding moves the shares alone

    def __init__(
        self,
        data: DataSpec,
        views: tuple[str, ...],
        *,
        graph_hidden: int,
        hidden: int,
        layers: int,
        heads: int,
        graph: GraphKind,
        entity_scale: float,
    ):
        super().__init__()
        self.views = chosen_views(views, data)
        self.encoder = EntityEncoder(
            data,
            self.views,
            graph_hidden=graph_hidden,
            hidden=hidden,
            layers=layers,
            heads=heads,
            graph=graph,
            entity_scale=entity_scale,
        )
        self.fusion = nn.Parameter(torch.ones(len(self.views)))

    def forward(self, batch: EntityGraph) -> Aligned:
        # in training nobody asks for the entities without a link
        links_only = self.training or batch.links_only
        views, present = self.encoder(batch, batch.links if links_only else None)
        share = self.fusion.softmax(0)
        weighted = []
        for number, view in enumerate(self.views):
            rows = views[view].detach() if self.detaches_views else views[view]
            weighted.append(share[number] * unit_rows(rows))
        joint = unit_rows(torch.cat(weighted, dim=-1))
        return Aligned(joint, views, present, links=None if links_only else batch.links)

    def losses(self, output: Aligned, batch: EntityGraph) -> dict[str, Tensor]:
        return {}  # every loss needs the whole global batch

    def global_batch_rows(self, output: Aligned) -> GlobalBatchRows:
        embeddings = output.sides("joint", output.joint)
        for view in self.views:
            embeddings |= output.sides(view, output.views[view])
        return GlobalBatchRows(embeddings, output.both_present())

    def report(self) -> dict[str, float]:
        """The share of each view."""
        shares = self.fusion.detach().softmax(0).tolist()
        return {f"fusion_{view}": share for view, share in zip(self.views, shares, strict=True)}
