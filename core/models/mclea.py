"""MCLEA: multi-modal contrastive entity alignment (Lin et al., COLING 2022, arXiv:2209.00891).

Differences from the released code, each with a field that brings it back:
the KL term is the true mean and has its own weight (``inter_scale="released"``), the regulariser of the loss weights
is log alpha (``regulariser="released"``), absent views add nothing, an entity without a view has zeros there instead
of random features, and negatives come from the whole global batch.
The paper's logarithm of the averaged direction is ``contrast_form="log_mean"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from core.batch import EntityGraph
from core.encoders.entity_encoder import (
    Aligned,
    EntityEncoder,
    GraphKind,
    chosen_views,
    side_rows,
    unit_rows,
)
from core.losses.info_nce import ICL, Form
from core.losses.inter_modal import IAL, Scale
from core.losses.uncertainty import Regulariser, Uncertainty
from core.model import DataSpec, Model


class MCLEA(Model[EntityGraph, Aligned]):
    """Views are embedded apart, contrasted apart, drawn towards their weighted concatenation, and contrasted there."""

    task: ClassVar[str] = "alignment"

    @dataclass(frozen=True)
    class Config:
        views: tuple[str, ...] = ()  # of those the data have; empty: all
        graph: GraphKind = "gat"
        graph_hidden: int = 300
        hidden: int = 100  # of every other view
        layers: int = 2
        heads: int = 2
        entity_scale: float = (
            1.0  # deviation of the random entity table at the start, times sqrt(N)
        )
        temperature: float = 0.1  # tau_1, within views
        inter_temperature: float = 4.0  # tau_2, between a view and the joint embedding
        inter_weight: float = 1.0  # lambda of the KL terms
        inter_scale: Scale = "mean"
        contrast_form: Form = "half_sum"
        regulariser: Regulariser = "paper"

    def __init__(self, config: Config, data: DataSpec):
        super().__init__()
        self.config = config
        self.views = chosen_views(config.views, data)
        self.encoder = EntityEncoder(
            data, self.views, graph_hidden=config.graph_hidden, hidden=config.hidden, layers=config.layers,
            heads=config.heads, graph=config.graph, entity_scale=config.entity_scale,
        )  # fmt: skip
        self.fusion = nn.Parameter(torch.ones(len(self.views)))
        self.icl = ICL(config.temperature, form=config.contrast_form)
        self.ial = IAL(config.inter_temperature, scale=config.inter_scale)
        self.intra_weights = Uncertainty(self.views, config.regulariser)  # 1 / alpha^2
        self.inter_weights = Uncertainty(self.views, config.regulariser)  # 1 / beta^2

    def forward(self, batch: EntityGraph) -> Aligned:
        only = (
            self.training or batch.links_only
        )  # while training nobody asks for the other entities
        views, present = self.encoder(batch, batch.links if only else None)
        share = self.fusion.softmax(0)
        parts = [share[m] * unit_rows(views[view]) for m, view in enumerate(self.views)]
        joint = unit_rows(torch.cat(parts, dim=-1))
        return Aligned(joint, views, present, links=None if only else batch.links)

    def losses(self, output: Aligned, batch: EntityGraph) -> dict[str, Tensor]:
        return {}  # every loss needs the whole global batch

    def global_batch_rows(self, output: Aligned) -> dict[str, Tensor]:
        rows = side_rows("joint", output.pairs(output.joint))
        for view in self.views:
            rows |= side_rows(view, output.pairs(output.views[view]))
            both = output.pairs(output.present[view]).all(1, keepdim=True)  # (B, 1)
            rows[f"{view}/present"] = both.to(rows["joint/left"].dtype)
        return rows

    def global_batch_losses(
        self, embeddings: Mapping[str, Tensor], label: Tensor, weight: Tensor
    ) -> dict[str, Tensor]:
        """ICL of the joint embedding, and per view the weighted ICL and IAL; pairs that lack a view stay out of it."""
        joint = embeddings["joint/left"], embeddings["joint/right"]
        intra, inter = {}, {}
        for view in self.views:
            pair = embeddings[f"{view}/left"], embeddings[f"{view}/right"]
            takes_part = weight * embeddings[f"{view}/present"].squeeze(1)
            intra[view] = self.icl(*pair, takes_part)
            if self.config.inter_weight:
                inter[view] = self.config.inter_weight * self.ial(pair, joint, takes_part)
        losses = {"joint": self.icl(*joint, weight)}
        losses |= {f"intra_{view}": loss for view, loss in self.intra_weights(intra).items()}
        return losses | {f"inter_{view}": loss for view, loss in self.inter_weights(inter).items()}

    def report(self) -> dict[str, float]:
        share = self.fusion.detach().softmax(0).tolist()
        return {f"fusion_{view}": part for view, part in zip(self.views, share, strict=True)} | {
            f"intra_weight_{view}": value for view, value in self.intra_weights.weights().items()
        }
