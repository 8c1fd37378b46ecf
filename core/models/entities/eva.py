"""EVA: entity visual alignment (Liu et al., AAAI 2021, arXiv:2009.13603)."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor

from core.encoders.entity_encoder import GraphKind
from core.losses.entity_pairs import NCA
from core.model import DataSpec, GlobalBatchRows, TaskName
from core.models.entities.weighted_views import WeightedViews


class EVA(WeightedViews):
    """A graph convolution and linear maps embed each view, each learns by neighbourhood components,
    and learnt weights put the views together.

    The visual pivot of the paper, which needs no links, is ``task_options.seeds=image``: pairs that
    look alike take their place. Differences from the released code: the convolution keeps one width
    (there 400, 400, 200); wrong partners are those of the whole global batch; a pair that lacks a
    view stays out of that view's loss, and an entity without a view has zeros there instead of
    random features. As there, the loss of the joint embedding moves the weights alone
    (``detach_views=false`` lets it move the views too).
    """

    task: ClassVar[TaskName] = "alignment"

    @validated_dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = ()  # of those the data have; empty: all
        graph: GraphKind = "gcn"
        graph_hidden: PositiveInt = 400
        hidden: PositiveInt = 100  # of every other view
        layers: PositiveInt = 2
        heads: PositiveInt = 2  # of graph=gat
        # deviation of the random entity table at the start, times sqrt(N)
        entity_scale: NonNegativeFloat = 1.0
        graph_alpha: PositiveFloat = 5.0  # of the neighbourhood components of the graph's view
        alpha: PositiveFloat = 15.0  # of the other views' and of the joint embedding's
        beta: PositiveFloat = 10.0  # of the pair itself
        detach_views: bool = True  # the joint loss moves the views' weights alone

    def __init__(self, config: Config, data: DataSpec):
        super().__init__(
            data,
            config.views,
            graph_hidden=config.graph_hidden,
            hidden=config.hidden,
            layers=config.layers,
            heads=config.heads,
            graph=config.graph,
            entity_scale=config.entity_scale,
        )
        self.config = config
        self.detaches_views = config.detach_views
        self.of_graph = NCA(config.graph_alpha, config.beta)
        self.of_others = NCA(config.alpha, config.beta)

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """Of the joint embedding, and of each view over the pairs that have it."""
        sides = rows.embeddings
        losses = {"joint": self.of_others(sides["joint/left"], sides["joint/right"], weight)}
        for view in self.views:
            loss = self.of_graph if view == "graph" else self.of_others
            has_view = weight * rows.present[view]
            losses[view] = loss(sides[f"{view}/left"], sides[f"{view}/right"], has_view)
        return losses
