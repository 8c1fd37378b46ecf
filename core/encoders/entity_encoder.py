"""From the raw views of entities to one embedding per view: a graph network for "graph", a linear
map for others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from core.batch import EntityGraph
from core.encoders.graph_networks import GCN, DiagonalGAT
from core.model import Alignment, DataSpec
from core.names import suggest, unknown_names

GraphKind = Literal["gat", "gcn"]


@dataclass(frozen=True)
class Aligned(Alignment):
    """Embeddings of all N entities; or, in training and when asked, of the batch's pairs alone.

    Tensors are then (B, 2, D) in place of (N, D).
    """

    present: dict[str, Tensor]  # view -> (N,) or (B, 2) bool
    links: Tensor | None  # (B, 2) rows of the pairs; None where the rows already are pairs

    def pair_rows(self, rows: Tensor) -> Tensor:
        """(B, 2, ...) of the batch's pairs, from one of this output's tensors."""
        return rows if self.links is None else rows[self.links]

    def sides(self, name: str, rows: Tensor) -> dict[str, Tensor]:
        """The batch's pairs as the two (B, D) embeddings of ``GlobalBatchRows``, one for each
        side."""
        pairs = self.pair_rows(rows)  # (B, 2, D)
        return {f"{name}/left": pairs[:, 0], f"{name}/right": pairs[:, 1]}

    def both_present(self) -> dict[str, Tensor]:
        """View -> (B,) bool, True where both entities of the pair have it."""
        return {view: self.pair_rows(has).all(1) for view, has in self.present.items()}


def chosen_views(wanted: tuple[str, ...], data: DataSpec) -> tuple[str, ...]:
    """The views a model uses, in the one order that holds everywhere: all that the data have, or
    those wanted.

    Raises:
        ValueError: a wanted view that the data lack.
    """
    known = ("graph", *data.features)
    unknown = unknown_names(wanted, known)
    if unknown:
        raise ValueError(
            f"the data have no view {unknown[0]!r}; they have {', '.join(known)}: options.views=..."
            f"{suggest(unknown[0], known)}"
        )
    return tuple(view for view in known if not wanted or view in wanted)


class EntityEncoder(nn.Module):
    """One embedding per view and entity.

    Only what the entities asked for need is computed, exactly: their rows of the linear maps, and
    in the graph network their neighbourhoods. An entity that lacks a view gets a row of zeros there
    (MCLEA draws random features instead).

    ``entity_scale`` 1 is the table that the released codes begin with. What is random in it stays
    in the mean over an entity's neighbours: with less of it structure alone is learnt faster, other
    views beside it more slowly, and in the end it makes no difference.
    """

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
        self.views = views
        self.linear = nn.ModuleDict()
        for view in views:
            if view != "graph":
                self.linear[view] = nn.Linear(data.features[view], hidden)
        if "graph" in views:
            deviation = entity_scale / math.sqrt(data.num_train)
            self.entity = nn.Parameter(torch.randn(data.num_train, graph_hidden) * deviation)
            self.graph: nn.Module
            if graph == "gat":
                self.graph = DiagonalGAT(graph_hidden, layers, heads)
            else:
                self.graph = GCN(graph_hidden, layers)

    def forward(
        self, batch: EntityGraph, entities: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """View -> (*entities, D) embeddings, and view -> (*entities) bool presence; all N entities
        where None."""
        embeddings, present = {}, {}
        for view in self.views:
            if view == "graph":
                embeddings[view] = self._embed_graph(batch, entities)
                present[view] = _all_true(embeddings[view])
            else:
                raw, has = batch.views[view], batch.present[view]
                if entities is not None:
                    raw, has = raw[entities], has[entities]
                embeddings[view] = self.linear[view](raw) * has.unsqueeze(-1)
                present[view] = has
        return embeddings, present

    def _embed_graph(self, batch: EntityGraph, entities: Tensor | None) -> Tensor:
        # sums over hub entities need the digits that bfloat16 lacks
        with torch.autocast(batch.edges.device.type, enabled=False):
            rows: Tensor = self.graph(self.entity, batch.edges, entities)
        return rows


def _all_true(embedding: Tensor) -> Tensor:
    return torch.ones(embedding.shape[:-1], dtype=torch.bool, device=embedding.device)
