"""GCN-Align (Wang et al., EMNLP 2018, D18-1032): graph convolutions over structure and over
attributes, learnt by a margin."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor, nn

from core.batch import EntityGraph
from core.encoders.entity_encoder import Aligned, chosen_views
from core.encoders.graph_networks import GCN
from core.losses.entity_pairs import Margin
from core.model import DataSpec, GlobalBatchRows, Model, TaskName
from core.rows import unit_rows

READ = ("graph", "attribute")  # the views that the model knows


class GCNAlign(Model[EntityGraph, Aligned]):
    """Two convolutions, whose weights both graphs share: one over a learnt vector of each entity,
    one over its attributes.

    Differences from the released code: entities are compared by rows of length one, since ranking
    is by cosine, so a distance is the sum of absolute differences of those; the two are put
    together by ``share`` of the squared length; wrong partners are all those of the global batch,
    where five random ones were drawn; every edge counts alike, where relations that tell much
    count more; data without attributes have the structure alone. An entity without attributes
    has those of its neighbours.
    """

    task: ClassVar[TaskName] = "alignment"

    @validated_dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = ()  # graph, attribute or both; empty: those the data have
        graph_hidden: PositiveInt = 200
        attribute_hidden: PositiveInt = 100
        layers: PositiveInt = 2
        margin: PositiveFloat = 3.0
        # of the structure in the joint embedding, the rest is the attributes'
        share: Annotated[float, Field(gt=0, lt=1)] = 0.9
        # deviation of the random entity table at the start, times sqrt(N)
        entity_scale: NonNegativeFloat = 1.0

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        known = tuple(view for view in READ if view == "graph" or view in data.features)
        unread = [view for view in config.views if view in data.features and view not in READ]
        if unread:
            raise ValueError(
                f"gcn_align reads graph and attribute, not {unread[0]}: options.views=..."
            )
        self.views = chosen_views(config.views or known, data)
        self.share = {"graph": config.share, "attribute": 1 - config.share}
        self.encoders = nn.ModuleDict()
        if "graph" in self.views:
            self.encoders["graph"] = Structure(config, data)
        if "attribute" in self.views:
            self.encoders["attribute"] = Attributes(config, data)
        self.apart = Margin(config.margin)

    def forward(self, batch: EntityGraph) -> Aligned:
        # in training nobody asks for the entities without a link
        links_only = self.training or batch.links_only
        entities = batch.links if links_only else None
        views = {view: encoder(batch, entities) for view, encoder in self.encoders.items()}
        present = {}
        for view, rows in views.items():
            present[view] = torch.ones(rows.shape[:-1], dtype=torch.bool, device=rows.device)
        weighted = [math.sqrt(self.share[view]) * unit_rows(rows) for view, rows in views.items()]
        joint = unit_rows(torch.cat(weighted, dim=-1))
        return Aligned(joint, views, present, links=None if links_only else batch.links)

    def losses(self, output: Aligned, batch: EntityGraph) -> dict[str, Tensor]:
        return {}  # every loss needs the whole global batch

    def global_batch_rows(self, output: Aligned) -> GlobalBatchRows:
        embeddings: dict[str, Tensor] = {}
        for view in self.views:
            embeddings |= output.sides(view, output.views[view])
        return GlobalBatchRows(embeddings)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """The margin's loss of each view: the two are learnt apart."""
        sides = rows.embeddings
        losses = {}
        for view in self.views:
            losses[view] = self.apart(sides[f"{view}/left"], sides[f"{view}/right"], weight)
        return losses


class Structure(nn.Module):
    """A learnt vector of each entity, and convolutions over them.

    The table is this module's and not the whole model's own: ZeRO-3 does not gather the latter's
    parameters for the backward pass.
    """

    def __init__(self, config: GCNAlign.Config, data: DataSpec):
        super().__init__()
        deviation = config.entity_scale / math.sqrt(data.num_train)
        self.entity = nn.Parameter(torch.randn(data.num_train, config.graph_hidden) * deviation)
        self.convolve = GCN(config.graph_hidden, config.layers)

    def forward(self, batch: EntityGraph, entities: Tensor | None) -> Tensor:
        """(*entities, D), or (N, D) of all."""
        return convolved(self.convolve, self.entity, batch, entities)


class Attributes(nn.Module):
    """Attributes through a linear map, and convolutions over them."""

    def __init__(self, config: GCNAlign.Config, data: DataSpec):
        super().__init__()
        width = config.attribute_hidden
        self.first = nn.Linear(data.features["attribute"], width, bias=False)
        self.convolve = GCN(width, config.layers)

    def forward(self, batch: EntityGraph, entities: Tensor | None) -> Tensor:
        """(*entities, D), or (N, D) of all."""
        bags = batch.views["attribute"] * batch.present["attribute"].unsqueeze(-1)
        return convolved(self.convolve, self.first(bags).float(), batch, entities)


def convolved(
    network: nn.Module, features: Tensor, batch: EntityGraph, entities: Tensor | None
) -> Tensor:
    """Sums over hub entities need the digits that bfloat16 lacks."""
    with torch.autocast(batch.edges.device.type, enabled=False):
        rows: Tensor = network(features, batch.edges, entities)
    return rows
