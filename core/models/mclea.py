"""MCLEA: multi-modal contrastive entity alignment (Lin et al., COLING 2022, arXiv:2209.00891).

Differences from the released code, each with a field that brings it back:
the KL term is the true mean and has its own weight (``inter_scale="released"``), the regulariser of
the loss weights is log alpha (``regulariser="released"``), absent views add nothing, an entity
without a view has zeros there instead of random features, and negatives come from the whole global
batch. The paper's logarithm of the averaged direction is ``contrast_form="log_mean"``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass as validated_dataclass
from torch import Tensor

from core.encoders.entity_encoder import GraphKind
from core.losses.info_nce import ICL, Form
from core.losses.inter_modal import IAL, Scale
from core.losses.uncertainty import Regulariser, Uncertainty
from core.model import DataSpec, GlobalBatchRows, TaskName
from core.models.entities.weighted_views import WeightedViews


class MCLEA(WeightedViews):
    """Views are embedded apart, contrasted apart, drawn towards their weighted concatenation, and
    contrasted there."""

    task: ClassVar[TaskName] = "alignment"

    @validated_dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = ()  # of those the data have; empty: all
        graph: GraphKind = "gat"
        graph_hidden: PositiveInt = 300
        hidden: PositiveInt = 100  # of every other view
        layers: PositiveInt = 2
        heads: PositiveInt = 2
        # deviation of the random entity table at the start, times sqrt(N)
        entity_scale: NonNegativeFloat = 1.0
        temperature: PositiveFloat = 0.1  # tau_1, within views
        inter_temperature: PositiveFloat = 4.0  # tau_2, between a view and the joint embedding
        inter_weight: NonNegativeFloat = 1.0  # lambda of the KL terms
        inter_scale: Scale = "mean"
        contrast_form: Form = "half_sum"
        regulariser: Regulariser = "paper"

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
        self.icl = ICL(config.temperature, form=config.contrast_form)
        self.ial = IAL(config.inter_temperature, scale=config.inter_scale)
        self.intra_weights = Uncertainty(self.views, config.regulariser)  # 1 / alpha^2
        self.inter_weights = Uncertainty(self.views, config.regulariser)  # 1 / beta^2

    def global_batch_losses(
        self, rows: GlobalBatchRows, target: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """ICL of the joint embedding, and per view the weighted ICL and IAL; pairs that lack a view
        stay out of it."""
        joint = rows.embeddings["joint/left"], rows.embeddings["joint/right"]
        intra, inter = {}, {}
        for view in self.views:
            pair = rows.embeddings[f"{view}/left"], rows.embeddings[f"{view}/right"]
            view_weight = weight * rows.present[view]
            intra[view] = self.icl(*pair, view_weight)
            if self.config.inter_weight:
                inter[view] = self.config.inter_weight * self.ial(pair, joint, view_weight)
        losses = {"joint": self.icl(*joint, weight)}
        for view, loss in self.intra_weights(intra).items():
            losses[f"intra_{view}"] = loss
        for view, loss in self.inter_weights(inter).items():
            losses[f"inter_{view}"] = loss
        return losses

    def report(self) -> dict[str, float]:
        numbers = super().report()
        for view, weight in self.intra_weights.weights().items():
            numbers[f"intra_weight_{view}"] = weight
        return numbers
